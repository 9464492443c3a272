"""Races that workers ask, by a script and without Ray: the same bytes as in one process."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from experiments.scoring.distributed.on_ray import RayRaceClient
from experiments.setup.asking import Answer
from tests.experiments.scoring.test_fleet import Call, Scripted, fleet_of
from tests.experiments.scoring.test_racing_evaluation import RULES, Asking, go
from tests.search.loop.test_loop import Killed, content

SLOTS = (0, 3, 4)


@dataclass
class Questioned(Scripted):
    """Its workers answer by formula; some candidates fail."""

    asking: Asking = field(default_factory=Asking)

    def answer(self, call: Call) -> Answer:
        genome, slots = call.arguments
        return self.asking.answer(np.array(genome), slots)


def relayed(cluster: Scripted, size: int) -> Callable[[Sequence[Any]], RayRaceClient]:
    return partial(RayRaceClient, fleet_of(cluster, size), lambda genome: genome.tolist())


def asks(cluster: Scripted) -> list[tuple[int, float]]:
    return [(c.worker, c.arguments[0][0]) for c in cluster.calls if c.method == "ask"]


@pytest.mark.parametrize("name", RULES)
@pytest.mark.parametrize("size", [1, 3, 9])
def test_the_same_bytes_as_in_one_process(tmp_path: Path, name: str, size: int) -> None:
    own = Asking()
    result = go(tmp_path / "own", RULES[name], own)
    assert any(record.failure == "out of memory" for record in result.records)
    rng = np.random.default_rng(size)
    cluster = Questioned(choose=lambda calls: calls[int(rng.integers(len(calls)))])
    go(tmp_path / "workers", RULES[name], relayed(cluster, size))
    assert content(tmp_path / "workers") == content(tmp_path / "own")
    assert sorted(map(repr, cluster.asking.asked)) == sorted(map(repr, own.asked))
    assert len({worker for worker, _ in asks(cluster)}) > size // 2


def test_what_a_dead_worker_was_asked_another_answers(tmp_path: Path) -> None:
    rule = RULES["halving"]
    go(tmp_path / "own", rule, Asking())
    cluster = Questioned(fate=lambda call: "dies" if call.number % 5 == 3 else "well")
    go(tmp_path / "workers", rule, relayed(cluster, 2))
    assert cluster.workers > 6
    assert content(tmp_path / "workers") == content(tmp_path / "own")


def test_who_holds_a_candidate_is_asked_for_it_again() -> None:
    cluster = Questioned()
    ask = relayed(cluster, 3)([np.full(3, number / 20) for number in range(6)])
    ask(range(6), SLOTS)
    assert [worker for worker, _ in asks(cluster)[3:]] == [0, 1, 2]
    ask([0, 4, 3], SLOTS)  # 4 and 3 are held, by workers 1 and 0; 0 goes to the one that is left
    assert asks(cluster)[6:] == [(0, 3 / 20), (1, 4 / 20), (2, 0.0)]
    ask([0, 1, 2, 3, 4, 5], SLOTS)
    assert asks(cluster)[9:12] == [(2, 0.0), (0, 3 / 20), (1, 4 / 20)]


def test_nobody_waits_for_who_holds_it() -> None:
    """Worker 0 is busy with a candidate that is not wanted any more, and holds the wanted one."""
    cluster = Questioned(choose=lambda calls: max(calls, key=lambda c: c.number))
    fleet = fleet_of(cluster, 2)
    ask = RayRaceClient(fleet, lambda genome: genome.tolist(), [np.zeros(3), np.full(3, 0.1)])
    ask([0, 1], SLOTS)
    held = {genome: worker for worker, genome in asks(cluster)}
    fleet.submit("ask", [0.0, 0.0, 0.0], SLOTS, about=[0.0, 0.0, 0.0])
    fleet.drop()
    ask([0], SLOTS)
    assert asks(cluster)[-1] == (held[0.1], 0.0)


def test_a_new_worker_holds_nothing() -> None:
    cluster = Questioned(fate=lambda call: "dies" if call.number == 4 else "well")
    fleet = fleet_of(cluster, 2)
    ask = RayRaceClient(fleet, lambda genome: genome.tolist(), [np.zeros(3), np.full(3, 0.1)])
    ask([0, 1], SLOTS)
    assert fleet.holds([0.0, 0.0, 0.0])
    ask([0], SLOTS)  # dies: the other one answers
    assert asks(cluster)[2:] == [(0, 0.0), (1, 0.0)]
    assert not fleet.holds([0.1, 0.1, 0.1])


def test_an_interrupted_stage_leaves_nothing_behind() -> None:
    cluster = Questioned(asking=Asking(kill_at=1))
    ask = relayed(cluster, 2)([np.full(3, number / 20) for number in range(4)])
    with pytest.raises(Killed):
        ask(range(4), SLOTS)
    cluster.asking.kill_at = None
    assert ask([2], SLOTS).keys() == {2}
    assert [genome for _, genome in asks(cluster)].count(3 / 20) == 0
