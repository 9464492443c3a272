"""How children are made: which operators, with which numbers, and splits that are handed down."""

from __future__ import annotations

from collections import Counter
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.lineages.crossover import (
    ArithmeticCrossover,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Crossed, Founder, Lineage, Mutated, ancestry, lineage_to_json
from merging.lineages.mutation import LowRankMutation, ScaleMutation, SignMutation
from search.populations.variation import Bred, Split, Variation, _mirrored

A, B = Bred(Founder("a")), Bred(Founder("b"))
NONE: dict[str, Any] = dict.fromkeys(
    (
        "uniform",
        "one_point",
        "two_point",
        "layer_points",
        "per_tensor",
        "slerp",
        "arithmetic",
        "split_slerp",
    ),
    0.0,
)
STILL: dict[str, Any] = {"scale": 0.0, "low_rank": 0.0, "sign": 0.0}


def only(name: str, **options: Any) -> Variation:
    return Variation(**{**NONE, **STILL, name: 1.0, "crossing": 1.0, **options})


def operators(lineage: Lineage) -> list[Any]:
    return [one.by for one in ancestry(lineage) if not isinstance(one, Founder)]


def children(variation: Variation, count: int = 400, first: Bred = A) -> list[Bred]:
    return [variation.child(first, B, seed=0, number=number) for number in range(count)]


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("uniform", UniformCrossover),
        ("one_point", PointCrossover),
        ("two_point", PointCrossover),
        ("layer_points", PointCrossover),
        ("per_tensor", TensorCrossover),
        ("slerp", SlerpCrossover),
        ("arithmetic", ArithmeticCrossover),
        ("split_slerp", SplitSlerpCrossover),
    ],
)
def test_every_weight_is_of_its_operator(name: str, kind: type) -> None:
    for child in children(only(name), 20):
        assert isinstance(child.genome, Crossed)
        assert (child.genome.first, child.genome.second) == (A.genome, B.genome)
        assert type(child.genome.by) is kind


@pytest.mark.parametrize(
    ("name", "kind"),
    [("scale", ScaleMutation), ("low_rank", LowRankMutation), ("sign", SignMutation)],
)
def test_every_probability_is_of_its_mutation(name: str, kind: type) -> None:
    variation = Variation(**{**NONE, **STILL, name: 0.3})
    for child in children(variation, 20):  # no crossing, so that one mutation is the least
        assert isinstance(child.genome, Mutated)
        assert type(child.genome.by) is kind


def test_points_cut_where_they_say() -> None:
    two = [child.genome.by for child in children(only("two_point"), 50)]  # type: ignore[union-attr]
    assert all(len(by.cuts) == 2 and by.over == "vector" for by in two)  # type: ignore[union-attr]
    layers = [child.genome.by for child in children(only("layer_points"), 50)]  # type: ignore[union-attr]
    assert {(len(by.cuts), by.over) for by in layers} == {(1, "layers"), (2, "layers")}  # type: ignore[union-attr]


def test_frequencies_are_as_configured() -> None:
    variation = Variation(
        **{**NONE, "uniform": 3.0, "slerp": 1.0}, crossing=0.8, scale=0.5, low_rank=0.1, sign=0.0
    )
    made = children(variation, 2000)
    crossings = [
        c
        for c in made
        if any(isinstance(by, UniformCrossover | SlerpCrossover) for by in operators(c.genome))
    ]
    counts = Counter(type(by) for child in made for by in operators(child.genome))
    # Uncrossed children without a mutation (0.2 * 0.5 * 0.9 = 9 %) get one, 5 : 1.
    assert len(crossings) == pytest.approx(1600, abs=60)
    assert counts[UniformCrossover] / len(crossings) == pytest.approx(0.75, abs=0.04)
    assert counts[ScaleMutation] == pytest.approx(2000 * (0.5 + 0.09 * 5 / 6), abs=80)
    assert counts[LowRankMutation] == pytest.approx(2000 * (0.1 + 0.09 / 6), abs=50)


def test_arithmetic_leaves_the_hull_as_far_as_allowed() -> None:
    weights = [c.genome.by.weight for c in children(only("arithmetic", extrapolate=0.5))]  # type: ignore[union-attr]
    assert -0.5 <= min(weights) < -0.45
    assert 1.45 < max(weights) <= 1.5
    inside = [c.genome.by.weight for c in children(only("arithmetic", extrapolate=0.0))]  # type: ignore[union-attr]
    assert min(inside) >= 0
    assert max(inside) <= 1


def test_sizes_lie_between_a_tenth_and_the_whole() -> None:
    noise = Variation(**NONE, scale=0.0, low_rank=1.0, low_rank_size=0.4, rank=3, sign=0.0)
    by = [child.genome.by for child in children(noise)]  # type: ignore[union-attr]
    assert 0.04 <= min(each.size for each in by) < 0.042  # type: ignore[union-attr]
    assert 0.38 < max(each.size for each in by) <= 0.4  # type: ignore[union-attr]
    assert {each.rank for each in by} == {3}  # type: ignore[union-attr]
    factors = Variation(**NONE, scale=1.0, scale_size=0.1, low_rank=0.0, sign=0.0)
    logs = np.log([child.genome.by.factor for child in children(factors)])  # type: ignore[union-attr]
    assert logs.mean() == pytest.approx(0, abs=0.02)
    assert logs.std() == pytest.approx(0.1, rel=0.15)


