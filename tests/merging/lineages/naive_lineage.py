"""Lineages in float64, whole tensors and plain recursion; computes nothing through merging/."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from merging.lineages.crossover import (
    ArithmeticCrossover,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Founder, Lineage, Mutated
from merging.lineages.mutation import LowRankMutation, ScaleMutation, SignMutation

Array = npt.NDArray[np.float64]
Vectors = dict[str, Array]


def naive(lineage: Lineage, founders: Mapping[str, Vectors], block: int = 65536) -> Vectors:
    """Returns the individual's task vector from those of the founders; `block`: of the draws."""
    if isinstance(lineage, Founder):
        return founders[lineage.name]
    if isinstance(lineage, Mutated):
        return _mutated(naive(lineage.parent, founders, block), lineage.by, block)
    first = naive(lineage.first, founders, block)
    return _crossed(first, naive(lineage.second, founders, block), lineage.by, block)


def _crossed(first: Vectors, second: Vectors, by: object, block: int) -> Vectors:
    child = {}
    total = sum(array.size for array in first.values())
    layer = layer_numbers(list(first))
    offset = 0
    for name, a in first.items():
        b, where = second[name], np.arange(offset, offset + a.size).reshape(a.shape)
        match by:
            case UniformCrossover():
                drawn = _bits(("uniform", by.seed, name), a.shape, block)
                child[name] = np.where(drawn < round(by.share * 65536), a, b)
            case PointCrossover(over="vector"):
                passed = sum(where >= round(cut * total) for cut in by.cuts)
                child[name] = np.where(np.asarray(passed) % 2 == 0, a, b)
            case PointCrossover():
                depth = max(layer.values()) + 1
                segment = sum(layer[name] >= round(cut * depth) for cut in by.cuts)
                child[name] = (a, b)[segment % 2]
            case TensorCrossover():
                lot = _seed("per tensor", by.seed, name) / 2**63
                child[name] = a if lot < by.share else b
            case ArithmeticCrossover():
                child[name] = by.weight * a + (1 - by.weight) * b
            case SlerpCrossover():
                child[name] = _slerp(a, b, by.weight)
            case SplitSlerpCrossover():
                before, after = _slerp(a, b, by.weight), _slerp(a, b, 1 - by.weight)
                child[name] = np.where(where < round(by.cut * total), before, after)
            case _:
                raise AssertionError(by)
        offset += a.size
    return child


def _mutated(parent: Vectors, by: object, block: int) -> Vectors:
    child = {}
    for name, a in parent.items():
        match by:
            case ScaleMutation():
                child[name] = by.factor * a
            case SignMutation():
                drawn = _bits(("sign flip", by.seed, name), a.shape, block)
                child[name] = np.where(drawn < round(by.share * 65536), -a, a)
            case LowRankMutation():
                noise = _low_rank(by, name, a.shape)
                length = np.linalg.norm(noise) or 1.0
                child[name] = a + by.size * np.linalg.norm(a) * noise / length
            case _:
                raise AssertionError(by)
    return child


def _slerp(a: Array, b: Array, weight: float) -> Array:
    lengths = np.linalg.norm(a) * np.linalg.norm(b)
    linear = weight * a + (1 - weight) * b
    if lengths == 0:
        return linear
    angle = math.acos(np.clip((a * b).sum() / lengths, -1, 1))
    if math.sin(angle) < 1e-6:
        return linear
    left, right = math.sin(weight * angle), math.sin((1 - weight) * angle)
    mixed: Array = (left * a + right * b) / math.sin(angle)
    return mixed


def _low_rank(by: LowRankMutation, name: str, shape: tuple[int, ...]) -> Array:
    rng = torch.Generator().manual_seed(_seed("low rank", by.seed, name))
    if len(shape) < 2:
        return torch.randn(shape, generator=rng).double().numpy()
    left = torch.randn((shape[0], by.rank), generator=rng).double()
    right = torch.randn((by.rank, math.prod(shape[1:])), generator=rng).double()
    return (left @ right).reshape(shape).numpy()


def _bits(seed: tuple[str | int, ...], shape: tuple[int, ...], block: int) -> Array:
    """16 bits per entry, drawn anew for every block of full rows."""
    columns, entries = math.prod(shape[1:]), math.prod(shape)
    step = max(1, block // max(1, columns)) * columns
    drawn: list[int] = []
    for number, start in enumerate(range(0, entries, step or 1)):
        count = min(step, entries - start)
        words = np.random.SFC64(_seed(*seed, number)).random_raw(-(-count // 4))
        parts = [(int(word) >> shift) & 65535 for word in words for shift in (0, 16, 32, 48)]
        drawn += parts[:count]
    return np.array(drawn, np.float64).reshape(shape)


def _seed(*parts: str | int) -> int:
    digest = hashlib.blake2b(repr(parts).encode(), digest_size=8).digest()
    return int.from_bytes(digest, "big") // 2


def layer_numbers(names: list[str]) -> dict[str, int]:
    """``layers.N.``; a tensor outside goes with the layer before it, the first with layer 0."""
    numbers, last = {}, 0
    for name in names:
        if name.startswith("layers."):
            last = int(name.split(".")[1])
        numbers[name] = last
    return numbers
