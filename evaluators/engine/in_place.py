"""Candidates multiplied out into the resident's weights, and the centre put back after them."""

from collections.abc import Sequence

import torch
from torch import Tensor

from evaluators.engine.resident import Resident
from merging.lora.low_rank import LowRankDeltas, LowRankProduct


class InPlaceCandidate:
    """Writes one candidate at a time onto the resident's centre, and keeps what it changes."""

    def __init__(self, resident: Resident, candidates: Sequence[LowRankDeltas]) -> None:
        self._resident = resident
        self._candidates = candidates
        self._centre: dict[str, Tensor] = {}
        self._written: int | None = None

    def write(self, candidate: int) -> None:
        """Writes a candidate's weights, in float32 and cast once; nothing if they are there."""
        if self._written == candidate:
            return
        if not self._centre:
            names = dict.fromkeys(name for deltas in self._candidates for name in deltas)
            self._centre = {name: self._resident.tensor(name).clone() for name in names}
        deltas = self._candidates[candidate]
        self._written = candidate
        for name, centre in self._centre.items():
            _add(centre, deltas.get(name), self._resident.tensor(name))

    def restore(self) -> None:
        """Puts the centre back, bit for bit."""
        if self._written is not None:
            self._written = None
            for name, centre in self._centre.items():
                self._resident.tensor(name).copy_(centre)


def _add(centre: Tensor, delta: LowRankProduct | Tensor | None, target: Tensor) -> None:
    """Writes ``centre + delta`` into `target`."""
    if delta is None:
        target.copy_(centre)
    elif isinstance(delta, Tensor):
        target.copy_(centre.float() + delta.to(centre.device, torch.float32))
    else:
        a, b = (side.to(centre.device, torch.float32) for side in (delta.a, delta.b))
        mixed = b if delta.mix is None else b * delta.mix.to(centre.device)
        if centre.dtype == torch.float32:
            torch.addmm(centre, mixed, a, out=target)
        else:
            target.copy_(torch.addmm(centre.float(), mixed, a))
