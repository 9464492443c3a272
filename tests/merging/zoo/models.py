"""Directories of small models for tests of the zoo."""

import json
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from merging.zoo.layout import DTYPES

BITS = {"F4": 4, "F6_E2M3": 6, "F6_E3M2": 6, "F8_E8M0": 8} | {
    name: 8 * dtype.itemsize for name, dtype in DTYPES.items()
}
"""safetensors' dtypes and their bits."""

Raw = tuple[str, tuple[int, ...], bytes]
"""A tensor as its dtype, its shape and its bytes."""


def safetensors_bytes(
    tensors: Mapping[str, Raw], metadata: Mapping[str, str] | None = None, padding: int = 0
) -> bytes:
    """Returns a safetensors file; `padding`: spaces after its header."""
    header: dict[str, object] = {} if metadata is None else {"__metadata__": dict(metadata)}
    at = 0
    for name, (dtype, shape, raw) in tensors.items():
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [at, at + len(raw)]}
        at += len(raw)
    text = json.dumps(header).encode() + b" " * padding
    data = b"".join(raw for _, _, raw in tensors.values())
    return len(text).to_bytes(8, "little") + text + data


def random_tensor(rng: np.random.Generator, dtype: str, shape: tuple[int, ...]) -> Raw:
    """Returns random bits of a dtype."""
    count = int(np.prod(shape, dtype=np.int64))
    if dtype == "BOOL":
        return dtype, shape, rng.integers(0, 2, count, np.uint8).tobytes()
    return dtype, shape, rng.bytes(count * BITS[dtype] // 8)


def near(rng: np.random.Generator, tensor: Raw) -> Raw:
    """Returns a tensor of which about a tenth of the bytes differ a little."""
    dtype, shape, raw = tensor
    if dtype == "BOOL":
        return tensor
    change = rng.integers(0, 3, len(raw), np.uint8) * (rng.random(len(raw)) < 0.1)
    return dtype, shape, (np.frombuffer(raw, np.uint8) + change.astype(np.uint8)).tobytes()


def write_model(
    folder: Path, shards: Mapping[str, bytes], side_files: Mapping[str, bytes] | None = None
) -> Path:
    """Writes a checkpoint's directory; several shards get an index."""
    folder.mkdir(parents=True)
    for name, content in shards.items():
        (folder / name).write_bytes(content)
    if set(shards) != {"model.safetensors"}:
        weight_map = {
            tensor: name
            for name, content in shards.items()
            for tensor in json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
            if tensor != "__metadata__"
        }
        text = json.dumps({"metadata": {}, "weight_map": weight_map})
        (folder / "model.safetensors.index.json").write_text(text)
    for name, raw in {"config.json": b"{}", **(side_files or {})}.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(raw)
    return folder


def bf16_model(folder: Path, seed: int = 0, of: Path | None = None, size: int = 400) -> Path:
    """Writes a model of two matrices, ``(size, size)``, and small tensors; near to `of`."""
    rng = np.random.default_rng(seed)
    values = rng.standard_normal((2, size, size)).astype(np.float32)
    if of is not None:
        raw = np.frombuffer((of / "model.safetensors").read_bytes()[-2 * 2 * size * size :], "<u2")
        values = 1e-3 * values + (raw.astype("<u4") << 16).view("<f4").reshape(values.shape)
    bf16 = (values.view("<u4") >> 16).astype("<u2")
    tensors = {f"b{i}": random_tensor(rng, "BF16", (7,)) for i in range(20)}
    tensors |= {f"w{i}": ("BF16", (size, size), part.tobytes()) for i, part in enumerate(bf16)}
    return write_model(folder, {"model.safetensors": safetensors_bytes(tensors)})


def contents(folder: Path) -> dict[str, bytes | None]:
    """Returns all files below a folder, and None for each folder that is empty."""
    return {
        str(path.relative_to(folder)): path.read_bytes() if path.is_file() else None
        for path in sorted(folder.rglob("*"))
        if path.is_file() or not any(path.iterdir())
    }
