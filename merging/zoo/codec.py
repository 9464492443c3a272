"""One block of raw bytes as stored bytes, alone or as difference to a block of a relative.

Weights are noise in their low bytes and predictable in their high ones. Items are therefore cut
into byte planes, and each is compressed by zstandard, or by `tunstall` where few values are
frequent, or stored as it is where that gains nothing, as most planes of mantissas. Of a relative's
items the differences of the bit patterns are cut, modulo 2^bits and zigzag (0, -1, 1, -2, ...
become 0, 1, 2, 3, ...): patterns of the same sign are in the order of their numbers, so that what
is near gives small differences, where XOR gives large ones whenever a carry lies between.

A payload is one number of every plane (uint32, little endian: 2^30 times its form, plus its stored
length), the planes, lowest byte first, and the bytes behind the last whole item.
"""

import struct
import threading
from collections.abc import Callable

import numpy as np
import zstandard
from numpy.typing import NDArray

# Kernels are imported where they are called: numba takes time that readers of plain files save.

PLAIN, ALONE, DIFFERENCE = range(3)
"""Codec numbers: the raw bytes; byte planes of the items; of their differences to the base's."""

_LONGEST = 2**30
"""Stored lengths are below; what a plane's number holds above is its form."""

_AS_IT_IS, _TUNSTALL, _FRAME = range(3)

_WORTH = 0.985
"""Share of a plane's bytes that compression must come below to be worth its time."""

_SMALL = 2**12
"""Bytes below which a tensor's block is stored as it is: calls would take longer than bytes."""

_SAMPLED = 2**12
"""Bytes at each of three places that are tried before all of it is compressed."""

Bytes = NDArray[np.uint8]


