"""How deltas are added up: plain sums, and sums of what agrees with the majority's sign."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from merging.rules.blocks import Block, Rule
from merging.rules.cache import ExpertTensors
from merging.rules.compiled_rule import ALL, Compilable, CompiledRule, RuleKind
from merging.rules.knobs import Inputs
from merging.rules.sparsify import Sparsifier

Majority: TypeAlias = Literal["mass", "count"]


def check_majority(majority: str) -> None:
    """Raises ValueError unless `majority` is one of `Majority`."""
    if majority not in get_args(Majority):
        raise ValueError(f"majority is {majority!r}, expected one of {get_args(Majority)}")


def weighted_sum(deltas: Sequence[Tensor], weights: Sequence[float]) -> Tensor:
    """Returns ``sum_i w_i d_i``, a new tensor ``(*shape)``."""
    total = deltas[0] * weights[0]
    for delta, weight in zip(deltas[1:], weights[1:], strict=True):
        total.add_(delta, alpha=weight)
    return total


def combination(inputs: Inputs, coefficients: Sequence[float], total: float) -> Rule:
    """Returns what computes ``(total - sum_i c_i) base + sum_i c_i theta_i``.

    Args:
        inputs: the experts theta_i.
        coefficients: c_i, one per expert.
        total: sum of all coefficients, the base's included: 1 for an average.
    """
    whole = [c for c, row in zip(coefficients, inputs.rows, strict=True) if row.whole]
    rest = math.fsum([total, *(-c for c in whole)])
    if abs(rest) <= 1e-15 * math.fsum(map(abs, whole)):  # what float64 rounded away
        rest = 0.0
    return _Combination(inputs.rows, rest, tuple(coefficients))


def add_sum(inputs: Inputs, keeps: Sequence[Sparsifier | None], *, normalize: bool) -> Rule:
    """Returns what computes ``base + scale sum_i w_i d_i``, divided by ``sum_i w_i`` on request.

    Args:
        inputs: experts, weights and scale.
        keeps: what is kept of each delta; None: all.
        normalize: whether to divide.

    Raises:
        MergeError: the weights sum to zero and are to be normalised.
    """
    if inputs.unmoved:
        return unchanged(inputs)
    weights = inputs.shares() if normalize else inputs.each["weight"]
    scale = inputs.shared["scale"]
    return _Sum(inputs.rows, tuple(keeps), tuple(scale * weight for weight in weights))


def add_consensus(
    inputs: Inputs,
    keeps: Sequence[Sparsifier],
    *,
    majority: Majority,
    normalize: bool,
    weights: Sequence[float] | None = None,
) -> Rule:
    """Returns what computes ``base + scale sum_{i: sign(w_i d_i) = s} w_i d_i``.

    Args:
        inputs: experts, weights and scale.
        keeps: what is kept of each delta before all else.
        majority: how s is elected from the same ``w_i d_i``. By mass: the sign of their sum. By
            count: the sign that more experts have, entries of 0 not voting; equal counts are
            decided by mass. Where that balances too nothing is merged.
        normalize: divide by ``sum |w_i|`` over the experts that agree at the position.
        weights: w_i of a method without such a knob; all votes then count the same.
    """
    if inputs.unmoved:
        return unchanged(inputs)
    scale = inputs.shared["scale"]
    ones = (1.0,) * len(inputs.rows)
    votes, later = (inputs.each["weight"], ones) if weights is None else (ones, tuple(weights))
    return _Consensus(inputs.rows, tuple(keeps), votes, later, scale, majority, normalize)


def unchanged(inputs: Inputs) -> Rule:
    """Returns what computes the base, bit for bit."""
    return _Combination(inputs.rows, 1.0, (0.0,) * len(inputs.rows))


@dataclass(frozen=True, eq=False)
class _Combination(Compilable):
    """``rest base + sum_i c_i x_i``, x_i what the rows store."""

    rows: ExpertTensors
    rest: float
    coefficients: tuple[float, ...]
    spares: int = 0

    def __call__(self, piece: Block, out: Tensor) -> None:
        terms = [(i, c) for i, c in enumerate(self.coefficients) if c]
        if self.rest or not terms:
            torch.mul(piece.base, self.rest, out=out)
        else:
            (i, c), *terms = terms
            piece.scaled(i, c, out)
        for i, c in terms:
            out.add_(piece.stored(i), alpha=c)

    def coded(self) -> CompiledRule:
        """Returns the rule in numbers."""
        return CompiledRule(RuleKind.COMBINATION, self.rows, self.coefficients, rest=self.rest)


@dataclass(frozen=True, eq=False)
class _Sum(Compilable):
    """``base + sum_i c_i keep_i(d_i)``."""

    rows: ExpertTensors
    keeps: tuple[Sparsifier | None, ...]
    coefficients: tuple[float, ...]
    spares: int = 3

    def __call__(self, piece: Block, out: Tensor) -> None:
        first, *rooms = piece.spares
        total = out
        for i, (keep, c) in enumerate(zip(self.keeps, self.coefficients, strict=True)):
            delta = piece.delta(i, first if i else total)
            if keep is not None:
                keep(piece.start, delta, rooms)
                c *= keep.scale
            if i:
                total.add_(delta, alpha=c)
            else:
                total.mul_(c)
        total.add_(piece.base)

    def coded(self) -> CompiledRule:
        """Returns the rule in numbers."""
        scales = (1.0 if keep is None else keep.scale for keep in self.keeps)
        return CompiledRule(
            RuleKind.SUM,
            self.rows,
            [c * scale for c, scale in zip(self.coefficients, scales, strict=True)],
            selections=[ALL if keep is None else keep.coded() for keep in self.keeps],
        )


@dataclass(frozen=True, eq=False)
class _Consensus(Compilable):
    """Elects a sign per entry and adds up what has it; see `add_consensus`.

    Args:
        rows: the experts.
        keeps: what is kept of each.
        votes: factor of each expert before the election.
        later: factor of each expert after it.
        scale: of the sum.
        majority: who wins.
        normalize: whether to divide by the weights, the products of both factors.
    """

    rows: ExpertTensors
    keeps: tuple[Sparsifier, ...]
    votes: tuple[float, ...]
    later: tuple[float, ...]
    scale: float
    majority: Majority
    normalize: bool

    @property
    def spares(self) -> int:
        """One per expert, three to elect and add up in."""
        return len(self.rows) + 3

    def __call__(self, piece: Block, out: Tensor) -> None:
        *shares, sign, agrees, mass = piece.spares
        for i, (share, keep, vote) in enumerate(zip(shares, self.keeps, self.votes, strict=True)):
            keep(piece.start, piece.delta(i, share), [sign, agrees])
            share.mul_(vote * keep.scale)
        self._elect(shares, sign, agrees, mass)
        total = out.zero_()
        mass.zero_()
        for share, vote, later in zip(shares, self.votes, self.later, strict=True):
            torch.mul(share, sign, out=agrees).gt_(0)
            total.addcmul_(agrees, share, value=later)
            if self.normalize:
                mass.add_(agrees, alpha=abs(vote * later))
        if self.normalize:  # nothing agrees where the mass is 0, and the total is 0 as well
            mass.clamp_(min=torch.finfo(mass.dtype).tiny)
            torch.addcdiv(piece.base, total, mass, value=self.scale, out=out)
        else:
            torch.add(piece.base, total, alpha=self.scale, out=out)

    def coded(self) -> CompiledRule:
        """Returns the rule in numbers."""
        factors = list(zip(self.votes, self.later, strict=True))
        return CompiledRule(
            RuleKind.CONSENSUS,
            self.rows,
            [vote * keep.scale for vote, keep in zip(self.votes, self.keeps, strict=True)],
            selections=[keep.coded() for keep in self.keeps],
            later=self.later,
            masses=[abs(vote * later) for vote, later in factors],
            scale=self.scale,
            by_count=self.majority == "count",
            normalize=self.normalize,
        )

    def _elect(self, shares: list[Tensor], sign: Tensor, votes: Tensor, spare: Tensor) -> None:
        """Writes -1, 0 or 1 into `sign`."""
        _add_up(shares, sign)
        sign.sign_()
        if self.majority == "count":
            torch.sign(shares[0], out=votes)
            for share in shares[1:]:
                votes.add_(torch.sign(share, out=spare))
            torch.eq(votes, 0, out=spare)
            sign.mul_(spare).add_(votes.sign_())


def _add_up(shares: list[Tensor], out: Tensor) -> None:
    if len(shares) == 1:
        out.copy_(shares[0])
        return
    torch.add(shares[0], shares[1], out=out)
    for share in shares[2:]:
        out.add_(share)
