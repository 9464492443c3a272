"""Statistics released with noise: every item's part is clipped, the sum is noised and projected.

The units of privacy are the evaluators' items (documents, questions), however many texts the
model reads of each. Neighbouring data sets have one item more or less; their number is public.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from experiments.gathering.items import Item, items_of
from merging.checkpoints.mechanisms import GaussianMechanism
from merging.checkpoints.privacy_record import PrivacySpend
from merging.privacy import accounting
from merging.seeding import generator, secret_generator
from merging.statistics_files import StatisticsKind

Gather = Callable[[Sequence[Item]], Mapping[str, Tensor]]
"""Statistics of the texts of one item."""


@dataclass(frozen=True)
class PrivateStatistics:
    """The Gaussian mechanism on the sum of all items' statistics.

    An item's part in each of the L tensors is clipped to Frobenius norm C, so that one item moves
    all tensors together by at most ``C sqrt(L)``; every tensor has noise of ``sigma C sqrt(L)``
    (Gram matrices: per entry of the diagonal, off it ``1 / sqrt(2)`` of that, symmetric). The sum
    is divided by the number of items, and what noise made impossible is projected away:
    negative eigenvalues of Gram matrices, negative Fisher information. That is free.

    Args:
        data: identity of the private data set in the ledger, one for all experts or one for each.
        clip: C; for Gram matrices in units of the layer's width: 1 keeps the mean of ``x x^T``
            over an item's positions whole where the inputs' root mean square is at most 1. For
            Fisher information the norm itself.
        noise_multiplier: sigma.
        disjoint_from: data sets of the ledger that share no unit with these.

    Raises:
        ValueError: an option has no meaning; names it.

    Source: Gaussian mechanism, Dwork & Roth 2014, appendix A; symmetric noise as in Dwork,
        Talwar, Thakurta, Zhang 2014, Analyze Gauss, with entries off the diagonal counted twice
        in the norm. Deviation from RegMean: the mean is over items of the mean over positions.
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
        mechanism = GaussianMechanism(self.noise_multiplier)
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
        *,
        secret: int | None = None,
        advance: Callable[[int], object] = lambda _: None,
    ) -> dict[str, Tensor]:
        """Returns the noisy mean of all items' statistics; EvaluationError: none could be read.

        Args:
            gather: statistics of one item's texts: parameter to ``(in, in)`` or ``(*shape)``.
            secret: seed of the noise, for tests; None: drawn from the system and forgotten.
        """
        sums: dict[str, Tensor] = {}
        for unit in units:
            for name, part in _attempt(gather, unit).items():
                clipped = self.clipped(part, kind)
                sums[name] = sums[name] + clipped if name in sums else clipped
            advance(1)
        if not sums:
            raise EvaluationError("no item could be read, so there is nothing to be released")
        draw = _draw(secret)
        finish = _symmetric if kind == "gram" else _positive
        deviation = self.noise_multiplier * math.sqrt(len(sums))
        return {
            name: finish(total, deviation * self._bound(total, kind), draw(total, name))
            .div_(max(1, len(units)))
            .float()
            for name, total in sums.items()
        }

    def clipped(self, part: Tensor, kind: StatisticsKind) -> Tensor:
        """Returns an item's part in one tensor, of norm C at most, float64.

        A part that is not finite contributes nothing, as does an item that cannot be read.
        """
        wide = part.double()
        norm = float(torch.linalg.vector_norm(wide))
        if not math.isfinite(norm):
            return torch.zeros_like(wide)
        bound = self._bound(part, kind)
        return wide * (bound / norm) if norm > bound else wide  # S min(1, C / ||S||)

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


def _draw(secret: int | None) -> Callable[[Tensor, str], Tensor]:
    """Returns what draws standard normal noise of a tensor's shape, float64, under its name."""
    if secret is not None:
        return lambda like, name: torch.randn(
            like.shape, generator=generator(secret, name), dtype=torch.float64
        )
    source = secret_generator()
    return lambda like, name: torch.from_numpy(source.standard_normal(tuple(like.shape)))


def _symmetric(total: Tensor, deviation: float, drawn: Tensor) -> Tensor:
    """Returns `total` with symmetric noise, without its negative eigenvalues."""
    noise = drawn.tril(-1) / math.sqrt(2)
    noise = noise + noise.T + drawn.diagonal().diag()
    values, vectors = torch.linalg.eigh((total + total.T) / 2 + deviation * noise)
    projected: Tensor = (vectors * values.clamp(min=0)) @ vectors.T  # V max(0, Lambda) V^T
    return projected


def _positive(total: Tensor, deviation: float, drawn: Tensor) -> Tensor:
    return (total + deviation * drawn).clamp(min=0)  # max(0, F + sigma C sqrt(L) z)
