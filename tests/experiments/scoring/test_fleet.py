"""The fleet without Ray: workers that die, refuse, hang or come late, by a script."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from evaluators.evaluator import Score
from evaluators.requests import TransientFailure
from experiments.runs.errors import UserError
from experiments.scoring.distributed.fleet import Fleet, WorkerLost
from experiments.scoring.distributed.on_ray import RayPool
from experiments.setup.execution import WorkerSpec
from search.loop.evaluation import Batch, Evaluated, batches
from search.loop.pool import run_all

ORDER = WorkerSpec("seed: 0", None, "b", {"a": "c"}, {"t": "d"}, "/nowhere", "cpu", 1)


@dataclass
class Call:
    worker: int
    method: str
    arguments: tuple[Any, ...]
    number: int


@dataclass
class Scripted:
    """Ends one call at every look, chosen by `choose`; `fate` says what becomes of it."""

    fate: Callable[[Call], str] = lambda call: "well"
    choose: Callable[[list[Call]], Call] = lambda calls: min(calls, key=lambda c: c.number)
    seconds: float = 0.0
    calls: list[Call] = field(default_factory=list)
    stopped: list[int] = field(default_factory=list)
    workers: int = 0

    def start(self) -> int:
        self.workers += 1
        return self.workers - 1

    def call(self, worker: int, method: str, *arguments: Any) -> Call:
        self.calls.append(Call(worker, method, arguments, len(self.calls)))
        return self.calls[-1]

    def wait(self, references: Sequence[Call], seconds: float) -> list[Call]:
        able = [call for call in references if self.fate(call) != "hangs"]
        self.seconds += 0.01 if able else seconds
        return [self.choose(able)] if able else []

    def result(self, call: Call) -> Any:
        fate = self.fate(call)
        if fate == "dies":
            raise WorkerLost("the process was killed")
        if fate == "has no memory":
            raise TransientFailure("out of memory")
        if call.method == "prepare":
            refused = None if fate == "well" else fate
            return {"host": f"node{call.worker}", "pid": 100 + call.worker, "refused": refused}
        return self.answer(call)

    def answer(self, call: Call) -> Any:
        genomes, generation = call.arguments
        return [scored_alone(genome, generation) for genome in genomes]

    def stop(self, worker: int) -> None:
        self.stopped.append(worker)

    def describe(self) -> str:
        return "each asks for 1 CPUs; nodes with 1 CPUs"


@dataclass
class Slow(Scripted):
    """Calls that take time, by the number of their genomes."""

    seconds_each: float = 0.0
    begun: dict[int, float] = field(default_factory=dict)

    def call(self, worker: int, method: str, *arguments: Any) -> Call:
        call = super().call(worker, method, *arguments)
        self.begun[call.number] = self.seconds
        return call

    def wait(self, references: Sequence[Call], seconds: float) -> list[Call]:
        done = [call for call in references if self._ends(call) <= self.seconds]
        self.seconds += 0.0 if done else seconds
        return done

    def _ends(self, call: Call) -> float:
        genomes = len(call.arguments[0]) if call.method == "score" else 0
        return self.begun[call.number] + self.seconds_each * genomes


def scored_alone(genome: float, generation: int) -> Evaluated:
    cases = np.array([genome / 3, float(generation)])
    score = Score(float(cases.sum()) / 2, cases, None, (0.0, 1.0))
    return Evaluated({"t/x": score}, None, 0.5)


def fleet_of(cluster: Scripted, size: int = 2, **options: Any) -> Fleet:
    limits = {"wait_s": 30, "candidate_s": 100, **options}
    fleet = Fleet(cluster, size, clock=lambda: cluster.seconds, **limits)
    fleet.use(ORDER)
    return fleet


def scores(found: Sequence[Evaluated]) -> list[float]:
    return [each.scores["t/x"].value for each in found]


def spread(fleet: Fleet, generation: int = 2, first: int = 0, size: int = 1) -> list[float]:
    """Scores the batches of seven genomes that have one from `first` on."""
    tasks = [Batch([float(i) for i in batch], generation) for batch in batches(7, size, first)]
    results = run_all(RayPool(fleet, lambda genome: genome), tasks)
    return scores([one for several in results for one in several])


EXPECTED = [(i / 3 + 2.0) / 2 for i in range(7)]


def scored(cluster: Scripted) -> list[tuple[int, list[float]]]:
    return [(c.worker, c.arguments[0]) for c in cluster.calls if c.method == "score"]


@pytest.mark.parametrize("size", [1, 2, 3, 9])
@pytest.mark.parametrize("last", [True, False])
def test_results_come_in_the_order_of_the_genomes(size: int, last: bool) -> None:
    cluster = Scripted(choose=lambda calls: sorted(calls, key=lambda c: c.number)[-last])
    fleet = fleet_of(cluster, size)
    assert spread(fleet) == EXPECTED
    assert spread(fleet, first=3) == EXPECTED[3:]
    assert len(scored(cluster)) == 7 + 4
    if size == 3 and not last:
        assert len({worker for worker, _ in scored(cluster)}) == 3


def test_what_is_scored_together_travels_together() -> None:
    """Borders stay where they are when an earlier session has written part of a batch."""
    cluster = Scripted()
    fleet = fleet_of(cluster)
    assert spread(fleet, size=3) == EXPECTED
    assert spread(fleet, size=3, first=4) == EXPECTED[3:]
    whole = [[0.0, 1.0, 2.0], [3.0, 4.0, 5.0], [6.0]]
    assert [each for _, each in scored(cluster)] == [*whole, *whole[1:]]


def test_what_a_dead_worker_did_is_done_by_another(caplog: pytest.LogCaptureFixture) -> None:
    """Some calls end with their worker's death, preparations included."""
    caplog.set_level(logging.INFO)
    cluster = Scripted(fate=lambda call: "dies" if call.number in (1, 4, 5, 9, 12) else "well")
    assert spread(fleet_of(cluster)) == EXPECTED
    assert cluster.workers > 4
    assert len(cluster.stopped) == cluster.workers - 2
    assert "is lost: the process was killed; a new one is started" in caplog.text


