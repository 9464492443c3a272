"""Merges that are one pass over base and experts, in pieces that stay in the processor's cache.

A method with a `rule` says how one piece of a parameter is made; every entry depends on the same
entry of base and experts, and on facts of `merging.prepared`. Results do not depend on the length
of the pieces by a single bit.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from merging.knobs import stacked
from merging.method import Knob, MergeMethod, Slot
from merging.prepared import Rows, Tensors


class Piece:
    """Consecutive entries of a parameter, flat, with room to compute in.

    Args:
        tensors: base and experts.
        rule: what will be computed.
        length: most entries of a piece.
    """

    def __init__(self, tensors: Tensors, rule: Rule, length: int) -> None:
        self._base = tensors.base.reshape(-1)
        self._rows = [(row.stored.reshape(-1), row.whole) for row in rule.rows]
        self._stored = self._converted = self._base
        self._dtype = tensors.dtype
        self._room = torch.empty(
            (rule.spares + 2, length), dtype=tensors.dtype, device=tensors.base.device
        )
        self.start = self._stop = 0
        self.spares: list[Tensor] = []

    def move(self, start: int, stop: int) -> None:
        """Goes to the entries from `start` to `stop`; `spares` have their number of entries."""
        self.start, self._stop = start, stop
        *self.spares, self._stored, self._converted = self._room[:, : stop - start]
        self._read = False

    @property
    def base(self) -> Tensor:
        """The base's entries in the dtype of the arithmetic; not to be changed."""
        own = self._base[self.start : self._stop]
        if own.dtype == self._dtype:
            return own
        if not self._read:
            self._read = True
            self._converted.copy_(own)
        return self._converted

    def stored(self, row: int) -> Tensor:
        """Returns what a row stores, in the dtype of the arithmetic; not to be changed.

        Valid until it is called again.
        """
        own = self._rows[row][0][self.start : self._stop]
        return own if own.dtype == self._dtype else self._stored.copy_(own)

    def delta(self, row: int, out: Tensor) -> Tensor:
        """Writes expert minus base into `out` and returns it."""
        stored, whole = self._rows[row]
        own = stored[self.start : self._stop]
        if not whole:
            return out.copy_(own)
        if own.dtype != out.dtype:
            return out.copy_(own).sub_(self.base)
        return torch.sub(own, self.base, out=out)


class Rule(Protocol):
    """How one piece of the merged parameter is computed."""

    @property
    def rows(self) -> Rows:
        """The experts, as `Piece` numbers them."""
        ...

    @property
    def spares(self) -> int:
        """Rooms that it computes in."""
        ...

    def __call__(self, piece: Piece, out: Tensor) -> None:
        """Writes the merged entries of `piece` into `out`, in the dtype of the arithmetic."""
        ...


class RuledMethod:
    """A merge method that says how one piece is computed; what it inherits does the rest."""

    @property
    def knobs(self) -> tuple[Knob, ...]:
        """The numbers that `rule` reads, with their ranges."""
        raise NotImplementedError

    def rule(self, tensors: Tensors, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns how the parameter is computed.

        Raises:
            MergeError: as `MergeMethod.merge`.
        """
        raise NotImplementedError

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the merged parameter; see `MergeMethod.merge`."""
        tensors = stacked(self, slot, base, deltas)
        out = torch.empty(base.shape, dtype=base.dtype, device=base.device)
        write(self, tensors, knobs, out)
        return out


def in_pieces(method: MergeMethod) -> TypeGuard[RuledMethod]:
    """Returns whether the method's `merge` is the inherited one, so that its rule says it all."""
    return isinstance(method, RuledMethod) and type(method).merge is RuledMethod.merge


def write(
    method: RuledMethod,
    tensors: Tensors,
    knobs: Mapping[str, Tensor],
    out: Tensor,
    *,
    length: int = 0,
) -> None:
    """Writes the merged parameter into `out`, computed in full precision and cast once.

    Args:
        method: says how.
        tensors: of base and experts.
        knobs: as in `MergeMethod.merge`, on the CPU.
        out: ``(*shape)``, contiguous, on the base's device.
        length: entries of a piece; 0: what suits the device.
    """
    rule = method.rule(tensors, knobs)
    flat = out.view(-1)
    length = min(length or _length(out.device), max(flat.numel(), 1))
    piece = Piece(tensors, rule, length)
    direct = out.dtype == tensors.dtype
    rounded = flat if direct else torch.empty(length, dtype=tensors.dtype, device=out.device)
    for start in range(0, flat.numel(), length):
        part = flat[start : start + length]
        piece.move(start, start + len(part))
        target = part if direct else rounded[: len(part)]
        rule(piece, target)
        if not direct:
            part.copy_(target)


def _length(device: torch.device) -> int:
    """Returns how many entries keep the caches full and the calls few.

    torch divides one operation among its threads from 2^15 entries on. Elsewhere than on a CPU,
    starting an operation takes as long as some million entries.
    """
    if device.type == "cpu":
        return 2**17 * max(2, torch.get_num_threads())
    return 2**22
