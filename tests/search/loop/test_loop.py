"""The loop: kills at every point, budgets, repeats, failures, and histories that do not fit."""

from __future__ import annotations

import inspect
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError, TransientFailure
from merging.arrays import Vector
from merging.method import MergeError
from merging.spaces.axes import Choice, Real
from search.loop.evaluation import Evaluation, LocalPool
from search.loop.generational import search
from search.loop.history import History, Record
from search.loop.session import Budget, SearchFailed, SearchResult
from search.normalisation import Term
from search.objective import BoundObjective
from search.strategies.grid import GridSearch
from search.strategies.nevergrad_optimizer import NevergradStrategy
from search.strategies.random_search import RandomSearch
from search.strategy import Candidate, Outcome, Strategy

AXES = (Real("a"), Real("b", start=1.0), Choice("c", ("x", "y")))
OBJECTIVE = BoundObjective((Term("t", "t/bits", -1.0), Term("u", "u/acc", 1.0)), (0.5, 0.5))
Scores = Mapping[str, Score]


class Killed(BaseException):
    """Stands for kill -9: nothing may catch it."""


def score(genome: Vector) -> Scores:
    """Scores with cases; every so often one that fails, by its genome alone."""
    if genome[0] > 0.35:
        raise EvaluationError(f"out of memory at {genome[0]:.3f}")
    if genome[1] > 1.4:
        raise MergeError("weights sum to zero")
    items = np.array([genome[0], genome[1]]) ** 2
    return {
        "t/bits": Score(float(items.mean()), items),
        "t/extra": Score(float("inf")),
        "u/acc": Score(float(genome[2]), np.array([genome[2]])),
    }


class Counting:
    """Counts evaluations; kills the process before the one that is named."""

    def __init__(self, kill_at: int | None = None, inner: Callable[[Vector], Scores] = score):
        self.kill_at, self.inner, self.genomes = kill_at, inner, list[tuple[float, ...]]()

    def __call__(self, genome: Vector) -> Scores:
        if len(self.genomes) == self.kill_at:
            raise Killed
        self.genomes.append(tuple(genome.tolist()))
        return self.inner(genome)


class Faulty:
    """Fails for reasons outside of the model, from a random call of each early session on."""

    def __init__(self, seed: int, inner: Callable[[Vector], Scores] = score) -> None:
        self.chance, self.inner, self.sessions, self.left = random.Random(seed), inner, 0, 0

    def __call__(self, genome: Vector) -> Scores:
        self.left -= 1
        if self.left < 0 and self.sessions < 5:
            if (kind := self.chance.randrange(4)) == 0:
                torch.empty(2**50)  # a CPU has no error of its own for this
            raise (
                MemoryError(),
                TransientFailure("the served model does not answer"),
                torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
                OSError("stale file handle"),
            )[kind]
        return self.inner(genome)

    def survived(self, session: Callable[[], SearchResult]) -> bool:
        """Runs a session; returns whether it came to its end."""
        try:
            session()
        except (TransientFailure, OSError):
            self.sessions, self.left = self.sessions + 1, self.chance.randint(0, 4)
            return False
        return True


def cma() -> NevergradStrategy:
    return NevergradStrategy(axes=AXES, seed=1, popsize=5)


def pool_of(evaluate: Callable[[Vector], Scores]) -> LocalPool[Vector, Vector]:
    """Scores genomes by a function, one after the other."""
    return LocalPool(lambda genome: genome, lambda generation: evaluate)


def run(
    directory: Path,
    strategy: Strategy[Vector],
    evaluate: Callable[[Vector], Scores],
    budget: Budget | None = None,
    objective: Any = OBJECTIVE,
    **options: Any,
) -> SearchResult:
    directory.mkdir(exist_ok=True)
    return search(
        strategy,
        Evaluation(pool_of(evaluate)),
        objective,
        History(directory),
        budget or Budget(evaluations=17),
        encode=lambda genome: genome.tolist(),
        **options,
    )


def content(directory: Path) -> tuple[bytes, bytes]:
    return tuple((directory / name).read_bytes() for name in ("history.jsonl", "cases.jsonl"))  # type: ignore[return-value]


def summary(result: SearchResult) -> tuple[Any, ...]:
    return (result.stop, result.best, result.evaluations, result.failures, result.repeats)


class Scripted:
    """Asks what it is given, and remembers what it is told."""

    def __init__(self, generations: Sequence[Sequence[float]]):
        self.generations, self.told = list(generations), list[list[Outcome]]()
        self._next = 0

    def ask(self) -> list[Candidate[Vector]]:
        if not self.generations:
            return []
        genomes = self.generations.pop(0)
        first, self._next = self._next, self._next + len(genomes)
        return [Candidate(first + i, np.array([g, 0.0, 0.0])) for i, g in enumerate(genomes)]

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        self.told.append(list(outcomes))

    def recommend(self) -> list[Vector]:
        return []


