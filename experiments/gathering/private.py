"""Statistics released with noise: every item's part is clipped, the sum is noised and projected.

The units of privacy are the evaluators' items (documents, questions), however many texts the
model reads of each. In neighbouring data sets one item is replaced by one that contributes
nothing; their number is public.
"""

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from experiments.gathering.items import Item, items_of
from merging.checkpoints.mechanisms import DiscreteGaussianMechanism
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy import accounting
from merging.statistics_files import StatisticsKind
from search.privacy.private_noise import SecretNoise, largest_part

Gather = Callable[[Sequence[Item]], Mapping[str, Tensor]]
"""Statistics of the texts of one item."""


@dataclass(frozen=True)
class PrivateStatistics:
    """The discrete Gaussian mechanism on the sum of all items' statistics.

    An item's part in each of the L tensors is clipped to Frobenius norm C, so that one item moves
    all tensors together by at most ``C sqrt(L)``; every tensor has noise of ``sigma C sqrt(L)``
    (Gram matrices: per entry of the diagonal, off it ``1 / sqrt(2)`` of that, symmetric). All of
    it is in whole units of a grid, a 2^24th of the noise, to which every item's entries are
    rounded, towards zero, so that none of its norms grows: sums are exact and low bits tell
    nothing. The sum is divided by the number of items, and what noise made impossible is
    projected away: negative eigenvalues of Gram matrices, negative Fisher information. That is
    free.

    Args:
        data: name of the private data set in the ledger, one for all experts or one for each.
        clip: C; for Gram matrices in units of the layer's width: 1 keeps the mean of ``x x^T``
            over an item's positions whole where the inputs' root mean square is at most 1. For
            Fisher information the norm itself.
        noise_multiplier: sigma.
        delta: of each file, below 1 / items.
        disjoint_from: data sets of the ledger that share no unit with these.

    Raises:
        ValueError: an option has no meaning; names it.

    Source: discrete Gaussian mechanism, Canonne, Kamath, Steinke 2020, arXiv 2004.00010;
        symmetric noise as in Dwork, Talwar, Thakurta, Zhang 2014, Analyze Gauss, with entries off
        the diagonal counted twice in the norm. Deviation from RegMean: the mean is over items of
        the mean over positions.
    """

    data: str | Mapping[str, str]
    clip: float
    noise_multiplier: float
    delta: float = 1e-5
    unit: str = "record"
    disjoint_from: Sequence[str] = ()

    def __post_init__(self) -> None:
        for name in ("clip", "noise_multiplier"):
            value = getattr(self, name)
            if not (math.isfinite(value) and value > 0):
                raise ValueError(f"privacy.{name} must be a finite number above 0, got {value}")
        if not 0 < self.delta < 1:
            raise ValueError(f"privacy.delta must be above 0 and below 1, got {self.delta}")

    def check(self, experts: Sequence[str]) -> None:
        """Raises ValueError unless every expert's data set is named."""
        lacking = [name for name in experts if not self._named(name).strip()]
        if lacking:
            raise ValueError(
                f"privacy.data names no data set for expert {lacking[0]!r}: give one name for "
                "all, or one for each expert"
            )

    def spend(self, expert: str, kind: StatisticsKind) -> PrivacySpend:
        """Returns the price of one expert's file."""
        mechanism = DiscreteGaussianMechanism(self.noise_multiplier)
        return PrivacySpend(
            dataset=self._named(expert),
            epsilon=accounting.epsilon([mechanism], self.delta),
            delta=self.delta,
            accountant="dp-accounting rdp",
            accountant_version=accounting.library_version(),
            unit=self.unit,
            disjoint_from=tuple(
                name for name in self.disjoint_from if name != self._named(expert)
            ),
            mechanisms=(mechanism,),
            what={"gram": "Gram matrices of", "fisher": "Fisher information of"}[kind]
            + " the layers of an expert, noised",
        )

    def release(
        self,
        units: Sequence[Sequence[Item]],
        gather: Gather,
        kind: StatisticsKind,
        shapes: Mapping[str, Sequence[int]],
        *,
        secret: int | None = None,
        advance: Callable[[int], object] = lambda _: None,
    ) -> dict[str, Tensor]:
        """Returns the noisy mean of all items' statistics, float32, CPU.

        Items that cannot be read count nothing, and are not named: that they fail is private too.

        Raises ValueError where delta allows to give one of the items away.

        Args:
            gather: statistics of one item's texts: parameter to ``(in, in)`` or ``(*shape)``.
            shapes: of all that `gather` returns.
            secret: seed of the noise, for tests; None: drawn from the system and forgotten.
        """
        accounting.check_delta(self.delta, len(units), "items")
        sums = {
            name: torch.zeros(tuple(shape), dtype=torch.int64) for name, shape in shapes.items()
        }
        for unit in units:
            for name, part in _attempt(gather, unit).items():
                sums[name] += self.whole(part, kind, len(sums))
            advance(1)
        key = secrets.token_bytes(32) if secret is None else secret.to_bytes(32, "big")
        noise, released = SecretNoise(key), {}
        for name, total in sums.items():
            free = torch.ones_like(total, dtype=torch.bool)
            free = free.tril() if kind == "gram" else free
            total[free] += torch.from_numpy(noise.gaussian(int(free.sum()), name))
            mean = total.double() * self._unit(total, kind, len(sums)) / len(units)
            released[name] = _projected(mean, kind).float()
        return released

    def whole(self, part: Tensor, kind: StatisticsKind, tensors: int) -> Tensor:
        """Returns an item's part in one of so many tensors, in whole units of the grid, int64.

        Its norm is at most `largest_part`, that of a Gram matrix over the diagonal and the lower
        triangle times ``sqrt(2)``, above which are zeros. A part that is not finite contributes
        nothing, as does an item that cannot be read.
        """
        entries = part.double()
        if kind == "gram":
            entries = entries.tril(-1) * math.sqrt(2) + entries.diagonal().diag()
        norm = float(torch.linalg.vector_norm(entries))
        if not math.isfinite(norm):
            return torch.zeros_like(entries, dtype=torch.int64)
        bound = self._bound(part, kind) * (1 - 2**-20)  # float64 rounds norms by less than that
        # S min(1, C / ||S||) / unit
        return (entries * (bound / max(bound, norm) / self._unit(part, kind, tensors))).long()

    def _unit(self, tensor: Tensor, kind: StatisticsKind, tensors: int) -> float:
        """Returns the unit of a tensor's grid."""
        return self._bound(tensor, kind) / largest_part(self.noise_multiplier, tensors)

    def _bound(self, tensor: Tensor, kind: StatisticsKind) -> float:
        return self.clip * (len(tensor) if kind == "gram" else 1.0)

    def _named(self, expert: str) -> str:
        return self.data if isinstance(self.data, str) else self.data.get(expert, "")


def units_of(panel: Panel, tasks: Sequence[str], max_length: int) -> list[list[Item]]:
    """Returns what the model reads of every item of `tasks`, item by item."""
    return [
        items_of(panel.evaluators[task].subset([number]).items.requests, max_length)
        for task in tasks
        for number in range(len(panel.evaluators[task].items))
    ]


def _attempt(gather: Gather, unit: Sequence[Item]) -> Mapping[str, Tensor]:
    """Returns an item's statistics; none where it cannot be read, which touches no other item."""
    try:
        return gather(unit)
    except EvaluationError:
        return {}


def _projected(mean: Tensor, kind: StatisticsKind) -> Tensor:
    """Returns the nearest statistics that can be: without negative eigenvalues or entries."""
    if kind == "fisher":
        return mean.clamp(min=0)
    lower = mean.tril(-1) / math.sqrt(2)
    values, vectors = torch.linalg.eigh(lower + lower.T + mean.diagonal().diag())
    projected: Tensor = (vectors * values.clamp(min=0)) @ vectors.T  # V max(0, Lambda) V^T
    return projected