class _Contexts(threading.local):
    """What no two threads may use at the same time: zstandard's contexts.

    One compressor finds few repetitions, as in weights they are chance: their bytes are best
    coded one by one, in size and in time. The other is for what repeats itself, as text does.
    """

    def __init__(self) -> None:
        rare = zstandard.ZstdCompressionParameters(
            strategy=zstandard.STRATEGY_FAST,
            window_log=17,
            hash_log=6,
            min_match=7,
            target_length=0,  # or bytes without repetition would not be coded at all
        )
        self.compressors = (
            zstandard.ZstdCompressor(compression_params=rare),
            zstandard.ZstdCompressor(),
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def encode(raw: Bytes, item_bytes: int, base: Bytes | None = None) -> tuple[int, bytes]:
    """Returns a block's codec number and payload, in the smallest of the forms.

    Args:
        raw: ``(bytes,)``, contiguous, below 1 GiB.
        item_bytes: bytes of an item of the tensor: 1, 2, 4 or 8.
        base: as many bytes of a relative; None: the block is stored alone.

    Raises:
        ValueError: items of another size, a base of another length, or bytes that are apart.
    """
    _check(raw, item_bytes, base)
    if item_bytes > 1 and len(raw) < _SMALL:
        return PLAIN, raw.tobytes()
    if base is not None and not _near(raw, item_bytes, base):
        base = None
    payload = _pack(raw, item_bytes, base)
    if len(payload) >= len(raw):
        return PLAIN, raw.tobytes()
    return ALONE if base is None else DIFFERENCE, payload


def decode(
    codec: int,
    payload: bytes | memoryview,
    item_bytes: int,
    out: Bytes,
    base: Bytes | None = None,
) -> None:
    """Writes a block's raw bytes.

    Args:
        out: ``(bytes,)``, contiguous; all of it is written.
        base: the bytes that the block was encoded with; read by `DIFFERENCE` only.

    Raises:
        ValueError: the payload is not what `encode` returned with that number for a block of
            that many bytes; what `out` holds then is undefined. Payloads changed in other ways
            give other bytes: blocks are checked by their hashes.
    """
    _check(out, item_bytes, base if codec == DIFFERENCE else None)
    stored = np.frombuffer(payload, np.uint8)
    if codec == PLAIN:
        if len(stored) != len(out):
            raise ValueError(f"a plain payload of {len(stored)} bytes for {len(out)}")
        out[:] = stored
    elif codec in (ALONE, DIFFERENCE):
        if codec == DIFFERENCE and base is None:
            raise ValueError("a difference without the base it was made to")
        _unpack(stored, item_bytes, out, base if codec == DIFFERENCE else None)
    else:
        raise ValueError(f"codec number {codec}: this version knows {PLAIN} to {DIFFERENCE}")


def _check(block: Bytes, item_bytes: int, base: Bytes | None) -> None:
    if item_bytes not in (1, 2, 4, 8):
        raise ValueError(f"items of {item_bytes} bytes: expected 1, 2, 4 or 8")
    if base is not None and len(base) != len(block):
        raise ValueError(f"a base of {len(base)} bytes for a block of {len(block)}")
    if not all(x is None or x.flags.c_contiguous for x in (block, base)):
        raise ValueError("a block or a base whose bytes do not lie one behind the other")


def _near(raw: Bytes, item_bytes: int, base: Bytes) -> bool:
    """Whether the difference is smaller than the block alone, judged by samples."""
    places = _places(len(raw), item_bytes)
    one, other = (np.concatenate([bytes_[place] for place in places]) for bytes_ in (raw, base))
    return _guess(one, item_bytes, other) < _guess(one, item_bytes, None)


def _guess(raw: Bytes, item_bytes: int, base: Bytes | None) -> int:
    compressor = _contexts.compressors[0]
    return sum(len(compressor.compress(plane.data)) for plane in _planes(raw, item_bytes, base))


def _places(length: int, step: int = 1) -> list[slice]:
    """All, or where it is long begin, middle and end, from a multiple of `step` on."""
    if length <= 4 * _SAMPLED:
        return [slice(0, length)]
    last = (length - _SAMPLED) // step * step
    return [slice(at, at + _SAMPLED) for at in (0, last // 2 // step * step, last)]


def _planes(raw: Bytes, item_bytes: int, base: Bytes | None) -> Bytes:
    """Returns the byte planes ``(item_bytes, items)`` of a block or of its difference."""
    from merging.zoo import codec_kernels

    n = len(raw) // item_bytes
    planes = np.empty((item_bytes, n), np.uint8)
    addresses = planes.ctypes.data + n * np.arange(item_bytes)
    x, near = _aligned(raw, item_bytes), None if base is None else _aligned(base, item_bytes)
    codec_kernels.split(x.ctypes.data, _address(near), n, addresses, _scratch(item_bytes))
    return planes


def _pack(raw: Bytes, item_bytes: int, base: Bytes | None) -> bytes:
    planes = _planes(raw, item_bytes, base)
    forms, stored = zip(*map(_compressed, planes), strict=True)
    numbers = _LONGEST * np.array(forms) + [len(plane) for plane in stored]
    return b"".join([numbers.astype("<u4").tobytes(), *stored, raw[planes.size :].data])


def _compressed(plane: Bytes) -> tuple[int, bytes | memoryview]:
    """Returns the smallest form of a plane, or itself where there is too little to gain."""
    from merging.zoo import tunstall

    if not len(plane):
        return _AS_IT_IS, plane.data
    places = _places(len(plane))
    sample = plane if len(places) == 1 else np.concatenate([plane[place] for place in places])
    writers: list[tuple[int, Callable[[memoryview], bytes]]] = [
        (_FRAME, each.compress) for each in _contexts.compressors
    ]
    tried = [write(sample.data) for _, write in writers]
    if len(tried[0]) < len(sample) / 2:  # or too many values are frequent
        writers.append((_TUNSTALL, tunstall.compress))
        tried.append(tunstall.compress(sample.data))
    stored = min(tried, key=len)
    form, write = writers[tried.index(stored)]
    if len(stored) < _WORTH * len(sample):
        stored = stored if sample is plane else write(plane.data)
        if len(stored) < _WORTH * len(plane):
            return form, stored
    return _AS_IT_IS, plane.data


def _unpack(stored: Bytes, item_bytes: int, out: Bytes, base: Bytes | None) -> None:
    from merging.zoo import codec_kernels

    n, rest = divmod(len(out), item_bytes)
    at = 4 * item_bytes
    if len(stored) < at:
        raise ValueError(f"a payload of {len(stored)} bytes")
    planes = []
    for number in struct.unpack_from(f"<{item_bytes}I", stored.data):
        form, length = divmod(number, _LONGEST)
        planes.append(_plane(form, stored[at : at + length], n))
        at += length
    if at + rest != len(stored):
        raise ValueError(f"a payload of {len(stored)} bytes whose planes end at {at}")
    addresses = np.array([plane.ctypes.data for plane in planes])
    near = None if base is None else _aligned(base, item_bytes)
    items = out if out.ctypes.data % item_bytes == 0 else np.empty(n * item_bytes, np.uint8)
    codec_kernels.join(addresses, _address(near), n, items.ctypes.data, _scratch(item_bytes))
    if items is not out:
        out[: n * item_bytes] = items
    out[n * item_bytes :] = stored[at:]


def _plane(form: int, stored: Bytes, n: int) -> Bytes:
    """Returns the n bytes of a plane; ValueError where they are not what is stored."""
    from merging.zoo import tunstall

    if form == _TUNSTALL:
        return tunstall.decompress(stored, n)
    if form == _FRAME:
        return _of_frame(stored, n)
    if form != _AS_IT_IS or len(stored) != n:
        raise ValueError(f"a plane of form {form} and {len(stored)} bytes for {n}")
    return stored


def _of_frame(stored: Bytes, n: int) -> Bytes:
    try:
        if zstandard.frame_content_size(stored.data) != n:  # as much as it says is allocated
            raise ValueError(f"a frame of another length than {n} bytes")
        frame = _contexts.decompressor.decompress(stored.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a damaged frame: {error}") from None
    if len(frame) != n:
        raise ValueError(f"a frame of {len(frame)} bytes for {n}")
    return np.frombuffer(frame, np.uint8)


def _aligned(x: Bytes, item_bytes: int) -> Bytes:
    """Returns the bytes at an address that the compiled loops may read items from."""
    return x if x.ctypes.data % item_bytes == 0 else x.copy()


def _address(x: Bytes | None) -> int:
    return 0 if x is None else x.ctypes.data


def _scratch(item_bytes: int) -> NDArray[np.unsignedinteger]:
    from merging.zoo import codec_kernels

    return np.empty(codec_kernels.SCRATCH, f"u{item_bytes}")
