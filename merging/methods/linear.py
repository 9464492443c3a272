"""Weighted average of the experts (model soup)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from torch import Tensor

from merging.consensus import weighted_sum
from merging.knobs import WEIGHT, read
from merging.method import Knob, Slot


@dataclass(frozen=True)
class Linear:
    """``sum_i w_i theta_i / sum_i w_i``, which is ``base + sum_i w_i d_i / sum_i w_i``.

    Args:
        normalize: divide by the sum of the weights; without it the result is
            ``sum_i w_i theta_i``, so that weights of 1 add whole models up.

    Source: Wortsman et al. 2022, Model soups (the uniform soup, with weights), arXiv:2203.05482.
    """

    normalize: bool = True

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """One weight per expert."""
        return (WEIGHT,)

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the average; see `MergeMethod.merge`.

        Raises:
            MergeError: an argument is refused, or weights to be normalised sum to zero.
        """
        inputs = read(self, slot, base, deltas, knobs)
        weights = inputs.each["weight"]
        if not self.normalize:
            return weighted_sum([base, *inputs.deltas], [sum(weights), *weights])
        if inputs.unmoved:
            return base.clone()
        return base + weighted_sum(inputs.deltas, inputs.shares())
