"""SCE: select by variance, calculate weights, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from merging.consensus import agreeing, elect, weighted_sum
from merging.knobs import DENSITY, SCALE, read
from merging.method import Knob, Slot
from merging.sparsify import kept, largest
from merging.spherical import direction_and_length


@dataclass(frozen=True)
class Sce:
    """Selects entries by variance, weighs experts by squared deltas, erases minority signs.

    Select: the ``round(density n)`` entries of largest variance over the experts. Calculate:
    ``w_i = |d_i|^2 / sum_j |d_j|^2`` over these, so the scale of the deltas does not matter.
    Erase: entries whose sign is not that of ``sum_i d_i``. Needs at least two experts.

    Args:
        normalize: divide by the sum of ``w_i`` over the experts that agree; otherwise a plain sum.

    Source: Wan et al. 2024, FuseChat (SCE), arXiv:2408.07990, where the density is
    the threshold tau; normalised as in mergekit's ``sce``.
    """

    normalize: bool = True

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """One density and one scale; the weights come from the deltas."""
        return (replace(DENSITY, per_expert=False), SCALE)

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base plus the merged task vectors; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs, least=2)
        if inputs.unmoved:
            return base.clone()
        chosen = largest(_spread(inputs.deltas), kept(inputs.shared["density"], base.numel()))
        selected = [delta * chosen for delta in inputs.deltas]
        weights = _energy_shares(selected)
        sign = elect(selected, "mass")
        for delta, weight in zip(selected, weights, strict=True):
            delta.mul_(weight)
        merged = agreeing(selected, weights, sign, normalize=self.normalize)
        return base.add(merged, alpha=inputs.shared["scale"])


def _spread(deltas: Sequence[Tensor]) -> Tensor:
    """Returns the variance over experts at every position, ``(*shape)``, in arbitrary units."""
    centre = weighted_sum(deltas, [1 / len(deltas)] * len(deltas))
    peak = max(float(delta.abs().max()) for delta in deltas)  # squares of small deltas vanish
    spread = torch.zeros_like(centre)
    for delta in deltas:
        spread.add_((delta - centre).div_(peak).square_())
    return spread


def _energy_shares(deltas: Sequence[Tensor]) -> list[float]:
    """Returns every expert's share of the squared entries; zeros if all entries are zero."""
    lengths = [float(direction_and_length(delta)[1]) for delta in deltas]
    longest = max(lengths) or 1.0
    squares = [(length / longest) ** 2 for length in lengths]
    return [square / (sum(squares) or 1.0) for square in squares]
