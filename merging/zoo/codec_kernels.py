"""The compiled loops behind `codec.py`: items to byte planes and back, at the speed of memory.

Numba compiles them at their first call, once for each size of items, and keeps the code on disk.
Arrays are passed as addresses, so that it does not matter to which of them may be written; the
item is told by the unsigned dtype of the scratch memory.
"""

from typing import Any

from numba import carray, types
from numba.extending import intrinsic

from merging.jit import cached, inner

SCRATCH = 1024
"""Items worked on at a time: with their planes they stay in the first cache."""


@intrinsic
def _pointer(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.voidptr))

    return types.voidptr(types.int64), generate


@intrinsic
def _bytes(context: Any, address: Any) -> Any:
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        return builder.inttoptr(arguments[0], context.get_value_type(types.CPointer(types.uint8)))

    return types.CPointer(types.uint8)(types.int64), generate


@inner
def _zigzag(x: Any, base: Any, z: Any) -> None:
    # d = x - base, mod 2^bits and signed;  z = 2 d where d >= 0, else -2 d - 1
    one, top = z.dtype.type(1), z.dtype.type(8 * z.itemsize - 1)
    for j in range(len(z)):
        d = z.dtype.type(x[j] - base[j])
        z[j] = z.dtype.type(d << one) ^ z.dtype.type(-z.dtype.type(d >> top))


@inner
def _undo(z: Any, base: Any, x: Any) -> None:
    # x = base + d, mod 2^bits
    one = z.dtype.type(1)
    for j in range(len(z)):
        d = z.dtype.type(z[j] >> one) ^ z.dtype.type(-z.dtype.type(z[j] & one))
        x[j] = base[j] + d


@inner
def _copy(x: Any, out: Any) -> None:
    for j in range(len(out)):
        out[j] = x[j]


@inner
def _take(z: Any, shift: Any, plane: Any) -> None:
    # plane = (z >> shift) mod 256
    for j in range(len(plane)):
        plane[j] = z[j] >> shift


@inner
def _start(plane: Any, z: Any) -> None:
    for j in range(len(plane)):
        z[j] = plane[j]


@inner
def _add(plane: Any, shift: Any, z: Any) -> None:
    # z <- z + plane 2^shift
    for j in range(len(plane)):
        z[j] |= z.dtype.type(plane[j]) << shift


@cached
def split(x: int, base: int, n: int, planes: Any, scratch: Any) -> None:
    """Writes byte p of every item, or of its zigzag difference to the base's, into plane p.

    Args:
        x: address of n items.
        base: address of as many, or 0.
        planes: addresses ``(bytes of an item,)``, int64, of n bytes each; lowest byte first.
        scratch: ``(SCRATCH,)``, unsigned.
    """
    size = scratch.itemsize
    for at in range(0, n, len(scratch)):
        m = min(len(scratch), n - at)
        z, items = scratch[:m], carray(_pointer(x + at * size), m, scratch.dtype)
        if base != 0:
            _zigzag(items, carray(_pointer(base + at * size), m, scratch.dtype), z)
        else:
            _copy(items, z)
        for p in range(size):
            _take(z, scratch.dtype.type(8 * p), carray(_bytes(planes[p] + at), m))


@cached
def join(planes: Any, base: int, n: int, x: int, scratch: Any) -> None:
    """Undoes `split`: writes n items to the address x."""
    size = scratch.itemsize
    for at in range(0, n, len(scratch)):
        m = min(len(scratch), n - at)
        z, items = scratch[:m], carray(_pointer(x + at * size), m, scratch.dtype)
        _start(carray(_bytes(planes[0] + at), m), z)
        for p in range(1, size):
            _add(carray(_bytes(planes[p] + at), m), scratch.dtype.type(8 * p), z)
        if base != 0:
            _undo(z, carray(_pointer(base + at * size), m, scratch.dtype), items)
        else:
            _copy(z, items)
