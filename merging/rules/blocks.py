"""Merges that are one pass over base and experts, in pieces that stay in the processor's cache.

A method with a `rule` says how one piece of a parameter is made; every entry depends on the same
entry of base and experts, and on facts of `cache.py`. Results do not depend on the length
of the pieces by a single bit, nor on whether `merging.rules.loops` follows the rule instead.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeGuard

import torch
from torch import Tensor

from merging.method import Knob, MergeMethod, Slot
from merging.rules.cache import LARGE, ExpertTensors, ParameterStack
from merging.rules.compiled_rule import Compilable
from merging.rules.knobs import stacked


class Block:
    """Consecutive entries of a parameter, flat, with room to compute in.

    Args:
        start: place of the first entry in the parameter.
        base: the base's entries, in its own dtype.
        stored: what every row stores of them.
        rows: the experts.
        rooms: ``(entries,)`` each, in the dtype of the arithmetic: two to convert in, and the
            rule's `spares`.
    """

    def __init__(
        self,
        start: int,
        base: Tensor,
        stored: Sequence[Tensor],
        rows: ExpertTensors,
        rooms: Sequence[Tensor],
    ) -> None:
        self.start, self._own, self._stored, self._rows = start, base, stored, rows
        self._room, self._converted, *self.spares = rooms
        self._dtype = self._room.dtype
        self._base = base if base.dtype == self._dtype else None

    @property
    def base(self) -> Tensor:
        """The base's entries in the dtype of the arithmetic; not to be changed."""
        if self._base is None:
            self._base = self._converted.copy_(self._own)
        return self._base

    def stored(self, row: int) -> Tensor:
        """Returns what a row stores, in the dtype of the arithmetic; not to be changed.

        Valid until it is called again.
        """
        own = self._stored[row]
        return own if own.dtype == self._dtype else self._room.copy_(own)

    def scaled(self, row: int, factor: float, out: Tensor) -> Tensor:
        """Writes `factor` times what a row stores into `out` and returns it."""
        own = self._stored[row]
        if own.dtype == self._dtype:
            return torch.mul(own, factor, out=out)
        return out.copy_(own).mul_(factor)

    def delta(self, row: int, out: Tensor) -> Tensor:
        """Writes expert minus base into `out` and returns it."""
        own = self._stored[row]
        if not self._rows[row].whole:
            return out.copy_(own)
        if own.dtype == self._dtype:
            return torch.sub(own, self.base, out=out)
        return out.copy_(own).sub_(self.base)


class Rule(Protocol):
    """How one piece of the merged parameter is computed."""

    @property
    def rows(self) -> ExpertTensors:
        """The experts, as `Block` numbers them."""
        ...

    @property
    def spares(self) -> int:
        """Rooms that it computes in."""
        ...

    def __call__(self, piece: Block, out: Tensor) -> None:
        """Writes the merged entries of `piece` into `out`, in the dtype of the arithmetic."""
        ...


class RuledMethod(ABC):
    """A merge method that says how one piece is computed; what it inherits does the rest."""

    @property
    @abstractmethod
    def knobs(self) -> tuple[Knob, ...]:
        """The numbers that `rule` reads, with their ranges."""

    @abstractmethod
    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns how the parameter is computed.

        Raises:
            MergeError: as `MergeMethod.merge`.
        """

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
    tensors: ParameterStack,
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
        length: most entries of a piece; 0: what suits the device.
    """
    apply(method.rule(tensors, knobs), tensors, out, length=length)


def apply(rule: Rule, tensors: ParameterStack, out: Tensor, *, length: int = 0) -> None:
    """Writes what a rule makes of the tensors into `out`; see `write`.

    On a CPU the parameters of large models go through compiled loops, where the rule can be
    written for them.
    """
    large = tensors.large or out.numel() >= LARGE
    if large and not length and isinstance(rule, Compilable):
        from merging.rules import loops  # takes half a second, which small models do not wait for

        coded = rule.coded()
        if loops.suits(coded, tensors, out.device):
            loops.run(coded, tensors.base, out)
            return
    most = length or _length(rule.spares, out.device)
    pieces = max(1, math.ceil(out.numel() / most))
    given = (out, tensors.base, *(row.stored for row in rule.rows))
    parts = list(zip(*(each.reshape(-1).chunk(pieces) for each in given), strict=True))
    shape = (rule.spares + 3, parts[0][0].numel())
    rooms = torch.empty(shape, dtype=tensors.dtype, device=out.device).unbind()
    direct, start = out.dtype == tensors.dtype, 0
    for part, base, *stored in parts:
        entries = part.numel()
        if entries < shape[1]:  # the last one
            rooms = tuple(room[:entries] for room in rooms)
        rounded, *own = rooms
        target = part if direct else rounded
        rule(Block(start, base, stored, rule.rows, own), target)
        if not direct:
            part.copy_(target)
        start += entries


def _length(spares: int, device: torch.device) -> int:
    """Returns how many entries keep the caches full and the calls few.

    On a CPU all rooms of a piece together have 2^20 entries per thread, at least two threads'
    worth: 8 MB, which its last cache holds. torch divides one operation among its threads from
    2^15 entries on. Elsewhere starting an operation takes as long as some million entries.
    """
    if device.type == "cpu":
        return 2**20 * max(2, torch.get_num_threads()) // (spares + 4)
    return 2**22
