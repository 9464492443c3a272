"""Dominance, crowding and the best seen, against brute force and worked examples."""

from __future__ import annotations

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from search.ranking import Best, crowding, dominates, non_dominated

POINTS = st.integers(1, 3).flatmap(
    lambda width: st.lists(
        st.lists(st.integers(-3, 3), min_size=width, max_size=width), min_size=1, max_size=12
    )
)


def vectors(rows: list[list[int]]) -> list[np.ndarray]:
    return [np.array(row, np.float64) for row in rows]


@given(POINTS)
def test_best_keeps_what_brute_force_finds(rows: list[list[int]]) -> None:
    points = vectors(rows)
    best: Best[str] = Best()
    for i, point in enumerate(points):
        best.add(i, f"genome {i}", point)
    front = non_dominated(points)
    if len(rows[0]) == 1:
        front = front[:1]
    assert list(best.ids) == front
    assert best.genomes == [f"genome {i}" for i in front]


def test_dominance_needs_one_strict_gain() -> None:
    one, two = vectors([[1, 2], [1, 3]])
    assert dominates(two, one)
    assert not dominates(one, two)
    assert not dominates(one, one)


def test_failures_are_never_best() -> None:
    best: Best[str] = Best()
    best.add(0, "failed", None)
    assert best.genomes == []


def test_crowding_of_a_worked_example() -> None:
    points = np.array([[0.0, 10.0], [1.0, 8.0], [5.0, 5.0], [10.0, 0.0]])
    expected = [np.inf, 5 / 10 + 5 / 10, 9 / 10 + 8 / 10, np.inf]
    np.testing.assert_allclose(crowding(points), expected)
    assert crowding(np.zeros((0, 2))).tolist() == []
    assert crowding(np.ones((1, 2))).tolist() == [np.inf]


def test_crowding_of_equal_points_is_zero_inside() -> None:
    np.testing.assert_array_equal(crowding(np.ones((4, 1))), [np.inf, 0.0, 0.0, np.inf])
