"""Private fitness: sensitivity, noise, privacy as measured, and what a run leaves on disk."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import laplace

from evaluators.evaluator import Score
from evaluators.requests import EvaluationError
from merging.arrays import Vector
from merging.checkpoints.mechanisms import DiscreteGaussianMechanism, SparseVector
from merging.method import MergeError
from merging.privacy import accounting
from search.loop.evaluation import Batch
from search.loop.generational import search
from search.loop.history import History
from search.loop.pool import run_all
from search.loop.session import Budget, SearchResult
from search.normalisation import Term
from search.objective import BoundObjective
from search.privacy.private import PrivatePool, Release
from search.privacy.private_budget import STOP, StepBudget
from search.privacy.private_fitness import ClippedSum, Shares, noisy_differences, noisy_means
from search.privacy.private_noise import SCALE, SecretNoise, largest_part
from search.privacy.private_svt import AboveThreshold
from tests.search.loop.test_by_generation import by_generation
from tests.search.loop.test_loop import Killed, Scripted

KEY = bytes(range(32))
UNIT = 2**20
QUIET = 1e-8
"""A noise multiplier that leaves all but nothing of the noise."""
TWO = BoundObjective((Term("a", "a/acc", 1.0), Term("b", "b/loss", -1.0)), (0.25, 0.75))


def key(number: int) -> bytes:
    return number.to_bytes(16, "big")


class TestNoise:
    def test_a_question_has_one_answer_and_another_question_another(self) -> None:
        noise = SecretNoise(KEY)
        assert noise.gaussian(1, "step", 1) == SecretNoise(KEY).gaussian(1, "step", 1)
        answers = {
            int(noise.gaussian(1, "step", 1)[0]),
            int(noise.gaussian(1, "step", 2)[0]),
            int(noise.gaussian(1, "step", "1")[0]),
            noise.laplace(SCALE, "step", 1),
            noise.uniform("step", 1),
            int(SecretNoise(key(1)).gaussian(1, "step", 1)[0]),
        }
        assert len(answers) == 6

    def test_a_short_key_is_refused(self) -> None:
        with pytest.raises(ValueError, match="must have 16 to 64 bytes, got 3"):
            SecretNoise(b"abc")


def scores(a: Sequence[float], b: Sequence[float]) -> dict[str, Score]:
    return {"a/acc": Score(0.0, np.array(a)), "b/loss": Score(0.0, np.array(b))}


class TestShares:
    def test_without_clipping_noise_or_sampling_it_is_the_objective(self) -> None:
        given_ = scores([1.0, 0.0, 1.0], [2.0, 4.0])
        shares = Shares(TWO, {"a": 3, "b": 2})
        mechanism = ClippedSum(100.0, QUIET, SecretNoise(KEY))
        (value,) = noisy_means([shares.contributions(given_)], shares.divisors, mechanism, ())
        np.testing.assert_allclose(value, [0.25 * 2 / 3 - 0.75 * 3.0])

    def test_several_objectives_have_a_sum_each(self) -> None:
        shares = Shares(BoundObjective(TWO.terms, None), {"a": 4, "b": 2}, rate=0.5)
        parts = shares.contributions(scores([1.0, 0.0], [2.0]))
        assert [part.tolist() for part in parts] == [[1.0, 0.0], [-2.0]]
        assert shares.divisors == (2.0, 1.0)

    def test_a_task_without_sampled_items_contributes_nothing(self) -> None:
        shares = Shares(TWO, {"a": 3, "b": 2}, rate=0.1)
        (part,) = shares.contributions({"b/loss": Score(2.0, np.array([2.0]))})
        np.testing.assert_allclose(part, [-2.0 * 0.75 * 5 / 2])
        assert shares.contributions({})[0].size == 0

    def test_what_is_not_finite_counts_as_the_worst_and_touches_no_other(self) -> None:
        shares, mechanism = Shares(TWO, {"a": 2, "b": 1}), ClippedSum(1.0, 1.0, SecretNoise(KEY))
        (part,) = shares.contributions(scores([math.nan, 1.0], [math.inf]))
        assert mechanism.sum(part) == (-1.0 + 0.375 - 1.0) * mechanism.part

    def test_metrics_without_items_are_refused(self) -> None:
        with pytest.raises(ValueError, match=r"a/acc has no score per item.*objective\.metrics"):
            Shares(TWO, {"a": 2, "b": 1}).contributions({"a/acc": Score(0.5)})


NUMBERS = st.lists(st.floats(-1e3, 1e3) | st.just(-math.inf), max_size=8)


class TestClipping:
    @given(
        NUMBERS,
        st.floats(-1e3, 1e3) | st.just(-math.inf),
        st.floats(1e-3, 1e3),
        st.floats(1e-3, 1e3),
    )
    def test_one_item_more_changes_a_sum_by_at_most_the_clip(
        self, items: list[float], extra: float, clip: float, sigma: float
    ) -> None:
        mechanism = ClippedSum(clip, sigma, SecretNoise(KEY))
        change = mechanism.sum(np.array([*items, extra])) - mechanism.sum(np.array(items))
        assert abs(change) <= mechanism.part <= SCALE / Fraction(sigma)
        assert isinstance(change, int)

    @given(st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), max_size=6), st.floats(-9, 9))
    def test_one_item_more_changes_a_difference_by_at_most_the_clip(
        self, items: list[tuple[float, float]], extra: float
    ) -> None:
        mechanism = ClippedSum(0.5, QUIET, SecretNoise(KEY))

        def scalar(rows: list[tuple[float, float]]) -> float:
            plus, minus = np.array(rows).reshape(-1, 2).T
            ((up, down),) = noisy_differences([(plus, minus)], 1.0, mechanism, ())
            assert up == -down
            return up - down

        for more in ((extra, 0.0), (0.0, extra), (-math.inf, extra), (-math.inf, -math.inf)):
            assert abs(scalar([*items, more]) - scalar(items)) <= 0.5 + 1e-9

    def test_clipping_by_hand(self) -> None:
        mechanism = ClippedSum(2.0, 1.0, SecretNoise(KEY))
        assert mechanism.sum(np.array([5.0, -7.0, 1.5])) * mechanism.unit == 1.5

    @pytest.mark.parametrize("release", ["means", "differences"])
    def test_the_noise_has_the_stated_scale(self, release: str) -> None:
        clip, sigma, divisor, runs = 0.3, 1.7, 4.0, 4000
        found = []
        for run in range(runs):
            mechanism = ClippedSum(clip, sigma, SecretNoise(key(run)))
            items = np.array([1.0, 0.1])
            if release == "means":
                found.append(noisy_means([[items]], [divisor], mechanism, ("q",))[0][0])
            else:
                ((up, down),) = noisy_differences(
                    [(items, np.zeros(2))], divisor, mechanism, ("q",)
                )
                found.append(up - down)
        scale = sigma * clip / divisor
        assert abs(np.mean(found) - 0.4 / divisor) < 4 * scale / math.sqrt(runs)
        assert abs(np.std(found) / scale - 1) < 4 / math.sqrt(2 * runs)

    def test_candidates_of_a_generation_have_noise_of_their_own(self) -> None:
        mechanism = ClippedSum(1.0, 1.0, SecretNoise(KEY))
        one, other = noisy_means([[np.ones(3)], [np.ones(3)]], [3.0], mechanism, ("g", 0))
        assert one != other

    @pytest.mark.parametrize("clip", [0.0, math.inf, math.nan])
    def test_options_without_meaning_are_refused(self, clip: float) -> None:
        with pytest.raises(ValueError, match="clip must be a finite number above 0"):
            ClippedSum(clip, 1.0, SecretNoise(KEY))
        with pytest.raises(ValueError, match="noise_multiplier must be a finite number above 0"):
            ClippedSum(1.0, 0.0, SecretNoise(KEY))
        with pytest.raises(
            ValueError, match=r"noise_multiplier=2e\+07 for 4 sums at once leaves no"
        ):
            largest_part(2e7, 4)


def chances(values: Sequence[float], scales: tuple[float, float]) -> Vector:
    """Chances of a yes at each value, and of none: integrals of ``p(rho) prod_i P(no_i) P(yes)``.

    Args:
        values: of the questions; the threshold is 0.
        scales: of rho, and of every nu.
    """
    rho = np.linspace(-40, 40, 20_001) * scales[0]
    weight = -np.abs(rho) / scales[0] - math.log(2 * scales[0])
    found = []
    for value in values:
        yes, no = (laplace.logcdf(sign * (rho - value) / scales[1]) for sign in (-1, 1))
        found.append(np.trapezoid(np.exp(weight + yes), rho))
        weight = weight + no
    return np.array([*found, np.trapezoid(np.exp(weight), rho)])


class TestAboveThresholdExactly:
    """No simulation can tell scales that are a little too small; the integral can."""

    def loss(self, scales: tuple[float, float], noes: int, level: float, last: float) -> float:
        """Log-ratio of "no, ..., no, yes" on neighbours: the noes go down by 1, the yes up."""
        one = chances([level + 1.0] * noes + [last], scales)
        other = chances([level] * noes + [last + 1.0], scales)
        return abs(math.log(one[noes] / other[noes]))

    @pytest.mark.parametrize("epsilon", [0.5, 1.0, 3.0])
    def test_the_scales_are_just_large_enough(self, epsilon: float) -> None:
        svt = AboveThreshold(
            epsilon=epsilon, sensitivity=UNIT, threshold=0, noise=SecretNoise(KEY), name="x"
        )
        first, second = (scale / UNIT for scale in svt.scales)
        places = [(n, level, last) for n in (1, 10) for level in (-9, 0, 20) for last in (-20, 3)]
        assert max(self.loss((first, second), *place) for place in places) <= epsilon + 1e-6
        worst = 10, 20 / epsilon, -20 / epsilon
        assert self.loss((first, second), *worst) == pytest.approx(epsilon, rel=1e-3)
        assert self.loss((first / 1.05, second), *worst) > epsilon
        assert self.loss((first, second / 1.05), *worst) > epsilon

    def test_its_answers_have_these_chances(self) -> None:
        values, runs = [-1.0, 0.5, -2.0, 1.0], 4_000
        counts = np.zeros(len(values) + 1)
        for run in range(runs):
            svt = AboveThreshold(
                epsilon=2.0, sensitivity=UNIT, threshold=0, noise=SecretNoise(key(run)), name="x"
            )
            asked = (i for i, value in enumerate(values) if svt.above(round(value * UNIT)))
            first = next(asked, len(values))
            counts[first] += 1
        expected = runs * chances(values, (svt.scales[0] / UNIT, svt.scales[1] / UNIT))
        assert expected.sum() == pytest.approx(runs, rel=1e-4)
        assert float(((counts - expected) ** 2 / expected).sum()) < 23.5  # 4 degrees, p = 1e-4


class TestAboveThreshold:
    def svt(self, **options: Any) -> AboveThreshold:
        given_ = {"epsilon": 1.0, "sensitivity": 2 * UNIT, "threshold": 0, "name": "look"}
        return AboveThreshold(**{**given_, "noise": SecretNoise(KEY), **options})

    @pytest.mark.parametrize(("aboves", "monotone"), [(1, False), (3, False), (3, True)])
    def test_scales_and_split_are_those_of_the_paper(self, aboves: int, monotone: bool) -> None:
        svt = self.svt(aboves=aboves, monotone=monotone)
        first, second = svt.epsilons
        factor = aboves if monotone else 2 * aboves
        assert first + second == pytest.approx(1.0, abs=1e-15)
        assert second / first == pytest.approx(factor ** (2 / 3))
        exact = (2 * UNIT / first, factor * 2 * UNIT / second)
        assert all(0 <= found - given < 2 for found, given in zip(svt.scales, exact, strict=True))

    def test_with_much_budget_it_tells_the_truth_and_stops_after_its_yeses(self) -> None:
        svt = self.svt(epsilon=1e6, aboves=2)
        assert [svt.above(v * UNIT) for v in (-2, -1, 1, -2, 6)] == [0, 0, 1, 0, 1]
        assert svt.ended
        with pytest.raises(RuntimeError, match="look: all its yeses are spent"):
            svt.above(-1)

    def test_the_same_questions_get_the_same_answers(self) -> None:
        values = range(-20 * UNIT, -4 * UNIT, UNIT)
        one, other = ([self.svt().above(v) for v in values[:1]] for _ in range(2))
        assert one == other

    def test_arguments_without_meaning_are_refused(self) -> None:
        with pytest.raises(ValueError, match="epsilon must be a finite number above 0, got 0"):
            self.svt(epsilon=0)
        with pytest.raises(ValueError, match="sensitivity must be at least 1, got 0"):
            self.svt(sensitivity=0)
        with pytest.raises(ValueError, match="aboves must be at least 1, got 0"):
            self.svt(aboves=0)


class TestBudget:
    def test_it_stops_before_it_is_exceeded_and_agrees_with_the_accountant(self) -> None:
        reserved = (SparseVector(0.5),)
        budget = StepBudget(epsilon=9.0, delta=1e-5, noise_multiplier=20.0, reserved=reserved)
        while budget.before(4) is None:
            assert budget.spent <= 9.0
        (counted,) = budget.mechanisms
        assert counted == DiscreteGaussianMechanism(10.0, 1.0, budget.steps)
        assert budget.steps > 100
        assert budget.spent == accounting.epsilon([counted, *reserved], 1e-5)
        more = DiscreteGaussianMechanism(10.0, 1.0, budget.steps + 1)
        assert accounting.epsilon([more, *reserved], 1e-5) > 9.0
        assert budget.before(4) == STOP
        assert budget.before(0) is None  # nothing is released

    def test_generations_of_any_sizes_are_counted(self) -> None:
        budget = StepBudget(epsilon=4.0, delta=1e-5, noise_multiplier=6.0)
        sizes = iter([5, 4, 4, 4, 1, 4, *[1] * 200])
        counted = []
        while budget.before(size := next(sizes)) is None:
            counted.append(DiscreteGaussianMechanism(6.0 / math.sqrt(size)))
        assert budget.spent == pytest.approx(accounting.epsilon(counted, 1e-5), rel=1e-9)
        last = DiscreteGaussianMechanism(6.0 / math.sqrt(size))
        assert accounting.epsilon([*counted, last], 1e-5) > 4.0 >= budget.spent

    def test_its_epsilon_is_that_of_dp_accounting(self) -> None:
        import dp_accounting

        budget = StepBudget(epsilon=1.6, delta=1e-5, noise_multiplier=4.0, rate=0.1)
        assert budget.before(8) is None
        plain = dp_accounting.rdp.RdpAccountant()
        event = dp_accounting.GaussianDpEvent(4.0 / math.sqrt(8))
        plain.compose(dp_accounting.PoissonSampledDpEvent(0.1, event))
        assert budget.spent == pytest.approx(plain.get_epsilon(1e-5), rel=0.01)

    def test_a_budget_that_pays_for_no_step_is_refused(self) -> None:
        with pytest.raises(ValueError, match=r"epsilon=0\.1 does not pay for one step, which"):
            StepBudget(epsilon=0.1, delta=1e-5, noise_multiplier=1.0)


class Secretive:
    """Scores of eight items, of which a few are sampled; may be killed, may fail.

    Args:
        empty: the generation whose sample has no item.
    """

    def __init__(self, kill_at: int | None = None, empty: int = 2) -> None:
        self.kill_at, self.calls, self.empty = kill_at, 0, empty

    def __call__(self, genome: Vector, generation: int) -> dict[str, Score]:
        self.calls += 1
        if self.calls == self.kill_at:
            raise Killed
        x = float(genome[0])
        if x == 7.0:
            raise MergeError("no such weights")
        if x == 5.0:
            raise EvaluationError("item 3 is secret")
        return self.singly(genome, generation)

    def singly(self, genome: Vector, generation: int) -> dict[str, Score]:
        x = float(genome[0])
        if x == 7.0:
            raise MergeError("no such weights")
        if generation == self.empty:
            return {}
        items = 0.1 * x + np.linspace(0.4, 0.6, 4)
        if x == 5.0:
            items[0] = math.nan
        return {"a/acc": Score(float(items.mean()), items)}


ONE = BoundObjective((Term("a", "a/acc", 1.0),), (1.0,))


def private(
    inner: Secretive, release: Release = "means", sigma: float = 1.0
) -> PrivatePool[Vector]:
    return PrivatePool(
        inner=by_generation(inner),
        singly=inner.singly,
        empty=lambda generation: generation == inner.empty,
        shares=Shares(ONE, {"a": 8}, rate=0.5),
        mechanism=ClippedSum(1.0, sigma, SecretNoise(KEY)),
        release=release,
        encode=lambda genome: genome.tolist(),
    )


GENERATIONS = [[0.0, 1.0], [2.0, 5.0], [3.0, 4.0], [7.0, 6.0], [8.0, 9.0]]


def go(
    directory: Path,
    pool: PrivatePool[Vector],
    account: Callable[[int], str | None] | None = None,
    evaluations: int = 10,
) -> tuple[SearchResult, Scripted]:
    directory.mkdir(exist_ok=True)
    strategy = Scripted([list(each) for each in GENERATIONS])
    result = search(
        strategy,
        pool.evaluation,
        ONE,
        History(directory),
        Budget(evaluations=evaluations),
        encode=lambda genome: genome.tolist(),
        account=account,
    )
    return result, strategy


def files(directory: Path) -> Mapping[str, bytes]:
    return {
        path.name: path.read_bytes()
        for path in directory.iterdir()
        if path.name not in ("timing.jsonl",)
    }


class TestPrivateSearch:
    def test_files_and_strategy_hold_noisy_fitness_and_nothing_else(self, tmp_path: Path) -> None:
        result, strategy = go(tmp_path / "run", private(Secretive()))
        assert set(files(tmp_path / "run")) == {"history.jsonl"}
        lines = [
            json.loads(line) for line in (tmp_path / "run/history.jsonl").read_text().splitlines()
        ]
        assert all(line["scores"] == {} for line in lines)
        assert "secret" not in (tmp_path / "run/history.jsonl").read_text()
        assert all(outcome.cases is None for told in strategy.told for outcome in told)
        exact, _ = go(tmp_path / "exact", private(Secretive(), sigma=1e-9))
        true = [r.fitness[0] for r in exact.records if r.fitness is not None]
        np.testing.assert_allclose(true[:3], [0.5, 0.6, 0.7], atol=1e-6)
        noisy = [r.fitness[0] for r in result.records if r.fitness is not None]
        assert all(abs(a - b) > 1e-6 for a, b in zip(true, noisy, strict=True))
        assert result.failures == 1
        assert result.records[6].failure == "its weights cannot be computed"

    def test_one_failing_item_costs_no_more_than_its_clip(self, tmp_path: Path) -> None:
        exact, _ = go(tmp_path / "run", private(Secretive(), sigma=QUIET))
        others = np.clip(0.5 + np.linspace(0.4, 0.6, 4)[1:], -1, 1).sum()
        fitness = exact.records[3].fitness
        assert fitness is not None
        np.testing.assert_allclose(fitness, [(others - 1) / 4])

    def test_an_empty_sample_is_noise_alone(self, tmp_path: Path) -> None:
        inner = Secretive()
        result, _ = go(tmp_path / "run", private(inner, sigma=QUIET))
        assert [r.fitness[0] for r in result.records[4:6]] == pytest.approx([0, 0], abs=1e-6)  # type: ignore[index]
        assert inner.calls == 8

    @pytest.mark.parametrize("empty", [2, 3])
    def test_failures_do_not_tell_whether_the_sample_is_empty(
        self, tmp_path: Path, empty: int
    ) -> None:
        result, _ = go(tmp_path / "run", private(Secretive(empty=empty)))
        assert [r.id for r in result.records if r.failure is not None] == [6]

    @pytest.mark.parametrize("release", ["means", "differences"])
    @pytest.mark.parametrize("kill_at", [1, 2, 4, 7, 8])
    def test_killed_anywhere_the_same_noise_comes_out_again(
        self, tmp_path: Path, kill_at: int, release: Release
    ) -> None:
        go(tmp_path / "whole", private(Secretive(), release))
        with pytest.raises(Killed):
            go(tmp_path / "part", private(Secretive(kill_at), release))
        go(tmp_path / "part", private(Secretive(), release))
        assert files(tmp_path / "part") == files(tmp_path / "whole")

    @pytest.mark.parametrize("kept", range(1, 8))
    def test_cut_within_a_generation_the_same_noise_comes_out_again(
        self, tmp_path: Path, kept: int
    ) -> None:
        go(tmp_path / "run", private(Secretive()))
        whole = files(tmp_path / "run")
        history = tmp_path / "run" / "history.jsonl"
        history.write_bytes(b"".join(whole["history.jsonl"].splitlines(keepends=True)[:kept]))
        go(tmp_path / "run", private(Secretive()))
        assert files(tmp_path / "run") == whole

    def test_differences_show_no_level_and_fail_together(self, tmp_path: Path) -> None:
        result, _ = go(tmp_path / "run", private(Secretive(), "differences", sigma=QUIET))
        found = [None if r.fitness is None else r.fitness[0] for r in result.records]
        assert found[:2] == pytest.approx([-0.05, 0.05])
        assert found[6:8] == [None, None]

    def test_differences_need_pairs(self, tmp_path: Path) -> None:
        pool = private(Secretive(), "differences")
        with pytest.raises(ValueError, match="generation 0 has 3 new genomes, which make no pai"):
            run_all(pool, [Batch([np.zeros(1)] * 3)])

    @pytest.mark.parametrize("evaluations", [10, 10_000])
    def test_it_stops_before_the_budget_is_exceeded_however_often_it_is_continued(
        self, tmp_path: Path, evaluations: int
    ) -> None:
        def account() -> tuple[StepBudget, Callable[[int], str | None]]:
            budget = StepBudget(epsilon=6.0, delta=1e-5, noise_multiplier=2.0)
            pool = private(Secretive())
            return budget, lambda new: budget.before(pool.releases(new))

        spent = []
        for _ in range(3):
            budget, refuse = account()
            result, _ = go(tmp_path / "run", private(Secretive()), refuse, evaluations)
            assert result.stop == STOP
            spent.append((budget.steps, budget.spent))
        assert len(set(spent)) == 1
        assert 0 < spent[0][0] < len(GENERATIONS)
        assert result.evaluations == 2 * spent[0][0]
