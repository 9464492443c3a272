"""Generations with items of their own: the loop, and what an evolution strategy gains by them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from search.loop.evaluation import Evaluation, LocalPool
from search.loop.generational import search
from search.loop.history import History, HistoryError
from search.loop.session import Budget, SearchResult
from search.strategies.mergevolve import utilities_of
from search.strategy import Strategy
from tests.search.loop.test_loop import (
    OBJECTIVE,
    Counting,
    Killed,
    Scores,
    Scripted,
    cma,
    content,
    run,
    summary,
)


class Noisy:
    """Scores that depend on the generation, and a note of who was scored in which."""

    def __init__(self, kill_at: int | None = None) -> None:
        self.kill_at, self.asked = kill_at, list[tuple[int, float]]()

    def __call__(self, genome: Vector, generation: int) -> Scores:
        if len(self.asked) == self.kill_at:
            raise Killed
        self.asked.append((generation, float(genome[0])))
        if genome[0] > 0.35:
            raise EvaluationError("too far")
        items = np.array([genome[0], generation])
        return {"t/bits": Score(float(items.mean()), items), "u/acc": Score(0.5, np.array([0.5]))}


def by_generation(evaluate: Callable[[Vector, int], Scores]) -> Evaluation[Vector]:
    """Scores every generation on items of its own."""

    def scorer(generation: int) -> Callable[[Vector], Scores]:
        return lambda genome: evaluate(genome, generation)

    return Evaluation(LocalPool(lambda genome: genome, scorer), own_items=True)


def go(
    directory: Path,
    strategy: Strategy[Vector],
    evaluate: Callable[[Vector, int], Scores],
    evaluations: int = 17,
) -> SearchResult:
    directory.mkdir(exist_ok=True)
    return search(
        strategy,
        by_generation(evaluate),
        OBJECTIVE,
        History(directory),
        Budget(evaluations=evaluations),
        encode=lambda genome: genome.tolist(),
    )


def test_generations_are_counted_and_written_down(tmp_path: Path) -> None:
    evaluate = Noisy()
    result = go(tmp_path, cma(), evaluate)
    assert [number for number, _ in evaluate.asked] == [i // 5 for i in range(17)]
    assert [record.items for record in result.records] == [i // 5 for i in range(17)]
    lines = [json.loads(line) for line in (tmp_path / "history.jsonl").read_text().splitlines()]
    assert [line["items"] for line in lines] == [i // 5 for i in range(17)]
    assert [r.items for r in History(tmp_path).records.values()] == [i // 5 for i in range(17)]


def test_killed_anywhere_and_resumed_gives_the_same_bytes(tmp_path: Path) -> None:
    whole = go(tmp_path / "whole", cma(), Noisy())
    assert 0 < whole.failures < 17
    for kill_at in range(17):
        with pytest.raises(Killed):
            go(tmp_path / str(kill_at), cma(), Noisy(kill_at))
        evaluate = Noisy()
        resumed = go(tmp_path / str(kill_at), cma(), evaluate)
        assert [number for number, _ in evaluate.asked] == [i // 5 for i in range(kill_at, 17)]
        assert content(tmp_path / str(kill_at)) == content(tmp_path / "whole")
        assert summary(resumed) == summary(whole)


def test_only_the_same_items_make_a_repeat(tmp_path: Path) -> None:
    evaluate = Noisy()
    result = go(tmp_path, Scripted([[0.1, 0.1, 0.2], [0.1, 0.3, 0.3], [0.2]]), evaluate)
    assert evaluate.asked == [(0, 0.1), (0, 0.2), (1, 0.1), (1, 0.3), (2, 0.2)]
    assert [r.same_as for r in result.records] == [None, 0, None, None, None, 4, None]
    assert (result.evaluations, result.repeats) == (5, 2)
    assert [r.items for r in result.records] == [0, 0, 0, 1, 1, 1, 2]


def test_nothing_but_known_genomes_still_ends_the_search(tmp_path: Path) -> None:
    asks = [[0.1, 0.2], *[[0.2, 0.1]] * 10, [0.3, 0.1], *[[0.1, 0.3]] * 30]
    result = go(tmp_path, Scripted(asks), Noisy(), evaluations=1000)
    assert result.stop == "stalled"
    assert len(result.records) == 2 * (12 + 20)
    assert result.evaluations == len(result.records)


def test_a_history_of_other_items_is_refused(tmp_path: Path) -> None:
    with pytest.raises(Killed):
        go(tmp_path / "own", cma(), Noisy(8))
    expected = "candidate 0 of the history was scored on the items of generation 0, this search "
    with pytest.raises(HistoryError, match=expected + "scores it on all items: start in an empty"):
        run(tmp_path / "own", cma(), Counting())
    with pytest.raises(Killed):
        run(tmp_path / "all", cma(), Counting(8))
    assert "items" not in (tmp_path / "all" / "history.jsonl").read_text()
    with pytest.raises(HistoryError, match="scored on all items, this search scores it on the it"):
        go(tmp_path / "all", cma(), Noisy())
    lines = (tmp_path / "own" / "history.jsonl").read_text().replace('"items": 1', '"items": 2')
    (tmp_path / "own" / "history.jsonl").write_text(lines)
    with pytest.raises(HistoryError, match=r"candidate 5 .* generation 2, .* generation 1: start"):
        go(tmp_path / "own", cma(), Noisy())


def step_cosine(rng: np.random.Generator, *, common: bool) -> float:
    """Returns how well one ES step on 16 of 64 items points along the true gradient.

    Item i of candidate eps scores ``difficulty_i + (g + own_i) . eps``: items differ more in how
    hard they are than in what they say of the candidates.
    """
    size, popsize, items, asked = 30, 40, 64, 16
    gradient = rng.normal(size=size) / np.sqrt(size)
    slopes = gradient + rng.normal(size=(items, size)) / np.sqrt(size)
    slopes += gradient - slopes.mean(axis=0)  # so that all items together say the truth
    difficulty = 6 * rng.normal(size=items)
    noise = rng.normal(size=(popsize, size))
    shared = rng.choice(items, asked, replace=False)
    fitness = []
    for eps in noise:
        own = shared if common else rng.choice(items, asked, replace=False)
        fitness.append(float((difficulty[own] + slopes[own] @ eps).mean()))
    step = utilities_of(fitness) @ noise
    return float(step @ gradient / np.linalg.norm(step) / np.linalg.norm(gradient))


def test_common_items_give_an_evolution_strategy_the_better_step() -> None:
    rng = np.random.default_rng(0)
    common = np.array([step_cosine(rng, common=True) for _ in range(200)])
    apart = np.array([step_cosine(rng, common=False) for _ in range(200)])
    error = float(np.hypot(common.std(), apart.std())) / np.sqrt(200)
    assert common.mean() - apart.mean() > 5 * error
    assert common.mean() > 1.3 * apart.mean()
