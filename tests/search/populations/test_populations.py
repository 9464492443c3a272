"""Who lives on and who mates: by rank, by niche, by front and by cell."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from merging.arrays import Vector
from merging.lineages.lineage import Founder
from search.populations.archives import ArchiveGrid, CycleQD, MapElites
from search.populations.fronts import Fronts, ranked
from search.populations.niches import Niches, attraction, shares
from search.populations.population import Individual, SurvivalRule, Truncation
from search.populations.variation import Bred
from search.strategy import Outcome


def people(
    fitness: Sequence[Sequence[float]], cases: Sequence[Sequence[float]] | None = None
) -> list[Individual]:
    return [
        Individual(
            number,
            Bred(Founder(str(number))),
            np.array(values, np.float64),
            None if cases is None else np.array(cases[number], np.float64),
        )
        for number, values in enumerate(fitness)
    ]


def with_cases(cases: Sequence[Sequence[float]]) -> list[Individual]:
    return people([[float(np.mean(row))] for row in cases], cases)


def ids(individuals: Sequence[Individual]) -> list[int]:
    return [one.id for one in individuals]


def pairs(rules: SurvivalRule, members: Sequence[Individual], generation: int = 0) -> Any:
    """Frequencies of pairs of ids among 2000."""
    draw = rules.pairing(members, generation)
    rng = np.random.default_rng(0)
    drawn = [draw(rng) for _ in range(2000)]
    return Counter((first.id, second.id) for first, second in drawn)


def share_of(counts: Any, place: int, number: int) -> float:
    return float(sum(n for pair, n in counts.items() if pair[place] == number) / counts.total())


RULES: list[SurvivalRule] = [
    Truncation(4),
    Niches(4),
    Fronts(4),
    MapElites(4),
    CycleQD(4),
]


@pytest.mark.parametrize("rules", RULES, ids=lambda rules: type(rules).__name__)
class TestAll:
    def test_survivors_are_some_of_those_there_in_the_order_of_ids(
        self, rules: SurvivalRule
    ) -> None:
        values = np.random.default_rng(0).random((20, 1 if isinstance(rules, Truncation) else 3))
        everyone = people(values.tolist(), values.tolist())
        kept = ids(rules.survivors(everyone))
        assert 0 < len(kept) < 20
        assert kept == sorted(set(kept))
        assert len(kept) == 4 or not isinstance(rules, Truncation | Niches | Fronts)

    def test_parents_differ(self, rules: SurvivalRule) -> None:
        values = [[0.1, 0.9], [0.9, 0.1]]
        members = people(values, values)
        assert set(pairs(rules, members)) <= {(0, 1), (1, 0)}
        twins = people([[0.5, 0.5]] * 3, [[0.5, 0.5]] * 3)
        assert all(first != second for first, second in pairs(rules, twins))

    def test_best_of_one_task_survives(self, rules: SurvivalRule) -> None:
        if isinstance(rules, Niches):
            pytest.skip("knows items, no tasks")
        values = np.random.default_rng(1).random((12, 1 if isinstance(rules, Truncation) else 2))
        assert int(values[:, 0].argmax()) in ids(rules.survivors(people(values.tolist()))) or (
            isinstance(rules, MapElites)
        )


class TestTruncation:
    def test_the_fittest_live_and_of_equals_the_older(self) -> None:
        members = people([[1.0], [3.0], [2.0], [3.0], [2.0]])
        assert ids(Truncation(3).survivors(members)) == [1, 2, 3]

    def test_tournaments_prefer_the_fittest(self) -> None:
        members = people([[0.0], [1.0], [2.0], [3.0]])
        found = pairs(Truncation(4, tournament=2), members)
        # The best of four enters one of two places: 1/2; the worst never wins one.
        assert share_of(found, 0, 3) == pytest.approx(0.5, abs=0.04)
        assert share_of(found, 0, 0) == 0
        assert pairs(Truncation(4, tournament=4), members) == {(3, 2): 2000}

    def test_a_tournament_of_one_is_chance(self) -> None:
        found = pairs(Truncation(4, tournament=1), people([[0.0], [1.0], [2.0], [3.0]]))
        assert len(found) == 12
        assert min(found.values()) > 120


class TestNiches:
    def test_shares_by_hand(self) -> None:
        scores = np.array([[1.0, 1.0, 0.0], [1.0, 0.0, 0.0], [2.0, 0.0, 0.0]])
        np.testing.assert_allclose(
            shares(scores, 1.0), [[0.25, 1.0, 0.0], [0.25, 0.0, 0.0], [0.5, 0.0, 0.0]]
        )
        np.testing.assert_allclose(shares(scores, 0.5)[:, 0], [0.5, 0.5, 1.0])
        np.testing.assert_array_equal(shares(scores, 0.0), scores)

    def test_capacity_of_every_item_is_one(self) -> None:
        scores = np.random.default_rng(0).random((5, 7))
        np.testing.assert_allclose(shares(scores, 1.0).sum(axis=0), np.ones(7))

    def test_attraction_by_hand(self) -> None:
        share = np.array([[0.5, 0.0, 0.2], [0.1, 0.6, 0.3], [0.4, 0.4, 0.5]])
        np.testing.assert_allclose(attraction(share, 0), [0.0, 0.7, 0.7])
        np.testing.assert_allclose(attraction(share, 1), [0.4, 0.0, 0.3 + 0.2])

    def test_specialists_live_that_survival_of_the_fittest_loses(self) -> None:
        generalists = [[1, 1, 1, 1, 1, 1, 0, 0]] * 5
        specialist = [0, 0, 0, 0, 0, 0, 1, 1]
        members = with_cases([*generalists, specialist])
        assert 5 not in ids(Truncation(4).survivors(members))
        assert 5 in ids(Niches(4).survivors(members))
        assert 5 not in ids(Niches(4, alpha=0.0).survivors(members))

    def test_survivors_equal_the_published_update(self) -> None:
        """One child after the other, as its code does; right and wrong answers."""
        rng = np.random.default_rng(3)
        rules = Niches(6, scores="clipped")
        members: list[Individual] = []
        archive, names = np.zeros((0, 40)), list[int]()
        for number in range(40):
            row = (rng.random(40) < rng.random()).astype(float)
            one = Individual(number, Bred(Founder("f")), np.array([row.mean()]), row)
            members = rules.survivors([*members, one])
            archive, names = np.vstack([archive, row]), [*names, number]
            if len(names) > 6:
                demand = archive.sum(axis=0)
                worst = int((archive / np.where(demand, demand, 1)).sum(axis=1).argmin())
                archive = np.delete(archive, worst, axis=0)
                del names[worst]
            assert ids(members) == names

    def test_the_worst_goes_first_and_shares_are_computed_anew(self) -> None:
        # Seven clones share three items, 0.43 each; number 7 has 0.45 of an item of number 8.
        # Once one clone is gone the others have 0.5: then number 7 goes.
        clones = [[1, 1, 1, 0, 0]] * 7
        members = with_cases([*clones, [0, 0, 0, 0.45, 0], [0, 0, 0, 0.55, 1]])
        assert ids(Niches(7).survivors(members)) == [0, 1, 2, 3, 4, 5, 8]

    def test_first_parents_by_fitness_and_second_by_attraction(self) -> None:
        members = with_cases([[1, 1, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1], [1, 0, 0, 0]])
        rules = Niches(4)
        share = shares(np.array([one.cases for one in members]), 1.0)
        fitness = share.sum(axis=1)
        found = pairs(rules, members)
        for number in range(4):
            expected = fitness[number] / fitness.sum()
            assert share_of(found, 0, number) == pytest.approx(expected, abs=0.04)
        of_first = {second: n for (first, second), n in found.items() if first == 0}
        assert 3 not in of_first  # has nothing that the first lacks
        assert of_first[1] / sum(of_first.values()) == pytest.approx(0.5, abs=0.06)
        without = pairs(Niches(4, attraction=False), members)
        assert (0, 3) in without

    def test_who_dominates_everywhere_finds_a_mate_all_the_same(self) -> None:
        members = with_cases([[0.2, 0.2], [1, 1], [0.6, 0.6], [0.0, 0.0]])
        with np.errstate(all="raise"):
            found = pairs(Niches(4), members)
        of_best = {second: n for (first, second), n in found.items() if first == 1}
        # By fitness among the others: 0.2 to 0.6, and 0 for the worst.
        assert of_best[2] / (of_best[0] + of_best[2]) == pytest.approx(0.75, abs=0.05)
        assert set(of_best) == {0, 2}

    def test_where_all_are_alike_chance_decides(self) -> None:
        with np.errstate(all="raise"):
            found = pairs(Niches(4), with_cases([[0.5, 0.5]] * 3))
            assert ids(Niches(2).survivors(with_cases([[0.5, 0.5]] * 3))) == [0, 1]
        assert len(found) == 6
        assert min(found.values()) > 250

    def test_scores_below_zero_fit(self) -> None:
        """Log-likelihoods: only differences count."""
        cases = -np.random.default_rng(0).random((9, 30))
        kept = ids(Niches(4).survivors(with_cases(cases.tolist())))
        moved = ids(Niches(4).survivors(with_cases((3 * cases - 100).tolist())))
        assert kept == moved
        assert ids(Niches(4, scores="clipped").survivors(with_cases(cases.tolist()))) == [
            0,
            1,
            2,
            3,
        ]

    @pytest.mark.parametrize(
        ("cases", "match"),
        [
            (None, "Niches form on per-item scores, candidate 1 has none: choose tasks"),
            ([], "candidate 1 has none"),
            ([1.0], r"candidate 1 has per-item scores of shape \(1,\), not 2 finite numbers"),
            ([1.0, np.nan], "Niches need the same items for all: candidate 1"),
        ],
    )
    def test_outcomes_without_fitting_cases_are_refused(self, cases: Any, match: str) -> None:
        good = Outcome(0, np.array([1.0]), np.array([1.0, 2.0]))
        bad = Outcome(1, np.array([1.0]), None if cases is None else np.array(cases))
        with pytest.raises(ValueError, match=match):
            Niches().check_cases([good, bad], [])
        with pytest.raises(ValueError, match=match):
            Niches().check_cases([bad], with_cases([[0.5, 0.5]]))
        Niches().check_cases([good, Outcome(1, None)], [])


class TestFronts:
    def test_fronts_then_crowding_by_hand(self) -> None:
        members = people([[0, 0], [1, 3], [2, 2], [2.2, 1.9], [3, 1], [0, 3], [1, 1]])
        # front 1: 1, 2, 3, 4; of these 1 and 4 are extremes; 2 and 3 have gaps
        # (2.2 - 1) / 2 + (3 - 1.9) / 2 and (3 - 2) / 2 + (2 - 1) / 2. Front 2: 5, 6. Front 3: 0.
        assert ids(ranked(members)) == [1, 4, 2, 3, 5, 6, 0]
        assert ids(Fronts(3).survivors(members)) == [1, 2, 4]

    def test_one_objective_is_survival_of_the_fittest(self) -> None:
        members = people([[1.0], [3.0], [2.0], [3.0], [2.0], [0.0]])
        assert ids(ranked(members)) == [1, 3, 2, 4, 0, 5]
        assert Fronts(3).survivors(members) == Truncation(3).survivors(members)

    def test_tournaments_prefer_the_first_front(self) -> None:
        found = pairs(Fronts(4), people([[0, 0], [1, 2], [2, 1], [-1, -1]]))
        assert share_of(found, 0, 3) == 0
        assert share_of(found, 0, 1) == pytest.approx(0.5, abs=0.04)


class TestArchives:
    @pytest.mark.parametrize(
        ("score", "cell"),
        [(0.0, 0), (0.099, 0), (0.1, 1), (0.55, 5), (0.999, 9), (1.0, 9), (1.7, 9), (-3.0, 0)],
    )
    def test_a_perfect_score_falls_into_the_last_cell(self, score: float, cell: int) -> None:
        assert ArchiveGrid(10, 0.0, 1.0).cell(np.array([score, 0.5])) == (cell, 5)

    def test_a_perfect_model_enters_the_archive(self) -> None:
        everyone = people([[0.95, 0.95], [1.0, 1.0]])
        assert ids(MapElites(10).survivors(everyone)) == [1]
        assert ids(CycleQD(10).survivors(everyone)) == [1]

    def test_every_cell_keeps_its_best_mean_and_of_equals_the_older(self) -> None:
        everyone = people([[0.1, 0.1], [0.2, 0.2], [0.2, 0.2], [0.8, 0.1], [0.1, 0.8], [0.7, 0.2]])
        assert ids(MapElites(2).survivors(everyone)) == [1, 3, 4]
        assert ids(MapElites(1).survivors(everyone)) == [3]

    def test_every_occupied_cell_may_breed(self) -> None:
        members = people([[0.1, 0.1], [0.9, 0.1], [0.1, 0.9]])
        found = pairs(MapElites(2), members)
        assert len(found) == 6
        assert min(found.values()) > 250

    def test_tasks_take_turns_as_quality(self) -> None:
        # Behaviour of archive 0 is task 1, and the other way round.
        members = people([[0.9, 0.1], [0.2, 0.3], [0.1, 0.9], [0.3, 0.6]])
        rules = CycleQD(2, elite_sampling=False)
        assert {c: one.id for c, one in rules.archive(members, 0).items()} == {(0,): 0, (1,): 3}
        assert {c: one.id for c, one in rules.archive(members, 1).items()} == {(0,): 2, (1,): 0}
        assert ids(rules.survivors(members)) == [0, 2, 3]
        assert set(pairs(rules, members, 0)) == {(0, 3), (3, 0)}
        assert set(pairs(rules, members, 2)) == {(0, 3), (3, 0)}
        assert set(pairs(rules, members, 1)) == {(0, 2), (2, 0)}

    def test_an_elite_alone_mates_with_the_others(self) -> None:
        members = people([[0.4, 0.1], [0.2, 0.9]])
        rules = CycleQD(2)
        assert len(rules.archive(members, 1)) == 1
        assert set(pairs(rules, members, 1)) == {(0, 1), (1, 0)}

    def test_elites_are_drawn_by_quality_and_behaviour(self) -> None:
        members = people([[0.1, 0.1, 0.1], [0.5, 0.1, 0.9], [0.9, 0.9, 0.9]])
        found = pairs(CycleQD(2), members)
        # quality 0.1, 0.5, 0.9; cells (0, 0), (0, 1), (1, 1), each scaled to [0.5, 1.3]
        weights = np.array([0.5**3, 0.9 * 0.5 * 1.3, 1.3**3])
        for number, weight in enumerate(weights / weights.sum()):
            assert share_of(found, 0, number) == pytest.approx(weight, abs=0.03)


@pytest.mark.parametrize(
    ("build", "match"),
    [
        (lambda: Truncation(1), "population.size must be at least 2, got 1"),
        (lambda: Truncation(4, tournament=0), "population.tournament must be at least 1, got 0"),
        (lambda: Niches(0), "population.size must be at least 2, got 0"),
        (lambda: Niches(alpha=-1.0), "population.alpha must be a finite number of at least 0"),
        (lambda: Niches(scores="raw"), "must be 'above_worst' or 'clipped', got 'raw'"),  # type: ignore[arg-type]
        (lambda: Fronts(1), "population.size must be at least 2, got 1"),
        (lambda: Fronts(4, 0), "population.tournament must be at least 1, got 0"),
        (lambda: MapElites(0), "population.cells must be at least 1, got 0"),
        (lambda: CycleQD(low=1.0), r"population.low must lie below .* got 1.0 and 1.0"),
        (lambda: MapElites(high=float("inf")), "population.low must lie below"),
    ],
)
def test_options_without_meaning_are_refused(build: Callable[[], Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        build()


def test_vectors_are_not_changed() -> None:
    values = np.random.default_rng(0).normal(size=(6, 3))
    for rules in RULES:
        everyone = people(values.tolist(), values.tolist())
        before: list[Vector] = [one.fitness.copy() for one in everyone]
        rules.survivors(everyone)
        assert all(np.array_equal(one.fitness, b) for one, b in zip(everyone, before, strict=True))
        assert all(np.array_equal(one.cases, b) for one, b in zip(everyone, values, strict=True))  # type: ignore[arg-type]
