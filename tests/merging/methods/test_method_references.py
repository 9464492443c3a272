"""Every merge method against a naive float64 version of it, written with loops and argsort."""

from __future__ import annotations

import itertools
import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import pytest
import torch

from merging.method import MergeMethod
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
from merging.methods.iso_c import IsoC
from merging.methods.karcher import Karcher
from merging.methods.knots import Knots
from merging.methods.linear import Linear
from merging.methods.model_stock import ModelStock
from merging.methods.multi_slerp import MultiSlerp
from merging.methods.nearswap import Nearswap
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.methods.tsv_m import TsvM
from merging.seeding import generator
from tests.merging.methods.method_cases import METHODS, merge, name_of, random_problem

Array: TypeAlias = Any  # numpy arrays; sum() of them is no array to a type checker


@dataclass
class Given:
    """The arguments as numpy float64; attributes are knobs."""

    base: Array
    deltas: list[Array]
    experts: tuple[str, ...]
    tensor: str
    knobs: dict[str, Array]

    def __getattr__(self, knob: str) -> Array:
        return self.knobs[knob]


def entrywise(base: Array, rule: Callable[[tuple[int, ...]], float]) -> Array:
    out = np.array(base, dtype=np.float64)
    for position in np.ndindex(base.shape):
        out[position] = rule(position)
    return out


def soup(g: Given) -> Array:
    return sum(w * (g.base + d) for w, d in zip(g.weight, g.deltas, strict=True))


def total(g: Given, deltas: list[Array], normalize: bool = False) -> Array:
    divisor = sum(g.weight) if normalize else 1.0
    return g.base + g.scale * sum(w * d for w, d in zip(g.weight, deltas, strict=True)) / divisor


def consensus(
    g: Given, deltas: list[Array], majority: str = "mass", normalize: bool = True
) -> Array:
    def rule(position: tuple[int, ...]) -> float:
        shares = [float(w * d[position]) for w, d in zip(g.weight, deltas, strict=True)]
        mass = math.fsum(shares)
        votes = sum((s > 0) - (s < 0) for s in shares)
        leading = mass if majority == "mass" or votes == 0 else votes
        same = [(s, abs(w)) for s, w in zip(shares, g.weight, strict=True) if s * leading > 0]
        value = sum(s for s, _ in same)
        if normalize and same:
            value /= sum(w for _, w in same)
        return float(g.base[position] + g.scale * value)

    return entrywise(g.base, rule)


def keep_at(delta: Array, indices: list[int]) -> Array:
    out = np.zeros(delta.size)
    for i in indices:
        out[i] = delta.reshape(-1)[i]
    return out.reshape(delta.shape)


def by_magnitude(delta: Array) -> list[int]:
    """Flat indices, largest magnitude first, earlier first among equals."""
    flat = np.abs(delta).reshape(-1)
    return sorted(range(delta.size), key=lambda i: (-flat[i], i))


def count(density: float, size: int) -> int:
    return 0 if density == 0 or size == 0 else max(1, round(float(density) * size))


def trimmed(g: Given) -> list[Array]:
    return [
        keep_at(d, by_magnitude(d)[: count(p, d.size)])
        for d, p in zip(g.deltas, g.density, strict=True)
    ]


def banded(g: Given) -> list[Array]:
    out = []
    for d, density, gamma in zip(g.deltas, g.density, g.gamma, strict=True):
        k = count(density, d.size)
        top = min(round(float(gamma) * d.size), d.size - k)
        out.append(keep_at(d, by_magnitude(d)[top : top + k]))
    return out


def noise(g: Given, expert: str, seed: int) -> Array:
    draws = torch.rand(g.base.shape, generator=generator(seed, expert, g.tensor))
    return draws.numpy().astype(np.float64)


def dropped(g: Given, seed: int = 0, rescale: bool = True) -> list[Array]:
    return [
        np.where(noise(g, e, seed) < p, d / (p if rescale else 1), 0.0)
        for d, p, e in zip(g.deltas, g.density, g.experts, strict=True)
    ]


def magpruned(g: Given, seed: int = 0) -> list[Array]:
    out = []
    for d, density, epsilon, e in zip(g.deltas, g.density, g.epsilon, g.experts, strict=True):
        rows = d.reshape(d.shape[0], -1) if d.ndim > 1 else d.reshape(1, -1)
        draws = noise(g, e, seed).reshape(rows.shape)
        width = min(epsilon, density, 1 - density)
        result = np.zeros_like(rows)
        for r, row in enumerate(rows):
            ranking = sorted(range(len(row)), key=lambda i: (abs(row[i]), i))
            for rank, i in enumerate(ranking):
                share = rank / (len(row) - 1) if len(row) > 1 else 0.5
                p = density - width + 2 * width * share
                if draws[r, i] < p:
                    result[r, i] = row[i] / p
        out.append(result.reshape(d.shape))
    return out


def slerp(a: Array, b: Array, t: float) -> Array:
    omega = math.acos(np.vdot(a, b) / math.sqrt(np.vdot(a, a) * np.vdot(b, b)))
    return (math.sin((1 - t) * omega) * a + math.sin(t * omega) * b) / math.sin(omega)


