"""Karcher mean: the Riemannian centre of the experts on a sphere."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.knobs import WEIGHT, read
from merging.rules.spherical import mean
from merging.rules.threads import one_thread


@dataclass(frozen=True)
class Karcher:
    """The direction least far from all experts in squared angle, times the weighted mean length.

    In plain numpy: tests/merging/methods/test_method_references.py::sphere.

    Args:
        task_vectors: average the deltas and add the result to the base, not whole weights.
        tolerance: step in radians at which the iteration stops.
        max_iterations: at which it stops in any case.

    Source: Karcher 1977, Riemannian center of mass and mollifier smoothing; iterated as in
    Buss & Fillmore 2001, Spherical averages, algorithm A1.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (WEIGHT,)
    task_vectors: bool = False
    tolerance: float = 1e-6
    max_iterations: int = 50

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
        centre = mean(vectors, shares, iterations=self.max_iterations, tolerance=self.tolerance)
        return base + centre if self.task_vectors else centre