def test_what_is_behind_is_not_worked_on_and_late_answers_are_not_mixed_up() -> None:
    cluster = Scripted()
    fleet = fleet_of(cluster, 3)
    pool = RayPool(fleet, lambda genome: genome)
    for i in range(7):
        pool.submit(Batch([float(i)], 2))
    assert scores(pool.next()[1]) == EXPECTED[:1]
    pool.drop()
    assert spread(fleet, generation=4) == [(i / 3 + 4.0) / 2 for i in range(7)]
    fleet.submit("score", [1.0], 1)
    fleet.use(ORDER)
    assert spread(fleet) == EXPECTED


def test_every_place_has_a_candidate_of_its_own() -> None:
    cluster = Scripted()
    pool = RayPool(fleet_of(cluster, 3), lambda genome: genome)
    assert pool.size == 3
    tickets = {pool.submit(Batch([float(i)])): float(i) for i in range(3)}
    for _ in range(5):
        ticket, evaluated = pool.next()
        genome = tickets.pop(ticket)
        assert scores(evaluated) == [genome / 6]
        tickets[pool.submit(Batch([genome + 10]))] = genome + 10


def test_a_node_that_lacks_a_file_is_refused_by_name() -> None:
    lacks = "/models/base does not exist; expected a checkpoint directory"
    cluster = Scripted(fate=lambda call: lacks if call.worker == 1 else "well")
    fleet = fleet_of(cluster)
    with pytest.raises(UserError, match=f"worker 1 on node node1 cannot start: {lacks}"):
        spread(fleet)


