"""Pursuit: slopes along random noises, and a step as long as the measured curvature allows."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from merging.arrays import Vector
from merging.paths.path import Path, Step
from search.checks import check_at_least, check_one_objective, check_positive
from search.loop.ask_tell import AskTell
from search.strategy import Candidate, Outcome

_SCALES = (0.25, 1.0, 4.0)
"""Multiples of `step` that the first steps try."""

_CHANGE = 4.0
"""Most that one step may say of the curvature, times or divided by what was known."""

_NOISE = 0.25
"""Reliability of slopes below which a generation counts as noise."""


@dataclass(frozen=True)
class Slopes:
    """Fitness per unit of every noise of a generation.

    Args:
        numbers: of the noises.
        values: ``(noises,)``.
        reliability: share of the slopes' variance that other items would show as well, in [0, 1].
    """

    numbers: tuple[int, ...]
    values: Vector
    reliability: float

    def step(self, length: float) -> Step:
        """Returns ``length * values`` as a step."""
        terms = zip(self.numbers, (length * self.values).tolist(), strict=True)
        return tuple((number, term) for number, term in terms if term)


class Pursuit:
    """Evolves paths by the slopes along N noises: measure, step, keep what is better.

    A generation of samples ``centre + sigma eps_i`` gives slopes ``s_i``, the next one tries
    ``centre + length sum_i s_i eps_i`` beside the centre, which moves there only if that is better
    on the same items. For a fitness of mean curvature q along one noise, ``f = f_0 + sum_i s_i m_i
    + q sum_i m_i^2`` is highest at ``m_i = s_i / (2 |q|)``, where a step gives ``sum_i s_i^2 /
    (4 |q|)``, whatever N is; a step twice as long gives nothing, any longer one takes away. q is
    what the last steps have shown, so that sigma, which only measures, can be small: in contrast
    to `MergEvolve` the centre of the samples does not pay for their distance. The first step tries
    three lengths, any other that length and a third of it.

    Source: Nesterov and Spokoiny 2017, Random gradient-free minimization of convex functions;
    Stich, Mueller, Gaertner 2013, Optimization of convex functions with random pursuit. Shrunken
    slopes: reliability by split halves, Spearman 1910, Brown 1910.

    Args:
        seed: not used; the noises' seed is the space's.
        starts: names of the points to start from; of several the best becomes the centre.
        popsize: N, samples per generation.
        sigma: how far samples lie from the centre, in the unit of the space's noise.
        step: length of the first step that is tried, in that unit, beside a quarter and four
            times of it.
        antithetic: sample both sides of every noise, N / 2 noises: what curves upwards or
            downwards on both sides then cancels; without, the samples' mean stands for it.
        shrink: multiply steps by the reliability of the slopes, as the two halves of the items
            agree on them (in the last generations): what only these items show moves nothing.
            Needs a fitness that is the mean of all per-item scores: of one task, or of tasks
            that weigh what their share of the items is. Elsewhere (other weights, a cap that
            holds, a tie-break, the worst task) it is 1.
        most: samples per generation up to which N doubles whenever a generation's reliability is
            below 1/4; None: N stays.
        generations: most generations of samples; None: the budget decides.
    """

    compares_generations = False

    def __init__(
        self,
        *,
        seed: int,
        starts: Sequence[str],
        popsize: int = 12,
        sigma: float = 0.05,
        step: float = 0.3,
        antithetic: bool = False,
        shrink: bool = True,
        most: int | None = None,
        generations: int | None = None,
    ) -> None:
        check_at_least(2, popsize=popsize)
        check_at_least(popsize, most=most)
        check_at_least(1, generations=generations)
        check_positive(sigma=sigma, step=step)
        if isinstance(starts, str) or not starts or len(set(starts)) < len(starts):
            raise ValueError(f"starts must be a list of different names, got {starts!r}")
        if antithetic and popsize % 2:
            raise ValueError(f"antithetic pairs need an even popsize, got {popsize}")
        self._starts = tuple(starts)
        self._popsize, self._most = popsize, most or popsize
        self._sigma, self._first = sigma, step
        self._sides = (1.0, -1.0) if antithetic else (1.0,)
        self._shrink = shrink
        self._generations = generations
        self._ask_tell = AskTell[Path]()
        self._centre = Path(starts[0]) if len(starts) == 1 else None
        self._slopes: Slopes | None = None  # of a step that is to be tried
        self._lengths: tuple[float, ...] = ()
        self._curvature: float | None = None  # |q|
        self._halves = np.zeros(3)  # a.b, a.a and b.b of the slopes on two halves of the items
        self._noises = 0
        self._asked = 0  # generations of samples

    def ask(self) -> list[Candidate[Path]]:
        """Returns the starts, the samples around the centre, or the centre and steps from it."""
        self._ask_tell.check_told()
        if self._centre is None:
            return self._ask_tell.ask([Path(start) for start in self._starts])
        if self._slopes is not None:
            trials = [self._centre.moved(self._slopes.step(one)) for one in self._lengths]
            return self._ask_tell.ask([self._centre, *trials])
        if self._asked == self._generations:
            return self._ask_tell.ask([])
        numbers = range(self._noises, self._noises + self._popsize // len(self._sides))
        return self._ask_tell.ask(
            [
                self._centre.perturbed(number, side * self._sigma)
                for number in numbers
                for side in self._sides
            ]
        )

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Measures the slopes of samples, or moves to the best of the steps that were tried."""
        check_one_objective(self, outcomes)
        ordered = self._ask_tell.tell(outcomes)
        if self._centre is None:
            best = self._ask_tell.best
            self._centre = best[0] if best else Path(self._starts[0])
        elif self._slopes is not None:
            self._judge(self._centre, self._slopes, ordered)
            self._slopes = None
        else:
            self._measure(ordered)

    def recommend(self) -> list[Path]:
        """Returns the best path ever told; of equals the first."""
        return self._ask_tell.best

    def _measure(self, ordered: Sequence[Outcome]) -> None:
        first = self._noises
        self._noises += len(ordered) // len(self._sides)
        self._asked += 1
        numbers, values = _slopes(_values(ordered), self._sides, self._sigma)
        reliability = self._reliability(ordered) if self._shrink else 1.0
        if self._shrink and reliability < _NOISE:
            self._popsize = min(2 * self._popsize, self._most)
        slopes = Slopes(tuple(first + i for i in numbers), values, reliability)
        norm = float(np.linalg.norm(values))
        if norm == 0 or reliability == 0:
            return
        self._slopes = slopes
        if self._curvature is None:
            self._lengths = tuple(scale * self._first / norm for scale in _SCALES)
        else:
            length = reliability / (2 * self._curvature)  # m_i = B s_i / (2 |q|)
            self._lengths = (length / 3, length)

    def _reliability(self, ordered: Sequence[Outcome]) -> float:
        """Returns B, of this generation and, each counting half of the one after it, earlier ones.

        ``B = 2 c / (1 + c)``, c the slopes' agreement on two halves of the items, not below 0.
        """
        if not all(_is_mean_of_cases(o) for o in ordered if o.fitness is not None):
            return 1.0
        a, b = (
            _slopes(
                [None if o.cases is None else float(o.cases[half::2].mean()) for o in ordered],
                self._sides,
                self._sigma,
            )[1]
            for half in (0, 1)
        )
        self._halves = self._halves / 2 + np.array([a @ b, a @ a, b @ b])
        products, first, second = self._halves.tolist()
        agreement = max(0.0, products) / ((first + second) / 2) if first + second > 0 else 0.0
        return 2 * agreement / (1 + agreement)  # of both halves together

    def _judge(self, centre: Path, slopes: Slopes, ordered: Sequence[Outcome]) -> None:
        """Moves to the best trial that is better than the centre, and learns the curvature."""
        here, *there = _values(ordered)
        low = -math.inf if here is None else here
        gains = [-math.inf if value is None else value - low for value in there]
        best = int(np.argmax(gains))
        if gains[best] > 0:
            self._centre = centre.moved(slopes.step(self._lengths[best]))
        else:
            best = int(np.argmin(self._lengths))
        self._learn(self._lengths[best], float(slopes.values @ slopes.values), gains[best])

    def _learn(self, length: float, square: float, gain: float) -> None:
        """Updates |q| by what a step of ``length s`` gave.

        ``gain = length s.s - |q| length^2 s.s``; the geometric mean with what was known, from
        which it may differ by a factor of `_CHANGE`.
        """
        lost = (length * square - gain) / (length**2 * square)  # |q|
        known = 1 / (2 * length) if self._curvature is None else self._curvature
        found = min(max(lost, known / _CHANGE), known * _CHANGE)
        self._curvature = found if self._curvature is None else math.sqrt(known * found)


