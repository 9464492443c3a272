"""Model Swarms beyond the strategy contract: the paper's update, and where its particles lie."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.arrays import Vector
from merging.spaces.axes import Axis, Choice, Real
from search.strategies.model_swarms import ModelSwarms
from search.strategy import Outcome
from tests.search.strategies.contract import AXES, fitness

PLANE = (Real("a"), Real("b"))
CORNERS = {"code": np.array([1.0, 0.0]), "math": np.array([0.0, 1.0]), "law": np.array([2.0, 2.0])}


def sphere(genome: Vector) -> Vector:
    return np.array([-((genome - 0.7) ** 2).sum()])


def run(strategy: ModelSwarms, generations: int, score: Any = sphere) -> list[list[Vector]]:
    """Genomes of some generations, told their scores in reverse order."""
    asked = []
    for _ in range(generations):
        candidates = strategy.ask()
        asked.append([candidate.genome for candidate in candidates])
        if candidates:
            strategy.tell([Outcome(c.id, score(c.genome)) for c in reversed(candidates)])
    return asked


class TestUpdate:
    def test_steps_are_the_papers(self) -> None:
        """A second implementation: per particle, in lists, from the places that were asked."""
        strategy = ModelSwarms(axes=PLANE, seed=5, corners=CORNERS, popsize=6, restart=2)
        asked = run(strategy, 12)
        expected = _by_hand(strategy, asked[0], 12, restart=2)
        np.testing.assert_allclose(asked, expected, rtol=1e-12, atol=1e-14)

    def test_all_four_pulls_move_a_particle(self) -> None:
        still: dict[str, Any] = {"inertia": 0.0, "cognitive": 0.0, "social": 0.0, "repel": 0.0}
        seen = set()
        for name in still:
            swarm = ModelSwarms(
                axes=PLANE, seed=1, corners=CORNERS, restart=None, **(still | {name: 1.0})
            )
            seen.add(np.array(run(swarm, 4)).tobytes())
        assert len(seen) == len(still)

    def test_goes_to_the_best_and_away_from_the_worst(self) -> None:
        corners = {"good": np.array([0.7, 0.7]), "bad": np.array([0.0, 0.0])}
        options: dict[str, Any] = {"inertia": 0.0, "cognitive": 0.0, "step_length": 0.5}
        follows = ModelSwarms(axes=PLANE, seed=0, corners=corners, popsize=2, repel=0, **options)
        # With one pull alone, r / C is 1: half of the way.
        np.testing.assert_allclose(run(follows, 2)[1], [[0.7, 0.7], [0.35, 0.35]])
        flees = ModelSwarms(axes=PLANE, seed=0, corners=corners, popsize=2, social=0, **options)
        np.testing.assert_allclose(run(flees, 2)[1], [[1.05, 1.05], [0.0, 0.0]])

    def test_first_velocity_is_towards_another_particle(self) -> None:
        drift = ModelSwarms(
            axes=PLANE, seed=3, corners=CORNERS, popsize=3, cognitive=0, social=0, repel=0
        )
        first, second = run(drift, 2)
        corners = [corner.tolist() for corner in CORNERS.values()]
        for before, after in zip(first, second, strict=True):
            assert after.tolist() in corners
            assert after.tolist() != before.tolist()

    def test_step_length_decays_to_its_least(self) -> None:
        drift = ModelSwarms(
            axes=PLANE,
            seed=3,
            corners=CORNERS,
            popsize=3,
            cognitive=0,
            social=0,
            repel=0,
            step_length_factor=0.5,
            least_step_length=0.3,
            restart=None,
        )
        places = np.array(run(drift, 5))
        steps = np.linalg.norm(np.diff(places, axis=0), axis=-1)
        np.testing.assert_allclose(steps / steps[0], np.outer([1, 0.5, 0.3, 0.3], np.ones(3)))

    def test_stray_particle_returns_to_its_best(self) -> None:
        """With inertia alone a restarted particle has no velocity: it stays at its best."""
        drift: dict[str, Any] = {
            "cognitive": 0.0,
            "social": 0.0,
            "repel": 0.0,
            "popsize": 3,
            "seed": 2,
        }
        worse = {"told": 0.0}

        def falling(genome: Vector) -> Vector:
            worse["told"] -= 1
            return np.array([worse["told"]])

        swarm = ModelSwarms(axes=PLANE, corners=CORNERS, restart=2, **drift)
        places = run(swarm, 5, falling)
        for back in places[3:]:
            np.testing.assert_array_equal(back, places[0])
        assert not np.array_equal(places[2], places[0])

    def test_nothing_is_known_after_failures_and_nothing_pulls(self) -> None:
        swarm = ModelSwarms(axes=PLANE, seed=2, corners=CORNERS, inertia=0.0)
        places = run(swarm, 3, lambda genome: None)
        np.testing.assert_array_equal(places[2], places[0])
        assert swarm.recommend() == []


def _by_hand(
    strategy: ModelSwarms, first: Sequence[Vector], generations: int, *, restart: int
) -> list[list[list[float]]]:
    """The swarm's places, the r being those of `strategy`, the rest written anew."""
    swarm = [one.tolist() for one in first]
    # The first velocities are the strategy's: which particle each goes towards is drawn.
    fresh = ModelSwarms(axes=PLANE, seed=5, corners=CORNERS, popsize=6, restart=restart)
    fresh.ask()
    velocities = [particle.velocity.tolist() for particle in fresh._swarm]
    best = [(-math.inf, place, 0) for place in swarm]  # score, place, generation
    scored: list[tuple[float, list[float]]] = []
    places = []
    step_length = 1.0
    for generation in range(generations):
        if generation:
            good, bad = max(scored, key=lambda s: s[0])[1], min(scored, key=lambda s: s[0])[1]
            for i in range(len(swarm)):
                if generation - 1 - best[i][2] >= restart:
                    swarm[i], velocities[i] = best[i][1], [0.0, 0.0]
                r = strategy._random("step", generation, i).random(4)
                weights = [r[0] * 0.2, r[1] * 0.3, r[2] * 0.4, r[3] * 0.05]
                x, v, p = swarm[i], velocities[i], best[i][1]
                velocities[i] = [
                    (
                        weights[0] * v[k]
                        + weights[1] * (p[k] - x[k])
                        + weights[2] * (good[k] - x[k])
                        + weights[3] * (x[k] - bad[k])
                    )
                    / sum(weights)
                    for k in range(2)
                ]
                swarm[i] = [x[k] + step_length * velocities[i][k] for k in range(2)]
            step_length = max(0.95 * step_length, 0.1)
        for i, place in enumerate(swarm):
            score = float(sphere(np.array(place))[0])
            scored.append((score, place))
            if score > best[i][0]:
                best[i] = (score, place, generation)
        places.append([list(place) for place in swarm])
    return places


