"""Paths through parameter space: a start and the noise that was added to it, step by step."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any, ClassVar, TypeAlias

import torch
from torch import Tensor

from merging import described
from merging.checkpoints.experts import ExpertPool
from merging.paths.noise import Draw, Noise, noise_at, noise_from_description
from merging.plan import Plan
from merging.seeding import stable_seed
from merging.weights import InPlaceWeights, LazyWeights

Term: TypeAlias = tuple[int, float]
"""Number of a noise, counted from 0 over the run, and what it is multiplied by."""

Step: TypeAlias = tuple[Term, ...]

BASE = "base"
"""The start that every space knows: the base model itself."""

START = "start"
"""The start that a run has chosen: a merge, a recipe, an expert."""


@dataclass(frozen=True)
class Path:
    """A point by the way to it: ``start + sum_t sum_a blend[a] step[t - a] + own``.

    Hundreds of terms take a few kilobytes, whatever the size of the model.

    Args:
        start: name of the point that the path starts from.
        steps: one per generation; each is a sum of noises.
        blend: what the steps of this generation, the last, the one before it ... weigh in each
            move: ``(1, m, m ** 2)`` is momentum m with a memory of two generations.
        own: the candidate's own perturbation; None: it is the centre.
    """

    start: str = BASE
    steps: tuple[Step, ...] = ()
    blend: tuple[float, ...] = (1.0,)
    own: Term | None = None

    @property
    def centre(self) -> Path:
        """The same path without the candidate's own perturbation."""
        return replace(self, own=None)

    def moved(self, step: Step) -> Path:
        """Returns the centre one generation later."""
        return replace(self, steps=(*self.steps, step), own=None)

    def perturbed(self, number: int, coefficient: float) -> Path:
        """Returns a candidate around this centre."""
        return replace(self, own=(number, coefficient))

    def to_json(self) -> dict[str, Any]:
        """Returns the path as JSON values."""
        return {
            "start": self.start,
            "steps": [[list(term) for term in step] for step in self.steps],
            "blend": list(self.blend),
            "own": None if self.own is None else list(self.own),
        }

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> Path:
        """Returns the path that `to_json` wrote; raises ValueError, naming a wrong key."""
        for key in ("start", "steps", "blend", "own"):
            if key not in content:
                raise ValueError(f"path: {key!r} is missing")
        own = content["own"]
        return cls(
            start=str(content["start"]),
            steps=tuple(
                tuple(_term("steps", term) for term in _list("steps", step))
                for step in _list("steps", content["steps"])
            ),
            blend=tuple(_number("blend", value) for value in _list("blend", content["blend"])),
            own=None if own is None else _term("own", own),
        )


