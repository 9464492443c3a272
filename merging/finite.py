"""Whether all values are numbers, at about the speed at which memory is copied."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

_MAGNITUDES = {  # what of the bits is not the sign, and the least of it that is no finite number
    torch.float64: (np.int64, 0x7FF << 52),
    torch.float32: (np.int32, 0xFF << 23),
    torch.float16: (np.int16, 0x7C00),
    torch.bfloat16: (np.int16, 0x7F80),
}

_CACHED = 2**18
"""Bytes that stay in a core's cache between the two passes over them."""

_SHARED = 2**23
"""Bytes from which on several threads share a tensor."""


def finite(values: Tensor) -> bool:
    """Whether no value is NaN or infinite.

    Where the exponent's bits are all ones; so a value's bits without its sign, read as a whole
    number, tell. Numbers of eight bits and fewer, which no merge takes, count as finite.

    Args:
        values: of any shape and dtype, on the CPU.
    """
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.dtype not in _MAGNITUDES:
        return True
    kind, least = _MAGNITUDES[values.dtype]
    bits = values.contiguous().view(-1).view(getattr(torch, np.dtype(kind).name)).numpy()
    threads = torch.get_num_threads() if bits.nbytes >= _SHARED else 1
    if threads == 1:
        return _all_below(bits, least)
    with ThreadPoolExecutor(threads) as each:
        return all(each.map(lambda part: _all_below(part, least), np.array_split(bits, threads)))


def _all_below(bits: NDArray[np.signedinteger], least: int) -> bool:
    """Whether every magnitude is below `least`."""
    mask = bits.dtype.type(np.iinfo(bits.dtype).max)  # all but the sign
    held = np.empty(_CACHED // bits.itemsize, bits.dtype)
    return all(
        np.bitwise_and(part, mask, out=held[: len(part)]).max() < least
        for part in _parts(bits, len(held))
    )


def _parts(bits: NDArray[np.signedinteger], length: int) -> Iterator[NDArray[np.signedinteger]]:
    for at in range(0, len(bits), length):
        yield bits[at : at + length]
