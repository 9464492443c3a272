"""Rules run by compiled loops on the CPU: base, experts and result pass through memory once.

The same arithmetic as the blocks of `blocks.py`, rounding for rounding, so that the results
are the same to the last bit; tests compare them. Where torch takes a dozen operations, each of
them a pass over a block, a few entries here stay in the first cache until they are done.
"""

from concurrent.futures import ThreadPoolExecutor
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from merging.rules import kernels
from merging.rules.cache import ParameterStack
from merging.rules.compiled_rule import ENTRY_TYPES, CompiledRule

_ROUNDED = 2**16
"""Entries computed before they are rounded to another dtype."""

_SHARE = 2**19
"""Fewest entries for which another thread is worth starting."""

_LEAST, _MOST = float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)
_READ = torch.float32, torch.bfloat16, torch.float16


def suits(rule: CompiledRule, tensors: ParameterStack, device: torch.device) -> bool:
    """Returns whether the loops compute this parameter: float32 arithmetic on a CPU."""
    stored = [tensors.base, *(row.stored for row in tensors.rows)]
    return (
        device.type == "cpu"
        and tensors.dtype == torch.float32
        and all(tensor.dtype in _READ and tensor.device.type == "cpu" for tensor in stored)
        and _fits(rule)
        and _torch_rounds_once()
    )


def _fits(rule: CompiledRule) -> bool:
    """Whether no number becomes 0 or infinite in float32; torch has its own ways with those."""
    per_expert = *rule.coefficients, *rule.post_election_weights, *rule.normalizers
    numbers = [*per_expert, rule.base_coefficient, rule.scale]
    return all(number == 0 or _LEAST <= abs(number) <= _MOST for number in numbers)


@cache
def _torch_rounds_once() -> bool:
    """Whether torch multiplies and adds with one rounding here, as the loops do."""
    one, near = torch.ones(67), torch.full((67,), 1 + 2.0**-12)
    sums = (
        torch.add(-one, near, alpha=1 + 2.0**-12),
        torch.addcmul(-one, one, near, value=1 + 2.0**-12),
    )
    return all(bool((total == 2.0**-11 + 2.0**-24).all()) for total in sums)


def run(rule: CompiledRule, base: Tensor, out: Tensor) -> None:
    """Writes what a rule makes of base and experts into `out`, with as many threads as torch has.

    Args:
        rule: of tensors that `suits` finds good.
        base: ``(*shape)``.
        out: ``(*shape)``, contiguous, of any floating dtype.
    """
    stored = [tensor.contiguous() for tensor in (base, *(row.stored for row in rule.rows))]
    arguments = _arguments(rule, stored)
    target, size = out.view(-1), out.numel()
    alive = stored, rule  # the loops see addresses only: as long as they run, these stay

    def part(start: int, end: int, alive: object = alive) -> None:
        memory = np.zeros(kernels.scratch_bytes(len(rule.rows)), np.uint8)
        if out.dtype == torch.float32:
            target_address = out.data_ptr() + 4 * start
            kernels.run_rule(target_address, start, end - start, *arguments, memory)
            return
        exact = torch.empty(min(_ROUNDED, end - start))
        with torch.inference_mode():  # a thread of its own does not inherit it
            for at in range(start, end, _ROUNDED):
                entries = exact[: min(_ROUNDED, end - at)]
                kernels.run_rule(entries.data_ptr(), at, len(entries), *arguments, memory)
                target[at : at + len(entries)].copy_(entries)

    workers = min(torch.get_num_threads(), max(1, size // _SHARE))
    if workers == 1:
        part(0, size)
        return
    bounds = [size * worker // workers for worker in range(workers + 1)]
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(part, bounds[:-1], bounds[1:]))


def _arguments(rule: CompiledRule, stored: list[Tensor]) -> tuple[Any, ...]:
    """Returns what `kernels.run_rule` reads of a rule and its contiguous tensors, in its order."""
    experts = len(rule.rows)
    selections = np.zeros(experts, np.int64)
    numbers, integers = np.zeros((experts, 4), np.float32), np.zeros((experts, 4), np.int64)
    for i, sparsifier in enumerate(rule.sparsifiers):
        packed = sparsifier.packed()
        selections[i] = packed.kind
        numbers[i, : len(packed.numbers)] = packed.numbers
        integers[i, : len(packed.integers)] = packed.integers
    return (
        np.array([tensor.data_ptr() for tensor in stored]),
        np.array([ENTRY_TYPES[tensor.dtype] for tensor in stored]),
        np.array([row.is_full_checkpoint for row in rule.rows]),
        selections,
        numbers,
        integers,
        int(rule.kind),  # numba would compile the loops anew for an enum
        np.array(rule.coefficients, np.float32),
        np.array(rule.post_election_weights, np.float32),
        np.array(rule.normalizers, np.float32),
        np.float32(rule.base_coefficient),
        np.float32(rule.scale),
        rule.by_count,
        rule.normalize,
    )
