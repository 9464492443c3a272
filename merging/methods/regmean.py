"""RegMean: for every linear layer the weights whose outputs are nearest to the experts' own."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor

from merging.method import Knob, MergeError, Slot
from merging.rules.consensus import weighted_sum
from merging.rules.float64 import float64_device
from merging.rules.knobs import WEIGHT, Inputs, read
from merging.rules.threads import one_thread
from merging.statistics_files import Statistics, StatisticsError, digests_of


@dataclass(frozen=True)
class RegMean:
    """``base + (sum_i s_i d_i G_i) (sum_i s_i G_i)^-1`` with ``s_i = w_i / sum_j w_j``.

    It minimises ``sum_i s_i |X_i W^T - X_i W_i^T|^2`` for a layer ``y = x W^T`` whose weight is
    stored ``(out, in)``; ``G_i = X_i^T X_i / rows`` is the Gram matrix of the inputs that expert
    i's layer sees on its own data. Parameters that are no weight of a linear layer get the
    weighted average. In plain torch:
    tests/merging/methods/test_regmean.py::test_published_formula.

    Before use ``G_i <- shrink G_i + (1 - shrink) diag(G_i) + ridge mean(diag(sum_j s_j G_j)) I``,
    so that directions that no data shows get the weighted average of the experts, not the base.

    Args:
        statistics: directory that ``evomerge statistics kind=gram`` filled.
        shrink: what is left of the off-diagonal entries, in [0, 1].
        ridge: added to the diagonal, as a fraction of its mean; at least 0.
        digests: file name to sha256 of the statistics, kept in recipes so that a rebuild with
            others is refused; None: as the files are now.

    Source: Jin et al. 2023, Dataless knowledge fusion by merging weights of language models,
    eq. (1) and section 3.3, arXiv:2212.09849; its shrink is 0.9 or 0.1, by model. The weights and
    the ridge are ours: the paper has w_i = 1 and inverts the plain sum.
    """

    knobs: ClassVar[tuple[Knob, ...]] = (replace(WEIGHT, low=0.0),)
    statistics: str
    shrink: float = 0.9
    ridge: float = 1e-6
    digests: Mapping[str, str] | None = field(default=None, hash=False)

    def __post_init__(self) -> None:
        if not 0 <= self.shrink <= 1:
            raise ValueError(f"regmean: shrink is {self.shrink}, expected a number in [0, 1]")
        if not 0 <= self.ridge < float("inf"):
            raise ValueError(f"regmean: ridge is {self.ridge}, expected a number of at least 0")
        if self.digests is None:
            object.__setattr__(self, "digests", digests_of(Path(self.statistics), "gram"))

    @one_thread()
    def merge(
        self, slot: Slot, base: Tensor, deltas: Tensor, knobs: Mapping[str, Tensor]
    ) -> Tensor:
        """Returns the minimiser; see `MergeMethod.merge`.

        Raises:
            MergeError: an argument is refused, all weights are zero, or the Gram matrices are
                singular and the ridge is 0.
            StatisticsError: an expert's statistics are missing or do not fit.
        """
        inputs = read(self, slot, base, deltas, knobs)
        shares = inputs.shares()
        transposed = self._layout(inputs)
        if inputs.unmoved:
            return base.clone()
        if transposed is None:
            return base + weighted_sum(inputs.deltas, shares)
        return base + self._solved(inputs, shares, transposed=transposed)

    @cached_property
    def _files(self) -> Statistics:
        return Statistics(Path(self.statistics), "gram", self.digests or {})

    def _layout(self, inputs: Inputs) -> bool | None:
        """Returns whether the parameter is stored (in, out); None: it is no linear weight."""
        name = inputs.tensor
        layouts: set[bool | None] = set()
        for expert in inputs.experts:
            origin = self._files.origin(expert)
            layouts.add(None if name in origin.averaged else name in origin.transposed)
        if len(layouts) > 1:
            raise StatisticsError(
                f"{self.statistics}: the experts' files disagree whether {name!r} is the weight "
                "of a linear layer: gather all of them at once"
            )
        return layouts.pop()

    def _solved(self, inputs: Inputs, shares: tuple[float, ...], *, transposed: bool) -> Tensor:
        """Returns the merged delta, ``(*shape)``; solved in float64, for G squares the inputs."""
        deltas = [delta.T if transposed else delta for delta in inputs.deltas]  # (out, in)
        first = deltas[0]
        width, device = first.shape[-1], float64_device(first.device)
        total = torch.zeros((width, width), dtype=torch.float64, device=device)
        product = torch.zeros(first.shape, dtype=torch.float64, device=device)
        average = torch.zeros_like(product)
        for expert, delta, share in zip(inputs.experts, deltas, shares, strict=True):
            gram = self._files.read(expert, inputs.tensor, total.shape).to(device).double()
            diagonal = gram.diagonal().clone()
            # G_i <- shrink G_i + (1 - shrink) diag(G_i)
            gram.mul_(self.shrink).diagonal().copy_(diagonal)
            exact = delta.to(device).double()
            total.add_(gram, alpha=share)  # sum_i s_i G_i
            product.addmm_(exact, gram, alpha=share)  # sum_i s_i d_i G_i
            average.add_(exact, alpha=share)  # sum_i s_i d_i
        level = float(total.diagonal().mean())
        if level == 0:  # no data reached this layer
            merged = average
        else:  # every G_i <- G_i + ridge level I
            total.diagonal().add_(self.ridge * level)
            product.add_(average, alpha=self.ridge * level)
            merged = self._divided(product, total, inputs)  # eq. (1)
        merged = merged.to(device=first.device, dtype=first.dtype)
        return merged.T if transposed else merged

    def _divided(self, product: Tensor, gram: Tensor, inputs: Inputs) -> Tensor:
        """Returns ``product gram^-1`` by Cholesky."""
        factor, failed = torch.linalg.cholesky_ex(gram)
        # squared pivot over diagonal entry: the part of an input that the others do not explain
        pivots = factor.diagonal().square() / gram.diagonal()
        # without a ridge, what float32 on disk rounded away must not decide
        stored = torch.float64 if self.ridge else torch.float32
        rounding = len(gram) * torch.finfo(stored).eps
        if int(failed) or not bool((pivots > rounding).all()):
            raise MergeError(
                f"regmean: the Gram matrices of tensor {inputs.tensor!r} are singular: set "
                "ridge above 0, for example 1e-6, or gather them from more data"
            )
        return torch.cholesky_solve(product.T, factor).T