class TestFirstPlaces:
    def test_experts_come_first_then_points_between_two_of_them(self) -> None:
        swarm = ModelSwarms(axes=PLANE, seed=0, corners=CORNERS, popsize=40)
        places = run(swarm, 1)[0]
        np.testing.assert_array_equal(places[:3], list(CORNERS.values()))
        between = [_on_a_line(place) for place in places[3:]]
        assert all(any(0 <= share <= 1 for share in shares) for shares in between)
        assert len({place.tobytes() for place in places}) == 40

    def test_spread_of_two_goes_beyond_them_half_of_the_time(self) -> None:
        swarm = ModelSwarms(axes=PLANE, seed=0, corners=CORNERS, popsize=403, spread=2.0)
        shares = [_on_a_line(place) for place in run(swarm, 1)[0][3:]]
        beyond = [not any(0 <= share <= 1 for share in one) for one in shares]
        assert np.mean(beyond) == pytest.approx(0.5, abs=0.08)

    @pytest.mark.parametrize("corners", [None, {}, {"only": np.array([3.0, -2.0])}])
    def test_without_two_corners_the_swarm_starts_around_the_start(
        self, corners: Mapping[str, Vector] | None
    ) -> None:
        axes = (Real("a", start=5.0, scale=0.1), Real("b", scale=2.0))
        swarm = ModelSwarms(axes=axes, seed=0, corners=corners, popsize=400, sigma=0.5)
        places = run(swarm, 1)[0]
        if corners:
            assert places.pop(0).tolist() == [3.0, -2.0]
        assert places[0].tolist() == [5.0, 0.0]
        np.testing.assert_allclose(np.std(places, axis=0), [0.05, 1.0], rtol=0.15)
        np.testing.assert_allclose(np.mean(places, axis=0), [5.0, 0.0], atol=0.15)

    def test_popsize_is_one_per_expert_and_at_least_the_papers(self) -> None:
        many = {str(i): np.array([float(i), 0.0]) for i in range(25)}
        assert len(ModelSwarms(axes=PLANE, seed=0, corners=many).ask()) == 25
        assert len(ModelSwarms(axes=PLANE, seed=0, corners=CORNERS).ask()) == 20
        assert len(ModelSwarms(axes=PLANE, seed=0).ask()) == 20


def _on_a_line(place: Vector) -> list[float]:
    """Shares t of ``t a + (1 - t) b`` over the pairs of corners on whose line the place lies."""
    corners = list(CORNERS.values())
    shares = []
    for i, one in enumerate(corners):
        for other in corners[:i]:
            way = one - other
            share = float((place - other) @ way / (way @ way))
            if np.allclose(other + share * way, place, atol=1e-12):
                shares.append(share)
    assert shares, place
    return shares


