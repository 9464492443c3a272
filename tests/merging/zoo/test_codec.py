"""Blocks through the codec and back: the same bytes, whatever they are; damage is refused."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress

import numpy as np
import pytest
import zstandard
from hypothesis import example, given, settings
from hypothesis import strategies as st

from merging.zoo.codec import ALONE, DIFFERENCE, PLAIN, Bytes, decode, encode

KINDS = "noise", "weights", "few", "special", "zeros"
RELATIONS = "none", "equal", "near", "sparse", "noise"
ITEMS = st.sampled_from((1, 2, 4, 8))


def block(kind: str, length: int, rng: np.random.Generator) -> Bytes:
    if kind == "weights":
        items = rng.normal(0, 0.02, length // 4 + 1).astype(np.float32)
    elif kind == "few":
        items = rng.integers(0, 3, length).astype(np.uint8)
    elif kind == "special":  # 0, -0, infinities, NaN with payloads, subnormals, extremes
        patterns = [0, 1 << 31, 0x7F800000, 0xFF800000, 0x7FC00001, 0xFFFFFFFF, 1, 0x7FFFFFFF]
        items = rng.choice(np.array(patterns, np.uint32), length // 4 + 1)
    elif kind == "zeros":
        items = np.zeros(length, np.uint8)
    else:
        items = rng.integers(0, 256, length).astype(np.uint8)
    return items.view(np.uint8)[:length].copy()


def relative(raw: Bytes, relation: str, rng: np.random.Generator) -> Bytes | None:
    if relation == "none":
        return None
    if relation == "noise":
        return block("noise", len(raw), rng)
    other = raw.copy()
    if relation == "near":
        other += rng.integers(0, 2, len(raw)).astype(np.uint8)
    if relation == "sparse":
        other[::97] ^= 255
    return other


@settings(deadline=None, max_examples=100)
@example(4, 2**18 + 3, "weights", "near", 1, 0)
@example(2, 2**18, "noise", "noise", 0, 0)
@example(8, 0, "noise", "equal", 0, 0)
@given(
    item_bytes=ITEMS,
    length=st.one_of(st.integers(0, 40), st.integers(0, 2**15)),
    kind=st.sampled_from(KINDS),
    relation=st.sampled_from(RELATIONS),
    shift=st.integers(0, 7),
    seed=st.integers(0, 2**32 - 1),
)
def test_bytes_come_back(
    item_bytes: int, length: int, kind: str, relation: str, shift: int, seed: int
) -> None:
    """Also to and from addresses that are no multiple of an item's size."""
    rng = np.random.default_rng(seed)
    whole = block(kind, length + shift, rng)
    raw = whole[shift:]
    base = relative(raw, relation, rng)
    codec, payload = encode(raw, item_bytes, base)
    assert len(payload) <= length
    assert codec in ((PLAIN, ALONE) if base is None else (PLAIN, ALONE, DIFFERENCE))
    out = np.full(length + shift, 7, np.uint8)
    decode(codec, memoryview(payload), item_bytes, out[shift:], base)
    assert bytes(out[shift:]) == bytes(raw)
    assert (out[:shift] == 7).all()


@settings(deadline=None, max_examples=100)
@given(data=st.data(), item_bytes=ITEMS, relation=st.sampled_from(RELATIONS))
def test_damage_is_refused_or_changes_bytes_only(
    data: st.DataObject, item_bytes: int, relation: str
) -> None:
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32 - 1)))
    raw = block("weights", 8001, rng)
    base = relative(raw, relation, rng)
    codec, payload = encode(raw, item_bytes, base)
    assert codec != PLAIN or item_bytes == 1 or relation == "noise"
    damaged = bytearray(payload)
    for _ in range(data.draw(st.integers(1, 3))):
        damaged[data.draw(st.integers(0, len(damaged) - 1))] ^= data.draw(st.integers(1, 255))
    out = np.zeros(len(raw) + 64, np.uint8)
    with suppress(ValueError):
        decode(codec, damaged, item_bytes, out[: len(raw)], base)
    assert not out[len(raw) :].any()
    cut = data.draw(st.integers(0, len(payload) - 1))
    for changed in (payload[:cut], payload + b"\0"):
        with pytest.raises(ValueError, match=r"bytes|frame"):
            decode(codec, changed, item_bytes, out[: len(raw)], base)


def test_what_does_not_fit_is_refused() -> None:
    raw = block("weights", 64, np.random.default_rng(0))
    for codec, item_bytes, base, sentence in (
        (DIFFERENCE, 4, None, "without the base"),
        (DIFFERENCE, 4, raw[:60], "base of 60 bytes for a block of 64"),
        (PLAIN, 3, None, "items of 3 bytes"),
        (9, 4, None, "codec number 9"),
    ):
        with pytest.raises(ValueError, match=sentence):
            decode(codec, raw, item_bytes, raw.copy(), base)
    with pytest.raises(ValueError, match="one behind the other"):
        encode(raw[::2], 4)


def test_what_is_near_takes_less_than_xor_planes_under_zstandard() -> None:
    """A fine-tune in bfloat16, simulated: every form of a plane occurs and saves its share."""
    rng = np.random.default_rng(0)
    base = rng.normal(0, 0.02, 2**18).astype(np.float32)
    tuned = base + rng.normal(0, 2e-3, 2**18).astype(np.float32)
    raw, near = (
        np.ascontiguousarray(x.view(np.uint16)[1::2]).view(np.uint8) for x in (tuned, base)
    )
    codec, payload = encode(raw, 2, near)
    assert codec == DIFFERENCE
    planes = (raw ^ near).reshape(-1, 2).T
    xor = sum(len(zstandard.compress(plane.tobytes())) for plane in planes)
    assert len(payload) < 0.93 * xor
    assert len(encode(raw, 2)[1]) < 0.75 * len(raw)
    assert encode(raw, 2, rng.permutation(near))[0] == ALONE
    forms = set(np.frombuffer(payload[:8], "<u4") >> 30)
    assert forms == {1, 2}


def test_threads_share_nothing() -> None:
    def there_and_back(seed: int) -> bool:
        rng = np.random.default_rng(seed)
        raw = block("weights", 2**17 + seed, rng)
        base = relative(raw, "near", rng)
        out = np.empty_like(raw)
        decode(*encode(raw, 4, base), 4, out, base)
        return bytes(out) == bytes(raw)

    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(there_and_back, range(40)))
