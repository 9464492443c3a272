"""MERGEvolve: an evolution strategy in full parameter space that starts from a merge."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from merging.arrays import Vector
from merging.paths.path import Path, Step
from merging.seeding import stable_seed
from search.checks import check_at_least, check_not_negative, check_one_objective, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome

_TARGET = 0.2
"""Share of samples better than their centre at which the step size stays as it is."""


def initial_weights(fitness: Sequence[float], *, temperature: float = 1.0) -> Vector:
    """Returns ``softmax(z / temperature)``, z the z-score of the experts' fitness: ``(experts,)``.

    Equally fit experts get equal weights.

    Args:
        temperature: small: the best expert alone; large: the mean of all.

    Source: MERGEvolve, arXiv 2606.28373, step 1 (population standard deviation; temperature 1,
    0.1 advised at 7B).
    """
    values = np.array(fitness, np.float64)
    if values.ndim != 1 or not len(values) or not np.isfinite(values).all():
        raise ValueError(f"fitness must be one finite number per expert, got {list(fitness)}")
    check_positive(temperature=temperature)
    deviations, spread = values - values.mean(), values.std()
    scores = deviations / spread / temperature if spread > 0 else deviations * 0  # z / T
    shares = np.exp(scores - scores.max())
    weights: Vector = shares / shares.sum()  # softmax(z / T)
    return weights


def rank_utilities(count: int) -> Vector:
    """Returns what each rank (best first) weighs in a step: ``(count,)``, the sum is 0.

    ``max(0, ln(N/2 + 1) - ln k) / sum - 1/N`` for rank k.

    Source: MERGEvolve, arXiv 2606.28373, step 2; Wierstra et al. 2014, Natural evolution
    strategies, section 3.1.
    """
    ranks = np.arange(1, count + 1)
    raw = np.maximum(0.0, math.log(count / 2 + 1) - np.log(ranks))  # max(0, ln(N/2+1) - ln k)
    utilities: Vector = raw / raw.sum() - 1 / count
    return utilities


def utilities_of(fitness: Sequence[float | None]) -> Vector:
    """Returns each sample's utility; equal ones share theirs, so that ids decide nothing.

    Args:
        fitness: higher is better; None: failed, ranks behind all others.
    """
    values = np.array([-math.inf if value is None else value for value in fitness])
    if (values == values[0]).all():
        return np.zeros(len(values))  # the mean of all utilities is 0 but for its rounding
    by_rank = rank_utilities(len(values))
    ranked = np.sort(-values)
    return np.array([by_rank[ranked == -value].mean() for value in values])


@dataclass(frozen=True)
class _Sample:
    """One candidate's noise: its number in the run, and on which side of the centre it lies."""

    number: int
    sign: float


