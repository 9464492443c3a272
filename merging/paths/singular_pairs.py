"""Noise between experts: left singular directions of one with right ones of another."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import permutations

import torch
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.paths.noise import Draw, NoiseUnit, TensorNoise, check_unit, matrix_of, size_of
from merging.rules.spectral import thin_svd
from merging.rules.threads import one_thread
from merging.seeding import generator


@dataclass(frozen=True)
class SingularPairNoise:
    """``sum_{e != f} U_e diag(g_ef sqrt(S_e S_f)) V_f``, over all ordered pairs of experts.

    What one expert reads, written where another writes: outside the span of all task vectors, in
    the subspaces that training has used. Vectors, and tensors that fewer than two experts change,
    get `TensorNoise`.

    Args:
        rank: leading directions of every expert, at least 1.
    """

    rank: int = 8
    unit: NoiseUnit = "deltas"

    def __post_init__(self) -> None:
        check_unit(self.unit)
        if self.rank < 1:
            raise ValueError(f"rank of the noise must be at least 1, got {self.rank}")

    def numbers(self, shape: Sequence[int], experts: int) -> int:
        """Returns the number of pairs of directions."""
        if len(shape) < 2 or experts < 2:
            return TensorNoise(self.unit).numbers(shape, experts)
        most = min(self.rank, shape[0], math.prod(shape[1:]))
        return experts * (experts - 1) * most

    def on(self, name: str, pool: ExpertPool) -> Draw:
        """Returns the sampler of one tensor; see `merging.paths.noise.Noise.on`."""
        deltas = pool.deltas(name)
        if deltas.numel() == 0 or deltas.dim() < 3 or len(deltas) < 2:
            return TensorNoise(self.unit).on(name, pool)
        triplets = {
            identity: thin_svd(matrix_of(delta), self.rank)
            for identity, delta in sorted(zip(pool.identities, deltas, strict=True), key=_identity)
            if delta.any()
        }
        if len(triplets) < 2:
            return TensorNoise(self.unit).on(name, pool)
        pairs = list(permutations(triplets, 2))
        # E |noise|^2 = sum over pairs and directions of S_e S_f
        square = sum(float(_values(triplets, *pair).square().sum()) for pair in pairs)
        size = size_of(self.unit, name, pool) * math.sqrt(deltas[0].numel())
        factor = size / math.sqrt(square) if square else 0.0

        @one_thread()
        def draw(seed: int, out: Tensor | None = None) -> Tensor:
            noise = deltas.new_zeros(deltas.shape[1:]) if out is None else out.zero_()
            for one, other in pairs:
                values = _values(triplets, one, other)
                rng = generator(seed, one, other, name)
                numbers = torch.randn(len(values), generator=rng).to(values)
                left, right = triplets[one][0], triplets[other][2]
                # U_e diag(g sqrt(S_e S_f)) V_f
                product = (left[:, : len(values)] * (numbers * values)) @ right[: len(values)]
                noise.add_(product.reshape(noise.shape))
            return noise.mul_(factor)

        return draw


def _identity(pair: tuple[str, Tensor]) -> str:
    return pair[0]


def _values(triplets: dict[str, tuple[Tensor, Tensor, Tensor]], one: str, other: str) -> Tensor:
    """Returns ``sqrt(S_e S_f)`` of as many directions as both have."""
    first, second = triplets[one][1], triplets[other][1]
    count = min(len(first), len(second))
    return (first[:count] * second[:count]).sqrt()
