"""How children are made of lineages: crossings, mutations and split points that evolve."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from merging.lineages.crossover import (
    ArithmeticCrossover,
    CrossoverOperator,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Crossed, Lineage, Mutated
from merging.lineages.mutation import LowRankMutation, Mutation, ScaleMutation, SignMutation
from merging.seeding import stable_seed
from search.checks import check_at_least, check_not_negative, check_probability

_CROSSOVERS = (
    "uniform",
    "one_point",
    "two_point",
    "layer_points",
    "per_tensor",
    "slerp",
    "arithmetic",
    "split_slerp",
)
_MUTATIONS = ("scale", "low_rank", "sign")


@dataclass(frozen=True)
class Split:
    """Where two parents are divided, and how much of the first goes before that point.

    Args:
        cut: fraction of the flattened task vector (of the layers, where these are cut), [0, 1].
        weight: of the first parent before the cut, of the second after it, [0, 1].
    """

    cut: float
    weight: float


@dataclass(frozen=True, eq=False)
class Bred:
    """A lineage and what it hands down besides its weights.

    Args:
        split: its inheritable split; None: it has none yet, a child draws one.
    """

    genome: Lineage
    split: Split | None = None


@dataclass(frozen=True)
class Variation:
    """Crosses two parents, or takes one, and mutates the child; all on task vectors.

    A child is crossed with probability `crossing`, by one operator drawn in proportion to the
    weights `uniform` ... `split_slerp`. Then each mutation happens with its own probability; a
    child that was neither crossed nor mutated gets one of the mutations, or is crossed after all.

    Args:
        crossing: probability of two parents.
        uniform: weight of each entry from one of the parents.
        one_point: weight of one cut through the flattened task vector.
        two_point: weight of two cuts.
        layer_points: weight of one cut or two (equally often) between layers.
        per_tensor: weight of each tensor from one of the parents.
        slerp: weight of the arc between the parents, its place uniform.
        arithmetic: weight of ``w first + (1 - w) second``.
        split_slerp: weight of M2N2's exchange of segments, slerp by w before the cut and by
            1 - w after it.
        extrapolate: how far w of `arithmetic` may leave [0, 1]: uniform between ``-extrapolate``
            and ``1 + extrapolate``; 0: a convex combination.
        evolve_splits: cut and w of `split_slerp`, and the cut of `one_point`, are the parent's
            plus a drift, and handed down, so that those who did well tune them; false: uniform.
        drift: standard deviation of the drift, mirrored at 0 and 1.
        scale: probability of a factor ``exp(N(0, scale_size ** 2))``.
        scale_size: standard deviation of the factor's logarithm.
        low_rank: probability of low-rank noise.
        low_rank_size: its rms relative to the parent's in each tensor, at most; the size of each
            mutation is drawn log-uniformly from a tenth of it upwards.
        sign: probability of sign flips.
        sign_share: share of entries flipped, at most; drawn as `low_rank_size` is.

    Source: Goldberg 1989, Genetic algorithms, chapter 1 (point and uniform crossover);
        Shoemake 1985 (slerp); Abrantes et al. 2025, Competition and attraction improve model
        fusion (M2N2), section 3.1: it draws cut and w afresh for every child, here they are
        inherited with a drift as in Schwefel 1977 unless `evolve_splits` is off.
    """

    crossing: float = 0.9
    uniform: float = 1.0
    one_point: float = 1.0
    two_point: float = 1.0
    layer_points: float = 1.0
    per_tensor: float = 1.0
    slerp: float = 1.0
    arithmetic: float = 2.0
    split_slerp: float = 1.0
    extrapolate: float = 0.5
    evolve_splits: bool = True
    drift: float = 0.1
    scale: float = 0.2
    scale_size: float = 0.2
    low_rank: float = 0.2
    low_rank_size: float = 0.2
    rank: int = 1
    sign: float = 0.05
    sign_share: float = 0.01

    def __post_init__(self) -> None:
        check_probability("variation.", **self._values("crossing", "sign_share", *_MUTATIONS))
        sizes = self._values("extrapolate", "drift", "scale_size", "low_rank_size")
        check_not_negative("variation.", **self._values(*_CROSSOVERS), **sizes)
        check_at_least(1, "variation.", rank=self.rank)
        if not self.crosses and not self.mutates:
            raise ValueError(
                "variation makes no child: give crossing and one of "
                f"{', '.join(_CROSSOVERS)}, or one of {', '.join(_MUTATIONS)}, more than 0"
            )

    @property
    def crosses(self) -> bool:
        """Whether children of two parents are possible."""
        return self.crossing > 0 and any(self._values(*_CROSSOVERS).values())

    @property
    def mutates(self) -> bool:
        """Whether children of one parent are possible."""
        return any(self._values(*_MUTATIONS).values())

    def child(self, first: Bred, second: Bred | None, *, seed: int, number: int) -> Bred:
        """Returns a child, the same for the same arguments.

        Args:
            first: the parent that hands down its split.
            second: None: there is none, the child is a mutant.
            number: the child's id; with `seed` it decides every draw.
        """
        rng = np.random.default_rng(stable_seed("variation", seed, number))
        crossed = second is not None and self.crosses and rng.random() < self.crossing
        mutations = [name for name in _MUTATIONS if rng.random() < getattr(self, name)]
        if not crossed and not mutations:
            if self.mutates:
                mutations = [_draw(self._values(*_MUTATIONS), rng)]
            elif second is None:
                raise ValueError("a child of one parent needs a mutation above probability 0")
            else:
                crossed = True
        child = self._crossed(first, second, rng, seed, number) if crossed and second else first
        genome = child.genome
        for name in mutations:
            genome = Mutated(genome, self._mutation(name, rng, seed, number))
        return Bred(genome, child.split)

    def _crossed(
        self, first: Bred, second: Bred, rng: np.random.Generator, seed: int, number: int
    ) -> Bred:
        name = _draw(self._values(*_CROSSOVERS), rng)
        split = self._split(first.split or second.split, rng)
        by = self._crossover(name, split, rng, stable_seed(name, seed, number))
        handed_down = split if name in ("split_slerp", "one_point") else first.split
        return Bred(
            Crossed(first.genome, second.genome, by), handed_down if self.evolve_splits else None
        )

    def _split(self, parent: Split | None, rng: np.random.Generator) -> Split:
        """Returns the parent's split after a drift; a uniform one where there is none."""
        if parent is None or not self.evolve_splits:
            return Split(float(rng.uniform()), float(rng.uniform()))
        # x <- mirrored(x + N(0, drift^2))
        cut, weight = rng.normal((parent.cut, parent.weight), self.drift).tolist()
        return Split(_mirrored(cut), _mirrored(weight))

    def _crossover(
        self, name: str, split: Split, rng: np.random.Generator, seed: int
    ) -> CrossoverOperator:
        match name:
            case "uniform":
                return UniformCrossover(seed)
            case "one_point":
                return PointCrossover((split.cut,))
            case "two_point":
                return PointCrossover(_cuts(2, rng))
            case "layer_points":
                return PointCrossover(_cuts(int(rng.integers(1, 3)), rng), over="layers")
            case "per_tensor":
                return TensorCrossover(seed)
            case "slerp":
                return SlerpCrossover(float(rng.uniform()))
            case "arithmetic":
                weight = rng.uniform(-self.extrapolate, 1 + self.extrapolate)
                return ArithmeticCrossover(float(weight))
            case _:
                return SplitSlerpCrossover(split.cut, split.weight)

    def _mutation(self, name: str, rng: np.random.Generator, seed: int, number: int) -> Mutation:
        smaller = float(10 ** -rng.uniform())  # log-uniform between 0.1 and 1
        match name:
            case "scale":  # exp(N(0, scale_size^2))
                return ScaleMutation(float(np.exp(rng.normal(0.0, self.scale_size))))
            case "low_rank":
                noise_seed = stable_seed(name, seed, number)
                return LowRankMutation(noise_seed, self.rank, smaller * self.low_rank_size)
            case _:
                return SignMutation(stable_seed(name, seed, number), smaller * self.sign_share)

    def _values(self, *names: str) -> dict[str, float]:
        return {name: float(getattr(self, name)) for name in names}


def _draw(weights: Mapping[str, float], rng: np.random.Generator) -> str:
    values = np.array(list(weights.values()))
    return list(weights)[int(rng.choice(len(values), p=values / values.sum()))]


def _cuts(count: int, rng: np.random.Generator) -> tuple[float, ...]:
    return tuple(sorted(rng.uniform(size=count).tolist()))


def _mirrored(value: float) -> float:
    """Returns a number of [0, 1], mirrored at both ends as often as needed."""
    beyond = abs(value) % 2
    return min(beyond, 2 - beyond)