class MergEvolve:
    """Evolves paths through parameter space: sample around a centre, step along the ranks.

    ``theta(t+1) = theta(t) + alpha / (N sigma) sum_i u_i eps_i`` with u the rank utilities of the
    N candidates ``theta(t) + sigma eps_i``. Every score is paired with its noise by id. What is
    recommended is the best candidate ever told, a centre or a sample.

    Deviations from the paper: equally fit samples share the utilities of their ranks; failures
    rank behind all others; a generation in which all are equal does not move the centre. When
    sigma changes (`sigma_decay`, `adapt`), the step keeps its proportion to the noise: alpha in
    the formula becomes ``alpha (sigma_t / sigma) ** 2``. Adam is no option: its second moments
    need an array of the model's size, and the square of a sum of noises is no sum of noises.

    Args:
        seed: decides the shuffle of ``pairing="as_released"``; the noises' seed is the space's.
        starts: names of the points of the space to start from. Several: all are scored first,
            and the best becomes the centre.
        popsize: N, samples per generation.
        sigma: noise of the samples, in the unit of the space's noise.
        alpha: step size; ``sigma ** 2`` is the natural gradient's step of 1.
        antithetic: sample both sides of every noise; N noises become N / 2.
        momentum: m in [0, 1): earlier steps go on with weights m, m ** 2, ... A step of constant
            direction grows up to ``1 / (1 - m)`` times.
        memory: how many earlier generations the momentum reaches back; each costs as many draws
            of noise as a generation does, once per generation and not per candidate.
        sigma_decay: factor of sigma from one generation to the next.
        alpha_decay: factor of alpha from one generation to the next, besides the above.
        adapt: rate of the 1/5 success rule: sigma times ``exp(adapt (p - 1/5))``, p the share of
            samples better than their centre; 0: off. Needs ``include_centre="always"``.
        include_centre: score the centre as first candidate of the first generation, of every
            generation, or never.
        pairing: ``aligned``: every utility goes to its own noise, the paper's algorithm;
            ``as_released``: to a shuffled one, as in the published code, for comparison only.
        generations: most generations of samples; None: the budget decides.
        patience: stop after so many generations without a new best; None: never.

    Source: MERGEvolve, arXiv 2606.28373; defaults N = 10, sigma = alpha = 0.1. 1/5 rule:
    Rechenberg 1973, Evolutionsstrategie.
    """

    compares_generations = False

    def __init__(
        self,
        *,
        seed: int,
        starts: Sequence[str],
        popsize: int = 10,
        sigma: float = 0.1,
        alpha: float = 0.1,
        antithetic: bool = False,
        momentum: float = 0.0,
        memory: int = 3,
        sigma_decay: float = 1.0,
        alpha_decay: float = 1.0,
        adapt: float = 0.0,
        include_centre: Literal["start", "always", "never"] = "start",
        pairing: Literal["aligned", "as_released"] = "aligned",
        generations: int | None = None,
        patience: int | None = None,
    ) -> None:
        check_at_least(2, popsize=popsize)
        check_at_least(1, memory=memory, generations=generations, patience=patience)
        check_positive(sigma=sigma, alpha=alpha, sigma_decay=sigma_decay, alpha_decay=alpha_decay)
        if not 0 <= momentum < 1:
            raise ValueError(f"momentum must lie in [0, 1), got {momentum}")
        check_not_negative(adapt=adapt)
        _check_choices(include_centre, pairing)
        _check_together(starts, popsize, antithetic, adapt, include_centre)
        self._seed = seed
        self._starts = tuple(starts)
        self._popsize = popsize
        self._sigma = sigma
        self._alpha = alpha
        self._antithetic = antithetic
        self._blend = tuple(momentum**age for age in range(memory + 1)) if momentum else (1.0,)
        self._sigma_decay = sigma_decay
        self._alpha_decay = alpha_decay
        self._adapt = adapt
        self._include_centre = include_centre
        self._pairing = pairing
        self._generations = generations
        self._patience = patience
        self._ask_tell = AskTell[Path]()
        self._centre = Path(starts[0], blend=self._blend) if len(starts) == 1 else None
        self._generation = 0  # of samples
        self._noises = 0
        self._growth = 1.0  # of sigma
        self._highest = -math.inf
        self._stale = 0  # generations without a new best
        self._samples: list[_Sample] = []

    def ask(self) -> list[Candidate[Path]]:
        """Returns the next generation: the centre where it is to be scored, then the samples.

        With several starts the first generation is these. Nothing is left to ask after
        `generations`, or when `patience` is at its end.
        """
        self._ask_tell.check_told()
        if self._centre is None:
            return self._ask_tell.ask([Path(start, blend=self._blend) for start in self._starts])
        if self._generation == self._generations or self._stale == self._patience:
            return self._ask_tell.ask([])
        sides = (1.0, -1.0) if self._antithetic else (1.0,)
        count = self._popsize // len(sides)
        self._samples = [
            _Sample(number, side)
            for number in range(self._noises, self._noises + count)
            for side in sides
        ]
        sigma = self._sigma * self._growth
        genomes = [
            self._centre.perturbed(sample.number, sample.sign * sigma) for sample in self._samples
        ]
        return self._ask_tell.ask([self._centre, *genomes] if self._scores_centre else genomes)

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Steps along the noises by the ranks of their samples, which ids pair."""
        check_one_objective(self, outcomes)
        ordered = self._ask_tell.tell(outcomes)
        fitness = [None if o.fitness is None else float(o.fitness[0]) for o in ordered]
        self._note_best(fitness)
        if self._centre is None:
            best = self._ask_tell.best
            self._centre = best[0] if best else Path(self._starts[0], blend=self._blend)
            return
        centre = fitness.pop(0) if self._scores_centre else None
        self._step(self._centre, fitness)
        self._resize(centre, fitness)
        self._noises = self._samples[-1].number + 1
        self._generation += 1

    def recommend(self) -> list[Path]:
        """Returns the best path ever told; of equals the first."""
        return self._ask_tell.best

    @property
    def _scores_centre(self) -> bool:
        """Whether the first candidate of the present generation is its centre."""
        if self._include_centre == "start":
            return self._generation == 0 and len(self._starts) == 1
        return self._include_centre == "always"

    def _note_best(self, fitness: Sequence[float | None]) -> None:
        highest = max([self._highest, *(value for value in fitness if value is not None)])
        self._stale = 0 if highest > self._highest else self._stale + 1
        self._highest = highest

    def _step(self, centre: Path, fitness: Sequence[float | None]) -> None:
        utilities = utilities_of(fitness)
        if self._pairing == "as_released":
            seed = stable_seed("as_released", self._seed, self._generation)
            utilities = np.random.default_rng(seed).permutation(utilities)
        # alpha_t / (N sigma_t), with alpha_t = alpha decay**t growth**2, sigma_t = sigma growth
        alpha = self._alpha * self._alpha_decay**self._generation
        rate = alpha * self._growth / (self._popsize * self._sigma)
        coefficients: dict[int, float] = {}  # of every noise eps_i
        for sample, utility in zip(self._samples, utilities.tolist(), strict=True):
            term = rate * utility * sample.sign  # alpha / (N sigma) u_i
            coefficients[sample.number] = coefficients.get(sample.number, 0.0) + term
        step: Step = tuple((i, term) for i, term in coefficients.items() if term != 0)
        # A step of nothing counts where momentum carries earlier ones on.
        moves = bool(step) or (len(self._blend) > 1 and bool(centre.steps))
        self._centre = centre.moved(step) if moves else centre  # theta <- theta + sum_i c_i eps_i

    def _resize(self, centre: float | None, fitness: Sequence[float | None]) -> None:
        self._growth *= self._sigma_decay
        if self._adapt and centre is not None:
            better = sum(value is not None and value > centre for value in fitness)
            # sigma <- sigma exp(adapt (p - 1/5))
            self._growth *= math.exp(self._adapt * (better / len(fitness) - _TARGET))


def _check_choices(include_centre: str, pairing: str) -> None:
    if include_centre not in ("start", "always", "never"):
        raise ValueError(
            f"include_centre must be 'start', 'always' or 'never', got {include_centre!r}"
        )
    if pairing not in ("aligned", "as_released"):
        raise ValueError(f"pairing must be 'aligned' or 'as_released', got {pairing!r}")


def _check_together(
    starts: Sequence[str], popsize: int, antithetic: bool, adapt: float, include_centre: str
) -> None:
    """Refuses options that exclude each other."""
    if isinstance(starts, str) or not starts or len(set(starts)) < len(starts):
        raise ValueError(f"starts must be a list of different names, got {starts!r}")
    if len(starts) > 1 and include_centre == "never":
        raise ValueError(
            "include_centre='never' leaves no score to choose among several starts by: "
            "name one start, or choose include_centre 'start'"
        )
    if antithetic and popsize % 2:
        raise ValueError(f"antithetic pairs need an even popsize, got {popsize}")
    if adapt and include_centre != "always":
        raise ValueError(
            "adapt compares samples with their centre: choose include_centre 'always', or adapt 0"
        )
