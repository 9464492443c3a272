"""Rules followed by compiled loops on the CPU: base, experts and result pass through memory once.

The same arithmetic as the pieces of `blocks.py`, rounding for rounding, so that the results
are the same to the last bit; tests compare them. Where torch takes a dozen operations, each of
them a pass over a piece, a block of entries here stays in the first cache until it is done.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.rules import kernels
from merging.rules.cache import ParameterStack
from merging.rules.compiled_rule import CompiledRule, RuleKind, SelectionKind

_ROUNDED = 2**16
"""Entries computed before they are rounded to another dtype."""

_SHARE = 2**19
"""Fewest entries for which another thread is worth starting."""

_DTYPES = {
    torch.float32: kernels.FLOAT,
    torch.bfloat16: kernels.BFLOAT,
    torch.float16: kernels.HALF,
    torch.int16: kernels.SHORT,
    torch.int32: kernels.INTEGER,
}
_KINDS = {
    RuleKind.COMBINATION: kernels.COMBINATION,
    RuleKind.SUM: kernels.SUM,
    RuleKind.CONSENSUS: kernels.CONSENSUS,
}
_HOW = {
    SelectionKind.ALL: kernels.ALL,
    SelectionKind.LARGEST: kernels.LARGEST,
    SelectionKind.BAND: kernels.BAND,
    SelectionKind.MASK: kernels.MASK,
    SelectionKind.DRAWN: kernels.DRAWN,
    SelectionKind.PRUNED: kernels.PRUNED,
}
_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_READ = torch.float32, torch.bfloat16, torch.float16


def suits(coded: CompiledRule, tensors: ParameterStack, device: torch.device) -> bool:
    """Returns whether the loops compute this parameter: float32 arithmetic on a CPU.

    Args:
        coded: the rule.
        tensors: base and rows.
        device: of the result.
    """
    given = [tensors.base, *(row.stored for row in tensors.rows)]
    return (
        device.type == "cpu"
        and tensors.dtype == torch.float32
        and all(each.dtype in _READ and each.device.type == "cpu" for each in given)
        and _fits(coded)
        and _torch_rounds_once()
    )


def _fits(coded: CompiledRule) -> bool:
    """Whether no number becomes 0 or infinite in float32; torch has its own ways with those."""
    given = [*coded.coefficients, *coded.later, *coded.masses, coded.rest, coded.scale]
    return all(each == 0 or _LEAST <= abs(each) <= _MOST for each in given)


@cache
def _torch_rounds_once() -> bool:
    """Whether torch multiplies and adds with one rounding here, as the loops do."""
    one, near = torch.ones(67), torch.full((67,), 1 + 2.0**-12)
    sums = (
        torch.add(-one, near, alpha=1 + 2.0**-12),
        torch.addcmul(-one, one, near, value=1 + 2.0**-12),
    )
    return all(bool((each == 2.0**-11 + 2.0**-24).all()) for each in sums)


def run(coded: CompiledRule, base: Tensor, out: Tensor) -> None:
    """Writes what a rule makes of base and rows into `out`, with as many threads as torch has.

    Args:
        coded: the rule, of tensors that `suits` finds good.
        base: ``(*shape)``.
        out: ``(*shape)``, contiguous, of any floating dtype.
    """
    given = [base, *(row.stored for row in coded.rows)]
    flat = [each.contiguous() for each in given]
    arguments = (*_table(coded, flat), *_numbers(coded))
    target, size = out.view(-1), out.numel()
    seen = flat, coded  # the loops see addresses only: as long as they run, these stay

    def part(start: int, end: int, seen: object = seen) -> None:
        memory = np.zeros(kernels.workspace(len(coded.rows)), np.uint8)
        if out.dtype == torch.float32:
            place = out.data_ptr() + 4 * start
            kernels.follow(place, start, end - start, *arguments, memory)
            return
        room = torch.empty(min(_ROUNDED, end - start))
        with torch.inference_mode():  # a thread of its own does not inherit it
            for at in range(start, end, _ROUNDED):
                here = room[: min(_ROUNDED, end - at)]
                kernels.follow(here.data_ptr(), at, len(here), *arguments, memory)
                target[at : at + len(here)].copy_(here)

    workers = min(torch.get_num_threads(), max(1, size // _SHARE))
    if workers == 1:
        part(0, size)
        return
    bounds = [size * worker // workers for worker in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))


def _table(coded: CompiledRule, flat: list[Tensor]) -> tuple[Any, ...]:
    """Returns addresses and dtypes of base and rows, and how each row is selected from."""
    count = len(coded.rows)
    how = np.zeros(count, np.int64)
    numbers, places = np.zeros((count, 4), np.float32), np.zeros((count, 4), np.int64)
    for i, selection in enumerate(coded.selections):
        how[i] = _HOW[selection.how]
        numbers[i, : len(selection.numbers)] = selection.numbers
        places[i, : len(selection.last)] = selection.last
        for j, tensor in enumerate(selection.tensors):
            places[i, 2 * j] = tensor.data_ptr()
            places[i, 2 * j + 1] = _DTYPES[tensor.dtype]
    return (
        np.array([each.data_ptr() for each in flat]),
        np.array([_DTYPES[each.dtype] for each in flat]),
        np.array([row.whole for row in coded.rows]),
        how,
        numbers,
        places,
    )


def _numbers(coded: CompiledRule) -> tuple[Any, ...]:
    each = (coded.coefficients, coded.later, coded.masses)
    shared = (np.float32(coded.rest), np.float32(coded.scale))
    return (
        _KINDS[coded.kind],
        *(np.array(numbers, np.float32) for numbers in each),
        *shared,
        coded.by_count,
        coded.normalize,
    )
