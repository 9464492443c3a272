"""The k-th largest magnitude by counting, on a CPU: nothing is put in order, nothing kept.

The bits of a float32 magnitude rise with it. One pass counts its leading half, a second one the
other half of those that have the leading bits of the wanted one. Deltas are computed block by
block where they are counted.
"""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from merging.rules import kernels

TYPES = {
    torch.float32: kernels.FLOAT,
    torch.bfloat16: kernels.BFLOAT,
    torch.float16: kernels.HALF,
}
"""Numbers that the loops read."""

_SHARE = 2**19
"""Fewest entries for which another thread is worth starting."""


def kth_difference(stored: Tensor, base: Tensor | None, count: int) -> float:
    """Returns the `count`-th largest magnitude of ``stored - base`` in float32.

    Args:
        stored: ``(*shape)`` of one of `TYPES`, on the CPU.
        base: like it; None: zeros.
        count: from 1 to the number of entries.
    """
    stored, base = stored.contiguous(), None if base is None else base.contiguous()
    size = stored.numel()
    workers = min(torch.get_num_threads(), max(1, size // _SHARE))
    bounds = [size * worker // workers for worker in range(workers + 1)]
    given = (
        (stored.data_ptr(), TYPES[stored.dtype]),
        (0, kernels.FLOAT) if base is None else (base.data_ptr(), TYPES[base.dtype]),
    )

    def counted(leading: int) -> NDArray[np.int64]:
        def part(start: int, end: int) -> NDArray[np.int64]:
            counts = np.zeros(2**16, np.int64)
            memory = np.zeros(kernels.scratch_bytes(1), np.uint8)
            kernels.count_magnitudes(*given[0], *given[1], start, end, leading, counts, memory)
            return counts

        if workers == 1:
            return part(0, size)
        with ThreadPoolExecutor(workers) as pool:
            return sum(pool.map(part, bounds[:-1], bounds[1:]), np.zeros(2**16, np.int64))

    leading, larger = _place(counted(-1), count)
    rest, _ = _place(counted(leading), count - larger)
    return float(np.array(leading << 16 | rest, np.int32).view(np.float32))


def _place(counts: NDArray[np.int64], count: int) -> tuple[int, int]:
    """Returns the number whose entry is the `count`-th from above, and how many lie above it."""
    at_least = counts[::-1].cumsum()[::-1]
    place = int((at_least >= count).sum()) - 1
    return place, int(at_least[place] - counts[place])
