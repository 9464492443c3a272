"""One block of raw bytes as stored bytes, alone or as difference to a block of a relative.

Weights are noise in their low bytes and predictable in their high ones. Items are therefore cut
into byte planes, and each is compressed by zstandard, or stored as it is where that gains nothing,
as most planes of mantissas. Of a relative's items the differences of the bit patterns are cut,
modulo 2^bits and zigzag (0, -1, 1, -2, ... become 0, 1, 2, 3, ...): patterns of the same sign are
in the order of their numbers, so that what is near gives small differences, where XOR gives large
ones whenever a carry lies between.

A payload is the stored length of every plane (uint32, little endian; n bytes for n items: it is
not compressed), the planes, lowest byte first, and the bytes behind the last whole item.
"""

import threading
from itertools import pairwise

import numpy as np
import zstandard
from numpy.typing import NDArray

from merging.zoo import codec_kernels

PLAIN, ALONE, DIFFERENCE = range(3)
"""Codec numbers: the raw bytes; byte planes of the items; of their differences to the base's."""

_WORTH = 0.985
"""Share of a plane's bytes that compression must come below to be worth its time."""

_SAMPLED = 2**12
"""Bytes at each of three places that are tried before all of it is compressed."""

Bytes = NDArray[np.uint8]


class _Contexts(threading.local):
    """What no two threads may use at the same time.

    Compressors: one that finds few repetitions, as chance makes of weights: their bytes are best
    coded one by one, in size and in time; and one for what repeats itself, as text does.
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
            zstandard.ZstdCompressor(level=3),
        )
        self.decompressor = zstandard.ZstdDecompressor()


_contexts = _Contexts()


def encode(raw: Bytes, item_bytes: int, base: Bytes | None = None) -> tuple[int, bytes]:
    """Returns a block's codec number and payload, in the smallest of the forms.

    Args:
        raw: ``(bytes,)``, contiguous, below 4 GiB.
        item_bytes: bytes of an item of the tensor: 1, 2, 4 or 8.
        base: as many bytes of a relative; None: the block is stored alone.

    Raises:
        ValueError: items of another size, or a base of another length.
    """
    _check(len(raw), item_bytes, base)
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
    _check(len(out), item_bytes, base if codec == DIFFERENCE else None)
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


def _check(length: int, item_bytes: int, base: Bytes | None) -> None:
    if item_bytes not in (1, 2, 4, 8):
        raise ValueError(f"items of {item_bytes} bytes: expected 1, 2, 4 or 8")
    if base is not None and len(base) != length:
        raise ValueError(f"a base of {len(base)} bytes for a block of {length}")


def _near(raw: Bytes, item_bytes: int, base: Bytes) -> bool:
    """Whether the difference is smaller than the block alone, judged by samples."""
    places = _places(len(raw), item_bytes)
    one, other = (np.concatenate([bytes_[place] for place in places]) for bytes_ in (raw, base))
    return len(_pack(one, item_bytes, other)) < len(_pack(one, item_bytes, None))


def _places(length: int, step: int = 1) -> list[slice]:
    """All, or where it is long begin, middle and end, from a multiple of `step` on."""
    if length <= 4 * _SAMPLED:
        return [slice(0, length)]
    last = (length - _SAMPLED) // step * step
    return [slice(at, at + _SAMPLED) for at in (0, last // 2 // step * step, last)]


def _pack(raw: Bytes, item_bytes: int, base: Bytes | None) -> bytes:
    n = len(raw) // item_bytes
    planes = np.empty((item_bytes, n), np.uint8)
    addresses = planes.ctypes.data + n * np.arange(item_bytes)
    x, near = _aligned(raw, item_bytes), None if base is None else _aligned(base, item_bytes)
    codec_kernels.split(x.ctypes.data, _address(near), n, addresses, _scratch(item_bytes))
    stored = [_compressed(plane) for plane in planes]
    lengths = np.array([len(plane) for plane in stored], "<u4")
    return b"".join([lengths.tobytes(), *stored, raw[n * item_bytes :].data])


def _compressed(plane: Bytes) -> bytes | memoryview:
    """Returns a plane's frame, or the plane where there is too little to gain."""
    sample = np.concatenate([plane[place] for place in _places(len(plane))])
    frames = [compressor.compress(sample.data) for compressor in _contexts.compressors]
    frame = min(frames, key=len)
    if len(frame) >= _WORTH * len(sample):
        return plane.data
    if len(sample) < len(plane):
        frame = _contexts.compressors[frames.index(frame)].compress(plane.data)
    return frame if len(frame) < _WORTH * len(plane) else plane.data


def _unpack(stored: Bytes, item_bytes: int, out: Bytes, base: Bytes | None) -> None:
    n, rest = divmod(len(out), item_bytes)
    header = 4 * item_bytes
    lengths = stored[:header].copy().view("<u4").tolist() if len(stored) >= header else []
    if not lengths or header + sum(lengths) + rest != len(stored):
        raise ValueError(f"a payload of {len(stored)} bytes whose planes have other lengths")
    ends = header + np.cumsum([0, *lengths])
    planes = [_plane(stored[start:end], n) for start, end in pairwise(ends)]
    addresses = np.array([plane.ctypes.data for plane in planes])
    near = None if base is None else _aligned(base, item_bytes)
    items = out if out.ctypes.data % item_bytes == 0 else np.empty(n * item_bytes, np.uint8)
    codec_kernels.join(addresses, _address(near), n, items.ctypes.data, _scratch(item_bytes))
    if items is not out:
        out[: n * item_bytes] = items
    out[n * item_bytes :] = stored[ends[-1] :]


def _plane(stored: Bytes, n: int) -> Bytes:
    """Returns the n bytes of a plane; ValueError where they are not in the frame."""
    if len(stored) == n:
        return stored
    try:
        if (
            zstandard.frame_content_size(stored.data) != n
        ):  # before as much as it says is allocated
            raise ValueError(f"a frame of another length than {n} bytes")
        frame = _contexts.decompressor.decompress(stored.data, allow_extra_data=False)
    except zstandard.ZstdError as error:
        raise ValueError(f"a damaged frame: {error}") from None
    plane = np.frombuffer(frame, np.uint8)
    if len(plane) != n:
        raise ValueError(f"a frame of {len(plane)} bytes for {n}")
    return plane


def _aligned(x: Bytes, item_bytes: int) -> Bytes:
    """Returns the bytes at an address that the compiled loops may read items from."""
    return x if x.ctypes.data % item_bytes == 0 else x.copy()


def _address(x: Bytes | None) -> int:
    return 0 if x is None else x.ctypes.data


def _scratch(item_bytes: int) -> NDArray[np.unsignedinteger]:
    return np.empty(codec_kernels.SCRATCH, f"u{item_bytes}")
