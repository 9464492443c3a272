"""How deltas are added up: plain sums, and sums of what agrees with the majority's sign."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from merging.rules.blocks import Block, Rule
from merging.rules.cache import ExpertTensors
from merging.rules.compiled_rule import Compilable, CompiledRule, RuleKind
from merging.rules.knobs import Inputs
from merging.rules.sparsify import BUFFERS, Sparsifier

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
    """Returns the rule ``(total - sum_i c_i) base + sum_i c_i theta_i``.

    Args:
        inputs: the experts theta_i.
        coefficients: c_i, one per expert.
        total: sum of all coefficients, the base's included: 1 for an average.
    """
    of_checkpoints = [
        coefficient
        for coefficient, row in zip(coefficients, inputs.rows, strict=True)
        if row.is_full_checkpoint  # of the others the deltas are stored: theta_i - base
    ]
    remainder = math.fsum([total, *(-c for c in of_checkpoints)])
    if abs(remainder) <= 1e-15 * math.fsum(map(abs, of_checkpoints)):  # what float64 rounded away
        remainder = 0.0
    return _Combination(inputs.rows, remainder, tuple(coefficients))


def unchanged(inputs: Inputs) -> Rule:
    """Returns the rule whose result is the base, bit for bit."""
    return _Combination(inputs.rows, 1.0, (0.0,) * len(inputs.rows))


def sparse_sum(inputs: Inputs, sparsifiers: Sequence[Sparsifier], *, normalize: bool) -> Rule:
    """Returns the rule ``base + scale sum_i w_i m_i d_i``.

    Args:
        inputs: experts d_i, weights w_i and the scale.
        sparsifiers: the masks m_i.
        normalize: whether to divide the sum by ``sum_i w_i``.

    Raises:
        MergeError: the weights sum to zero and are to be normalised.
    """
    if inputs.unmoved:
        return unchanged(inputs)
    weights = inputs.shares() if normalize else inputs.per_expert["weight"]
    scale = inputs.shared["scale"]
    return _Sum(inputs.rows, tuple(sparsifiers), tuple(scale * weight for weight in weights))


@dataclass(frozen=True, eq=False)
class SignElection:
    """The sign s of every entry, elected by the sparsified deltas; see `elect_signs`.

    Args:
        pre_election_weights: w_i, by which the experts' votes count.
    """

    sparsifiers: tuple[Sparsifier, ...]
    pre_election_weights: tuple[float, ...]
    majority: Majority

    def deltas(self, block: Block) -> list[Tensor]:
        """Returns ``w_i m_i d_i``, each in a buffer of its own."""
        deltas = []
        for i, sparsify in enumerate(self.sparsifiers):
            delta = block.delta(i, block.scratch[f"delta {i}"])
            sparsify(block.start, delta, block.scratch)
            deltas.append(delta.mul_(self.pre_election_weights[i] * sparsify.scale))
        return deltas

    def write(self, deltas: Sequence[Tensor], sign: Tensor, count: Tensor, buffer: Tensor) -> None:
        """Writes s, -1 or 0 or 1, into `sign`; `count` and `buffer` are to compute in."""
        _add_up(deltas, sign)
        sign.sign_()  # s = sign(sum_i w_i d_i)
        if self.majority == "count":
            torch.sign(deltas[0], out=count)
            for delta in deltas[1:]:
                count.add_(torch.sign(delta, out=buffer))  # c = sum_i sign(w_i d_i)
            torch.eq(count, 0, out=buffer)
            sign.mul_(buffer).add_(count.sign_())  # s <- sign(c) where c is not 0


def elect_signs(
    inputs: Inputs,
    sparsifiers: Sequence[Sparsifier],
    majority: Majority = "mass",
    *,
    weights: Sequence[float] | None = None,
) -> SignElection:
    """Returns the election of ``s = sign(sum_i w_i m_i d_i)`` at every entry.

    Args:
        inputs: experts d_i and weights w_i.
        sparsifiers: the masks m_i.
        majority: ``mass`` elects that sign; ``count`` the sign that more of the ``w_i m_i d_i``
            have, entries of 0 not voting and equal counts decided by mass. Where the mass
            balances too nobody is elected: s is 0.
        weights: w_i of a method without such a knob.
    """
    votes = inputs.per_expert["weight"] if weights is None else tuple(weights)
    return SignElection(tuple(sparsifiers), votes, majority)


def disjoint_mean(
    inputs: Inputs,
    signs: SignElection,
    *,
    normalize: bool = True,
    weights: Sequence[float] | None = None,
) -> Rule:
    """Returns the rule ``base + scale mean_{i: sign(w_i m_i d_i) = s} w_i m_i d_i``.

    Args:
        inputs: experts and the scale.
        signs: gives s, the w_i and the m_i.
        normalize: divide by ``sum |w_i|`` over the experts that agree at the entry, for a mean;
            otherwise a plain sum.
        weights: further factors of w_i, after the election.
    """
    if inputs.unmoved:
        return unchanged(inputs)
    after = (1.0,) * len(inputs.rows) if weights is None else tuple(weights)
    return _Consensus(inputs.rows, signs, after, inputs.shared["scale"], normalize)


@dataclass(frozen=True, eq=False)
class _Combination(Compilable):
    """``c_0 base + sum_i c_i x_i``, x_i what the experts store and c_0 the base's coefficient."""

    rows: ExpertTensors
    base_coefficient: float
    coefficients: tuple[float, ...]
    buffers: tuple[str, ...] = ()

    def __call__(self, block: Block, out: Tensor) -> None:
        terms = [(i, c) for i, c in enumerate(self.coefficients) if c]
        if self.base_coefficient or not terms:
            torch.mul(block.base, self.base_coefficient, out=out)  # out = c_0 base
        else:
            (i, c), *terms = terms
            block.scaled(i, c, out)
        for i, c in terms:
            out.add_(block.stored(i), alpha=c)  # out <- out + c_i x_i

    def compiled(self) -> CompiledRule:
        """Returns the rule in numbers."""
        return CompiledRule(
            RuleKind.COMBINATION,
            self.rows,
            self.coefficients,
            base_coefficient=self.base_coefficient,
        )


