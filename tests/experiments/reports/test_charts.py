from __future__ import annotations

import re

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from experiments.reports.charts import Level, _non_dominated, _window, below, convergence
from experiments.reports.heat_map import heat_map
from experiments.reports.svg import short

finite = st.floats(-1e6, 1e6, allow_nan=False)


@given(st.lists(st.tuples(finite, finite), min_size=1, max_size=30))
def test_front_is_what_a_comparison_of_all_pairs_gives(pairs):
    points = np.array(pairs)
    kept = {tuple(point) for point in points[_non_dominated(points)]}
    beaten = {
        a for a in pairs for b in pairs if b != a and b[0] >= a[0] and b[1] >= a[1]
    }  # fmt: skip
    assert kept == set(pairs) - beaten


@given(st.lists(finite, max_size=30), st.lists(finite, max_size=4))
def test_window_holds_all_levels_and_the_better_half(values, levels):
    low, high = _window(np.array(values), levels)
    assert low < high
    assert all(low <= level <= high for level in levels)
    assert all(low <= value <= high for value in values if value >= np.median(values))


def test_one_bad_candidate_does_not_flatten_the_chart():
    values = [0.1 * i for i in range(10)] + [-1000.0]
    assert _window(np.array(values), [0.0])[0] > -3.0
    assert below([*values, None], [0.0]) == 1


def test_chart_of_nothing_and_of_failures_only():
    assert convergence([], [], []).startswith("<svg")
    assert convergence([0, 1], [None, None], [Level("base", "base", (0.0,))]).startswith("<svg")


def test_heat_map_of_zeros_and_of_a_missing_value():
    assert ">0.00<" in heat_map("weight", {"all": {"a": 0.0, "b": -0.0}})
    assert "nan" not in heat_map("weight", {"one": {"a": 1.0}, "two": {"b": 1.0}})


@given(st.text(), st.integers(1, 40))
def test_short_is_never_longer(text, length):
    assert len(short(text, length)) <= length
    assert short(text, max(length, len(text))) == text


def test_equal_levels_keep_their_labels_apart():
    levels = [Level(name, "static", (0.5,)) for name in ("a", "b", "c")]
    svg = convergence([0, 1], [0.5, 0.5], levels)
    heights = sorted(float(y) for y in re.findall(r'y="([\d.]+)"[^>]*>[abc]  0\.500<', svg))
    assert len(heights) == 3
    assert min(np.diff(heights)) > 10


def test_long_numbers_do_not_push_the_label_of_the_axis_out_of_the_chart() -> None:
    svg = convergence([0, 1], [-12345.678, -12345.679], [])
    left = re.search(r'rotate\(-90 ([-\d.]+) [-\d.]+\)">fitness', svg)
    assert left is not None
    assert float(left[1]) > 8  # of a text of 10 points