def _is_mean_of_cases(outcome: Outcome) -> bool:
    """Whether the fitness is the mean of at least two cases, so that halves of them show it."""
    if outcome.fitness is None or outcome.cases is None or len(outcome.cases) < 2:
        return False
    mean = float(outcome.cases.mean())
    return math.isclose(float(outcome.fitness[0]), mean, rel_tol=1e-6, abs_tol=1e-6)


def _values(ordered: Sequence[Outcome]) -> list[float | None]:
    return [None if o.fitness is None else float(o.fitness[0]) for o in ordered]


def _slopes(
    values: Sequence[float | None], sides: Sequence[float], sigma: float
) -> tuple[list[int], Vector]:
    """Returns the places of the noises whose samples were all scored, and their slopes.

    One side: ``(f_i - mean f) / sigma``; two: ``(f_i+ - f_i-) / (2 sigma)``.
    """
    count = len(sides)
    pairs = {i: values[count * i : count * (i + 1)] for i in range(len(values) // count)}
    known = {
        i: [v for v in pair if v is not None] for i, pair in pairs.items() if None not in pair
    }
    table = np.array(list(known.values())).reshape(-1, count)
    if count == 1:
        apart = table[:, 0] - table[:, 0].mean() if len(table) else table[:, 0]
    else:
        apart = (table[:, 0] - table[:, 1]) / 2
    return list(known), apart / sigma
