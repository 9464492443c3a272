"""The lossless codec of the zoo beside XOR planes, byte planes, zstandard and reading a file.

Real fine-tunes and their bases: the models that the PyPI package rxnfp carries (the pretrained
one is the base; one fine-tune is far from it, the other near), and the experts of the sentences
and of the quickstart where they lie in the cache. Each in float32, as it was trained, and
rounded to bfloat16. XOR planes are the byte planes of the bit patterns' XOR, as ZipLLM's BitX;
the peers' planes are compressed by zstandard's default level.

Speeds are one core's, by the processor's clock, block by block, of the fine-tune's bytes as often
as no cache holds them. Files are read from the page cache into new memory, as loaders read them,
and decoded into new memory.
"""

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import torch
import zstandard
from torch import Tensor

from experiments.benchmarks.measured import Measured, in_turns, skipped
from merging.checkpoints.weight_files import WeightFiles
from merging.files import cache_dir
from merging.zoo.codec import Bytes, decode, encode
from merging.zoo.layout import Chunk, Entry, chunks

POINTS = 3.0
ENCODED_MB_PER_S = 200.0

_HEADER = np.zeros(8, np.uint8)
_TIMED = 2**27
"""Bytes, at least, of what is timed: an allocator keeps memory of smaller things for the next."""

_DTYPES = {"bfloat16": torch.bfloat16, "float32": torch.float32}
_RXNFP = {"far": "bert_ft", "near": "bert_ft_10k_25s"}
_EXPERTS = {
    "sentences": ("sst2", "search experts=sentences"),
    "quickstart": ("headers_hot", "search experiment=quickstart experts=quickstart_long"),
}
"""Pool -> an expert that tells its folder, and what trains it."""


@dataclass(frozen=True)
class FineTune:
    """A fine-tune's blocks with those of its base."""

    name: str
    item_bytes: int
    pairs: tuple[tuple[Bytes, Bytes], ...]

    @property
    def size(self) -> int:
        """Bytes of the fine-tune."""
        return sum(len(raw) for raw, _ in self.pairs)


def measure() -> Iterable[Measured]:
    """Yields what is saved, and both speeds, of every fine-tune in every dtype."""
    for name, base, tuned in _fine_tunes():
        for dtype in _DTYPES:
            yield from _rows(_blocks(f"{name}, {dtype}", base, tuned, _DTYPES[dtype]))
    for name, reason in _missing():
        yield skipped(f"{name}: bytes saved", "XOR planes", reason)


def _fine_tunes() -> Iterator[tuple[str, Mapping[str, Tensor], Mapping[str, Tensor]]]:
    if (folder := _rxnfp()) is not None:
        base: Mapping[str, Tensor] = _pickled(folder / "bert_pretrained")
        for distance, name in _RXNFP.items():
            yield f"rxnfp, {distance}", base, _pickled(folder / name)
    for pool in _EXPERTS:
        if (folder := _pool(pool)) is not None:
            base = WeightFiles.find(folder / "base")
            for expert in sorted((folder / "experts").iterdir())[:2]:
                yield f"{pool}, {expert.name}", base, _bare(WeightFiles.find(expert))


def _missing() -> Iterator[tuple[str, str]]:
    if _rxnfp() is None:
        yield "rxnfp", "not installed: pip install --no-deps rxnfp"
    for pool, (_, command) in _EXPERTS.items():
        if _pool(pool) is None:
            yield pool, f"not in {cache_dir()}: evomerge {command} trains these experts"


def _rxnfp() -> Path | None:
    spec = find_spec("rxnfp")
    return None if spec is None else Path(str(spec.origin)).parent / "models" / "transformers"


def _pickled(folder: Path) -> dict[str, Tensor]:
    weights = torch.load(folder / "pytorch_model.bin", weights_only=True, map_location="cpu")
    return _bare(weights)