@dataclass(frozen=True, eq=False)
class _Sum(Compilable):
    """``base + sum_i c_i m_i d_i``."""

    rows: ExpertTensors
    sparsifiers: tuple[Sparsifier, ...]
    coefficients: tuple[float, ...]
    buffers: tuple[str, ...] = ("delta", *BUFFERS)

    def __call__(self, block: Block, out: Tensor) -> None:
        for i, sparsify in enumerate(self.sparsifiers):
            coefficient = self.coefficients[i] * sparsify.scale
            delta = block.delta(i, block.scratch["delta"] if i else out)
            sparsify(block.start, delta, block.scratch)
            if i:
                out.add_(delta, alpha=coefficient)  # out <- out + c_i m_i d_i
            else:
                out.mul_(coefficient)
        out.add_(block.base)

    def compiled(self) -> CompiledRule:
        """Returns the rule in numbers."""
        pairs = zip(self.coefficients, self.sparsifiers, strict=True)
        return CompiledRule(
            RuleKind.SUM,
            self.rows,
            [coefficient * sparsify.scale for coefficient, sparsify in pairs],
            sparsifiers=self.sparsifiers,
        )


@dataclass(frozen=True, eq=False)
class _Consensus(Compilable):
    """Adds up what agrees with the elected sign; see `disjoint_mean`."""

    rows: ExpertTensors
    signs: SignElection
    post_election_weights: tuple[float, ...]
    scale: float
    normalize: bool

    @property
    def buffers(self) -> tuple[str, ...]:
        """A delta per expert, what sparsifiers need, and the divisor."""
        return (*[f"delta {i}" for i in range(len(self.rows))], *BUFFERS, "normalizer")

    @property
    def normalizers(self) -> list[float]:
        """``|w_i|`` with the factors before and after the election."""
        pairs = zip(self.signs.pre_election_weights, self.post_election_weights, strict=True)
        return [abs(before * after) for before, after in pairs]

    def __call__(self, block: Block, out: Tensor) -> None:
        deltas = self.signs.deltas(block)
        scratch = block.scratch
        sign, agrees = scratch["probability"], scratch["mask"]  # the sparsifiers are done
        divisor = scratch["normalizer"]
        self.signs.write(deltas, sign, agrees, divisor)
        total = out.zero_()
        divisor.zero_()
        factors = zip(deltas, self.post_election_weights, self.normalizers, strict=True)
        for delta, weight, normalizer in factors:
            torch.mul(delta, sign, out=agrees).gt_(0)  # a_i = [w_i d_i s > 0]
            total.addcmul_(agrees, delta, value=weight)  # total <- total + a_i w_i d_i
            if self.normalize:
                divisor.add_(agrees, alpha=normalizer)  # divisor <- divisor + a_i |w_i|
        if self.normalize:  # nothing agrees where the divisor is 0, and the total is 0 as well
            divisor.clamp_(min=torch.finfo(divisor.dtype).tiny)
            torch.addcdiv(block.base, total, divisor, value=self.scale, out=out)
        else:
            torch.add(block.base, total, alpha=self.scale, out=out)

    def compiled(self) -> CompiledRule:
        """Returns the rule in numbers."""
        pairs = zip(self.signs.pre_election_weights, self.signs.sparsifiers, strict=True)
        return CompiledRule(
            RuleKind.CONSENSUS,
            self.rows,
            [weight * sparsify.scale for weight, sparsify in pairs],
            sparsifiers=self.signs.sparsifiers,
            post_election_weights=self.post_election_weights,
            normalizers=self.normalizers,
            scale=self.scale,
            by_count=self.signs.majority == "count",
            normalize=self.normalize,
        )


def _add_up(deltas: Sequence[Tensor], out: Tensor) -> None:
    if len(deltas) == 1:
        out.copy_(deltas[0])
        return
    torch.add(deltas[0], deltas[1], out=out)
    for delta in deltas[2:]:
        out.add_(delta)