class TestResume:
    def test_killed_at_every_evaluation_and_resumed_gives_the_same_bytes(
        self, tmp_path: Path
    ) -> None:
        whole = run(tmp_path / "whole", cma(), Counting())
        assert 0 < whole.failures < whole.evaluations == 17
        for kill_at in range(17):
            directory = tmp_path / str(kill_at)
            with pytest.raises(Killed):
                run(directory, cma(), Counting(kill_at))
            evaluate = Counting()
            resumed = run(directory, cma(), evaluate)
            assert len(evaluate.genomes) == 17 - kill_at
            assert content(directory) == content(tmp_path / "whole")
            assert summary(resumed) == summary(whole)
            for one, other in zip(resumed.records, whole.records, strict=True):
                np.testing.assert_equal(one.cases, other.cases)

    def test_killed_again_and_again_gives_the_same_bytes(self, tmp_path: Path) -> None:
        run(tmp_path / "whole", cma(), Counting())
        for _ in range(16):
            with pytest.raises(Killed):
                run(tmp_path / "often", cma(), Counting(1))
        run(tmp_path / "often", cma(), Counting(1))
        assert content(tmp_path / "often") == content(tmp_path / "whole")

    @pytest.mark.parametrize("strategy", [GridSearch, RandomSearch])
    def test_other_strategies_resume_too(self, tmp_path: Path, strategy: Any) -> None:
        run(tmp_path / "whole", strategy(axes=AXES, seed=0), Counting())
        with pytest.raises(Killed):
            run(tmp_path / "cut", strategy(axes=AXES, seed=0), Counting(11))
        run(tmp_path / "cut", strategy(axes=AXES, seed=0), Counting())
        assert content(tmp_path / "cut") == content(tmp_path / "whole")

    def test_interrupt_while_reporting_keeps_the_record(self, tmp_path: Path) -> None:
        def interrupt(record: Record, replayed: bool) -> None:
            if record.id == 6 and not replayed:
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "cut", cma(), Counting(), on_record=interrupt)
        assert list(History(tmp_path / "cut").records) == list(range(7))
        run(tmp_path / "cut", cma(), Counting())
        run(tmp_path / "whole", cma(), Counting())
        assert content(tmp_path / "cut") == content(tmp_path / "whole")

    def test_a_finished_search_evaluates_nothing(self, tmp_path: Path) -> None:
        first = run(tmp_path, cma(), Counting())
        again = run(tmp_path, cma(), Counting(0))
        assert summary(again) == summary(first)
        assert again.seconds == pytest.approx(first.seconds)

    def test_a_larger_budget_continues(self, tmp_path: Path) -> None:
        run(tmp_path / "a", cma(), Counting(), Budget(evaluations=8))
        run(tmp_path / "a", cma(), Counting())
        run(tmp_path / "b", cma(), Counting())
        assert content(tmp_path / "a") == content(tmp_path / "b")

    def test_records_are_reported_in_order_with_their_origin(self, tmp_path: Path) -> None:
        run(tmp_path, cma(), Counting(), Budget(evaluations=7))
        seen: list[tuple[int, bool]] = []
        run(
            tmp_path,
            cma(),
            Counting(),
            on_record=lambda r, replayed: seen.append((r.id, replayed)),
        )
        assert seen == [(i, i < 7) for i in range(17)]

    def test_history_of_another_seed_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, cma(), Counting())
        other = NevergradStrategy(axes=AXES, seed=2, popsize=5)
        with pytest.raises(RuntimeError, match=r"candidate 1 .* does not belong to this config"):
            run(tmp_path, other, Counting(0))

    def test_history_of_another_objective_is_refused(self, tmp_path: Path) -> None:
        run(tmp_path, cma(), Counting())
        other = BoundObjective(OBJECTIVE.terms, (0.25, 0.75))
        with pytest.raises(RuntimeError, match=r"candidate 0 .* the objective or its references"):
            run(tmp_path, cma(), Counting(0), objective=other)


