"""Noise that moves weights: drawn again from its seed whenever it is needed, never stored.

Every kind has the same size at the same `unit`: the mean square over a tensor's entries is, in
expectation, ``unit ** 2``. Numbers are drawn on the CPU, so that every device sees one noise:
one per entry (`GaussianNoise`), ``rank (rows + columns)`` (`LowRankNoise`), or one per part of
every expert's delta (`TensorNoise`, `RowNoise`, `BlockNoise`, `SingularNoise`).
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, Protocol, TypeAlias

import torch
from torch import Tensor

from merging import described
from merging.checkpoints.experts import ExpertPool
from merging.rules.spectral import thin_svd
from merging.rules.threads import one_thread
from merging.seeding import generator


class Draw(Protocol):
    """Noise of one tensor, from a seed."""

    def __call__(self, seed: int, out: Tensor | None = None) -> Tensor:
        """Returns the noise, ``(*shape)`` float32 on the pool's device.

        Args:
            out: ``(*shape)``, contiguous, where it is to be written; None: a new tensor.
        """
        ...


NoiseUnit: TypeAlias = Literal["one", "base", "deltas"]
"""Size of the noise in a tensor: 1, the rms of the base's entries, or that of the experts'
deltas. A tensor that is zero in the base (in all deltas) does not move with the latter two."""

_SLICE_ENTRIES = 2**20
_ShapedDraw: TypeAlias = Callable[[torch.Generator], Tensor]


class Noise(Protocol):
    """One kind of noise; a frozen dataclass whose fields are its options."""

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; it reads base and deltas once for all draws.

        The noise depends on the seed, the tensor's name, its values in the pool and, where
        experts shape it, their identities; not on the order of calls or of the experts.
        """
        ...

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns how many independent numbers the noise of a tensor can have.

        Args:
            experts: how many deltas the tensor has.
        """
        ...


@dataclass(frozen=True)
class GaussianNoise:
    """Independent normal noise in every entry, the paper's with ``unit: one``.

    Source: MERGEvolve, arXiv 2606.28373, step 2 (``unit: one``).
    """

    unit: NoiseUnit = "one"

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the number of entries."""
        return math.prod(shape)

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `Noise.on`."""
        shape, size = pool.base_tensor(name).shape, size_of(self.unit, name, pool)

        def draw(seed: int, out: Tensor | None = None) -> Tensor:
            rng = generator(seed, name)
            if out is not None and out.device.type == "cpu":
                torch.randn(shape, generator=rng, out=out)
            else:
                drawn = torch.randn(shape, generator=rng)
                out = drawn.to(pool.device) if out is None else out.copy_(drawn)
            return out.mul_(size)  # size * N(0, I)

        return draw


@dataclass(frozen=True)
class LowRankNoise:
    """``B A / sqrt(rank)`` in matrices, B and A standard normal; `GaussianNoise` in vectors.

    A tensor of more than two dimensions is the matrix ``(first, all others)``.
    """

    rank: int = 4
    unit: NoiseUnit = "one"

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if self.rank < 1:
            raise ValueError(f"rank of the noise must be at least 1, got {self.rank}")

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the number of entries: sums of such noises have any rank."""
        return math.prod(shape)

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `Noise.on`."""
        shape = pool.base_tensor(name).shape
        if len(shape) < 2:
            return GaussianNoise(self.unit).on(name, pool)
        draw, size = self._sides(name, pool), self._scale(name, pool)

        def product(seed: int, out: Tensor | None = None) -> Tensor:
            left, right = draw(seed)
            if out is None:
                out = torch.empty(shape, device=left.device)
            with one_thread():
                torch.mm(left, right, out=out.view(len(left), right.shape[1]))
            return out.mul_(size)  # size / sqrt(rank) * B A

        return product

    def factors(
        self, name: str, pool: ExpertPool
    ) -> Callable[[int], tuple[Tensor, Tensor] | Tensor]:
        """Returns the sampler of the same noise as a product, or of a tensor in vectors.

        Returns:
            Noise seed to B times its size ``(rows, rank)`` and A ``(rank, columns)``, float32.
        """
        if len(pool.base_tensor(name).shape) < 2:
            return GaussianNoise(self.unit).on(name, pool)
        draw, size = self._sides(name, pool), self._scale(name, pool)

        def sides(seed: int) -> tuple[Tensor, Tensor]:
            left, right = draw(seed)
            return left.mul_(size), right

        return sides

    def _scale(self, name: str, pool: ExpertPool) -> float:
        return size_of(self.unit, name, pool) / math.sqrt(self.rank)

    def _sides(self, name: str, pool: ExpertPool) -> Callable[[int], tuple[Tensor, Tensor]]:
        shape = pool.base_tensor(name).shape
        rows, columns = shape[0], math.prod(shape[1:])

        def draw(seed: int) -> tuple[Tensor, Tensor]:
            rng = generator(seed, name)
            left = torch.randn((rows, self.rank), generator=rng).to(pool.device)
            right = torch.randn((self.rank, columns), generator=rng).to(pool.device)
            return left, right

        return draw


@dataclass(frozen=True)
class TensorNoise:
    """``sum_e g_e delta_e``: the whole delta of every expert in a tensor times a normal number.

    The coarsest noise outside the affine span of the experts: as many numbers as tensors times
    experts. What few numbers gain they also gain on other items.

    Args:
        whole: one number per expert for all tensors: with ``unit: deltas`` in the affine span.
    """

    unit: NoiseUnit = "deltas"
    whole: bool = False

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the number of deltas."""
        return experts

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `Noise.on`."""

        def shaped(delta: Tensor) -> _ShapedDraw:
            return lambda rng: _normal(1, rng, delta) * delta  # g d

        return _sum_over_experts(name, pool, self.unit, shaped, shared=self.whole)


@dataclass(frozen=True)
class RowNoise:
    """``sum_e g_e[row] delta_e[row]``: every row of every delta times its own normal number.

    A row is what one index of the first dimension holds; a vector is one row. The noise lies
    outside the affine span of the experts, yet each of its rows within that of their rows.
    """

    unit: NoiseUnit = "deltas"

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the number of rows of all deltas."""
        return experts * (shape[0] if len(shape) > 1 else 1)

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `Noise.on`."""

        def shaped(delta: Tensor) -> _ShapedDraw:
            rows = matrix_of(delta)
            return lambda rng: _normal(len(rows), rng, rows)[:, None].mul(rows)  # g[row] d[row]

        return _sum_over_experts(name, pool, self.unit, shaped)


@dataclass(frozen=True)
class BlockNoise:
    """As `RowNoise`, with blocks of consecutive entries (row-major) in place of rows.

    Args:
        size: entries per block, at least 1; the last block of a tensor may be smaller.
    """

    size: int = 64
    unit: NoiseUnit = "deltas"

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if self.size < 1:
            raise ValueError(f"size of a block must be at least 1 entry, got {self.size}")

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the number of blocks of all deltas."""
        return experts * -(-math.prod(shape) // self.size)

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `Noise.on`."""

        def shaped(delta: Tensor) -> _ShapedDraw:
            flat = delta.reshape(-1)
            blocks = -(-flat.numel() // self.size)

            def draw(rng: torch.Generator) -> Tensor:
                factors = _normal(blocks, rng, flat).repeat_interleave(self.size)
                return factors[: flat.numel()].mul_(flat)  # g[block] d[block]

            return draw

        return _sum_over_experts(name, pool, self.unit, shaped)


@dataclass(frozen=True)
class SingularNoise:
    """``sum_e U_e diag(g_e S_e) V_e``: every singular direction times its own normal number.

    The singular value decomposition of every expert's delta is computed anew for every
    candidate; for matrices of several thousand rows and columns prefer `RowNoise`. A vector is
    one direction; a tensor of more dimensions is the matrix ``(first, all others)``.
    """

    unit: NoiseUnit = "deltas"

    def __post_init__(self) -> None:
        check_unit(self.unit)

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the most singular directions that all deltas can have."""
        rows = shape[0] if len(shape) > 1 else 1
        return experts * min(rows, math.prod(shape) // rows) if rows else 0

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `Noise.on`."""

        def shaped(delta: Tensor) -> _ShapedDraw:
            left, values, right = thin_svd(matrix_of(delta))

            @one_thread()
            def draw(rng: torch.Generator) -> Tensor:
                return (left * (values * _normal(len(values), rng, values))) @ right

            return draw  # U diag(g S) V

        return _sum_over_experts(name, pool, self.unit, shaped)


@dataclass(frozen=True)
class StagedNoise:
    """One noise first, then another: few numbers while they bring most, more of them later.

    Args:
        first: of the noises with numbers below `count`.
        count: at least 1.
        then: of all others.
    """

    first: Noise
    count: int
    then: Noise

    def __post_init__(self) -> None:
        if self.count < 1:
            raise ValueError(f"count of the first noises must be at least 1, got {self.count}")

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns how many numbers the later noises have."""
        return self.then.numbers(shape, experts)

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of the later noises in one tensor; see `noise_at`."""
        return self.then.on(name, pool)


def noise_at(noise: Noise, number: int) -> Noise:
    """Returns the noise that a number, counted from 0 over the run, belongs to."""
    if isinstance(noise, StagedNoise):
        return noise_at(noise.first if number < noise.count else noise.then, number)
    return noise


def noise_from_description(description: Mapping[str, Any]) -> Noise:
    """Returns the noise that `describe` wrote; raises ValueError where it is none."""
    noise: Noise = described.rebuild(description, "noise", ("on",))
    return noise


def _sum_over_experts(
    name: str,
    pool: ExpertPool,
    unit: NoiseUnit,
    shaped: Callable[[Tensor], _ShapedDraw],
    *,
    shared: bool = False,
) -> Draw:
    """Returns the sampler of the sum of the experts' noises, in the order of their identities.

    Args:
        shared: draw the same numbers for every tensor.
    """
    deltas = pool.deltas(name)
    if deltas.numel() == 0:
        return GaussianNoise().on(name, pool)
    rms = pool.cached(name, "rms of the deltas", lambda: _rms(deltas))
    size = rms if unit == "deltas" else size_of(unit, name, pool)
    factor = size / (rms * math.sqrt(len(deltas))) if rms else 0.0  # E mean(noise^2) = size^2
    order = sorted(range(len(deltas)), key=pool.identities.__getitem__)
    experts = [(pool.identities[i], shaped(deltas[i])) for i in order]

    def draw(seed: int, out: Tensor | None = None) -> Tensor:
        noise = deltas.new_zeros(deltas.shape[1:]) if out is None else out.zero_()
        for identity, draw_shaped in experts:
            rng = generator(seed, identity, *(() if shared else (name,)))
            noise.add_(draw_shaped(rng).reshape(noise.shape))
        return noise.mul_(factor)

    return draw


def matrix_of(delta: Tensor) -> Tensor:
    """Returns a tensor as the matrix ``(first, all others)``; a vector is one row."""
    return delta.reshape(delta.shape[0] if delta.dim() > 1 else 1, -1)


def _normal(count: int, rng: torch.Generator, like: Tensor) -> Tensor:
    return torch.randn(count, generator=rng).to(like.device)


def size_of(unit: NoiseUnit, name: str, pool: ExpertPool) -> float:
    """Returns the root mean square that noise of a unit has in a tensor."""
    if unit == "one":
        return 1.0
    if unit == "base":
        return _rms([pool.base_tensor(name)])
    alone = (pool.select((expert,)) for expert in pool.expert_names)  # one delta at a time
    return pool.cached(name, "rms of the deltas", lambda: _rms(one.deltas(name) for one in alone))


@one_thread()
def _rms(tensors: Iterable[Tensor]) -> float:
    """Returns the root mean square of all entries, 0 where there are none; summed in float64."""
    squares, count = 0.0, 0
    for tensor in tensors:
        for entries in torch.split(tensor.reshape(-1), _SLICE_ENTRIES):  # copied to float64
            squares += float(torch.linalg.vector_norm(entries, dtype=torch.float64)) ** 2
        count += tensor.numel()
    return math.sqrt(squares / count) if count else 0.0


def check_unit(unit: str) -> None:
    """Raises ValueError unless it is a `NoiseUnit`."""
    if unit not in ("one", "base", "deltas"):
        raise ValueError(f"unit of the noise must be 'one', 'base' or 'deltas', got {unit!r}")