def _list(key: str, value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise ValueError(f"path: {key!r} must be a list, got {value!r}")
    return value


def _term(key: str, value: Any) -> Term:
    """Returns [noise number, coefficient]."""
    match value:
        case [int() as number, int() | float() as coefficient] if not isinstance(number, bool):
            return number, _number(key, coefficient)
    raise ValueError(f"path: {key!r} must hold [noise number, coefficient], got {value!r}")


def _number(key: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError(f"path: {key!r} must hold finite numbers, got {value!r}")
    return float(value)


@dataclass
class Walk:
    """Computes points on paths, one tensor at a time, in float32 and in a fixed order.

    Per generation the noises, each multiplied by its coefficient, are summed in the order of the
    path, the oldest generation of the blend first; the sum is added to the centre. A kept centre
    goes on from there, with the same operations as from the start, and so with the same bits.

    Args:
        start: the plan that paths start from, where not from `BASE`.
        keep: hold the last centre of every tensor that was read: as much memory as one model in
            float32. Beside it a step of the centre takes one tensor of the size of the one read.
    """

    pool: ExpertPool
    start: Plan | None
    noise: Noise
    seed: int
    keep: bool = False

    def __post_init__(self) -> None:
        start = self.start
        self._start = None if start is None else start.weights(self.pool, dtype=torch.float32)
        self._path_to_centre: dict[str, Path] = {}

    def tensor(self, name: str, path: Path) -> Tensor:
        """Returns one tensor at the end of `path`, ``(*shape)`` float32, the caller's own."""
        out = torch.empty(self.pool.base.shape(name), device=self.pool.device)
        self.write(name, path, out)
        return out

    def write(self, name: str, path: Path, out: Tensor) -> None:
        """Writes what `tensor` returns into `out`: contiguous, float32, on the pool's device."""
        draws: dict[Noise, Draw] = {}
        centre, done = self._centre(name, path, draws, out)
        if path.own is not None:
            number, coefficient = path.own
            self._term(name, draws, number, coefficient, out).add_(centre)
        elif (move := self._move(name, path, done, draws, out)) is not None:
            torch.add(centre, move, out=out)
        else:
            out.copy_(centre)

    def _centre(
        self, name: str, path: Path, draws: dict[Noise, Draw], scratch: Tensor
    ) -> tuple[Tensor, int]:
        """Returns the centre, and how many of its steps are made: all, or all but the last.

        The last step of a path without a perturbation of its own may be one that is only tried:
        a kept centre stays before it, and does not begin anew when it is given up.
        """
        # Taken out while it changes: an error half-way must not leave half a step behind.
        path_so_far = self._path_to_centre.pop(name, None)
        centre = self._centres[name] if self.keep else torch.empty_like(scratch)
        if path_so_far is None or not _leads_to(path_so_far, path):
            self._write_start(name, path.start, centre)
            done = 0
        else:
            done = len(path_so_far.steps)
        for generation in range(done, len(path.steps) - (path.own is None)):
            if (move := self._move(name, path, generation, draws, scratch)) is not None:
                centre.add_(move)  # c_{t+1} = c_t + move_t
            done = generation + 1
        if self.keep:
            self._path_to_centre[name] = replace(path, steps=path.steps[:done], own=None)
        return centre, done

    @cached_property
    def _centres(self) -> dict[str, Tensor]:
        """Buffers of all centres, in one piece: what comes and goes beside them leaves no gaps."""
        shapes = {name: self.pool.base.shape(name) for name in self.pool.names}
        sizes = [shape.numel() for shape in shapes.values()]
        buffer = torch.empty(sum(sizes), device=self.pool.device)
        parts = zip(shapes.items(), torch.split(buffer, sizes), strict=True)
        return {name: part.view(shape) for (name, shape), part in parts}

    def _write_start(self, name: str, start: str, out: Tensor) -> None:
        """Writes the start's tensor into `out`, float32."""
        if start == BASE:
            out.copy_(self.pool.base_tensor(name))
            return
        assert self._start is not None
        if isinstance(self._start, InPlaceWeights):
            self._start.write(name, out)
        else:
            out.copy_(self._start[name])

    def _move(
        self, name: str, path: Path, generation: int, draws: dict[Noise, Draw], scratch: Tensor
    ) -> Tensor | None:
        """Returns ``sum_a blend[a] step[t - a]`` of generation t; None: no move, or no such step.

        `scratch`, ``(*shape)``, takes single noises; the sum is a tensor of its own.
        """
        move: Tensor | None = None
        if generation == len(path.steps):
            return None
        for age in reversed(range(min(len(path.blend), generation + 1))):
            for number, coefficient in path.steps[generation - age]:
                weight = path.blend[age] * coefficient
                term = self._term(name, draws, number, weight, scratch)
                move = term.clone() if move is None else move.add_(term)
        return move

    def _term(
        self,
        name: str,
        draws: dict[Noise, Draw],
        number: int,
        coefficient: float,
        out: Tensor,
    ) -> Tensor:
        """Writes one noise times its coefficient into `out`; `draws` keeps a tensor's samplers."""
        noise = noise_at(self.noise, number)
        if noise not in draws:
            draws[noise] = noise.on(name, self.pool)
        return draws[noise](stable_seed("noise", self.seed, number), out).mul_(coefficient)


def _leads_to(centre: Path, path: Path) -> bool:
    """Whether `path` goes on from a centre."""
    return centre == replace(path, steps=path.steps[: len(centre.steps)], own=None)


@dataclass(frozen=True)
class PathPlan:
    """A path with all that it needs to become a model: the plan of a point beyond the hull.

    Args:
        start: the merge that it starts from; None: the base.
    """

    start: Plan | None
    noise: Noise
    seed: int
    path: Path
    named_experts: ClassVar[None] = None

    @property
    def name(self) -> str:
        """The start's name, and that noise was added to it."""
        return f"{'base' if self.start is None else self.start.name} + noise"

    def weights(self, pool: ExpertPool, *, dtype: torch.dtype | None = None) -> PathWeights:
        """Returns the parameters, computed when read, in float32 and cast once.

        Every read draws all noises of the path again; a `FullWeightSpace` keeps the centre. Raises
        MergeError as the start's plan does.
        """
        return PathWeights(Walk(pool, self.start, self.noise, self.seed), self.path, dtype)

    def describe(self) -> dict[str, Any]:
        """Returns the plan as JSON, readable by `plan_from_description`."""
        return {
            "kind": "path",
            "start": None if self.start is None else self.start.describe(),
            "noise": described.describe(self.noise),
            "seed": self.seed,
            "path": self.path.to_json(),
        }

    @classmethod
    def from_description(cls, description: Mapping[str, Any], start: Plan | None) -> PathPlan:
        """Returns the plan of a path from that of its start; raises ValueError, naming a key."""
        kinds = {"noise": dict, "seed": int, "path": dict}
        for key, kind in kinds.items():
            if not isinstance(description.get(key), kind):
                raise ValueError(
                    f"recipe: {key!r} must be a {kind.__name__}, got {description.get(key)!r}"
                )
        path = Path.from_json(description["path"])
        if (path.start == BASE) != (start is None):
            raise ValueError(
                f"recipe: the path starts from {path.start!r}, which does not fit 'start'"
            )
        noise = noise_from_description(description["noise"])
        return cls(start, noise, description["seed"], path)


class PathWeights(LazyWeights):
    """The point at the end of a path; every read computes one parameter.

    They can be written in place (`InPlaceWeights`): float32 parameters without any copy.
    """

    def __init__(self, walk: Walk, path: Path, dtype: torch.dtype | None) -> None:
        super().__init__(walk.pool.names)
        self._walk, self._path, self._dtype = walk, path, dtype

    @property
    def centre(self) -> PathWeights:
        """The same point without the candidate's own perturbation."""
        return PathWeights(self._walk, self._path.centre, self._dtype)

    def _tensor(self, name: str) -> Tensor:
        tensor = self._walk.tensor(name, self._path)
        return tensor.to(self._dtype or self._walk.pool.base.dtype(name))

    def shape(self, name: str) -> torch.Size:
        """Returns the tensor's shape without computing it."""
        return self._walk.pool.base.shape(name)

    def write(self, name: str, out: Tensor) -> None:
        """Writes into `out` what reading `name` gives, rounded to the weights' dtype first."""
        pool = self._walk.pool
        exact = (self._dtype or pool.base.dtype(name)) == out.dtype == torch.float32
        if exact and out.device == pool.device and out.is_contiguous():
            self._walk.write(name, self._path, out)
        else:
            out.copy_(self[name])
