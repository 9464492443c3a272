"""Races on made-up models: what is asked, what is killed, and what a failure leaves."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from evaluators.evaluator import Direction, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.panel import Panel
from evaluators.requests import Likelihood, Loglikelihood, Request, Response, totals_of
from experiments.scoring.asking import Answer, Question
from experiments.scoring.racing import RacingPool
from merging.arrays import Vector
from search.loop.evaluation import Batch, Evaluated, Evaluation
from search.loop.generational import search
from search.loop.history import History
from search.loop.pool import Pool, TaskQueue, run_all
from search.loop.session import Budget, SearchFailed, SearchResult
from search.normalisation import Term
from search.objective import BoundObjective
from search.racing.item_response import ItemResponse
from search.racing.pairwise import PairedTest
from search.racing.racing import Halving, Prefixed, Racing
from tests.search.loop.test_loop import Killed, cma, content, summary

RULES: dict[str, Racing] = {
    "halving": Halving(eta=2, rungs=(0.1, 0.5)),
    "paired test": PairedTest(looks=(0.2, 0.5)),
    "item response": ItemResponse(warm_up=2, factors=2),
}
OBJECTIVE = BoundObjective(
    (Term("t", "t/bits", -1.0, -2.0, 0.5), Term("u", "u/bits", -1.0)), (0.75, 0.25)
)


class Task:
    """Items that are asked in one request or two; the score is the mean of -log-likelihoods."""

    metrics: Mapping[str, Direction] = {"bits": "minimize"}

    def __init__(self, name: str, count: int) -> None:
        items = []
        for place in range(count):
            context = (ord(name), place)
            requests = tuple(Loglikelihood(context, (number,)) for number in range(1 + place % 2))
            items.append(TaskItem(f"{name}{place}", requests, None))
        self.items = ItemSet(name, tuple(items))

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        totals = totals_of(responses)
        assert len(totals) == len(responses) == len(self.items.requests)
        cases = np.array([-totals[span].sum() for span in self.items.spans])
        return {"bits": Score(float(cases.mean()), cases)}

    def subset(self, indices: Sequence[int]) -> Task:
        return on_subset(self, indices)


PANEL = Panel("search", {"other": Task("o", 3), "t": Task("t", 20), "u": Task("u", 10)})


def likelihood(genome: Vector, request: Request) -> Likelihood:
    assert isinstance(request, Loglikelihood)
    task, place = request.context
    own = np.random.default_rng([task, place]).normal(size=len(genome))
    part = 1.0 if place % 2 == 0 else 0.5
    return Likelihood(-part * float(np.sum((genome[:2] - 0.3 * own[:2]) ** 2)), False)


class Asking(TaskQueue[Question]):
    """Answers by formula, and notes who was asked what; killed before the answer that is named."""

    def __init__(
        self,
        kill_at: int | None = None,
        fails: Callable[[Vector, int], bool] = lambda genome, requests: genome[0] > 0.35,
    ) -> None:
        super().__init__()
        self.kill_at, self.fails = kill_at, fails
        self.asked: list[tuple[bytes, Request]] = []
        self.answers = 0

    def next(self) -> tuple[int, Answer]:
        ticket, question = self._take()
        return ticket, self.answer(question.genome, question.requests)

    def answer(self, genome: Vector, indices: tuple[int, ...]) -> Answer:
        requests = [PANEL.requests[index] for index in indices]
        if self.answers == self.kill_at:
            raise Killed
        self.answers += 1
        self.asked += [(genome.tobytes(), request) for request in requests]
        if self.fails(genome, len(requests)):
            return Answer(failure="out of memory")
        return Answer([likelihood(genome, request) for request in requests])


def go(
    directory: Path, rule: Racing, asker: Pool[Question, Answer], evaluations: int = 20
) -> SearchResult:
    directory.mkdir(exist_ok=True)
    return search(
        cma(),
        Evaluation(RacingPool(rule, PANEL, OBJECTIVE, asker, seed=3), batch_size=None),
        OBJECTIVE,
        History(directory),
        Budget(evaluations=evaluations),
        encode=lambda genome: genome.tolist(),
    )


def whole(genome: Sequence[float]) -> tuple[Vector, Vector | None]:
    """Returns what a genome is worth on all items."""
    scores = {}
    for name in ("t", "u"):
        task = PANEL.evaluators[name]
        answers = [likelihood(np.array(genome), each) for each in task.items.requests]
        scores[f"{name}/bits"] = task.score(answers)["bits"]
    return OBJECTIVE(scores)


@pytest.mark.parametrize("name", RULES)
def test_nothing_is_asked_twice_and_survivors_have_the_scores_of_all_items(
    tmp_path: Path, name: str
) -> None:
    asking = Asking()
    result = go(tmp_path, RULES[name], asking)
    assert len(set(asking.asked)) == len(asking.asked)
    assert 0 < sum(record.asked is not None for record in result.records) < 20
    assert any(record.failure == "out of memory" for record in result.records)
    for record in result.records:
        if record.fitness is None:
            continue
        fitness, cases = whole(record.genome)
        assert record.cases is not None
        assert record.cases.shape == (30,)
        own = {r.context for g, r in asking.asked if g == np.array(record.genome).tobytes()}  # type: ignore[union-attr]
        counted = [context for context in own if context[0] != ord("o")]
        if record.asked is None:
            assert len(counted) == 30
            assert np.array_equal(record.fitness, fitness)
            assert np.array_equal(record.cases, cases)  # type: ignore[arg-type]
        else:
            assert len(counted) == record.asked < 30
            assert (record.cases == cases).sum() >= record.asked
    best = result.records[result.best[0]]
    assert best.asked is None
    assert float(best.fitness[0]) == max(  # type: ignore[index]
        float(r.fitness[0]) for r in result.records if r.fitness is not None
    )


@pytest.mark.parametrize("name", RULES)
def test_killed_at_any_answer_and_resumed_gives_the_same_bytes(tmp_path: Path, name: str) -> None:
    asking = Asking()
    undisturbed = go(tmp_path / "whole", RULES[name], asking)
    for kill_at in range(0, asking.answers, 7):
        directory = tmp_path / str(kill_at)
        with pytest.raises(Killed):
            go(directory, RULES[name], Asking(kill_at))
        resumed = go(directory, RULES[name], Asking())
        assert content(directory) == content(tmp_path / "whole")
        assert summary(resumed) == summary(undisturbed)


@pytest.mark.parametrize("name", RULES)
def test_killed_within_a_generation_it_goes_on_with_the_same_numbers(
    tmp_path: Path, name: str
) -> None:
    """A budget cuts generations anywhere; what was written down is not evaluated again."""
    go(tmp_path / "whole", RULES[name], Asking())
    for evaluations in (7, 13):
        directory = tmp_path / str(evaluations)
        go(directory, RULES[name], Asking(), evaluations)
        go(directory, RULES[name], Asking())
        assert content(directory) == content(tmp_path / "whole")


def test_a_budget_that_ends_before_anyone_was_asked_everything(tmp_path: Path) -> None:
    rule = Halving(eta=4, rungs=(0.1,))
    go(tmp_path / "whole", rule, Asking())
    first = min(r.id for r in History(tmp_path / "whole").records.values() if r.asked is None)
    assert first > 0
    with pytest.raises(
        SearchFailed, match="ended before a candidate was asked all items: begin another run"
    ):
        go(tmp_path / "cut", rule, Asking(), first)
    go(tmp_path / "cut", rule, Asking())
    assert content(tmp_path / "cut") == content(tmp_path / "whole")


def test_where_all_who_stayed_fail_another_is_asked_everything() -> None:
    genomes = [np.array([x, 0.0, 0.0]) for x in (0.0, 0.05, 0.9, 1.0)]
    rule = Halving(eta=4, rungs=(0.1,), against_best=False)

    def race(fails: Callable[[Vector, int], bool]) -> list[Evaluated]:
        pool = RacingPool(rule, PANEL, OBJECTIVE, Asking(fails=fails), seed=0)
        return run_all(pool, [Batch(genomes)])[0]

    found = race(lambda genome, requests: requests > 8)
    assert [each.failure for each in found] == ["out of memory"] * 4
    best = race(lambda genome, requests: False)
    (first,) = [i for i, each in enumerate(best) if each.estimate is None]
    again = race(lambda genome, requests: requests > 8 and genome[0] == genomes[first][0])
    assert again[first].failure == "out of memory"
    asked = [None if each.estimate is None else each.estimate.asked for each in again]
    assert asked.count(None) == 2


def test_who_is_kept_is_asked_everything_in_the_first_generation() -> None:
    genomes = [np.array([x, 0.0, 0.0]) for x in (1.0, 0.0, 0.05, 0.9)]
    rule = Halving(eta=4, rungs=(0.1,), against_best=False)

    def asked(generation: int, *keeps: int) -> list[bool]:
        asker = Asking(fails=lambda genome, requests: False)
        pool = RacingPool(rule, PANEL, OBJECTIVE, asker, seed=0, keeps=keeps)
        found = run_all(pool, [Batch(genomes, generation)])[0]
        assert len(set(asker.asked)) == len(asker.asked), "asked twice"
        return [each.estimate is None for each in found]

    usual = asked(0)
    assert not usual[0]
    assert asked(0, 0) == [True, *usual[1:]]
    assert asked(1, 0) == asked(1)


class Perverse(Halving):
    """Drops the best."""

    def race(self, *args: Any, **options: Any) -> Any:
        race: Any = super().race(*args, **options)
        return Reversed(race.stages, race.strata, race.labels, race.best)


class Reversed(Prefixed):
    """Keeps the worst."""

    def staying(self, stage: int, cases: Mapping[int, Vector]) -> list[int]:
        means = self.sample(stage).means(np.stack(list(cases.values())))
        return [list(cases)[int(np.argmin(means))]]


def test_no_estimate_is_above_those_who_were_asked_everything(tmp_path: Path) -> None:
    rule = Perverse(eta=4, rungs=(0.1,), against_best=False)
    result = go(tmp_path, rule, Asking(fails=lambda genome, requests: False), 5)
    by_asked: dict[bool, list[float]] = {True: [], False: []}
    for record in result.records:
        assert record.fitness is not None
        by_asked[record.asked is None].append(float(record.fitness[0]))
    assert max(by_asked[False]) == min(by_asked[True])
    assert result.best == (next(r.id for r in result.records if r.asked is None),)