def _bare(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Returns the weights under the names that a bare encoder gives them."""
    return {name.removeprefix("bert."): tensor for name, tensor in weights.items()}


def _pool(name: str) -> Path | None:
    expert, _ = _EXPERTS[name]
    found = min(cache_dir().glob(f"{name}-*/experts/{expert}"), default=None)
    return None if found is None else found.parents[1]


def _blocks(
    name: str, base: Mapping[str, Tensor], tuned: Mapping[str, Tensor], dtype: torch.dtype
) -> FineTune:
    """Cuts what both have in the same shape, as the zoo does; an expert's head has no relative."""
    keys = [
        key
        for key in tuned
        if key in base and base[key].shape == tuned[key].shape and base[key].is_floating_point()
    ]
    raw, near = (
        np.concatenate([_HEADER, *(_bytes(weights[key], dtype) for key in keys)])
        for weights in (tuned, base)
    )
    kind, at, entries = {2: "BF16", 4: "F32"}[dtype.itemsize], len(_HEADER), {}
    for key in keys:
        end = at + dtype.itemsize * tuned[key].numel()
        entries[key] = Entry(kind, tuple(tuned[key].shape), at, end)
        at = end
    pairs = [
        (_taken(raw, chunk), _taken(near, chunk))
        for chunk in chunks(at, len(_HEADER), entries)
        if chunk.tensor is not None
    ]
    return FineTune(name, dtype.itemsize, tuple(pairs))


def _taken(file: Bytes, chunk: Chunk) -> Bytes:
    return np.concatenate([file[begin:end] for begin, end in chunk.ranges])


def _bytes(tensor: Tensor, dtype: torch.dtype) -> Bytes:
    return tensor.to(dtype).contiguous().view(-1).view(torch.uint8).numpy()


def _rows(tuned: FineTune) -> Iterator[Measured]:
    stored = [encode(raw, tuned.item_bytes, base) for raw, base in tuned.pairs]
    ours = _saved(tuned, sum(len(payload) for _, payload in stored))
    xor, planes, alone = (_peer(tuned, cut) for cut in (_xor, _planes, _whole))
    yield Measured(
        f"{tuned.name}: bytes saved",
        ours,
        xor,
        "XOR planes",
        "%",
        ours - xor,
        POINTS if tuned.name.startswith("rxnfp") and tuned.item_bytes == 2 else None,
        note=f"the ratio is the difference in points; byte planes {planes:.1f} %, "
        f"zstandard {alone:.1f} %; {tuned.size / 1e6:.1f} MB",
    )
    yield from _speeds(tuned, stored)


def _saved(tuned: FineTune, stored: int) -> float:
    return 100 * (1 - stored / tuned.size)


def _peer(tuned: FineTune, cut: Callable[[Bytes, Bytes, int], Iterable[Bytes]]) -> float:
    compressor = zstandard.ZstdCompressor()
    parts = (part for raw, base in tuned.pairs for part in cut(raw, base, tuned.item_bytes))
    return _saved(
        tuned, sum(min(len(part), len(compressor.compress(part.data))) for part in parts)
    )


def _xor(raw: Bytes, base: Bytes, item_bytes: int) -> Iterable[Bytes]:
    return _planes(raw ^ base, base, item_bytes)


def _planes(raw: Bytes, _: Bytes, item_bytes: int) -> Iterable[Bytes]:
    return list(np.ascontiguousarray(raw.reshape(-1, item_bytes).T))


def _whole(raw: Bytes, _: Bytes, __: int) -> Iterable[Bytes]:
    return [raw]


def _speeds(tuned: FineTune, stored: list[tuple[int, bytes]]) -> Iterator[Measured]:
    times = -(-_TIMED // tuned.size)
    many, speed = replace(tuned, pairs=times * tuned.pairs), times * tuned.size / 1e6
    known = np.zeros(many.size, np.uint8)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "weights"
        path.write_bytes(times * b"".join(raw.tobytes() for raw, _ in tuned.pairs))
        decoding, reading, ratio = in_turns(
            partial(_decode, many, times * stored),
            path.read_bytes,
            rounds=5,
            clock=time.process_time,
        )
        again, filling, _ = in_turns(
            partial(_decode, many, times * stored, known),
            partial(_read_into, path, known),
            rounds=5,
            clock=time.process_time,
        )
    yield Measured(
        f"{tuned.name}: decoding",
        speed / decoding,
        speed / reading,
        "reading a file",
        "MB/s",
        ratio,
        0.5,
        note="into memory that was used before "
        f"{speed / again:.0f} MB/s beside {speed / filling:.0f} MB/s",
    )
    encoding, _, _ = in_turns(
        partial(_encode, many), lambda: None, rounds=3, clock=time.process_time
    )
    yield Measured(
        f"{tuned.name}: encoding",
        speed / encoding,
        ENCODED_MB_PER_S,
        "the limit",
        "MB/s",
        speed / encoding / ENCODED_MB_PER_S,
        1.0,
    )


def _encode(tuned: FineTune) -> None:
    for raw, base in tuned.pairs:
        encode(raw, tuned.item_bytes, base)


def _decode(tuned: FineTune, stored: list[tuple[int, bytes]], out: Bytes | None = None) -> None:
    """Decodes all blocks, into new memory by default."""
    into = np.empty(tuned.size, np.uint8) if out is None else out
    at = 0
    for (codec, payload), (raw, base) in zip(stored, tuned.pairs, strict=True):
        decode(codec, payload, tuned.item_bytes, into[at : at + len(raw)], base)
        at += len(raw)


def _read_into(path: Path, out: Bytes) -> None:
    with path.open("rb", buffering=0) as file:
        file.readinto(out.data)