def test_no_two_operators_share_a_seed() -> None:
    seeds = [
        by.seed
        for child in children(Variation(low_rank=1.0, sign=1.0), 200)
        for by in operators(child.genome)
        if hasattr(by, "seed")
    ]
    assert len(seeds) > 400
    assert len(set(seeds)) == len(seeds)


@given(seed=st.integers(0, 2**40), number=st.integers(0, 10**6), cut=st.floats(0, 1))
@settings(max_examples=50, deadline=None)
def test_a_child_depends_on_its_arguments_alone(seed: int, number: int, cut: float) -> None:
    parent = Bred(Crossed(A.genome, B.genome, SlerpCrossover(0.5)), Split(cut, 1 - cut))
    one, other = (Variation().child(parent, B, seed=seed, number=number) for _ in range(2))
    assert lineage_to_json(one.genome) == lineage_to_json(other.genome)
    assert one.split == other.split
    assert one.split is None or min(one.split.cut, one.split.weight) >= 0
    assert one.split is None or max(one.split.cut, one.split.weight) <= 1


def test_without_a_second_parent_a_child_is_a_mutant() -> None:
    for number in range(50):
        child = Variation(crossing=1.0).child(A, None, seed=0, number=number)
        assert isinstance(child.genome, Mutated)
    with pytest.raises(ValueError, match="child of one parent needs a mutation"):
        only("slerp").child(A, None, seed=0, number=0)


def test_never_crossed_and_never_mutated_is_crossed_after_all() -> None:
    made = children(only("slerp", crossing=0.01), 50)
    assert all(isinstance(child.genome, Crossed) for child in made)


class TestSplits:
    def test_founders_have_none_and_their_children_draw_uniformly(self) -> None:
        splits = [child.split for child in children(only("split_slerp"))]
        cuts = np.array([split.cut for split in splits if split])
        assert len(cuts) == 400
        assert np.quantile(cuts, [0.25, 0.5, 0.75]) == pytest.approx([0.25, 0.5, 0.75], abs=0.07)

    @pytest.mark.parametrize("drift", [0.0, 0.05])
    def test_a_child_inherits_with_a_drift(self, drift: float) -> None:
        parent = Bred(A.genome, Split(0.4, 0.7))
        made = children(only("split_slerp", drift=drift), first=parent)
        by = [child.genome.by for child in made]  # type: ignore[union-attr]
        assert [Split(each.cut, each.weight) for each in by] == [child.split for child in made]  # type: ignore[union-attr]
        for value, where in ((0.4, "cut"), (0.7, "weight")):
            values = np.array([getattr(each, where) for each in by])
            assert values.mean() == pytest.approx(value, abs=0.01)
            assert values.std() == pytest.approx(drift, rel=0.15)

    def test_one_point_takes_the_cut(self) -> None:
        made = children(only("one_point", drift=0.0), 5, Bred(A.genome, Split(0.4, 0.7)))
        assert {child.genome.by for child in made} == {PointCrossover((0.4,))}  # type: ignore[union-attr]

    def test_another_operator_hands_it_down_unchanged(self) -> None:
        parent = Bred(A.genome, Split(0.4, 0.7))
        assert {child.split for child in children(only("uniform"), 5, parent)} == {parent.split}
        mutants = Variation(**NONE, low_rank=1.0)
        assert {child.split for child in children(mutants, 5, parent)} == {parent.split}

    def test_not_evolving_draws_afresh_and_hands_nothing_down(self) -> None:
        parent = Bred(A.genome, Split(0.4, 0.7))
        made = children(only("split_slerp", evolve_splits=False), first=parent)
        cuts = [child.genome.by.cut for child in made]  # type: ignore[union-attr]
        assert np.std(cuts) == pytest.approx(12**-0.5, rel=0.1)
        assert {child.split for child in made} == {None}

    @given(st.floats(-50, 50))
    def test_drifts_are_mirrored_at_both_ends(self, value: float) -> None:
        assert 0 <= _mirrored(value) <= 1
        assert _mirrored(value) == pytest.approx(
            abs(np.arcsin(np.sin(np.pi * value / 2)) * 2 / np.pi), abs=1e-6
        )


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"crossing": 1.2}, r"variation.crossing must lie in \[0, 1\], got 1.2"),
        ({"sign_share": -0.1}, r"variation.sign_share must lie in \[0, 1\], got -0.1"),
        ({"low_rank": float("nan")}, r"variation.low_rank must lie in \[0, 1\], got nan"),
        ({"uniform": -1.0}, "variation.uniform must be a finite number of at least 0, got -1.0"),
        (
            {"drift": float("inf")},
            "variation.drift must be a finite number of at least 0, got inf",
        ),
        ({"rank": 0}, "variation.rank must be at least 1, got 0"),
        ({**NONE, **STILL}, "variation makes no child: give crossing and one of uniform, "),
        ({"crossing": 0.0, **STILL}, "variation makes no child"),
    ],
)
def test_options_without_meaning_are_refused(options: dict[str, Any], match: str) -> None:
    with pytest.raises(ValueError, match=match):
        Variation(**options)