def slerp_whole(g: Given) -> Array:
    first, second = (g.base + d for d in g.deltas)
    if g.base.size == 1:  # parallel or opposite, whatever the numbers
        return (g.weight[0] * first + g.weight[1] * second) / sum(g.weight)
    return slerp(first, second, g.weight[1] / sum(g.weight))


def nuslerp(g: Given, axis: int | None = None) -> Array:
    t = g.weight[1] / sum(g.weight)
    first, second = g.deltas
    if g.base.size == 1 or g.base.ndim == 0:
        return g.base + (1 - t) * first + t * second
    if axis is None or g.base.ndim == 1:
        return g.base + slerp(first, second, t)
    out = np.array(g.base)
    moved, a, b = (np.moveaxis(x, axis, -1) for x in (out, first, second))
    for position in np.ndindex(moved.shape[:-1]):
        moved[position] += slerp(a[position], b[position], t)
    return out


def sphere_mean(vectors: list[Array], weights: Array, steps: int) -> Array:
    shares = np.array(weights) / sum(weights)
    sizes = [math.sqrt(np.vdot(v, v)) for v in vectors]
    units = [v / s for v, s in zip(vectors, sizes, strict=True)]
    centre = sum(w * u for w, u in zip(shares, units, strict=True))
    if vectors[0].size == 1:
        if np.sign(units).min() != np.sign(units).max():  # only two directions: up and down
            centre = np.sign(centre)
            return centre * np.vdot(shares, sizes)
        return centre * np.vdot(shares, sizes)
    centre = centre / np.linalg.norm(centre)
    for _ in range(steps):
        step = np.zeros_like(centre)
        for w, u in zip(shares, units, strict=True):
            angle = math.acos(min(1.0, np.vdot(u, centre)))
            if angle > 0:
                step += w * angle / math.sin(angle) * (u - math.cos(angle) * centre)
        length = np.linalg.norm(step)
        if length > 0:
            centre = math.cos(length) * centre + math.sin(length) / length * step
    return centre * np.vdot(shares, sizes)


def sphere(g: Given, steps: int, task_vectors: bool = False) -> Array:
    origin = g.base if task_vectors else 0 * g.base
    vectors = [d if task_vectors else g.base + d for d in g.deltas]
    return origin + sphere_mean(vectors, g.weight, steps)


def sce(g: Given, normalize: bool = True) -> Array:
    stack = np.stack(g.deltas)
    variance = np.var(stack, axis=0)
    chosen = by_magnitude(variance)[: count(float(g.density), np.count_nonzero(variance))]
    kept = [keep_at(d, chosen) for d in g.deltas]
    energy = [float((d**2).sum()) for d in kept]
    weights = [e / sum(energy) if sum(energy) else 0.0 for e in energy]

    def rule(position: tuple[int, ...]) -> float:
        values = [float(d[position]) for d in kept]
        same = [(v, w) for v, w in zip(values, weights, strict=True) if v * sum(values) > 0]
        value = sum(v * w for v, w in same)
        mass = sum(w for _, w in same)
        return float(g.base[position] + g.scale * (value / mass if normalize and mass else value))

    return entrywise(g.base, rule)


def model_stock(g: Given) -> Array:
    n = len(g.deltas)
    pairs = [
        np.vdot(a, b) / math.sqrt(np.vdot(a, a) * np.vdot(b, b))
        for a, b in itertools.combinations(g.deltas, 2)
    ]
    cos = max(0.0, float(np.mean(pairs)))
    t = n * cos / (1 + (n - 1) * cos)
    mean = sum(g.base + d for d in g.deltas) / n
    return g.base + g.scale * (t * mean + (1 - t) * g.base - g.base)


def nearswap(g: Given) -> Array:
    (delta,) = g.deltas
    return entrywise(
        g.base,
        lambda p: float(g.base[p] + min(1.0, float(g.t) / abs(delta[p])) * delta[p]),
    )


def inverse_root(gram: Array) -> Array:
    values, vectors = np.linalg.eigh(gram)
    roots = np.array([v**-0.5 if v > 1e-10 * values.max() else 0.0 for v in values])
    return vectors @ np.diag(roots) @ vectors.T


