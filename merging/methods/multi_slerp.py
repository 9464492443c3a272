"""Multi-SLERP: barycentric interpolation of experts on a sphere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.knobs import WEIGHT, read
from merging.rules.spherical import mean
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class MultiSlerp:
    """One tangent step from the weighted mean direction, scaled to the weighted mean length.

    The directions are mapped to the tangent space at the direction of ``sum_i w_i u_i``, averaged
    there, and mapped back: the first iteration of `merging.methods.karcher`. In plain numpy:
    tests/merging/methods/test_method_references.py::sphere.

    Args:
        task_vectors: interpolate the deltas and add the result to the base, not whole weights.

    Source: C. Goddard 2024, mergekit's ``multislerp``. The tangents here have the angle as their
    length (the logarithmic map); plain projections, as there, average to zero at this centre.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT,)
    task_vectors: bool = False

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the spherical mean; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs)
        if inputs.unmoved:
            return base.clone()
        shares = inputs.shares()
        vectors = inputs.deltas if self.task_vectors else [base + delta for delta in inputs.deltas]
        centre = mean(vectors, shares, iterations=1, tolerance=0.0)
        return base + centre if self.task_vectors else centre
