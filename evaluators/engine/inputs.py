"""Inputs of any kind, one item each, put together into padded batches."""

import math
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from evaluators.engine.resident import Resident

Inputs: TypeAlias = Mapping[str, Tensor]
"""What a model takes of one item, by name, without batch dimension."""

_ELEMENTS_PER_TOKEN = 3 * 16 * 16  # an image costs about what its 16 x 16 patches cost


def shapes(inputs: Inputs) -> tuple[Any, ...]:
    """Returns what inputs must have in common to share a batch; sequences may differ in length."""
    return tuple(
        sorted(
            (name, () if _is_sequence(tensor) else tuple(tensor.shape))
            for name, tensor in inputs.items()
        )
    )


def cost(inputs: Inputs) -> int:
    """Returns the size of an item in a batch, in tokens."""
    return max(
        len(tensor) if _is_sequence(tensor) else -(-tensor.numel() // _ELEMENTS_PER_TOKEN)
        for tensor in inputs.values()
    )


def stacked(rows: Sequence[Inputs], config: Any, resident: Resident) -> dict[str, Tensor]:
    """Returns each input with a batch dimension, on the device; padded on the right, with mask.

    Args:
        config: of the model that reads them, which may name a padding token.
    """
    pad = getattr(config, "pad_token_id", None) or 0
    if "input_ids" in rows[0] and "attention_mask" not in rows[0]:
        rows = [{**row, "attention_mask": torch.ones_like(row["input_ids"])} for row in rows]
    together: dict[str, Tensor] = {}
    for name in rows[0]:
        tensors = [row[name] for row in rows]
        if _is_sequence(tensors[0]):
            value = pad if name == "input_ids" else 0
            batch = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=value)
        else:
            batch = torch.stack(tensors)
        together[name] = resident.placed(batch)
    return together


def close(found: Tensor, expected: Tensor, dtype: torch.dtype) -> bool:
    """Whether tensors are equal but for rounding in `dtype`."""
    tolerance = math.sqrt(torch.finfo(dtype).eps)
    return bool((found - expected).norm() <= tolerance * expected.norm())


def _is_sequence(tensor: Tensor) -> bool:
    return tensor.dim() == 1 and not tensor.is_floating_point()
