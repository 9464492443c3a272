"""The steady state: order of tells, repeats, budgets, kills at every tell, other places."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.requests import EvaluationError
from merging.arrays import Vector
from search.loop.evaluation import Batch, Evaluated
from search.loop.history import History, HistoryError, Record
from search.loop.pool import run_all
from search.loop.session import Budget, SearchFailed, SearchResult
from search.loop.steady_state import SteadyStrategy, check_steady, search_steadily
from search.populations.archives import CycleQD
from search.populations.fronts import Fronts
from search.populations.population import Truncation
from search.strategies.crossover import GeneticAlgorithm
from search.strategies.grid import GridSearch
from search.strategies.model_swarms import ModelSwarms
from search.strategies.nevergrad_optimizer import NevergradStrategy
from search.strategies.random_search import RandomSearch
from search.strategy import Candidate, Outcome
from tests.search.loop.test_loop import (
    AXES,
    OBJECTIVE,
    Faulty,
    Killed,
    cma,
    content,
    pool_of,
    run,
    score,
    summary,
)
from tests.search.strategies.lineages import Problem

EVALUATIONS = 17


class Shuffled:
    """A pool whose order of completion depends on what it works on alone; may be killed."""

    def __init__(
        self,
        size: int,
        kill_at: int | None = None,
        inner: Callable[[Any], Any] = score,
        weight: Callable[[Any], float] = lambda genome: float(np.sin(1e4 * np.sum(genome))),
    ) -> None:
        self.size, self.kill_at, self.weight = size, kill_at, weight
        self.inner = pool_of(inner)
        self.waiting: dict[int, Any] = {}
        self.submitted: list[Any] = []
        self.most = self.given = 0

    def submit(self, task: Batch[Any]) -> int:
        (genome,) = task.genomes
        self.submitted.append(genome)
        self.waiting[len(self.submitted)] = genome
        self.most = max(self.most, len(self.waiting))
        return len(self.submitted)

    def next(self) -> tuple[int, list[Evaluated]]:
        if self.given == self.kill_at:
            raise Killed
        self.given += 1
        ticket = min(self.waiting, key=lambda each: self.weight(self.waiting[each]))
        return ticket, scored(self.inner, self.waiting.pop(ticket))


def scored(pool: Any, genome: Any) -> list[Evaluated]:
    (found,) = run_all(pool, [Batch([genome])])
    return list(found)


def go(
    directory: Path,
    strategy: SteadyStrategy[Any],
    bench: Any,
    budget: Budget | None = None,
    **options: Any,
) -> SearchResult:
    directory.mkdir(exist_ok=True)
    return search_steadily(
        strategy,
        bench,
        OBJECTIVE,
        History(directory),
        budget or Budget(evaluations=EVALUATIONS),
        encode=lambda genome: genome.tolist(),
        **options,
    )


def lines(directory: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (directory / "history.jsonl").read_text().splitlines()]


class Scripted:
    """Asks what it is given, one after the other, and remembers what it is told."""

    def __init__(self, genomes: list[float]) -> None:
        self.genomes, self.asked, self.told = genomes, 0, list[int]()

    def ask_one(self) -> Candidate[Vector]:
        self.asked += 1
        value = self.genomes[min(self.asked, len(self.genomes)) - 1]
        return Candidate(self.asked - 1, np.array([value, 0.0, 0.0]))

    def tell_one(self, outcome: Outcome) -> None:
        self.told.append(outcome.id)


STRATEGIES: dict[str, Callable[[], Any]] = {
    "cma": lambda: NevergradStrategy(axes=AXES, seed=1, popsize=5),
    "de": lambda: NevergradStrategy(axes=AXES, seed=1, optimizer="DE", popsize=6),
    "pso": lambda: NevergradStrategy(axes=AXES, seed=1, optimizer="RealSpacePSO", popsize=4),
    "oneplusone": lambda: NevergradStrategy(axes=AXES, seed=1, optimizer="OnePlusOne"),
    "random": lambda: RandomSearch(axes=AXES, seed=1),
}


@pytest.mark.parametrize("name", STRATEGIES)
def test_killed_at_every_outcome_and_resumed_gives_the_same_bytes(
    name: str, tmp_path: Path
) -> None:
    whole = go(tmp_path / "whole", STRATEGIES[name](), Shuffled(3))
    told = [line["id"] for line in lines(tmp_path / "whole")]
    assert told != sorted(told), "the script completes out of order"
    for kill_at in range(0, EVALUATIONS, 4):
        with pytest.raises(Killed):
            go(tmp_path / str(kill_at), STRATEGIES[name](), Shuffled(3, kill_at))
        bench = Shuffled(3)
        resumed = go(tmp_path / str(kill_at), STRATEGIES[name](), bench)
        assert content(tmp_path / str(kill_at)) == content(tmp_path / "whole")
        assert summary(resumed) == summary(whole)
        assert bench.given == EVALUATIONS - kill_at


def test_every_place_is_kept_at_work_and_the_budget_never_exceeded(tmp_path: Path) -> None:
    bench = Shuffled(4)
    result = go(tmp_path / "some", RandomSearch(axes=AXES, seed=1), bench)
    assert bench.most == 4
    assert len(bench.submitted) == result.evaluations == EVALUATIONS
    after = [line["after"] for line in lines(tmp_path / "some")]
    assert after == [min(4 + told, EVALUATIONS) for told in range(EVALUATIONS)]
    few = Shuffled(8)
    assert go(tmp_path / "few", cma(), few, Budget(evaluations=3)).evaluations == 3
    assert len(few.submitted) == 3


def test_one_place_is_a_plain_sequence(tmp_path: Path) -> None:
    result = go(tmp_path, cma(), pool_of(score))
    strategy, genomes = cma(), list[list[float]]()
    for _ in range(EVALUATIONS):
        candidate = strategy.ask_one()
        genomes.append(candidate.genome.tolist())
        (evaluated,) = scored(pool_of(score), candidate.genome)
        fitness = None if evaluated.failure else OBJECTIVE(evaluated.scores)[0]
        strategy.tell_one(Outcome(candidate.id, fitness))
    assert [record.genome for record in result.records] == genomes
    assert [record.id for record in result.records] == list(range(EVALUATIONS))


@pytest.mark.parametrize("include_start", [True, False])
def test_cma_with_one_place_asks_what_it_asks_by_generations(
    include_start: bool, tmp_path: Path
) -> None:
    def build() -> NevergradStrategy:
        return NevergradStrategy(axes=AXES[:2], seed=1, popsize=5, include_start=include_start)

    def smooth(genome: Vector) -> Any:
        return score(np.array([-abs(genome[0] - 0.1), min(genome[1], 1.3), 0.0]))

    one = go(tmp_path / "one", build(), pool_of(smooth))
    generations = run(tmp_path / "generations", build(), smooth)
    assert [r.genome for r in one.records] == [r.genome for r in generations.records]


def test_another_number_of_places_goes_on_from_the_same_tells(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        go(tmp_path, cma(), Shuffled(4, kill_at=9))
    before, asked = content(tmp_path)[0], lines(tmp_path)[-1]["after"]
    bench = Shuffled(2)
    go(tmp_path, cma(), bench)
    assert content(tmp_path)[0].startswith(before)
    lost = bench.submitted[:3]  # of four places three were at work when the last was told
    assert len(lost) == asked - 9
    told = {line["id"] for line in lines(tmp_path)[:9]}
    strategy = cma()
    events = lines(tmp_path)[:9]
    genomes = dict[int, list[float]]()
    for line in events:
        while len(genomes) < line["after"]:
            candidate = strategy.ask_one()
            genomes[candidate.id] = candidate.genome.tolist()
        fitness = None if line["fitness"] is None else np.array(line["fitness"])
        strategy.tell_one(Outcome(line["id"], fitness))
    assert [each.tolist() for each in lost] == [g for i, g in genomes.items() if i not in told]


def test_repeats_are_told_without_being_scored(tmp_path: Path) -> None:
    strategy = Scripted([0.1, 0.2, 0.1, 0.2, 0.3, 0.1, 0.05])
    bench = Shuffled(2, weight=lambda genome: -float(genome[0]))
    seen: list[Record] = []
    result = go(
        tmp_path,
        strategy,
        bench,
        Budget(evaluations=4),
        on_record=lambda record, replayed: seen.append(record),
    )
    assert [float(genome[0]) for genome in bench.submitted] == [0.1, 0.2, 0.3, 0.05]
    assert (result.evaluations, result.repeats) == (4, 3)
    same = {record.id: record.same_as for record in result.records}
    assert same == {0: None, 1: None, 2: 0, 3: 1, 4: None, 5: 0, 6: None}
    assert [record.id for record in seen] == strategy.told == list(same)
    again = go(tmp_path, Scripted(strategy.genomes), Shuffled(2), Budget(evaluations=4))
    assert [r.id for r in again.records] == strategy.told


def test_nothing_but_repeats_ends_the_search(tmp_path: Path) -> None:
    strategy = Scripted([0.1, 0.2])
    result = go(tmp_path, strategy, Shuffled(2), stall_candidates=30)
    assert (result.stop, result.evaluations, result.repeats) == ("stalled", 2, 30)


def test_failures_alone_end_the_search(tmp_path: Path) -> None:
    def fails(genome: Vector) -> Any:
        raise EvaluationError(f"logits are not finite at {genome[0]:.0f}")

    with pytest.raises(SearchFailed, match=r"the last 16 candidates failed.*not finite"):
        go(tmp_path, RandomSearch(axes=AXES, seed=0), Shuffled(3, inner=fails))


@pytest.mark.parametrize("seed", range(4))
def test_what_fails_from_outside_is_asked_again_and_leaves_no_trace(
    tmp_path: Path, seed: int
) -> None:
    go(tmp_path / "whole", cma(), Shuffled(1))
    faulty = Faulty(seed)
    while not faulty.survived(lambda: go(tmp_path / "faulty", cma(), Shuffled(1, inner=faulty))):
        pass
    assert faulty.sessions == 5
    assert content(tmp_path / "faulty") == content(tmp_path / "whole")


def test_histories_of_the_other_way_are_refused(tmp_path: Path) -> None:
    run(tmp_path / "generations", cma(), score)
    with pytest.raises(HistoryError, match=r"0 .* told with its generation, this search is asyn"):
        go(tmp_path / "generations", cma(), Shuffled(1))
    go(tmp_path / "steady", cma(), Shuffled(1))
    with pytest.raises(HistoryError, match=r"0 .* told alone, after 1 had been asked, this sear"):
        run(tmp_path / "steady", cma(), score)
    go(tmp_path / "three", cma(), Shuffled(3))
    text = (tmp_path / "three" / "history.jsonl").read_text().replace('"after": 3', '"after": 1')
    (tmp_path / "three" / "history.jsonl").write_text(text)
    with pytest.raises(HistoryError, match="was not asked by then; the history does not belong"):
        go(tmp_path / "three", cma(), Shuffled(3))


def test_strategies_of_generations_are_refused_by_name() -> None:
    with pytest.raises(ValueError, match="GridSearch learns from whole generations"):
        check_steady(GridSearch(axes=AXES, seed=0), many=False)
    with pytest.raises(ValueError, match="ModelSwarms learns from whole generations"):
        check_steady(ModelSwarms(axes=AXES[:2], seed=0), many=True)
    alone = NevergradStrategy(axes=AXES, seed=0, optimizer="SPSA")
    check_steady(alone, many=False)
    with pytest.raises(ValueError, match="NevergradStrategy has to be told before it can be aske"):
        check_steady(alone, many=True)


def crossed(population: Any, founders: tuple[str, ...]) -> GeneticAlgorithm:
    return GeneticAlgorithm(seed=3, founders=founders, popsize=4, population=population)


PROBLEM = Problem()
EVERY: dict[str, tuple[Callable[[], Any], Callable[[Any], Vector]]] = {
    **{name: (build, lambda g: -np.square(g[:1])) for name, build in STRATEGIES.items()},
    "crossover": (
        lambda: crossed(Truncation(6), PROBLEM.names),
        lambda g: PROBLEM.one(g)[0],
    ),
    "nsga2": (
        lambda: crossed(Fronts(6), PROBLEM.names),
        lambda g: PROBLEM.several(g)[0],
    ),
    "cycle qd": (
        lambda: crossed(CycleQD(cells=4, low=-0.3, high=0.0), PROBLEM.names),
        lambda g: PROBLEM.several(g)[0],
    ),
}


def written(genome: Any) -> str:
    return json.dumps(genome.tolist() if isinstance(genome, np.ndarray) else genome.key.hex())


@pytest.mark.parametrize("name", EVERY)
def test_a_strategy_replayed_in_flight_goes_on_as_if_never_stopped(name: str) -> None:
    """Asks and tells in the order in which they were, three candidates at a time."""
    build, fitness = EVERY[name]
    strategy, chance = build(), np.random.default_rng(5)
    flight: list[Candidate[Any]] = []
    events: list[Candidate[Any] | Outcome] = []

    def step(strategies: list[Any]) -> None:
        while len(flight) < 3:
            asked = [each.ask_one() for each in strategies]
            assert len({(one.id, written(one.genome)) for one in asked}) == 1
            flight.append(asked[0])
            events.append(asked[0])
        one = flight.pop(int(chance.integers(3)))
        outcome = Outcome(one.id, None if one.id % 7 == 2 else fitness(one.genome))
        events.append(outcome)
        for each in strategies:
            each.tell_one(outcome)

    for _ in range(14):
        step([strategy])
    twin = build()
    for event in events:
        if isinstance(event, Outcome):
            twin.tell_one(event)
        else:
            assert written(twin.ask_one().genome) == written(event.genome)
    for _ in range(14):
        step([strategy, twin])
    assert [written(g) for g in strategy.recommend()] == [written(g) for g in twin.recommend()]


@pytest.mark.parametrize("name", EVERY)
def test_one_way_of_asking(name: str) -> None:
    build, fitness = EVERY[name]
    strategy = build()
    first = strategy.ask_one()
    with pytest.raises(RuntimeError, match=r"ask\(\) was called after ask_one\(\)"):
        strategy.ask()
    with pytest.raises(ValueError, match=r"candidate 7, .* waiting are \[0\]"):
        strategy.tell_one(Outcome(7, fitness(first.genome)))
    strategy.tell_one(Outcome(0, fitness(first.genome)))
    with pytest.raises(ValueError, match=r"candidate 0, .* waiting are \[\]"):
        strategy.tell_one(Outcome(0, fitness(first.genome)))
    other = build()
    other.ask()
    with pytest.raises(RuntimeError, match=r"ask_one\(\) was called after ask\(\)"):
        other.ask_one()


def test_crossover_breeds_better_children_than_its_founders() -> None:
    strategy = crossed(Truncation(6), PROBLEM.names)
    flight: list[Candidate[Any]] = []
    best = list[float]()
    chance = np.random.default_rng(0)
    for _ in range(120):
        while len(flight) < 4:
            flight.append(strategy.ask_one())
        one = flight.pop(int(chance.integers(4)))
        fitness = PROBLEM.one(one.genome)[0]
        best.append(float(fitness[0]))
        strategy.tell_one(Outcome(one.id, fitness))
    founders = max(best[: len(PROBLEM.names)])
    assert max(best) > founders
