"""Is a model good enough: exactly, and by noisy bits whose sensitivity is the clip."""

import math
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from evaluators.evaluator import Score
from experiments.deduplication.validation import (
    ExactChecks,
    Floor,
    NoisyChecks,
    PrivateValidation,
)
from search.privacy.private_noise import SecretNoise

DIRECTIONS = {"a/accuracy": "maximize", "b/bits": "minimize"}


def scored(a: Sequence[float], b: Sequence[float] = (1.0,)) -> dict[str, Score]:
    cases = {"a/accuracy": np.array(a, float), "b/bits": np.array(b, float)}
    return {key: Score(float(values.mean()), values) for key, values in cases.items()}


class Silent(SecretNoise):
    """No noise at all."""

    def laplace(self, scale: int, *question: str | int) -> int:
        return 0


def noisy(floors: Sequence[Floor], noise: SecretNoise, failures: int = 3) -> NoisyChecks:
    privacy = PrivateValidation("val", epsilon=1.0)
    return NoisyChecks(privacy, DIRECTIONS, floors, failures=failures, noise=noise, name="x")


answered = st.sampled_from([0.0, 1.0, math.nan, math.inf, -math.inf])
bits = st.lists(st.booleans(), min_size=20, max_size=20)


@given(bits, bits, bits)
def test_noisy_checks_without_noise_say_what_exact_ones_say(
    before: list[bool], after: list[bool], fair: list[bool]
) -> None:
    floors = [Floor(scored(before), 0.1), Floor(scored(fair))]
    exact, private = ExactChecks(DIRECTIONS, floors), noisy(floors, Silent(bytes(16)))
    assert exact.holds(scored(after)) == private.holds(scored(after))
    gain = [np.mean(after) - np.mean(before) + 0.1, np.mean(after) - np.mean(fair)]
    assert exact.holds(scored(after)) == (min(gain) > -1e-6)


@given(bits, bits, st.integers(0, 19), answered, answered)
def test_an_item_moves_a_question_by_the_clip_at_most(
    before: list[bool], after: list[bool], item: int, one: float, other: float
) -> None:
    """An item that contributes nothing is answered alike by both models."""
    asked = []
    for values in ((one, other), (one, one)):
        old, new = list[float](before), list[float](after)
        old[item], new[item] = values
        checks = noisy([Floor(scored(old), 0.1)], Silent(bytes(16)))
        asked.append(checks._room(Floor(scored(old), 0.1), "a/accuracy", scored(new)))
    assert abs(asked[0] - asked[1]) <= checks._sum.part
    assert checks.svt.scales == noisy([], Silent(bytes(16))).svt.scales


@pytest.mark.parametrize(("failures", "times"), [(1, 5.9), (3, 12.6), (10, 34.2)])
def test_noise_on_a_mean_is_as_large_as_the_documentation_says(
    failures: int, times: float
) -> None:
    items, checks = 50, noisy([], Silent(bytes(16)), failures)
    deviation = math.sqrt(2) * math.hypot(*checks.svt.scales) * checks._sum.unit / items
    assert deviation == pytest.approx(
        math.sqrt(2) * (1 + (2 * failures) ** (2 / 3)) ** 1.5 / items, rel=1e-6
    )
    assert deviation == pytest.approx(times / items, rel=0.01)


def test_less_is_better_where_the_metric_says_so() -> None:
    floors = [Floor({"b/bits": scored([1], [2.0])["b/bits"]}, 0.5)]
    checks = [ExactChecks(DIRECTIONS, floors), noisy(floors, Silent(bytes(16)))]
    for each in checks:
        assert each.holds(scored([1], [2.5]))
        assert not each.holds(scored([1], [2.6]))


def test_a_repeated_answer_counts_and_the_next_question_has_its_own_noise() -> None:
    floors = [Floor(scored([1] * 40), 0.0)]
    asked = [scored([1] * 30 + [0] * 10), scored([1] * 40), scored([0] * 40)] * 3

    def answers(checks: NoisyChecks, scores: list[dict[str, Score]]) -> list[bool]:
        found = []
        for each in scores:
            if checks.svt.ended:
                break
            found.append(checks.holds(each))
        return found

    whole = answers(noisy(floors, SecretNoise(bytes(16))), asked)
    again = noisy(floors, SecretNoise(bytes(16)))
    for answer in whole[:2]:
        again.repeat(answer)
    assert answers(again, asked[2:]) == whole[2:]
    other = NoisyChecks(PrivateValidation("val", epsilon=1.0), DIRECTIONS, floors, failures=3,
                        noise=SecretNoise(bytes(16)), name="another target")  # fmt: skip
    assert other.svt._flipped._threshold != again.svt._flipped._threshold


def test_what_cannot_be_bounded_or_priced_is_refused() -> None:
    with pytest.raises(ValueError, match="a/f1 has no score per item"):
        noisy([Floor({"a/f1": Score(0.5)})], Silent(bytes(16)))
    with pytest.raises(ValueError, match=r"privacy\.epsilon must be a finite number above 0"):
        PrivateValidation("val", epsilon=0)
    with pytest.raises(ValueError, match=r"privacy\.disjoint_from must list names of other data"):
        PrivateValidation("val", epsilon=1, disjoint_from=["val"])
    spend = PrivateValidation("val", epsilon=1.5, disjoint_from=["train"]).spend("m", "run 1")
    assert (spend.epsilon, spend.delta, spend.disjoint_from) == (1.5, 0.0, ("train",))
    assert spend.release == "run 1 m"
