"""Merges that are one pass over base and experts, in blocks that stay in the processor's cache.

A method with a `rule` says how one block of a parameter is made; every entry depends on the same
entry of base and experts, and on what `cache.py` keeps. Results do not depend on the length of
the blocks by a single bit, nor on whether `merging.rules.loops` runs the rule instead.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from typing import Protocol, TypeAlias, TypeGuard

import torch
from torch import Tensor

from merging.method import Knob, MergeMethod, Slot
from merging.rules.cache import LARGE, ExpertTensors, ParameterStack
from merging.rules.compiled_rule import Compilable
from merging.rules.knobs import stacked

Scratch: TypeAlias = Mapping[str, Tensor]
"""Buffers to compute in by name, ``(entries,)`` each, in the dtype of the arithmetic."""

_OWN_BUFFERS = "result", "base", "stored"
"""What any block is computed in: before it is cast, and where what it reads is converted."""


class Block:
    """Consecutive entries of a parameter, flat, with buffers to compute in.

    Args:
        start: place of the first entry in the parameter.
        base: the base's entries, in its own dtype.
        stored: what every expert stores of them.
        rows: the experts.
        scratch: those of `_OWN_BUFFERS`, and the rule's `buffers`.
    """

    def __init__(
        self,
        start: int,
        base: Tensor,
        stored: Sequence[Tensor],
        rows: ExpertTensors,
        scratch: Scratch,
    ) -> None:
        self.start = start
        self.scratch = scratch
        self._stored = stored
        self._rows = rows
        self._dtype = scratch["base"].dtype
        self._base_as_stored = base
        self._base = base if base.dtype == self._dtype else None

    @property
    def base(self) -> Tensor:
        """The base's entries in the dtype of the arithmetic; not to be changed."""
        if self._base is None:
            self._base = self.scratch["base"].copy_(self._base_as_stored)
        return self._base

    def stored(self, row: int) -> Tensor:
        """Returns what an expert stores, in the dtype of the arithmetic; not to be changed.

        Valid until it is called again.
        """
        stored = self._stored[row]
        return stored if stored.dtype == self._dtype else self.scratch["stored"].copy_(stored)

    def scaled(self, row: int, factor: float, out: Tensor) -> Tensor:
        """Writes `factor` times what an expert stores into `out` and returns it."""
        stored = self._stored[row]
        if stored.dtype == self._dtype:
            return torch.mul(stored, factor, out=out)
        return out.copy_(stored).mul_(factor)

    def delta(self, row: int, out: Tensor) -> Tensor:
        """Writes expert minus base into `out` and returns it."""
        stored = self._stored[row]
        if not self._rows[row].is_full_checkpoint:
            return out.copy_(stored)
        if stored.dtype == self._dtype:
            return torch.sub(stored, self.base, out=out)
        return out.copy_(stored).sub_(self.base)


class Rule(Protocol):
    """How one block of the merged parameter is computed."""

    @property
    def rows(self) -> ExpertTensors:
        """The experts, as `Block` numbers them."""
        ...

    @property
    def buffers(self) -> tuple[str, ...]:
        """Names of the buffers that it finds in a block's scratch."""
        ...

    def __call__(self, block: Block, out: Tensor) -> None:
        """Writes the merged entries of `block` into `out`, in the dtype of the arithmetic."""
        ...


class RuledMethod(ABC):
    """A merge method that says how one block is computed; what it inherits does the rest."""

    @property
    @abstractmethod
    def knobs(self) -> tuple[Knob, ...]:
        """The numbers that `rule` reads, with their ranges."""

    @abstractmethod
    def rule(self, tensors: ParameterStack, knobs: Mapping[str, Tensor]) -> Rule:
        """Returns how the parameter is computed.

        Args:
            tensors: base and experts.
            knobs: as in `MergeMethod.merge`, on the CPU; so is what it raises.
        """

    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the merged parameter; see `MergeMethod.merge`."""
        tensors = stacked(self, slot, base, deltas)
        out = torch.empty(base.shape, dtype=base.dtype, device=base.device)
        write(self.rule(tensors, knobs), tensors, out)
        return out


def merges_by_rule(method: MergeMethod) -> TypeGuard[RuledMethod]:
    """Returns whether the method's `merge` is the inherited one, so that its rule says it all."""
    return isinstance(method, RuledMethod) and type(method).merge is RuledMethod.merge


def write(rule: Rule, tensors: ParameterStack, out: Tensor, *, length: int = 0) -> None:
    """Writes the merged parameter into `out`, computed in full precision and cast once.

    On a CPU the parameters of large models go through compiled loops, where the rule can be
    written for them.

    Args:
        out: ``(*shape)``, contiguous, on the base's device.
        length: most entries of a block; 0: what suits the device.
    """
    large = out.numel() >= LARGE if tensors.large is None else tensors.large
    if large and not length and isinstance(rule, Compilable):
        from merging.rules import loops  # takes half a second, which small models do not wait for

        compiled = rule.compiled()
        if loops.suits(compiled, tensors, out.device):
            loops.run(compiled, tensors.base, out)
            return
    names = (*_OWN_BUFFERS, *rule.buffers)
    blocks = max(1, math.ceil(out.numel() / (length or _length(len(names), out.device))))
    whole = (out, tensors.base, *(row.stored for row in rule.rows))
    parts = list(zip(*(tensor.reshape(-1).chunk(blocks) for tensor in whole), strict=True))
    entries, start = parts[0][0].numel(), 0
    buffers = torch.empty((len(names), entries), dtype=tensors.dtype, device=out.device)
    scratch = dict(zip(names, buffers.unbind(), strict=True))
    for part, base, *stored in parts:
        if part.numel() < entries:  # the last one
            scratch = {name: buffer[: part.numel()] for name, buffer in scratch.items()}
        target = part if out.dtype == tensors.dtype else scratch["result"]
        rule(Block(start, base, stored, rule.rows, scratch), target)
        if target is not part:
            part.copy_(target)
        start += part.numel()


def _length(buffers: int, device: torch.device) -> int:
    """Returns how many entries keep the caches full and the calls few.

    On a CPU all buffers of a block and what it reads together have 2^20 entries per thread, at
    least two threads' worth: 8 MB, which its last cache holds. torch divides one operation among
    its threads from 2^15 entries on. Elsewhere starting an operation takes as long as some
    million entries.
    """
    if device.type == "cpu":
        return 2**20 * max(2, torch.get_num_threads()) // (buffers + 1)
    return 2**22