def test_a_replacement_on_a_node_that_lacks_a_file_is_done_without(
    caplog: pytest.LogCaptureFixture,
) -> None:
    def fate(call: Call) -> str:
        if call.worker > 1:
            return "/models/base does not exist"
        return "dies" if (call.worker, call.method) == (1, "score") else "well"

    fleet = fleet_of(Scripted(fate))
    assert spread(fleet) == EXPECTED
    assert fleet.size == 1
    assert "on node node2 cannot start: /models/base does not exist; going on with 1" in (
        caplog.text
    )
    with pytest.raises(UserError, match="worker 0 on node node2 cannot start: /models/base"):
        spread(fleet_of(Scripted(lambda call: "dies" if call.number == 1 else fate(call)), size=1))


def test_no_worker_within_the_time_is_an_error_that_says_what_there_is() -> None:
    cluster = Scripted(fate=lambda call: "hangs")
    expected = r"no worker was ready within 30 s \(each asks for 1 CPUs; nodes with 1 CPUs\): ask"
    with pytest.raises(UserError, match=expected):
        spread(fleet_of(cluster))
    assert 30 < cluster.seconds < 33


def test_a_worker_without_a_place_is_not_waited_for(caplog: pytest.LogCaptureFixture) -> None:
    cluster = Scripted(fate=lambda call: "hangs" if call.worker == 1 else "well")
    assert spread(fleet_of(cluster)) == EXPECTED
    assert cluster.seconds < 1


def test_a_worker_that_hangs_is_replaced(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    cluster = Scripted(
        fate=lambda call: "hangs" if call.worker == 0 and call.method == "score" else "well"
    )
    assert spread(fleet_of(cluster, 1)) == EXPECTED
    assert "worker 0 (pid 100 on node0) is lost: no answer for 100 s" in caplog.text
    assert "1 of 1 workers are ready (each asks" in caplog.text
    assert cluster.stopped == [0]


def test_the_limit_is_a_candidates_own_however_many_are_scored_together() -> None:
    """Units of 16 that take 90 s a candidate, under a limit of 100 s a candidate."""
    cluster = Slow(seconds_each=90.0)
    tasks = [Batch([float(i) for i in range(first, first + 16)], 2) for first in (0, 16)]
    found = run_all(RayPool(fleet_of(cluster, 2), lambda genome: genome), tasks)
    assert scores([*found[0], *found[1]]) == [(i / 3 + 2.0) / 2 for i in range(32)]
    assert not cluster.stopped
    cluster = Slow(seconds_each=110.0)
    with pytest.raises(UserError, match="cost 5 workers, the last: no answer for 1600 s"):
        run_all(RayPool(fleet_of(cluster, 2), lambda genome: genome), tasks)


def test_a_worker_that_can_score_nothing_now_is_replaced() -> None:
    def fate(call: Call) -> str:
        return "has no memory" if call.worker == 0 and call.method == "score" else "well"

    cluster = Scripted(fate=fate)
    assert spread(fleet_of(cluster, 2)) == EXPECTED
    assert cluster.stopped == [0]


def test_a_candidate_that_kills_its_workers_ends_the_search() -> None:
    cluster = Scripted(
        fate=lambda call: "dies" if call.arguments and call.arguments[0] == [3.0] else "well"
    )
    with pytest.raises(UserError, match="a candidate has cost 5 workers, the last: the"):
        spread(fleet_of(cluster))


def test_workers_that_die_before_they_are_ready_end_the_search() -> None:
    cluster = Scripted(fate=lambda call: "dies")
    with pytest.raises(UserError, match=r"lost 5 times before it was ready, .*must be installed"):
        spread(fleet_of(cluster))


def test_closing_ends_all_workers() -> None:
    cluster = Scripted()
    fleet = fleet_of(cluster, 3)
    assert spread(fleet) == EXPECTED
    assert set(fleet.processes.values()) == {f"pid {100 + i} on node{i}" for i in range(3)}
    fleet.close()
    assert cluster.stopped == [0, 1, 2]
    assert not fleet.processes
