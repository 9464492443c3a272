"""SCE: select by variance, calculate weights, erase minority signs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack, joint_fact
from merging.rules.consensus import add_consensus, unchanged, weighted_sum
from merging.rules.knobs import DENSITY, SCALE, read_rows
from merging.rules.sparsify import Masked, kept
from merging.rules.spherical import direction_and_length
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class Sce(RuledMethod):
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

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs, least=2)
        if inputs.unmoved:
            return unchanged(inputs)
        size = tensors.base.numel()
        spread = joint_fact(inputs.rows, "spread", 4 * size, lambda: _spread(inputs.deltas))
        count = kept(inputs.shared["density"], size)
        chosen = Masked.largest(inputs.rows, "order of spread", spread.reshape(-1), count)
        with one_thread():
            weights = _energy_shares(inputs.deltas, chosen.mask)
        keeps = [chosen] * len(inputs.rows)
        return add_consensus(
            inputs, keeps, majority="mass", normalize=self.normalize, weights=weights
        )


def _spread(deltas: Sequence[Tensor]) -> Tensor:
    """Returns the variance over experts at every position, ``(*shape)``, in arbitrary units."""
    centre = weighted_sum(deltas, [1 / len(deltas)] * len(deltas))
    peak = max(float(delta.abs().max()) for delta in deltas)  # squares of small deltas vanish
    spread = torch.zeros_like(centre)
    for delta in deltas:
        spread.add_((delta - centre).div_(peak).square_())
    return spread


def _energy_shares(deltas: Sequence[Tensor], chosen: Tensor) -> list[float]:
    """Returns every expert's share of the squared chosen entries; zeros if all are zero."""
    lengths = [float(direction_and_length(delta.reshape(-1) * chosen)[1]) for delta in deltas]
    longest = max(lengths) or 1.0
    squares = [(length / longest) ** 2 for length in lengths]
    return [square / (sum(squares) or 1.0) for square in squares]