class TestBudget:
    @pytest.mark.parametrize("evaluations", [1, 4, 5, 6, 10])
    def test_evaluations_are_never_exceeded(self, tmp_path: Path, evaluations: int) -> None:
        evaluate = Counting()
        result = run(tmp_path, cma(), evaluate, Budget(evaluations=evaluations))
        assert len(evaluate.genomes) == result.evaluations == evaluations
        assert result.stop == "evaluations"

    def test_a_cut_generation_is_not_told_and_a_whole_one_is(self, tmp_path: Path) -> None:
        cut = Scripted([[0.1, 0.2], [0.3, -0.1]])
        run(tmp_path / "cut", cut, Counting(), Budget(evaluations=3))
        assert [[o.id for o in told] for told in cut.told] == [[0, 1]]
        whole = Scripted([[0.1, 0.2], [0.3, -0.1]])
        run(tmp_path / "whole", whole, Counting(), Budget(evaluations=4))
        assert [[o.id for o in told] for told in whole.told] == [[0, 1], [2, 3]]

    def test_target_ends_the_search_at_once(self, tmp_path: Path) -> None:
        strategy = Scripted([[0.3, 0.2], [0.1, 0.0, -0.3]])
        result = run(tmp_path, strategy, Counting(), Budget(target=-0.0026))
        assert (result.stop, result.best, result.evaluations) == ("target", (2,), 3)

    def test_seconds_count_earlier_sessions(
        self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        now = [0.0]
        monkeypatch.setattr("search.loop.evaluation.time.perf_counter", lambda: now[0])

        def slow(genome: Vector) -> Scores:
            now[0] += 1.5
            return score(genome)

        run(tmp_path, cma(), Counting(None, slow), Budget(evaluations=4))
        evaluate = Counting(None, slow)
        result = run(tmp_path, cma(), evaluate, Budget(seconds=8.9))
        assert (result.stop, result.seconds, len(evaluate.genomes)) == ("seconds", 9.0, 2)

    @pytest.mark.parametrize(
        ("options", "message"),
        [
            ({}, "the budget is unlimited; set evaluations, seconds or target"),
            ({"evaluations": 0}, "budget.evaluations must be at least 1, got 0"),
            ({"seconds": 0.0}, "budget.seconds must be above 0, got 0.0"),
            ({"target": float("nan")}, "budget.target must be finite, got nan"),
        ],
    )
    def test_budgets_without_meaning_are_refused(
        self, options: dict[str, Any], message: str
    ) -> None:
        with pytest.raises(ValueError, match=message):
            Budget(**options)

    def test_exhausted_grid_ends_the_search(self, tmp_path: Path) -> None:
        def easy(genome: Vector) -> Scores:
            return {"t/bits": Score(float(genome[0])), "u/acc": Score(float(genome[1]))}

        result = run(tmp_path, GridSearch(axes=AXES, seed=0), easy, Budget(evaluations=1000))
        assert (result.stop, result.evaluations) == ("exhausted", 18)


class TestRepeats:
    def test_a_genome_is_evaluated_once(self, tmp_path: Path) -> None:
        strategy, evaluate = Scripted([[0.1, 0.2], [0.1, 0.1, 0.3]]), Counting()
        result = run(tmp_path, strategy, evaluate, Budget(evaluations=10))
        assert [genome[0] for genome in evaluate.genomes] == [0.1, 0.2, 0.3]
        assert summary(result) == ("exhausted", (0,), 3, 0, 2)
        assert [record.same_as for record in result.records] == [None, None, 0, 0, None]
        first, second = result.records[0], result.records[2]
        assert second.scores == first.scores
        told = strategy.told[1][0]
        assert told.fitness is not None
        np.testing.assert_array_equal(told.fitness, first.fitness)
        np.testing.assert_array_equal(told.cases, first.cases)
        assert len((tmp_path / "cases.jsonl").read_bytes().splitlines()) == 3
        assert len((tmp_path / "timing.jsonl").read_bytes().splitlines()) == 3

    def test_repeats_survive_a_kill(self, tmp_path: Path) -> None:
        script = [[0.1, 0.2, 0.1], [0.1, 0.3, 0.3, 0.2]]
        run(tmp_path / "whole", Scripted(script), Counting())
        for kill_at in range(3):
            with pytest.raises(Killed):
                run(tmp_path / str(kill_at), Scripted(script), Counting(kill_at))
            run(tmp_path / str(kill_at), Scripted(script), Counting())
            assert content(tmp_path / str(kill_at)) == content(tmp_path / "whole")

    def test_canonical_decides_what_is_the_same(self, tmp_path: Path) -> None:
        strategy = Scripted([[0.1, -0.1, 0.2]])
        result = run(tmp_path, strategy, Counting(), canonical=lambda g: abs(g[0]))
        assert [record.same_as for record in result.records] == [None, 0, None]
        assert result.records[1].genome == [-0.1, 0.0, 0.0]

    def test_nothing_but_repeats_stalls(self, tmp_path: Path) -> None:
        strategy = Scripted([[0.1], *[[0.1]] * 2, [0.2], *[[0.1]] * 10])
        result = run(tmp_path, strategy, Counting(), stall_generations=3)
        assert summary(result) == ("stalled", (0,), 2, 0, 5)


class TestFailures:
    def test_failures_are_recorded_with_their_reason_and_the_search_goes_on(
        self, tmp_path: Path
    ) -> None:
        def fails(genome: Vector) -> Scores:
            faults: dict[float, BaseException] = {
                0.1: EvaluationError("timed out after 3 s"),
                0.2: MergeError("weights sum to zero"),
            }
            if genome[0] in faults:
                raise faults[genome[0]]
            if genome[0] == 0.5:
                return {"t/bits": Score(float("nan")), "u/acc": Score(0.5)}
            return score(genome)

        strategy = Scripted([[0.1, 0.2, 0.5, -0.1]])
        result = run(tmp_path, strategy, fails)
        assert [record.failure for record in result.records] == [
            "timed out after 3 s",
            "weights sum to zero",
            "t/bits is nan; the merged model is broken on this task",
            None,
        ]
        assert [o.fitness is None for o in strategy.told[0]] == [True] * 3 + [False]
        assert summary(result) == ("exhausted", (3,), 4, 3, 0)
        assert result.records[2].scores["u/acc"] == 0.5
        assert History(tmp_path).records[1].failure == "weights sum to zero"
        assert run(tmp_path, Scripted([[0.1, 0.2, 0.5, -0.1]]), Counting(0)).failures == 3

    @pytest.mark.parametrize("seed", range(6))
    def test_what_fails_from_outside_is_asked_again_and_leaves_no_trace(
        self, tmp_path: Path, seed: int
    ) -> None:
        run(tmp_path / "whole", cma(), Counting())
        faulty = Faulty(seed)
        while not faulty.survived(lambda: run(tmp_path / "faulty", cma(), faulty)):
            pass
        assert faulty.sessions == 5
        assert content(tmp_path / "faulty") == content(tmp_path / "whole")

    def test_a_generation_of_failures_stops_with_the_first_reason(self, tmp_path: Path) -> None:
        script = [[0.1, 0.2], [0.41, 0.42, 0.43, 0.44], [0.0]]
        message = r"the last 4 candidates failed, .* candidate 2: out of memory at 0.410"
        with pytest.raises(SearchFailed, match=message):
            run(tmp_path, Scripted(script), Counting())
        assert list(History(tmp_path).records) == [0, 1, 2, 3, 4, 5]
        with pytest.raises(SearchFailed, match=message):
            run(tmp_path, Scripted(script), Counting(0))

    def test_one_new_failure_among_good_repeats_goes_on(self, tmp_path: Path) -> None:
        result = run(tmp_path, Scripted([[0.1, 0.2], [0.1, 0.2, 0.9], [0.0]]), Counting())
        assert summary(result) == ("exhausted", (5,), 4, 1, 2)

    def test_small_generations_may_fail_three_times_in_a_row(self, tmp_path: Path) -> None:
        good = [[0.1], [0.51], [0.52], [0.53], [0.2], [0.54], [0.55], [0.56], [0.3]]
        assert run(tmp_path / "good", Scripted(good), Counting()).failures == 6
        with pytest.raises(
            SearchFailed, match=r"the last 4 candidates .* candidate 1: .* at 0.510"
        ):
            run(tmp_path / "bad", Scripted([*good[:4], [0.59], [0.0]]), Counting())

    def test_a_search_without_any_score_fails(self, tmp_path: Path) -> None:
        with pytest.raises(SearchFailed, match=r"no candidate could be scored; candidate 0: out"):
            run(tmp_path, Scripted([[0.5, 0.6, 0.1]]), Counting(), Budget(evaluations=2))

    def test_bugs_are_not_failures(self, tmp_path: Path) -> None:
        def broken(genome: Vector) -> Scores:
            raise KeyError("a bug")

        with pytest.raises(KeyError, match="a bug"):
            run(tmp_path, cma(), broken)
        assert not History(tmp_path).records


def test_two_frames_stand_between_the_search_and_what_scores(tmp_path: Path) -> None:
    stacks: list[list[str]] = []

    def noted(genome: Vector) -> Scores:
        stacks.append([frame.function for frame in inspect.stack(context=0)])
        return score(genome)

    run(tmp_path, Scripted([[0.1]]), noted)
    assert stacks[0][: stacks[0].index("search") + 1] == ["noted", "next", "_generation", "search"]


def test_several_objectives_find_the_non_dominated(tmp_path: Path) -> None:
    objective = BoundObjective(OBJECTIVE.terms, None)
    strategy = NevergradStrategy(axes=AXES, seed=1, optimizer="DE", popsize=6)
    result = run(tmp_path, strategy, Counting(), Budget(evaluations=36), objective=objective)
    scored = {r.id: r.fitness for r in result.records if r.fitness is not None}
    for i in result.best:
        assert not any((f >= scored[i]).all() and (f > scored[i]).any() for f in scored.values())
    assert len(result.best) > 1
    again = run(
        tmp_path,
        NevergradStrategy(axes=AXES, seed=1, optimizer="DE", popsize=6),
        Counting(0),
        Budget(evaluations=36),
        objective=objective,
    )
    assert again.best == result.best
