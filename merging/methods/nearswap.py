"""Nearswap: takes the expert's value where it is near the base's."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor

from merging.method import Knob, Slot
from merging.rules.knobs import read


@dataclass(frozen=True)
class Nearswap:
    """``base + a d`` with ``a = clamp(t / |d|, 0, 1)``, which is ``base + clamp(d, -t, t)``.

    Takes exactly one expert. Entries that moved by at most t are the expert's, others move by t.
    In plain numpy: tests/merging/methods/test_method_references.py::nearswap.

    Source: alchemonaut 2024, QuartetAnemoi-70B-t0.0001 (model card), where t is 1e-4.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (
        Knob("t", low=0.0, start=0.0001, per_expert=False, scale=0.0001),
    )

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the base moved by at most t; see `MergeMethod.merge`."""
        inputs = read(self, slot, base, deltas, knobs, least=1, most=1)
        if inputs.unmoved:
            return base.clone()
        t = inputs.shared["t"]
        return base + inputs.deltas[0].clamp(-t, t)  # base + clamp(t / |d|, 0, 1) d
