"""Convex space: nothing but convex combinations, and all of them."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.hull.gram import measure
from merging.hull.hull import position
from merging.spaces.convex import ConvexSpace
from merging.spaces.space import SearchSpace
from search.strategies.nevergrad_optimizer import NevergradStrategy
from search.strategy import Outcome
from tests.merging.memory_pool import random_pool

POOL = random_pool({"layers.0.weight": (6, 5), "norm": (7,)}, experts=3)
SPACES = {"experts": ConvexSpace(POOL), "and base": ConvexSpace(POOL, with_base=True)}
numbers = st.floats(-1e300, 1e300) | st.floats(-3, 3) | st.just(0.0)


def same_bits(space, a, b):
    one, other = space.decode(a), space.decode(b)
    return all(torch.equal(one[name], other[name]) for name in one)


@given(st.sampled_from(sorted(SPACES)), st.data())
@settings(max_examples=100, deadline=None)
def test_every_genome_is_a_convex_combination(name, data):
    space = SPACES[name]
    genome = np.array([data.draw(numbers) for _ in space.axes])
    shares = space.shares(genome)
    assert (shares >= 0).all()
    assert shares.sum() == 1.0
    assert torch.tensor(shares, dtype=torch.float32).double().numpy().tolist() == shares.tolist()
    if np.abs(genome).max() > 0:
        scaled = genome / np.abs(genome).max()
        np.testing.assert_allclose(shares, scaled**2 / (scaled**2).sum(), atol=2e-7)
    expected = {
        key: POOL.base_tensor(key).double()
        + torch.einsum("e,e...->...", torch.tensor(shares[:3]).double(), POOL.deltas(key).double())
        for key in POOL.names
    }
    weights = space.decode(genome)
    for key in POOL.names:
        torch.testing.assert_close(weights[key].double(), expected[key], rtol=0, atol=2e-6)


@given(st.sampled_from(sorted(SPACES)), st.data())
@settings(max_examples=60, deadline=None)
def test_one_genome_stands_for_all_that_are_the_same(name, data):
    space = SPACES[name]
    genome = np.array([data.draw(numbers) for _ in space.axes])
    chosen = space.canonical(genome)
    assert same_bits(space, genome, chosen)
    np.testing.assert_array_equal(space.canonical(chosen), chosen)
    np.testing.assert_array_equal(space.canonical(-genome), chosen)
    read = space.from_json(json.loads(json.dumps(space.to_json(genome))))
    np.testing.assert_array_equal(read, genome)


@given(st.lists(st.floats(0, 1), min_size=3, max_size=3).filter(lambda w: sum(w) > 0.01))
def test_every_convex_combination_has_a_genome(weights):
    shares = np.array(weights) / sum(weights)
    np.testing.assert_allclose(SPACES["experts"].shares(np.sqrt(shares)), shares, atol=2e-7)


def test_starts_at_equal_shares_and_has_a_corner_per_expert():
    space: SearchSpace = SPACES["experts"]
    np.testing.assert_allclose(space.shares(space.first()), 1 / 3, atol=1e-7)
    np.testing.assert_array_equal(space.shares(np.zeros(3)), space.shares(space.first()))
    assert tuple(space.domain) == ("axes", "corners")
    assert [axis.name for axis in space.axes] == [f"share/expert{i}" for i in range(3)]
    for number, (expert, corner) in enumerate(space.domain["corners"].items()):
        assert expert == f"expert{number}"
        weights = space.decode(corner)
        for key in POOL.names:
            own = POOL.base_tensor(key) + POOL.deltas(key)[number]
            assert torch.equal(weights[key], own)


def test_base_takes_a_share_where_it_may():
    space = SPACES["and base"]
    assert space.dimensions == 4
    assert space.axes[-1].name == "base"
    weights = space.decode(np.array([0.0, 0.0, 0.0, 2.0]))
    assert all(torch.equal(weights[key], POOL.base_tensor(key)) for key in POOL.names)
    assert set(space.corners) == set(POOL.expert_names)


def test_plan_is_task_arithmetic_over_the_whole_model():
    space = SPACES["experts"]
    described = space.plan(np.array([1.0, 1.0, 0.0])).describe()
    assert described["method"]["_target_"].endswith("TaskArithmetic")
    assert described["coefficients"] == {
        "model": {"weight": {"expert0": 0.5, "expert1": 0.5, "expert2": 0.0}, "scale": 1.0}
    }


def test_optimizer_reaches_a_corner_and_an_inner_point():
    space = SPACES["experts"]
    for target in ([0.0, 1.0, 0.0], [0.2, 0.5, 0.3]):
        strategy = NevergradStrategy(axes=space.axes, seed=0)
        best = np.inf
        for _ in range(40):
            outcomes = []
            for candidate in strategy.ask():
                loss = float(np.abs(space.shares(candidate.genome) - target).sum())
                best = min(best, loss)
                outcomes.append(Outcome(candidate.id, np.array([-loss])))
            strategy.tell(outcomes)
        assert best < 0.02


@given(st.lists(st.floats(-4, 4), min_size=3, max_size=3))
@settings(max_examples=20, deadline=None)
def test_the_certificate_finds_it_inside(genome):
    gram = measure(POOL, {"it": SPACES["experts"].decode(np.array(genome))})
    assert not position(gram, "it").hull.outside


def test_one_expert_is_a_point():
    space = ConvexSpace(random_pool({"w": (3,)}, experts=1))
    assert space.shares(np.array([-7.0])).tolist() == [1.0]


@pytest.mark.parametrize(
    ("genome", "message"),
    [
        ([1.0, 2.0], r"genome has shape \(2,\)"),
        ([1.0, np.nan, 0.0], "share/expert1: nan lies outside"),
        ([1.0, 0.0, np.inf], "share/expert2: inf lies outside"),
    ],
)
def test_what_is_no_genome_is_refused(genome, message):
    with pytest.raises(ValueError, match=message):
        SPACES["experts"].plan(np.array(genome))
