"""Factor space: A and B of LoRA experts move separately, as in the released MERGEvolve."""

import torch

from merging.checkpoints.experts import ExpertPool
from merging.lora.factors import FactorPlan, FactorWeights, factor_pool
from merging.method import MergeError
from merging.paths.noise import Noise
from merging.paths.path import Path
from merging.plan import MergePlan, Plan
from merging.spaces.full_weights import FullWeightSpace, PathGenomes
from merging.weights import Weights


class FactorSpace(PathGenomes):
    """Genome: a `Path` through the factors; every read multiplies B @ A onto the base.

    The start averages A and B separately, ``(sum_i w_i B_i) (sum_i w_i A_i)``, and noise is added
    to A and to B. Both leave the experts' span, the start too. Tensors that the adapters bring
    whole (``modules_to_save``) move as in full weights. Where the experts' scales differ, every B
    is taken times its expert's scale.

    Args:
        pool: base and LoRA experts of equal rank in every tensor.
        noise: kind of noise; its unit is ``one`` or ``deltas``: factors have no base.
        initial: what paths start from: a merge, applied to A and B, or a plan that a search of
            this space has found; None: the base, with factors of zero.
        seed: of the run; with a noise's number and a factor's name it decides that noise.

    Raises:
        MergeError: an expert is no adapter, ranks differ, or `initial` has no meaning on factors.

    Source: MERGEvolve, arXiv 2606.28373, as its released code runs it.
    """

    def __init__(
        self,
        pool: ExpertPool,
        noise: Noise,
        *,
        initial: Plan | None = None,
        seed: int = 0,
        dtype: torch.dtype | None = None,
    ) -> None:
        if getattr(noise, "unit", None) == "base":
            raise MergeError(
                "noise in units of the base moves nothing in factors, whose base is zero: "
                "set its unit to one or deltas"
            )
        self.pool, self.dtype = pool, dtype
        factors = factor_pool(pool)
        self.initial = None if initial is None else _on_factors(initial, factors)
        self._inner = FullWeightSpace(
            factors, noise, initial=self.initial, seed=seed, dtype=torch.float32
        )

    @property
    def dimensions(self) -> int:
        """Number of entries of the factors that move."""
        return self._inner.dimensions

    @property
    def numbers(self) -> int:
        """Most independent numbers that one noise of the factors has."""
        return self._inner.numbers

    def plan(self, genome: Path) -> FactorPlan:
        """Returns the plan of the point that `genome` leads to; errors as `PathGenomes.plan`."""
        return FactorPlan(self._inner.plan(genome))

    def decode(self, genome: Path) -> Weights:
        """Returns the weights of `genome`; they are those of `plan`, bit for bit."""
        return FactorWeights(self.pool, self._inner.decode(genome), self.dtype)


def _on_factors(initial: Plan, factors: ExpertPool) -> Plan:
    """Returns the plan over the factors that `initial` means."""
    if isinstance(initial, FactorPlan):
        return initial.plan
    if not isinstance(initial, MergePlan):
        raise MergeError(
            f"a search of factors cannot start from {initial.name}, which gives whole weights: "
            "start from a merge or from a recipe of FactorSpace, or choose FullWeightSpace"
        )
    try:
        initial.weights(factors)
    except MergeError as error:
        raise MergeError(
            f"{initial.name} cannot be applied to the factors A and B ({error}): choose a "
            "grouping of whole layers, or FullWeightSpace"
        ) from None
    return initial
