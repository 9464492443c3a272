"""Model Swarms: a particle swarm that starts at the experts and stays in their affine span."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from merging.arrays import Vector
from merging.seeding import stable_seed
from merging.spaces.axes import Axis, Choice
from search.checks import check_at_least, check_not_negative, check_positive
from search.loop.ask_tell import AskTell
from search.strategies.random_search import RandomSearch
from search.strategy import Candidate, Outcome

_SMALLEST_SWARM = 20
"""Particles where `popsize` is None and there are fewer experts; the paper's N."""


@dataclass(frozen=True)
class _Particle:
    """Position and velocity of one particle, and the best position that it has been at."""

    position: Vector
    velocity: Vector
    best: Vector | None = None
    highest: float = -math.inf
    stale: int = 0  # steps since `best` was found


class ModelSwarms:
    """Particles that remember, follow the best of all and flee the worst of all.

    ``v <- (r_v phi_v v + r_p phi_p (p - x) + r_g phi_g (g - x) - r_w phi_w (w - x)) / C`` and
    ``x <- x + lambda v``, with r four numbers from U[0, 1] per particle and step, C the sum of
    the four ``r phi``, p the particle's best position, g and w the best and the worst of all so
    far. All r are scalars, so that every particle is an affine combination of where the swarm
    started: on coefficients of experts this is the method itself, not a projection of it.

    The first generation is the experts, then random points between two of them up to `popsize`.
    A particle without a new best for `restart` steps goes back to its best position and stands
    still before each further step. lambda shrinks by `step_length_factor` after every step.

    Deviations from the paper: positions are clipped to the axes' bounds, and may then leave the
    affine span. A choice moves as a real number and is rounded. A failure is neither best nor
    worst, and counts as a step without improvement; what is not known yet (p, g, w) pulls
    nowhere. Several objectives are followed by their mean, and all non-dominated genomes are
    recommended. With fewer than two corners the swarm starts as random search does.

    Args:
        seed: decides first positions, first velocities and all r.
        corners: the genome that is each expert, by expert; None or empty: the space has none.
        popsize: particles; None: one per corner, at least 20 as in the paper.
        sigma: spread of the first positions around the axes' starts, in units of the axes' scales;
            read only where there are no corners.
        spread: a first position between experts a and b is ``t a + (1 - t) b``, t from
            ``U[0, spread]``; 1: between them, as in the paper; 2: as in the released code, half of
            them beyond.
        inertia: phi_v.
        cognitive: phi_p.
        social: phi_g.
        repel: phi_w.
        step_length: lambda of the first step.
        step_length_factor: of lambda from one step to the next.
        least_step_length: that lambda does not fall below.
        restart: steps without a new best after which a particle goes back to it; None: never.
        patience: stop after so many generations without a new best of all; None: never.

    Source: Feng et al. 2024, Model Swarms: collaborative search to adapt LLM experts via swarm
    intelligence, arXiv 2410.11163, Algorithm 1; coefficients and `restart` as MERGEvolve, arXiv
    2606.28373, runs it; `spread` and `least_step_length` from the released code.
    """

    compares_generations = True

    def __init__(
        self,
        *,
        axes: tuple[Axis, ...],
        seed: int,
        corners: Mapping[str, Vector] | None = None,
        popsize: int | None = None,
        sigma: float = 1.0,
        spread: float = 1.0,
        inertia: float = 0.2,
        cognitive: float = 0.3,
        social: float = 0.4,
        repel: float = 0.05,
        step_length: float = 1.0,
        step_length_factor: float = 0.95,
        least_step_length: float = 0.1,
        restart: int | None = 3,
        patience: int | None = None,
    ) -> None:
        if not axes:
            raise ValueError("the space has no axis; there is nothing to search")
        self._axes = tuple(axes)
        self._seed = seed
        self._corners = _checked(corners or {}, len(axes))
        self._popsize = _popsize(popsize, len(self._corners))
        check_positive(sigma=sigma, spread=spread)
        check_positive(step_length=step_length, step_length_factor=step_length_factor)
        check_not_negative(inertia=inertia, cognitive=cognitive, social=social, repel=repel)
        check_not_negative(least_step_length=least_step_length)
        check_at_least(1, restart=restart, patience=patience)
        if not inertia + cognitive + social + repel:
            raise ValueError("inertia, cognitive, social and repel are all 0: nothing would move")
        self._sigma = sigma
        self._spread = spread
        self._phi = np.array([inertia, cognitive, social, repel])
        self._step_length = step_length
        self._step_length_factor = step_length_factor
        self._least_step_length = least_step_length
        self._restart = restart
        self._patience = patience
        self._ask_tell = AskTell[Vector](np.ndarray.copy)
        self._swarm: list[_Particle] = []
        self._best: Vector | None = None
        self._worst: Vector | None = None
        self._highest = -math.inf
        self._lowest = math.inf
        self._stale = 0

    def ask(self) -> list[Candidate[Vector]]:
        """Returns where the particles are after their next step; nothing after `patience`."""
        self._ask_tell.check_told()
        if self._stale == self._patience:
            return self._ask_tell.ask([])
        step = self._ask_tell.generations
        if step == 0:
            self._swarm = self._first_swarm()
        else:
            self._swarm = [self._moved(one, step, i) for i, one in enumerate(self._swarm)]
        return self._ask_tell.ask([self._genome(particle.position) for particle in self._swarm])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Remembers every particle's best position, and the best and the worst of all."""
        ordered = self._ask_tell.tell(outcomes)
        before = self._highest
        self._swarm = [
            self._learned(particle, outcome)
            for particle, outcome in zip(self._swarm, ordered, strict=True)
        ]
        self._stale = 0 if self._highest > before else self._stale + 1

    def recommend(self) -> list[Vector]:
        """Returns the best genome told, or the non-dominated ones."""
        return self._ask_tell.best

    def _first_swarm(self) -> list[_Particle]:
        rng = self._random("first")
        positions = self._first_positions(rng)
        count = len(positions)
        # Each towards another particle: any but itself.
        towards = [(i + 1 + int(rng.integers(max(count - 1, 1)))) % count for i in range(count)]
        return [
            _Particle(position, positions[other] - position)
            for position, other in zip(positions, towards, strict=True)
        ]

    def _first_positions(self, rng: np.random.Generator) -> list[Vector]:
        if len(self._corners) < 2:
            random = RandomSearch(
                axes=self._axes, seed=self._seed, popsize=self._popsize, sigma=self._sigma
            )
            positions = [*self._corners, *(candidate.genome for candidate in random.ask())]
            return [self._clipped(position) for position in positions[: self._popsize]]
        positions = list(self._corners)
        while len(positions) < self._popsize:
            one, other = rng.choice(len(self._corners), 2, replace=False)
            share = self._spread * rng.random()
            positions.append(share * self._corners[one] + (1 - share) * self._corners[other])
        return [self._clipped(position) for position in positions]

    def _moved(self, particle: _Particle, step: int, number: int) -> _Particle:
        """Returns the particle after the step."""
        best, position, velocity = particle.best, particle.position, particle.velocity
        if best is not None and self._restart is not None and particle.stale >= self._restart:
            position, velocity = best, np.zeros_like(velocity)
        # r phi, with r_v, r_p, r_g, r_w ~ U[0, 1]
        v, p, g, w = (self._random("step", step, number).random(4) * self._phi).tolist()
        velocity = (  # v <- (r_v phi_v v + r_p phi_p (p - x) + r_g phi_g (g - x) - ...) / C
            v * velocity
            + p * _way(position, best)
            + g * _way(position, self._best)
            - w * _way(position, self._worst)
        ) / (v + p + g + w)
        decayed = self._step_length * self._step_length_factor ** (step - 1)
        length = max(decayed, self._least_step_length)  # lambda
        position = self._clipped(position + length * velocity)  # x <- x + lambda v
        return replace(particle, position=position, velocity=velocity)

    def _learned(self, particle: _Particle, outcome: Outcome) -> _Particle:
        if outcome.fitness is None:
            return replace(particle, stale=particle.stale + 1)
        value = float(outcome.fitness.mean())
        if value > self._highest:
            self._highest, self._best = value, particle.position
        if value < self._lowest:
            self._lowest, self._worst = value, particle.position
        if value > particle.highest:
            return replace(particle, best=particle.position, highest=value, stale=0)
        return replace(particle, stale=particle.stale + 1)

    def _clipped(self, position: Vector) -> Vector:
        low = [0 if isinstance(axis, Choice) else axis.low for axis in self._axes]
        high = [
            len(axis.options) - 1 if isinstance(axis, Choice) else axis.high for axis in self._axes
        ]
        clipped: Vector = np.clip(position, low, high)
        return clipped

    def _genome(self, position: Vector) -> Vector:
        choices = [isinstance(axis, Choice) for axis in self._axes]
        return np.where(choices, np.rint(position), position)

    def _random(self, *parts: str | int) -> np.random.Generator:
        return np.random.default_rng(stable_seed("model_swarms", self._seed, *parts))


def _way(position: Vector, goal: Vector | None) -> Vector:
    """Returns the way from `position` to `goal`; none to where is not known yet."""
    return np.zeros_like(position) if goal is None else goal - position


def _checked(corners: Mapping[str, Vector], axes: int) -> list[Vector]:
    for name, corner in corners.items():
        if corner.shape != (axes,):
            raise ValueError(f"corner {name} has shape {corner.shape}, the axes want ({axes},)")
    return [np.array(corner, np.float64) for corner in corners.values()]


def _popsize(popsize: int | None, corners: int) -> int:
    if popsize is None:
        return max(_SMALLEST_SWARM, corners)
    if popsize < max(2, corners):
        raise ValueError(
            f"popsize must be at least {max(2, corners)}, got {popsize}: "
            + ("every expert is a first particle" if corners > 2 else "a swarm has two particles")
        )
    return popsize
