"""How deltas are added up: plain sums, and sums of what agrees with the majority's sign."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal, TypeAlias, get_args

import torch
from torch import Tensor

from merging.knobs import Inputs

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


def add_sum(base: Tensor, inputs: Inputs, deltas: Sequence[Tensor], *, normalize: bool) -> Tensor:
    """Returns ``base + scale sum_i w_i d_i``, divided by ``sum_i w_i`` on request.

    Raises:
        MergeError: the weights sum to zero and are to be normalised.
    """
    weights = inputs.shares() if normalize else inputs.each["weight"]
    return base.add(weighted_sum(deltas, weights), alpha=inputs.shared["scale"])


def add_consensus(
    base: Tensor,
    inputs: Inputs,
    deltas: Sequence[Tensor],
    *,
    majority: Majority,
    normalize: bool,
) -> Tensor:
    """Returns ``base + scale * agreeing(w_i d_i)``, the sign elected by the same ``w_i d_i``."""
    weights = inputs.each["weight"]
    shares = [delta * weight for delta, weight in zip(deltas, weights, strict=True)]
    merged = agreeing(shares, weights, elect(shares, majority), normalize=normalize)
    return base.add(merged, alpha=inputs.shared["scale"])


def elect(shares: Sequence[Tensor], majority: Majority) -> Tensor:
    """Returns the majority's sign at every position, ``(*shape)`` of -1, 0, 1.

    By mass: the sign of the sum. By count: the sign that more experts have, entries of 0 not
    voting; equal counts are decided by mass. 0 where that balances too: nothing is merged there.
    """
    mass = weighted_sum(shares, [1.0] * len(shares)).sign_()
    if majority == "mass":
        return mass
    votes = torch.zeros_like(mass)
    for share in shares:
        votes += share.sign()
    return torch.where(votes == 0, mass, votes.sign_())


def agreeing(
    shares: Sequence[Tensor], weights: Sequence[float], sign: Tensor, *, normalize: bool
) -> Tensor:
    """Returns the sum of the shares that have the elected sign, ``(*shape)``.

    Args:
        shares: ``w_i d_i`` of every expert.
        weights: ``w_i``.
        sign: -1, 0 or 1 at every position.
        normalize: divide by ``sum |w_i|`` over the experts that agree at the position.
    """
    total, mass = torch.zeros_like(sign), torch.zeros_like(sign)
    for share, weight in zip(shares, weights, strict=True):
        agreed = (share * sign).clamp_(min=0)
        total += agreed
        if normalize:
            mass.add_(agreed > 0, alpha=abs(weight))
    total *= sign
    return total.div_(mass.masked_fill_(mass == 0, 1)) if normalize else total