def tsv_m(g: Given) -> Array:
    n = len(g.deltas)
    if g.base.ndim != 2:
        return g.base + g.scale * sum(g.deltas) / n
    share = max(1, min(g.base.shape) // n)
    left, values, right = [], [], []
    for d in g.deltas:
        u, s, v = np.linalg.svd(d)
        for i in range(share):
            left.append(u[:, i])
            values.append(s[i])
            right.append(v[i])
    u, v = np.array(left).T, np.array(right).T
    u, v = u @ inverse_root(u.T @ u), v @ inverse_root(v.T @ v)  # whitening
    merged = sum(s * np.outer(u[:, i], v[:, i]) for i, s in enumerate(values))
    return g.base + g.scale * merged


def knots(g: Given, inner: Callable[[Given], Array]) -> Array:
    if g.base.ndim != 2:
        return inner(g)
    u, s, v = np.linalg.svd(np.hstack(g.deltas), full_matrices=False)
    coordinates = np.hsplit(np.diag(s) @ v, len(g.deltas))
    zero = np.zeros_like(coordinates[0])
    return g.base + u @ inner(Given(zero, coordinates, g.experts, g.tensor, g.knobs))


def iso_c(g: Given) -> Array:
    summed = sum(g.deltas)
    if g.base.ndim != 2:
        return g.base + g.scale * summed / len(g.deltas)
    u, s, v = np.linalg.svd(summed, full_matrices=False)
    return g.base + g.scale * s.mean() * sum(np.outer(u[:, i], v[i]) for i in range(len(s)))


REFERENCES: list[tuple[MergeMethod, Callable[[Given], Array]]] = [
    (
        Linear(),
        lambda g: soup(g) / sum(g.weight),
    ),
    (Linear(normalize=False), soup),
    (TaskArithmetic(), lambda g: total(g, g.deltas)),
    (TaskArithmetic(normalize=True), lambda g: total(g, g.deltas, normalize=True)),
    (Slerp(), slerp_whole),
    (NuSlerp(), nuslerp),
    (NuSlerp(flatten=False), lambda g: nuslerp(g, 0)),
    (NuSlerp(flatten=False, row_wise=True), lambda g: nuslerp(g, -1)),
    (MultiSlerp(), lambda g: sphere(g, 1)),
    (MultiSlerp(task_vectors=True), lambda g: sphere(g, 1, task_vectors=True)),
    (Karcher(), lambda g: sphere(g, 300)),
    (
        Karcher(task_vectors=True, tolerance=1e-12, max_iterations=300),
        lambda g: sphere(g, 300, task_vectors=True),
    ),
    (Ties(), lambda g: consensus(g, trimmed(g))),
    (Ties(majority="count"), lambda g: consensus(g, trimmed(g), "count")),
    (Ties(normalize=False), lambda g: consensus(g, trimmed(g), normalize=False)),
    (DareLinear(), lambda g: total(g, dropped(g))),
    (DareLinear(seed=5, rescale=False), lambda g: total(g, dropped(g, 5, rescale=False))),
    (DareTies(), lambda g: consensus(g, dropped(g))),
    (DellaLinear(), lambda g: total(g, magpruned(g))),
    (DellaLinear(normalize=True), lambda g: total(g, magpruned(g), normalize=True)),
    (Della(seed=3), lambda g: consensus(g, magpruned(g, 3))),
    (Breadcrumbs(), lambda g: total(g, banded(g))),
    (BreadcrumbsTies(), lambda g: consensus(g, banded(g))),
    (Sce(), sce),
    (Sce(normalize=False), lambda g: sce(g, normalize=False)),
    (ModelStock(), model_stock),
    (Nearswap(), nearswap),
    (Knots(), lambda g: knots(g, lambda h: consensus(h, trimmed(h)))),
    (
        Knots(DareLinear(seed=2)),
        lambda g: knots(g, lambda h: total(h, dropped(h, 2))),
    ),
    (TsvM(), tsv_m),
    (IsoC(), iso_c),
]


@pytest.mark.parametrize("method", METHODS, ids=name_of)
def test_docstrings_point_to_the_plain_version(method: MergeMethod) -> None:
    names = re.findall(r"test_method_references\.py::(\w+)(?: and ::(\w+))?", str(method.__doc__))
    assert names
    assert all(callable(globals()[name]) for name in names[0] if name)


def test_every_method_has_a_reference() -> None:
    assert {type(method) for method, _ in REFERENCES} == {type(method) for method in METHODS}


@pytest.mark.parametrize(("method", "reference"), REFERENCES, ids=[repr(m) for m, _ in REFERENCES])
@pytest.mark.parametrize("shape", [(), (1,), (3,), (1, 1), (9, 7), (5, 12), (2, 3, 4)], ids=str)
def test_agrees_with_reference(
    method: MergeMethod, reference: Callable[[Given], Array], shape: tuple[int, ...]
) -> None:
    experts = {"slerp": 2, "nuslerp": 2, "nearswap": 1}.get(name_of(method), 4)
    for seed, dtype in itertools.product(range(3), (torch.float64, torch.float32)):
        problem = random_problem(method, shape, seed, experts=experts, dtype=dtype)
        given = Given(
            base=problem.base.double().numpy(),
            deltas=[d.double().numpy() for d in problem.deltas],
            experts=problem.slot.experts,
            tensor=problem.slot.name,
            knobs={k: v.double().numpy() for k, v in problem.knobs.items()},
        )
        merged = merge(method, problem).double().numpy()
        expected = reference(given)
        tolerance = 1e-8 if dtype == torch.float64 else 1e-5
        moved = np.abs(expected - given.base).max() if dtype == torch.float64 else 0
        scale = moved or np.abs(expected).max()
        assert np.abs(merged - expected).max() <= tolerance * scale, (seed, dtype)
