"""Signal and walk of a search along paths: what its steps should give, and what they gave.

Everything follows from the history. Noises are independent draws, so that in units of their own
length two of them are orthogonal, to 1 over the root of their numbers: a point on a path is the
vector of its noises' coefficients, and lengths are those of such vectors. For the same reason
steps along fresh noises always lead as far as a random walk: the path itself cannot tell a walk
from a climb, slopes can.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import numpy as np

from experiments.runs.files import Json
from merging.arrays import Matrix, Vector
from search.winners.shrinkage import Strata, paired_variances


@dataclass(frozen=True)
class Generation:
    """What was scored around one centre.

    Args:
        centre: where it lies, noise to coefficient.
        steps: how often the centre has moved.
        scored: fitness of the centre; None: it was not asked.
        samples: ``(number of the noise, coefficient, fitness)`` of every scored sample.
        ids: of the samples.
    """

    centre: Mapping[int, float]
    steps: int
    scored: float | None
    samples: Sequence[tuple[int, float, float]]
    ids: Sequence[int]

    @property
    def fitness(self) -> Vector:
        """Of the samples."""
        return np.array([fitness for _, _, fitness in self.samples])

    def slopes(self, fitness: Vector | None = None) -> dict[int, float]:
        """Returns the fitness per unit of every noise: least squares around the samples' mean.

        What all samples lose by lying off their centre is in that mean; of a pair of both sides
        it cancels.

        Args:
            fitness: in place of that of the samples, such as that on half of the items.
        """
        values = self.fitness if fitness is None else fitness
        apart = values - values.mean()
        rise: dict[int, float] = {}
        squares: dict[int, float] = {}
        for (number, own, _), value in zip(self.samples, apart.tolist(), strict=True):
            rise[number] = rise.get(number, 0.0) + own * value
            squares[number] = squares.get(number, 0.0) + own * own
        # s_i = sum_j a_j (f_j - mean f) / sum_j a_j^2, j the samples along noise i
        return {number: rise[number] / squares[number] for number in rise}


def generations(history: Sequence[Json]) -> list[Generation]:
    """Returns the generations of paths, in order; none where genomes are no paths.

    Candidates in a row that share their centre are one; a centre alone, such as one that was
    tried and given up, is none.
    """
    lines = [line for line in history if _is_path(line["genome"])]
    found = []
    for _, group in groupby(lines, key=lambda line: _centre_key(line["genome"])):
        one = _generation(list(group))
        if one is not None:
            found.append(one)
    return found


def _is_path(genome: Any) -> bool:
    return isinstance(genome, Mapping) and {"start", "steps", "blend", "own"} <= set(genome)


def _centre_key(genome: Json) -> str:
    return json.dumps([genome["start"], genome["steps"]])


def _generation(lines: Sequence[Json]) -> Generation | None:
    scored = [line for line in lines if line["fitness"] is not None and len(line["fitness"]) == 1]
    samples = [line for line in scored if line["genome"]["own"] is not None]
    if not samples:
        return None
    centres = [line["fitness"][0] for line in scored if line["genome"]["own"] is None]
    genome = samples[0]["genome"]
    return Generation(
        centre=_coefficients(genome),
        steps=len(genome["steps"]),
        scored=centres[0] if centres else None,
        samples=[(*line["genome"]["own"], line["fitness"][0]) for line in samples],
        ids=[line["id"] for line in samples],
    )


def _coefficients(genome: Json) -> dict[int, float]:
    """Returns what every noise on the way to the centre is multiplied by in all."""
    blend, steps = genome["blend"], genome["steps"]
    total: dict[int, float] = {}
    for place, step in enumerate(steps):
        # step s moves the centre in generations s, s + 1, ... with blend[0], blend[1], ...
        weight = sum(blend[: len(steps) - place])
        for number, coefficient in step:
            total[number] = total.get(number, 0.0) + weight * coefficient
    return total


@dataclass(frozen=True, eq=False)
class WalkFigures:
    """The figures of a walk of T generations, of which ``T - 1`` moves are known.

    Lengths are in units of the length of one noise.

    Args:
        centre: ``(T,)`` fitness of the centre; NaN where it was not asked.
        mean, best: ``(T,)`` of the samples.
        length: ``(T - 1,)`` of every move.
        distance: ``(T,)`` of the centre from the first one.
        promised: ``(T - 1,)``, what a move gives to first order: ``sum_i m_i s_i`` over the
            noises of its generation.
        given: ``(T - 1,)``, by how much the samples' mean rose.
        aligned: ``(T - 1,)``, what `promised` is of that of the steepest move of the same length
            among the generation's own noises.
        noises: noises of a generation, the median.
        floor: standard error, over the items, of the difference between two fitnesses of one
            generation, the root mean square; None: there are no cases.
        agreement: cosine of the slopes on one half of the items with those on the other half, in
            all generations together; None: there are no cases.
    """

    centre: Vector
    mean: Vector
    best: Vector
    length: Vector
    distance: Vector
    promised: Vector
    given: Vector
    aligned: Vector
    noises: int
    floor: float | None = None
    agreement: float | None = None

    def signal(self, numbers: int) -> float:
        """Returns the mean cosine of a step with the gradient, for a fitness that is linear.

        A step of N noises, each a draw of D independent numbers, holds ``N / (N + D)`` of the
        gradient's square at best; `aligned` is what the weights of the noises make of it.

        Args:
            numbers: D.
        """
        share = self.noises / (self.noises + numbers)  # cos^2 of the span of N draws
        return float(np.nanmean(self.aligned) * np.sqrt(share)) if len(self.aligned) else 0.0

    @property
    def reach(self) -> float | None:
        """Times its length at which a step would have given most; None: nothing was promised.

        ``promised`` grows with the length, what curvature takes with its square:
        ``P x - C x^2`` is highest at ``P / (2 C)``.
        """
        promised, cost = float(self.promised.sum()), float((self.promised - self.given).sum())
        return promised / (2 * cost) if promised > 0 and cost > 0 else None


def walk_of(
    found: Sequence[Generation], cases: Mapping[int, Vector] | None = None, strata: Strata = ()
) -> WalkFigures:
    """Returns the figures of a walk.

    Args:
        found: of `generations`; at least one.
        cases: ``(items,)`` per candidate id; may lack some.
        strata: items and weight of every task, in the order of the cases.
    """
    numbers = sorted({number for one in found for number in (*one.centre, *one.slopes())})
    places = np.array([[one.centre.get(number, 0.0) for number in numbers] for one in found])
    moves = np.diff(places, axis=0)
    mean = np.array([one.fitness.mean() for one in found])
    promised, aligned = _promises(found, moves, numbers)
    floor, agreement = _by_items(found, cases or {}, strata)
    return WalkFigures(
        centre=np.array([np.nan if one.scored is None else one.scored for one in found]),
        mean=mean,
        best=np.array([one.fitness.max() for one in found]),
        length=np.linalg.norm(moves, axis=1),
        distance=np.linalg.norm(places - places[0], axis=1),
        promised=promised,
        given=np.diff(mean),
        aligned=aligned,
        noises=int(np.median([len(one.slopes()) for one in found])),
        floor=floor,
        agreement=agreement,
    )


def _promises(
    found: Sequence[Generation], moves: Matrix, numbers: Sequence[int]
) -> tuple[Vector, Vector]:
    """Returns `WalkFigures.promised` and `WalkFigures.aligned`, ``(moves,)`` each."""
    place = {number: column for column, number in enumerate(numbers)}
    promised, aligned = np.zeros(len(moves)), np.full(len(moves), np.nan)
    for t, move in enumerate(moves):
        slopes = found[t].slopes()
        steep = np.array(list(slopes.values()))
        along = move[[place[number] for number in slopes]]
        promised[t] = along @ steep  # sum_i m_i s_i
        most = np.linalg.norm(along) * np.linalg.norm(steep)
        if most > 0:
            aligned[t] = promised[t] / most
    return promised, aligned


def _by_items(
    found: Sequence[Generation], cases: Mapping[int, Vector], strata: Strata
) -> tuple[float | None, float | None]:
    """Returns `WalkFigures.floor` and `WalkFigures.agreement`."""
    items = sum(count for count, _ in strata)
    variances: list[float] = []
    halves: list[tuple[float, float]] = []
    for one in found:
        rows = [cases[i] for i in one.ids if i in cases]
        if not items or len(rows) < 2 or len(rows) < len(one.ids):
            continue
        table = np.array(rows)
        if table.shape[1] != items:
            continue
        variances += paired_variances(table, strata).tolist()
        first, second = (one.slopes(_on_half(table, strata, half)) for half in (0, 1))
        halves += [(first[number], second[number]) for number in first]
    if not variances:
        return None, None
    a, b = np.array(halves).T
    lengths = float(np.linalg.norm(a) * np.linalg.norm(b))
    # the variance of a difference is that of both
    return float(np.sqrt(2 * np.mean(variances))), float(a @ b) / lengths if lengths else None


def _on_half(table: Matrix, strata: Strata, half: int) -> Vector:
    """Returns every row's weighted mean over each task's even or odd items, ``(rows,)``."""
    values, begin = np.zeros(len(table)), 0
    for count, weight in strata:
        if count > 1:
            values += weight * table[:, begin + half : begin + count : 2].mean(axis=1)
        begin += count
    return values
