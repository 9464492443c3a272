"""Saliency of blocks: the norms, and the order."""

import numpy as np
import pytest
import torch

from merging.deduplication.blocking import ModelBlocks
from merging.deduplication.saliency import block_saliency, least_first


@pytest.mark.parametrize(
    ("norm", "plain"),
    [
        ("l1", lambda row: np.abs(row).sum()),
        ("l2", lambda row: np.sqrt((row**2).sum())),
        ("linf", lambda row: np.abs(row).max()),
    ],
)
def test_a_blocks_saliency_is_a_norm_of_its_elements(norm, plain) -> None:  # type: ignore[no-untyped-def]
    weights = {"a": torch.zeros(5, 7), "bias": torch.zeros(9), "b": torch.zeros(4, 4)}
    scores = {name: torch.randn(tensor.shape) for name, tensor in weights.items()}
    blocks = ModelBlocks(weights, 8)
    flat = [scores["a"].flatten().split(8), scores["b"].flatten().split(8)]  # type: ignore[no-untyped-call]
    expected = [plain(row.double().numpy()) for rows in flat for row in rows]
    np.testing.assert_allclose(block_saliency(blocks, scores, norm), expected)
    only_a = block_saliency(blocks, {"a": scores["a"]}, norm)
    assert (only_a[5:] == 0).all()


def test_the_least_come_first_and_zeros_apart() -> None:
    assert least_first(np.array([2.0, 0.0, 1.0, 0.0, 2.0])) == ([2, 0, 4], [1, 3])
    with pytest.raises(ValueError, match="norm must be l1, l2, linf, got 'l3'"):
        block_saliency(ModelBlocks({"a": torch.zeros(2, 2)}, 2), {}, "l3")  # type: ignore[arg-type]
