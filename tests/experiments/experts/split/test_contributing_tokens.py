"""Utilities by hand; counts under differential privacy tell of one sentence what they may."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from experiments.experts.split.contributing_tokens import (
    ContributingSettings,
    ContributingTokens,
    _clipped,
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
    assert float(found[1, 2]) == pytest.approx(math.log(2 / 3 / (1 / 7 + 3 / 7)))
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
    smoothed = fitted(smoothing=1.0, floor=1e-9).factors
    # p(1|0) = 4 / 12, p(1|1) = 1 / 8, xi = 1 / 12
    assert float(smoothed[0, 1]) == pytest.approx(
        max(1e-9, math.log(4 / 12 / (1 / 8 + 3 / 12))), rel=1e-9
    )


def test_without_a_label_the_largest_factor_counts() -> None:
    factors = torch.tensor([[0.6, 2.0], [3.0, 0.6]], dtype=torch.float64)
    tokens = torch.tensor([1, 0, 1])
    for found in (ContributingTokens(factors), ContributingTokens(factors, by_class=True)):
        assert found.of(tokens).tolist() == [2.0, 3.0, 2.0]
        own = [2.0, 0.6, 2.0] if found.by_class else [2.0, 3.0, 2.0]
        assert found.of(tokens, label=0).tolist() == own


def test_a_sentence_changes_counts_by_no_more_than_the_clip() -> None:
    """A long sentence of one token, or of many, has L1 norm `clip` at most."""
    for tokens in ([4] * 50, list(range(50)) * 3):
        clipped = _clipped(torch.tensor(tokens), 8)
        assert torch.bincount(clipped).sum() <= 8
        assert torch.bincount(clipped).max() == 1


def test_noised_counts_find_common_words_and_invent_few() -> None:
    """Of 2,000 words without a class none or few stand out, those of 400 sentences do."""
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
    assert one.epsilon == 2.0
    for found in (one, other):
        assert all(float(found.factors[j % 2, 2000 + j]) > 2 for j in range(10))
        assert int((found.factors[:, :2000] > 0.6).sum()) <= 4


def test_the_noise_of_counts_is_laplace_of_scale_clip_over_epsilon(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Neighbours that differ by one sentence: no cell's odds differ by more than its part."""
    seen: list[int] = []
    module = "experiments.experts.split.contributing_tokens.discrete_laplace"

    def recorded(bits: object, scale: int, count: int) -> Any:
        seen.append(scale)
        return torch.zeros(count, dtype=torch.int64).numpy()

    monkeypatch.setattr(module, recorded)
    fitted(epsilon=0.5, clip=3)
    assert seen == [6]


@pytest.mark.parametrize(
    ("options", "named"),
    [({"epsilon": 0.0}, "epsilon"), ({"floor": 0.0}, "floor"), ({"smoothing": -1.0}, "smoothing")],
)
def test_options_without_meaning_are_named(options: dict[str, float], named: str) -> None:
    with pytest.raises(ValueError, match=f"contributing.{named}"):
        ContributingSettings(**options)  # type: ignore[arg-type]


def test_sentences_and_labels_must_fit() -> None:
    with pytest.raises(ValueError, match="2 sentences have 3 labels"):
        fitted(sentences=SENTENCES[:2])
    with pytest.raises(ValueError, match="outside of 2 classes and 5 tokens"):
        fitted(sentences=[*SENTENCES[:2], torch.tensor([5])])
