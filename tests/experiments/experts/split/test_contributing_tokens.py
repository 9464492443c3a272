"""Utilities by hand; counts under differential privacy tell of one sentence what they may."""

import math
from statistics import NormalDist
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.experts.split.contributing_tokens import (
    ContributingSettings,
    ContributingTokens,
    _clipped,
    _released,
    utility,
)
from search.privacy.private_noise import SecretNoise

SENTENCES = [torch.tensor(tokens) for tokens in ([0, 1, 1, 2], [0, 1, 3], [0, 2, 2])]
LABELS = [0, 0, 1]


def fitted(
    key: bytes = bytes(16), sentences: list[Tensor] = SENTENCES, **options: Any
) -> ContributingTokens:
    return ContributingSettings(**options).fitted(
        sentences, LABELS, vocabulary=5, classes=2, noise=SecretNoise(key)
    )


def test_utilities_are_those_of_the_formula() -> None:
    """N_0 = 7, N_1 = 3, xi = 1 / 7; n(0, t) = 2 3 1 1 0, n(1, t) = 1 0 2 0 0."""
    found = fitted(floor=0.1).factors
    assert float(found[1, 2]) == pytest.approx(math.log(2 / 3 / (1 / 7 + 3 / 7)), abs=1e-6)
    assert int((found > 0.1).sum()) == 1
    exact = utility(torch.tensor([[2, 3, 1, 1, 0], [1, 0, 2, 0, 0]]).double())
    assert exact[0].tolist() == pytest.approx(
        [
            math.log(2 / 7 / (1 / 3 + 3 / 7)),
            math.log(3 / 7 / (3 / 7)),
            math.log(1 / 7 / (2 / 3 + 3 / 7)),
            math.log(1 / 7 / (3 / 7)),
            0,  # not seen
        ]
    )


def test_with_three_classes_the_others_add_up_and_smoothing_is_of_counts() -> None:
    counts = torch.tensor([[90.0, 0], [5, 35], [10, 10]])
    xi = 1 / 90
    ratios = [(1 / (5 / 40 + 3 * xi)), (1 / (10 / 20 + 3 * xi))]
    assert float(utility(counts)[0, 0]) == pytest.approx(sum(map(math.log, ratios)))
    smoothed = ContributingSettings(smoothing=1.0).fitted(
        SENTENCES * 50, LABELS * 50, vocabulary=5, classes=2, noise=SecretNoise(bytes(16))
    )
    # n(0, 1) = 150 of 350, n(1, 1) = 0 of 150, xi = 1 / 355
    expected = math.log(151 / 355 / (1 / 155 + 3 / 355))
    assert float(smoothed.factors[0, 1]) == pytest.approx(expected, abs=1e-6)


def test_without_a_label_the_largest_factor_counts() -> None:
    factors = torch.tensor([[0.6, 2.0], [3.0, 0.6]], dtype=torch.float64)
    tokens = torch.tensor([1, 0, 1])
    for by_class, own in ((False, [2.0, 3.0, 2.0]), (True, [2.0, 0.6, 2.0])):
        found = ContributingTokens(factors, ContributingSettings(by_class=by_class))
        assert found.of(tokens).tolist() == [2.0, 3.0, 2.0]
        assert found.of(tokens, label=0).tolist() == own


def test_a_sentence_changes_counts_by_no_more_than_the_clip() -> None:
    """A long sentence of one token, or of many: L2 norm of ``sqrt(clip)`` at most."""
    for tokens in ([4] * 50, list(range(50)) * 3):
        clipped = _clipped(torch.tensor(tokens), 8)
        assert torch.bincount(clipped).sum() <= 8
        assert torch.bincount(clipped).max() == 1


def test_noised_counts_find_common_words_and_invent_few() -> None:
    """Noise may lift 10 of 2,000 words without a class; those of 200 sentences stand out."""
    draw = torch.Generator().manual_seed(0)
    labels = [i % 2 for i in range(2000)]
    sentences = [
        torch.cat([torch.randint(2000, (6,), generator=draw), torch.tensor([2000 + i % 10])])
        for i in range(2000)  # word 2000 + j is of class j % 2
    ]
    options = ContributingSettings(epsilon=2.0)
    args: dict[str, Any] = {"vocabulary": 2010, "classes": 2}
    one = options.fitted(sentences, labels, noise=SecretNoise(b"1" * 16), **args)
    again = options.fitted(sentences, labels, noise=SecretNoise(b"1" * 16), **args)
    other = options.fitted(sentences, labels, noise=SecretNoise(b"2" * 16), **args)
    assert torch.equal(one.factors, again.factors)
    assert not torch.equal(one.factors, other.factors)
    for found in (one, other):
        assert all(float(found.factors[j % 2, 2000 + j]) > 1 for j in range(10))
        assert int((found.factors[:, :2000] > 0.6).sum()) <= 30


@pytest.mark.parametrize(("epsilon", "delta"), [(0.5, 1e-6), (2.0, 1e-5), (8.0, 1e-5)])
def test_the_noise_of_counts_is_what_its_price_needs(epsilon: float, delta: float) -> None:
    """By the exact formula of Balle & Wang 2018: it is enough, and three quarters are not."""
    multiplier = ContributingSettings(epsilon=epsilon, delta=delta).noise_multiplier
    normal = NormalDist()

    def needed(z: float) -> float:  # delta of Gaussian noise of multiplier z at epsilon
        low, high = 1 / (2 * z) - epsilon * z, -1 / (2 * z) - epsilon * z
        return normal.cdf(low) - math.exp(epsilon) * normal.cdf(high)

    assert needed(multiplier) <= delta < needed(0.75 * multiplier)
    scale = math.ceil(64 * multiplier * 3)
    noised = _released(torch.zeros(2, 5000, dtype=torch.int64), scale, SecretNoise(b"3" * 16))
    assert float(noised.std()) == pytest.approx(3 * multiplier, rel=0.03)
    assert torch.equal(noised * 64, (noised * 64).round())  # whole numbers alone are released


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"epsilon": 0.0}, "epsilon"),
        ({"delta": 1.0}, "delta"),
        ({"floor": 0.0}, "floor"),
        ({"smoothing": -1.0}, "smoothing"),
    ],
)
def test_options_without_meaning_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"contributing.{named}"):
        ContributingSettings(**options)  # type: ignore[arg-type]


def test_sentences_and_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="2 sentences have 3 labels"):
        fitted(sentences=SENTENCES[:2])
    with pytest.raises(ValueError, match="give one of the 3 sentences away"):
        fitted(epsilon=1.0, delta=0.4)
    with pytest.raises(ValueError, match="outside of 2 classes and 5 tokens"):
        fitted(sentences=[*SENTENCES[:2], torch.tensor([5])])
