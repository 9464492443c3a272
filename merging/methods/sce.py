"""SCE: select by variance, calculate weights, erase minority signs."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import torch
from torch import Tensor

from merging.method import Knob
from merging.rules.blocks import Rule, RuledMethod
from merging.rules.cache import ParameterStack, cached
from merging.rules.consensus import disjoint_mean, elect_signs, unchanged
from merging.rules.knobs import DENSITY, SCALE, Inputs, read_rows
from merging.rules.sparsify import Masked, kept_count
from merging.rules.spherical import direction_and_length
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class Sce(RuledMethod):
    """Selects entries by variance, weighs experts by squared deltas, erases minority signs.

    Select: of the n entries in which experts differ the ``round(density n)`` of largest variance
    over the experts, and what equals the smallest of them; every entry for a density of 1.
    Calculate: ``w_i = |d_i|^2 / sum_j |d_j|^2`` over these, so the scale of the deltas does not
    matter.
    Erase: entries whose sign is not that of ``sum_i d_i``. Needs at least two experts. In plain
    numpy: tests/merging/methods/test_method_references.py::sce.

    Args:
        normalize: divide by the sum of ``w_i`` over the experts that agree; otherwise a plain sum.

    Source: Wan et al. 2024, FuseChat (SCE), arXiv:2408.07990, where the density is the threshold
    tau; counted and normalised as in mergekit's ``sce``, which is by the same authors.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (replace(DENSITY, per_expert=False), SCALE)
    normalize: bool = True

    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns the base plus the merged task vectors; see `RuledMethod.rule`."""
        inputs = read_rows(self, tensors, knobs, least=2)
        if inputs.unmoved:
            return unchanged(inputs)
        # select: m = 1 for the density n entries of largest variance over the d_i
        selected = _select(inputs, tensors.base.numel())
        # calculate: w_i = |m d_i|^2 / sum_j |m d_j|^2
        with one_thread():
            weights = _energy_shares(inputs.deltas, selected.mask)
        # erase: s = sign(sum_i m d_i);  base + scale sum_{i: sign(d_i) = s} w_i m d_i / sum w_i
        count = len(inputs.rows)
        signs = elect_signs(inputs, [selected] * count, weights=[1.0] * count)
        return disjoint_mean(inputs, signs, normalize=self.normalize, weights=weights)


def _select(inputs: Inputs, size: int) -> Masked:
    """Returns the mask of the entries of largest variance."""
    variance = cached(inputs.rows, "variance", 4 * size, lambda: _variance(inputs.deltas))
    density, rows = inputs.shared["density"], inputs.rows
    varying = cached(rows, "varying", 0, lambda: int(torch.count_nonzero(variance)))
    count = kept_count(density, varying) if density < 1 else size
    return Masked.largest(rows, "order of variance", variance.reshape(-1), count)


def _variance(deltas: Sequence[Tensor]) -> Tensor:
    """Returns the variance over experts at every position, ``(*shape)``, in arbitrary units."""
    first, count = deltas[0], len(deltas)
    centre = first.clone()
    for delta in deltas[1:]:
        centre.add_(delta - first, alpha=1 / count)  # exact where all are equal: variance 0
    peak = max(float(delta.abs().max()) for delta in deltas)  # squares of small deltas vanish
    variance = torch.zeros_like(centre)
    for delta in deltas:
        variance.add_((delta - centre).div_(peak).square_())  # sum_i (d_i - mean d)^2 / peak^2
    return variance


def _energy_shares(deltas: Sequence[Tensor], mask: Tensor) -> list[float]:
    """Returns every expert's share of the squared entries selected; zeros if all are zero."""
    lengths = [float(direction_and_length(delta.reshape(-1) * mask)[1]) for delta in deltas]
    longest = max(lengths) or 1.0
    squares = [(length / longest) ** 2 for length in lengths]
    return [square / (sum(squares) or 1.0) for square in squares]
