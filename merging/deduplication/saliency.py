"""Saliency of blocks: a norm over the scores of their elements, and the order that it gives."""

from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from merging.arrays import Vector
from merging.deduplication.blocking import ModelBlocks

Norm = Literal["l1", "l2", "linf"]

_ORDERS: Mapping[Norm, float] = {"l1": 1.0, "l2": 2.0, "linf": float("inf")}


def block_saliency(blocks: ModelBlocks, scores: Mapping[str, Tensor], norm: Norm) -> Vector:
    """Returns ``(blocks,)``: the norm of every block's scores; padding counts nothing.

    Args:
        scores: ``(*shape)`` of every cut tensor, any sign; one that is missing has no saliency.
            Read tensor by tensor.
    """
    if norm not in _ORDERS:
        raise ValueError(f"norm must be {', '.join(_ORDERS)}, got {norm!r}")
    found = np.zeros(len(blocks))
    for tensor in blocks.tensors:
        if tensor not in scores:
            continue
        rows = scores[tensor].reshape(-1).float().split(blocks.block_size)  # type: ignore[no-untyped-call]
        values = [
            torch.linalg.vector_norm(row, _ORDERS[norm], dtype=torch.float64) for row in rows
        ]
        found[blocks.of(tensor).start : blocks.of(tensor).stop] = torch.stack(values).cpu().numpy()
    return found


def least_first(saliency: Vector) -> tuple[list[int], list[int]]:
    """Returns the blocks by increasing saliency, and beside them those whose saliency is zero."""
    order = [int(block) for block in np.argsort(saliency, kind="stable")]
    return [b for b in order if saliency[b] != 0], [b for b in order if saliency[b] == 0]
