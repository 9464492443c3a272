"""Subspace evolution: CMA-ES over a few noises at a time, drawn anew where it stalls."""

import math
from collections.abc import Sequence

import numpy as np

from merging.arrays import Vector
from merging.paths.path import Path
from merging.seeding import stable_seed
from merging.spaces.axes import Real
from search.checks import check_at_least, check_one_objective, check_positive
from search.loop.ask_tell import AskTell
from search.strategies.nevergrad_optimizer import NevergradStrategy
from search.strategy import Candidate, Outcome

_NARROWER = 0.25
"""Factor of the first step after a subspace that brought nothing better than its centre."""


class SubspaceEvolution:
    """Evolves paths in the span of K noises around the best point so far.

    A candidate is ``centre + sum_k z_k eps_k``, z a sample of CMA-ES. After `patience` of its
    generations without a new best the best candidate becomes the centre, and CMA starts anew over
    `growth` times as many noises, of which none was used before. The noise of the space says what
    the coordinates are: tensors, rows, singular directions of the task vectors, or, with
    ``noise=gaussian``, a random embedding as in REMBO. A subspace that brought nothing better than
    its centre was sampled too far from it: the next one begins with a quarter of its step.

    Args:
        seed: of CMA's samples; that of the noises is the space's.
        starts: names of the points to start from; one.
        dimensions: K of the first subspace.
        sigma: of the first subspace, first step along every noise, in the unit of the space's.
        popsize: CMA's samples per generation; None: ``4 + floor(3 ln K)``.
        patience: CMA's generations without a new best that a subspace is given.
        growth: factor of K, and one over that of sigma squared, from one subspace to the next.

    Source: Hansen 2016, arXiv 1604.00772; Wang et al. 2016, Bayesian optimization in a billion
    dimensions via random embeddings (REMBO), JAIR 55.
    """

    compares_generations = True

    def __init__(
        self,
        *,
        seed: int,
        starts: Sequence[str],
        dimensions: int = 24,
        sigma: float = 0.1,
        popsize: int | None = None,
        patience: int = 4,
        growth: float = 1.0,
    ) -> None:
        check_at_least(2, dimensions=dimensions)
        check_at_least(1, patience=patience)
        check_positive(sigma=sigma, growth=growth)
        if isinstance(starts, str) or len(starts) != 1:
            raise ValueError(f"a subspace lies around one point, starts must name one: {starts!r}")
        if growth < 1:
            raise ValueError(f"growth must be at least 1, got {growth}")
        self._seed, self._sigma, self._popsize = seed, sigma, popsize
        self._patience, self._growth = patience, growth
        self._dimensions = float(dimensions)
        self._ask_tell = AskTell[Path]()
        self._centre, self._subspaces = Path(starts[0]), 0
        self._highest, self._stale = -math.inf, 0
        self._of_centre: float | None = None
        self._numbers = range(0)
        self._cma = self._opened()

    def ask(self) -> list[Candidate[Path]]:
        """Returns CMA's next generation, as paths; the centre is the first of a subspace's."""
        self._ask_tell.check_told()
        self._asked = self._cma.ask()
        return self._ask_tell.ask([self._path(candidate.genome) for candidate in self._asked])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Tells CMA, and moves on where it has stalled."""
        check_one_objective(self, outcomes)
        ordered = self._ask_tell.tell(outcomes)
        told = zip(self._asked, ordered, strict=True)
        self._cma.tell([Outcome(inner.id, outcome.fitness) for inner, outcome in told])
        values = [-math.inf if o.fitness is None else float(o.fitness[0]) for o in ordered]
        if self._of_centre is None:  # the centre is a subspace's first candidate
            self._of_centre = values[0]
        highest = max(self._highest, *values)
        self._stale = 0 if highest > self._highest else self._stale + 1
        self._highest = highest
        if self._stale >= self._patience:
            self._centre = (self._ask_tell.best or [self._centre])[0]
            self._stale = 0
            self._dimensions *= self._growth
            self._sigma /= math.sqrt(self._growth)
            if self._highest <= self._of_centre:
                self._sigma *= _NARROWER
            self._of_centre = self._highest
            self._cma = self._opened()

    def recommend(self) -> list[Path]:
        """Returns the best path ever told; of equals the first."""
        return self._ask_tell.best

    def _opened(self) -> NevergradStrategy:
        """Returns CMA over noises that were not used before."""
        count = round(self._dimensions)
        self._numbers = range(self._numbers.stop, self._numbers.stop + count)
        self._subspaces += 1
        return NevergradStrategy(
            axes=tuple(Real(f"noise {number}", scale=1.0) for number in self._numbers),
            seed=stable_seed("subspace", self._seed, self._subspaces) % 2**32,
            popsize=self._popsize,
            sigma=self._sigma,
        )

    def _path(self, z: Vector) -> Path:
        terms = zip(self._numbers, np.asarray(z).tolist(), strict=True)
        step = tuple((number, term) for number, term in terms if term)
        return self._centre.moved(step) if step else self._centre
