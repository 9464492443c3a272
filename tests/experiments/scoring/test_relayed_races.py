"""Races that workers ask, by a script and without Ray: the same bytes as in one process."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from experiments.scoring.asking import Answer, Question
from experiments.scoring.distributed.on_ray import RayPool
from search.loop.pool import run_all
from tests.experiments.scoring.test_fleet import Call, Scripted, fleet_of
from tests.experiments.scoring.test_racing_evaluation import RULES, Asking, go
from tests.search.loop.test_loop import Killed, content

REQUESTS = (0, 3, 4)


@dataclass
class Questioned(Scripted):
    """Its workers answer by formula; some candidates fail."""

    asking: Asking = field(default_factory=Asking)

    def answer(self, call: Call) -> Answer:
        genome, requests = call.arguments
        return self.asking.answer(np.array(genome), requests)


def relayed(cluster: Scripted, size: int) -> RayPool:
    return RayPool(fleet_of(cluster, size), lambda genome: genome.tolist())


def ask(pool: RayPool, *numbers: int) -> list[Answer]:
    return run_all(pool, [Question(np.full(3, number / 20), REQUESTS) for number in numbers])


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
    pool = relayed(cluster, 3)
    ask(pool, *range(6))
    assert [worker for worker, _ in asks(cluster)[3:]] == [0, 1, 2]
    ask(pool, 0, 3, 4)  # 3 and 4 are held, by workers 0 and 1; 0 goes to the one that is left
    assert asks(cluster)[6:] == [(0, 3 / 20), (1, 4 / 20), (2, 0.0)]
    ask(pool, *range(6))
    assert asks(cluster)[9:12] == [(2, 0.0), (0, 3 / 20), (1, 4 / 20)]


def test_nobody_waits_for_who_holds_it() -> None:
    """One worker holds the wanted candidate, and is busy with what is not wanted any more."""
    cluster = Questioned(choose=lambda calls: max(calls, key=lambda c: c.number))
    pool = relayed(cluster, 2)
    ask(pool, 0, 2)
    held = {genome: worker for worker, genome in asks(cluster)}
    for number in (0, 2):
        pool.submit(Question(np.full(3, number / 20), REQUESTS))
    pool.next()  # the answer about 2: it was asked last
    pool.drop()
    ask(pool, 0)
    assert asks(cluster)[-1] == (held[0.1], 0.0)


def test_a_new_worker_holds_nothing() -> None:
    cluster = Questioned(fate=lambda call: "dies" if call.number == 4 else "well")
    fleet = fleet_of(cluster, 2)
    pool = RayPool(fleet, lambda genome: genome.tolist())
    ask(pool, 0, 2)
    ask(pool, 0)  # dies: the other one answers
    assert asks(cluster)[2:] == [(0, 0.0), (1, 0.0)]
    ask(pool, 1, 2, 0)  # nobody holds 2 any more: what is held comes first
    assert asks(cluster)[4] == (1, 0.0)


def test_an_interrupted_stage_leaves_nothing_behind() -> None:
    cluster = Questioned(asking=Asking(kill_at=1))
    pool = relayed(cluster, 2)
    with pytest.raises(Killed):
        ask(pool, *range(4))
    pool.drop()
    cluster.asking.kill_at = None
    assert len(ask(pool, 2)) == 1
    assert [genome for _, genome in asks(cluster)].count(3 / 20) == 0
