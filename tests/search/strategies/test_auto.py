"""Stages of a search: few numbers first, more where these bring nothing more."""

from __future__ import annotations

import numpy as np

from merging.arrays import Vector
from merging.spaces.axes import Real
from search.strategies.auto import Auto
from search.strategy import Outcome

AXES = tuple(Real(f"w{i}", start=1.0) for i in range(6))
STAGES = {"whole": (0, 0, 0, 0, 0, 0), "halves": (0, 0, 0, 1, 1, 1), "each": tuple(range(6))}
OPTIMUM = np.array([0.5, 0.5, 0.5, 1.5, 1.5, 1.8])


def search(strategy: Auto, evaluations: int) -> tuple[list[Vector], list[float]]:
    """Returns genomes and fitness of all candidates of whole generations."""
    genomes: list[Vector] = []
    fitness: list[float] = []
    while len(genomes) < evaluations:
        candidates = strategy.ask()
        genomes += [candidate.genome for candidate in candidates]
        fitness += [-float(((c.genome - OPTIMUM) ** 2).sum()) for c in candidates]
        told = zip(candidates, fitness[-len(candidates) :], strict=True)
        strategy.tell([Outcome(c.id, np.array([value])) for c, value in told])
    return genomes, fitness


def test_groups_are_widened_from_the_best_point_until_nothing_is_tied() -> None:
    strategy = Auto(axes=AXES, seed=0, stages=STAGES, budget=400)
    genomes, fitness = search(strategy, 400)
    assert genomes[0].tolist() == [1.0] * 6
    free = [len(set(genome.tolist())) for genome in genomes]
    second, third = (next(i for i, n in enumerate(free) if n > tied) for tied in (1, 2))
    assert set(free[:second]) == {1}
    assert set(free[second:third]) <= {1, 2}
    for begin in (second - 1, third - 1):  # a stage asks its start again, which costs nothing
        best = int(np.argmax(fitness[:begin]))
        assert genomes[begin].tolist() == genomes[best].tolist()
    assert max(fitness[:second]) < max(fitness[:third]) < max(fitness) > -0.01
    words = " ".join(strategy.story())
    assert (
        f"3 generations brought nothing better, so halves (2 numbers) from candidate {second - 1}"
        in words
    )
    assert words.endswith(f"candidate {int(np.argmax(fitness))}")


def test_groups_stay_where_the_budget_does_not_pay_for_more() -> None:
    strategy = Auto(axes=AXES, seed=0, stages=STAGES, budget=120)
    strategy.spent = 40
    genomes, _ = search(strategy, 80)
    assert {len(set(genome.tolist())) for genome in genomes[:60]} == {1}
    unlimited = Auto(axes=AXES, seed=0, stages=STAGES)
    assert max(len(set(genome.tolist())) for genome in search(unlimited, 400)[0]) == 6


def test_the_mean_that_ends_a_search_owes_less_to_noise_than_its_best_sample() -> None:
    best, means = [], []
    for seed in range(10):
        rng = np.random.default_rng(seed)
        strategy = Auto(axes=AXES, seed=seed, budget=100)
        told: list[tuple[float, Vector]] = []
        while not told or len(told) < 100:
            candidates = strategy.ask()
            last = len(told) + len(candidates) >= 100
            assert (strategy.keeps == (0, candidates[0].id)) == (len(strategy.keeps) > 1) == last
            noisy = [
                rng.normal(0, 0.5) - float(((c.genome - OPTIMUM) ** 2).sum()) for c in candidates
            ]
            told += [(f, c.genome) for f, c in zip(noisy, candidates, strict=True)]
            strategy.tell(
                [Outcome(c.id, np.array([f])) for c, f in zip(candidates, noisy, strict=True)]
            )
        means.append(float(((candidates[0].genome - OPTIMUM) ** 2).sum()))
        best.append(float(((max(told, key=lambda pair: pair[0])[1] - OPTIMUM) ** 2).sum()))
    assert np.mean(means) < np.mean(best)