@settings(max_examples=20, deadline=None)
@given(seed=st.integers(0, 2**32), experts=st.integers(2, 4), spread=st.sampled_from([1.0, 2.0]))
def test_particles_stay_in_the_affine_span_of_the_experts(
    seed: int, experts: int, spread: float
) -> None:
    rng = np.random.default_rng(seed)
    axes = tuple(Real(f"w{i}") for i in range(8))
    corners = {str(i): rng.normal(size=8) for i in range(experts)}
    swarm = ModelSwarms(axes=axes, seed=seed, corners=corners, spread=spread)
    places = np.array(run(swarm, 15)).reshape(-1, 8)
    first, *others = corners.values()
    span = np.array([other - first for other in others])
    offsets = places - first
    shares = np.linalg.lstsq(span.T, offsets.T, rcond=None)[0]
    np.testing.assert_allclose(span.T @ shares, offsets.T, atol=1e-9)


def test_places_beyond_a_bound_are_clipped_to_it() -> None:
    axes: tuple[Axis, ...] = (Real("a", 0.0, 0.5), Choice("method", ("x", "y", "z")))
    swarm = ModelSwarms(axes=axes, seed=0, corners={"p": np.array([0, 0]), "q": np.array([9, 9])})
    places = np.array(run(swarm, 10, lambda genome: genome[:1])).reshape(-1, 2)
    assert (places[:, 0] >= 0).all()
    assert (places[:, 0] <= 0.5).all()
    assert set(places[:, 1]) <= {0.0, 1.0, 2.0}
    assert places[1].tolist() == [0.5, 2.0]


def test_several_objectives_are_followed_by_their_mean() -> None:
    one = ModelSwarms(axes=PLANE, seed=1, corners=CORNERS)
    two = ModelSwarms(axes=PLANE, seed=1, corners=CORNERS)
    split = run(two, 6, lambda genome: np.array([2 * sphere(genome)[0], 0.0]))
    np.testing.assert_array_equal(run(one, 6), split)


def test_stops_after_patience_generations_without_a_new_best() -> None:
    swarm = ModelSwarms(axes=PLANE, seed=1, corners=CORNERS, patience=2)
    sizes = [len(generation) for generation in run(swarm, 6, lambda genome: np.zeros(1))]
    assert sizes == [20, 20, 20, 0, 0, 0]


def test_closes_in_on_a_point_of_the_span_and_improves_on_the_experts() -> None:
    axes = tuple(Real(f"w{i}") for i in range(4))
    corners = {str(i): corner for i, corner in enumerate(np.eye(4))}
    goal = np.array([0.5, 0.3, 0.3, -0.1])
    swarm = ModelSwarms(axes=axes, seed=0, corners=corners)
    run(swarm, 20, lambda genome: -((genome - goal) ** 2).sum(keepdims=True))
    distance = np.linalg.norm(swarm.recommend()[0] - goal)
    assert distance < 0.3 * min(np.linalg.norm(corner - goal) for corner in corners.values())


def test_options_without_meaning_are_refused() -> None:
    def refused(text: str, axes: tuple[Axis, ...] = PLANE, **options: Any) -> None:
        with pytest.raises(ValueError, match=text):
            ModelSwarms(axes=axes, seed=0, **options)

    refused("the space has no axis", axes=())
    refused(r"popsize must be at least 3, got 2: every expert", popsize=2, corners=CORNERS)
    refused(r"popsize must be at least 2, got 1: a swarm has two", popsize=1)
    refused("sigma must be a finite number above 0, got 0", sigma=0)
    refused("spread must be a finite number above 0, got -1", spread=-1)
    refused("step_length must be a finite number above 0, got nan", step_length=math.nan)
    refused("step_length_factor must be a finite number above 0", step_length_factor=0)
    refused("least_step_length must be a finite number of at least 0", least_step_length=-0.1)
    for name in ("inertia", "cognitive", "social", "repel"):
        negative: dict[str, Any] = {name: -1}
        refused(f"{name} must be a finite number of at least 0, got -1", **negative)
    refused("all 0: nothing would move", inertia=0, cognitive=0, social=0, repel=0)
    refused("restart must be at least 1, got 0", restart=0)
    refused("patience must be at least 1, got 0", patience=0)
    refused(r"corner code has shape \(2,\), the axes want \(3,\)", axes=AXES[:3], corners=CORNERS)


def test_mixed_axes_are_searched() -> None:
    swarm = ModelSwarms(axes=AXES, seed=0)
    places = run(swarm, 15, fitness)
    scores = [max(float(fitness(genome)[0]) for genome in generation) for generation in places]
    assert max(scores) > scores[0]
