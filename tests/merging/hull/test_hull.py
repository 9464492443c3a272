"""Distances to hull and spans against closed forms, brute force over faces, and scipy."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import minimize

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.hull.gram import Gram, measure
from merging.hull.hull import position
from merging.hull.plane import best_plane, outline
from merging.hull.simplex_qp import nearest_in_affine_span, nearest_in_hull, nearest_in_linear_span
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan
from merging.spaces.convex import ConvexSpace
from tests import builders
from tests.merging.memory_pool import memory_pool, random_pool

SETTINGS = settings(max_examples=150, deadline=None)


def products(vertices, point):
    vertices, point = np.array(vertices, np.float64), np.array(point, np.float64)
    return vertices @ vertices.T, vertices @ point, float(point @ point)


def faces(vertices, point):
    """Brute force: the nearest point of every face's affine span that lies in the face."""
    vertices, best = np.array(vertices, np.float64), math.inf
    for count in range(1, len(vertices) + 1):
        for chosen in combinations(range(len(vertices)), count):
            corner, *others = vertices[list(chosen)]
            steps = np.array(others).reshape(-1, len(corner)) - corner
            along = np.linalg.lstsq(steps.T, point - corner, rcond=None)[0]
            weights = np.array([1 - along.sum(), *along])
            if (weights >= -1e-9).all():
                best = min(best, float(np.linalg.norm(corner + along @ steps - point)))
    return best


problems = st.tuples(st.integers(1, 6), st.integers(1, 6), st.integers(0, 10**6))


def problem(shape, kind):
    count, width, seed = shape
    rng = np.random.default_rng(seed)
    vertices = rng.normal(size=(count, width)) * 10 ** rng.uniform(-4, 4)
    if kind == "duplicates" and count > 1:
        vertices[-1] = vertices[0]
    if kind == "collinear" and count > 2:
        vertices[-1] = 0.3 * vertices[0] + 0.7 * vertices[1]
    if kind == "inside":
        return vertices, rng.dirichlet(np.ones(count)) @ vertices
    return vertices, rng.normal(size=width) * np.abs(vertices).mean() * 10 ** rng.uniform(-1, 1)


kinds = st.sampled_from(["any", "duplicates", "collinear", "inside"])


class TestNearest:
    def test_triangle(self):
        triangle = [[0.0, 0.0], [4.0, 0.0], [0.0, 4.0]]
        for point, distance, weights in [
            ([1.0, 1.0], 0.0, [0.5, 0.25, 0.25]),  # inside
            ([2.0, -3.0], 3.0, [0.5, 0.5, 0.0]),  # beside an edge
            ([-3.0, -4.0], 5.0, [1.0, 0.0, 0.0]),  # beside a corner
            ([4.0, 4.0], math.sqrt(8), [0.0, 0.5, 0.5]),  # beside the long edge
        ]:
            found = nearest_in_hull(*products(triangle, point))
            assert math.sqrt(found.squared) == pytest.approx(distance, abs=1e-7)
            np.testing.assert_allclose(found.weights, weights, atol=1e-12)

    def test_segment_and_its_line(self):
        ends, beyond = [[1.0, 0.0, 0.0], [2.0, 0.0, 0.0]], [5.0, 3.0, 4.0]
        hull = nearest_in_hull(*products(ends, beyond))
        assert hull.squared == pytest.approx(9 + 25)
        line = nearest_in_affine_span(*products(ends, beyond))
        assert line.squared == pytest.approx(25)
        np.testing.assert_allclose(line.weights, [-3.0, 4.0])

    @pytest.mark.parametrize("n", [2, 5, 12, 40])
    def test_simplex(self, n):
        """From the origin: 1/sqrt(n) to the hull of the unit vectors, which is their middle."""
        found = nearest_in_hull(*products(np.eye(n), np.zeros(n)))
        assert math.sqrt(found.squared) == pytest.approx(1 / math.sqrt(n))
        np.testing.assert_allclose(found.weights, 1 / n)
        far = np.zeros(n)
        far[0] = 1e6  # next to a corner and far away
        assert nearest_in_hull(*products(np.eye(n), far)).weights[0] == 1.0

    def test_one_vertex(self):
        for nearest in (nearest_in_hull, nearest_in_affine_span):
            found = nearest(*products([[1.0, 1.0]], [4.0, 5.0]))
            assert found.squared == pytest.approx(25)
            assert found.weights.tolist() == [1.0]

    def test_vertices_at_the_origin(self):
        found = nearest_in_linear_span(*products(np.zeros((2, 3)), [0.0, 3.0, 4.0]))
        assert found.squared == pytest.approx(25)

    @given(problems, kinds)
    @SETTINGS
    def test_against_every_face(self, shape, kind):
        vertices, point = problem(shape, kind)
        scale = float(np.abs([*vertices.ravel(), *point]).max())
        found = nearest_in_hull(*products(vertices, point))
        assert (found.weights >= 0).all()
        assert found.weights.sum() == pytest.approx(1, abs=1e-13)
        reached = float(np.linalg.norm(found.weights @ vertices - point))
        assert reached == pytest.approx(faces(vertices, point), abs=1e-9 * scale)
        assert math.sqrt(found.squared) == pytest.approx(reached, abs=1e-6 * scale)
        assert found.residual <= 1e-12 * scale**2

    @given(problems, kinds)
    @SETTINGS
    def test_optimality_conditions(self, shape, kind):
        """Of all vertices none lies nearer along the way: <v_i - z, z - p> >= 0."""
        vertices, point = problem(shape, kind)
        scale = float(np.abs([*vertices.ravel(), *point]).max())
        found = nearest_in_hull(*products(vertices, point))
        nearest = found.weights @ vertices
        assert ((vertices - nearest) @ (nearest - point)).min() >= -1e-12 * scale**2

    @given(problems, kinds)
    @SETTINGS
    def test_spans_against_least_squares(self, shape, kind):
        vertices, point = problem(shape, kind)
        scale = float(np.abs([*vertices.ravel(), *point]).max())
        linear = nearest_in_linear_span(*products(vertices, point))
        best = np.linalg.lstsq(vertices.T, point, rcond=None)[0] @ vertices
        reached = float(np.linalg.norm(linear.weights @ vertices - point))
        assert reached == pytest.approx(float(np.linalg.norm(best - point)), abs=2e-7 * scale)
        affine = nearest_in_affine_span(*products(vertices, point))
        steps = vertices[1:] - vertices[0]
        along = np.linalg.lstsq(steps.T, point - vertices[0], rcond=None)[0]
        reached = float(np.linalg.norm(affine.weights @ vertices - point))
        best = float(np.linalg.norm(vertices[0] + along @ steps - point))
        assert reached == pytest.approx(best, abs=2e-7 * scale)
        assert affine.weights.sum() == pytest.approx(1, abs=1e-9)

    def test_against_scipy(self):
        rng = np.random.default_rng(4)
        for count in (10, 16):
            vertices, point = rng.normal(size=(count, 30)), rng.normal(size=30)
            theirs = minimize(
                lambda w, v=vertices, p=point: ((w @ v - p) ** 2).sum(),
                np.full(count, 1 / count),
                method="SLSQP",
                bounds=[(0, 1)] * count,
                constraints={"type": "eq", "fun": lambda w: w.sum() - 1},
                options={"ftol": 1e-14, "maxiter": 2000},
            )
            found = nearest_in_hull(*products(vertices, point))
            assert found.squared == pytest.approx(theirs.fun, rel=1e-7)
            np.testing.assert_allclose(found.weights, theirs.x, atol=1e-4)


def dense(pool, weights):
    return np.concatenate(
        [
            (weights[name].double() - pool.base_tensor(name).double()).flatten().numpy()
            for name in pool.names
        ]
    )


class TestMeasure:
    POOL = random_pool({"a": (7, 9), "b": (5,), "c": (0, 3)}, experts=3)

    def points(self, count=3):
        other = random_pool({"a": (7, 9), "b": (5,), "c": (0, 3)}, experts=count, seed=5)
        return {f"p{i}": {n: other.deltas(n)[i] for n in other.names} for i in range(count)}

    @pytest.mark.parametrize(
        "limits", [{}, {"block_bytes": 100}, {"held_bytes": 300}, {"held_bytes": 1}]
    )
    def test_streamed_equals_dense(self, limits):
        points = self.points(4)
        gram = measure(self.POOL, points, **limits)
        experts = np.concatenate(
            [self.POOL.deltas(n).flatten(1).double().numpy() for n in self.POOL.names], axis=1
        )
        rows = np.vstack([experts, *[dense(self.POOL, each) for each in points.values()]])
        np.testing.assert_allclose(gram.matrix, rows @ rows.T, rtol=1e-13)
        assert (gram.experts, gram.points) == (self.POOL.expert_names, tuple(points))
        np.testing.assert_allclose(gram.rounding, measure(self.POOL, points).rounding)

    def test_every_tensor_is_read_once(self):
        class Counting(dict):
            reads = 0

            def __getitem__(self, name):
                self.reads += 1
                return super().__getitem__(name)

        point = Counting(self.points(1)["p0"])
        measure(self.POOL, {"it": point})
        assert point.reads == len(self.POOL.names)

    def test_large_numbers_keep_small_differences(self):
        """The base is 1000 times as long as what is measured."""
        base = {"w": torch.full((2000,), 1000.0)}
        pool = memory_pool(base, [{"w": torch.full((2000,), 0.5)}])
        gram = measure(pool, {"it": {"w": base["w"].double() + 0.25}})
        assert gram.matrix[1, 1] == pytest.approx(2000 * 0.25**2, rel=1e-12)

    def test_no_points(self):
        assert measure(self.POOL, {}).matrix.shape == (3, 3)

    @pytest.mark.parametrize(
        ("damage", "message"),
        [
            (lambda point: point.pop("b"), "'it' has no tensor b"),
            (lambda point: point.update(b=torch.ones(4)), "tensor b has 4 numbers, the base has"),
            (lambda point: point["b"].fill_(math.nan), "tensor b holds NaN or infinity"),
        ],
    )
    def test_points_that_do_not_fit_are_refused(self, damage, message):
        point = {name: tensor.clone() for name, tensor in self.points(1)["p0"].items()}
        damage(point)
        with pytest.raises(MergeError, match=message):
            measure(self.POOL, {"it": point})


def sum_of(pool, *weights, dtype=None):
    """Returns ``base + sum_i w_i delta_i`` as a merge computes it."""
    each = dict(zip(pool.expert_names, weights, strict=True))
    plan = MergePlan(
        TaskArithmetic(), Whole(), pool.expert_names, {"model": {"weight": each, "scale": 1.0}}
    )
    return plan.weights(pool, dtype=dtype)


class TestPosition:
    POOL = random_pool({"a": (60, 50), "b": (40,)}, experts=3)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
    def test_only_rounding_leaves_the_hull_of_a_convex_merge(self, dtype):
        """Inside, on an edge, at a corner: never outside; the distance is what rounding gives."""
        pool = random_pool({"a": (60, 50), "b": (40,)}, experts=3, dtype=dtype)
        for weights in ([0.2, 0.5, 0.3], [0.5, 0.5, 0.0], [0.0, 1.0, 0.0]):
            gram = measure(pool, {"it": sum_of(pool, *weights, dtype=dtype)})
            found = position(gram, "it")
            assert not found.hull.outside
            assert not found.linear_span.outside
            assert found.hull.distance < gram.rounding[0] * 1.5
            if dtype != torch.float32:
                assert found.linear_span.distance > gram.rounding[0] * 0.5
            assert list(found.hull.coefficients.values()) == pytest.approx(weights, abs=0.02)

    def test_beyond_a_corner(self):
        """1.5 d_0: outside the hulls, and outside the affine span but not the linear one."""
        found = position(measure(self.POOL, {"it": sum_of(self.POOL, 1.5, 0.0, 0.0)}), "it")
        assert found.hull.outside
        assert found.hull_with_base.outside
        assert found.affine_span.outside
        assert not found.linear_span.outside
        assert list(found.linear_span.coefficients.values()) == pytest.approx(
            [1.5, 0, 0], abs=1e-5
        )

    def test_affine_combination_leaves_the_hull_alone(self):
        found = position(measure(self.POOL, {"it": sum_of(self.POOL, 1.5, -0.5, 0.0)}), "it")
        assert found.hull.outside
        assert not found.affine_span.outside
        coefficients = list(found.affine_span.coefficients.values())
        assert coefficients == pytest.approx([1.5, -0.5, 0], abs=1e-5)

    def test_base_is_outside_the_experts_hull_and_inside_that_with_the_base(self):
        base = {name: self.POOL.base_tensor(name) for name in self.POOL.names}
        found = position(measure(self.POOL, {"base": base}), "base")
        assert found.from_base == 0
        assert found.hull.outside
        assert not found.hull_with_base.outside
        assert not found.linear_span.outside

    def test_noise_leaves_every_span(self):
        noise = random_pool({"a": (60, 50), "b": (40,)}, experts=1, seed=9, scale=0.01)
        mean = sum_of(self.POOL, *[1 / 3] * 3)
        point = {name: mean[name] + noise.deltas(name)[0] for name in self.POOL.names}
        found = position(measure(self.POOL, {"it": point}), "it")
        assert found.linear_span.outside
        assert found.linear_span.distance == pytest.approx(0.01 * math.sqrt(3040), rel=0.05)
        assert found.hull.distance >= found.affine_span.distance >= found.linear_span.distance
        assert found.hull.distance >= found.hull_with_base.distance

    def test_distances_to_experts_and_scale(self):
        found = position(measure(self.POOL, {"it": sum_of(self.POOL, 1.0, 0.0, 0.0)}), "it")
        gaps = [
            torch.cat(
                [(self.POOL.deltas(n)[0] - self.POOL.deltas(n)[i]).flatten() for n in "ab"]
            ).norm()
            for i in range(3)
        ]
        assert list(found.experts.values()) == pytest.approx([float(g) for g in gaps], abs=1e-4)
        assert found.expert_scale == pytest.approx(0.1 * math.sqrt(3040), rel=0.05)

    def test_experts_that_are_the_same(self):
        pool = random_pool({"a": (8, 8)}, experts=1)
        twice = memory_pool(
            {"a": pool.base_tensor("a")}, [{"a": pool.deltas("a")[0]} for _ in range(3)]
        )
        found = position(measure(twice, {"it": sum_of(twice, 0.5, 0.25, 0.25)}), "it")
        assert not found.hull.outside
        assert sum(found.hull.coefficients.values()) == pytest.approx(1)

    def test_experts_that_are_the_base(self):
        pool = memory_pool({"a": torch.ones(4)}, [{"a": torch.zeros(4)}])
        found = position(measure(pool, {"it": {"a": torch.full((4,), 2.0)}}), "it")
        assert found.expert_scale == 0
        assert found.hull.distance == pytest.approx(2.0)

    @given(st.integers(2, 5), st.floats(0, 3), st.integers(0, 10**6))
    @SETTINGS
    def test_large_coefficients_do_not_make_rounding_of_sums_a_distance(self, count, size, seed):
        """A point of the span, by steep coefficients of nearly parallel experts."""
        rng = np.random.default_rng(seed)
        experts = rng.normal(size=300) + 10**-size * rng.normal(size=(count, 300))
        steep = rng.normal(size=count) * 10**size
        point = (steep - steep.mean() + 1 / count) @ experts  # in the affine span
        rows = np.vstack([experts, point])
        names = tuple(f"e{i}" for i in range(count))
        found = position(Gram(names, ("it",), rows @ rows.T, np.zeros(1)), "it")
        assert not found.affine_span.outside
        assert not found.linear_span.outside
        beside = np.vstack([experts, point + 1e-3 * rng.normal(size=300)])
        found = position(Gram(names, ("it",), beside @ beside.T, np.zeros(1)), "it")
        assert found.affine_span.outside
        assert found.linear_span.outside

    def test_unknown_point(self):
        with pytest.raises(KeyError, match="no point 'x' was measured, only y"):
            position(Gram(("e",), ("y",), np.eye(2), np.zeros(1)), "x")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    base = builders.llama(tmp_path_factory.mktemp("hull") / "base")
    experts = {
        f"e{i}": str(builders.lora_adapter(base.parent / f"e{i}", base, seed=i)) for i in range(3)
    }
    return ExpertPool.open(str(base), experts)


class TestAdapters:
    def test_convex_merge_of_adapters_is_inside_and_noise_is_not(self, adapters):
        space = ConvexSpace(adapters)
        merged = space.decode(np.array([1.0, 2.0, 0.5]))
        rng = torch.Generator().manual_seed(0)
        moved = {n: merged[n] + 1e-3 * torch.randn(merged[n].shape, generator=rng) for n in merged}
        gram = measure(adapters, {"inside": merged, "moved": moved})
        inside = position(gram, "inside")
        assert not inside.hull.outside
        shares = space.shares(np.array([1.0, 2.0, 0.5]))
        assert list(inside.hull.coefficients.values()) == pytest.approx(shares.tolist(), abs=1e-3)
        assert position(gram, "moved").linear_span.outside


class TestPlane:
    def test_three_experts_span_their_own_plane(self):
        """Base and two experts: distances in the plane are the true ones, all variance shown."""
        pool = random_pool({"a": (30, 30)}, experts=2)
        gram = measure(pool, {"it": sum_of(pool, 0.7, 0.7)})
        plane = best_plane(gram)
        assert plane.share == pytest.approx(1)
        at = np.array([plane.base, *plane.experts.values(), plane.points["it"]])
        rows = np.pad(gram.matrix, ((1, 0), (1, 0)))
        true = np.diag(rows)[:, None] + np.diag(rows)[None] - 2 * rows
        seen = ((at[:, None] - at[None]) ** 2).sum(-1) * gram.expert_scale**2
        np.testing.assert_allclose(seen, true, atol=1e-6)
        assert plane.off["it"] == pytest.approx(0, abs=1e-5)

    def test_is_the_principal_components(self):
        pool = random_pool({"a": (20, 20)}, experts=4)
        gram = measure(pool, {"it": sum_of(pool, 2.0, -1.0, 0.0, 1.0)})
        rows = np.vstack(
            [
                pool.deltas("a").flatten(1).double().numpy(),
                np.zeros(400),
                dense(pool, sum_of(pool, 2.0, -1.0, 0.0, 1.0)),
            ]
        )
        values = np.linalg.svd(rows - rows.mean(0), compute_uv=False) ** 2
        plane = best_plane(gram)
        assert plane.share == pytest.approx(values[:2].sum() / values.sum())
        at = np.array([*plane.experts.values(), plane.base, plane.points["it"]])
        np.testing.assert_allclose(at.mean(0), 0, atol=1e-9)
        spread = (at**2).sum(0) * gram.expert_scale**2
        np.testing.assert_allclose(spread, values[:2], rtol=1e-6)
        whole = (rows[-1] - rows.mean(0)) / gram.expert_scale
        length = math.hypot(*plane.points["it"], plane.off["it"])
        assert length == pytest.approx(float(np.linalg.norm(whole)))

    def test_points_that_are_not_fitted_do_not_turn_the_plane(self):
        pool = random_pool({"a": (20, 20)}, experts=3)
        far = {"a": pool.base_tensor("a") + 100.0}
        alone = best_plane(measure(pool, {}))
        beside = best_plane(measure(pool, {"far": far}), fitted=[])
        np.testing.assert_allclose(
            list(beside.experts.values()), list(alone.experts.values()), atol=1e-9
        )
        assert beside.off["far"] > 10

    def test_one_expert_and_none_that_differs(self):
        line = best_plane(measure(random_pool({"a": (3, 3)}, experts=1), {}))
        assert line.share == pytest.approx(1)
        assert [y for _, y in [line.base, *line.experts.values()]] == pytest.approx([0, 0])
        pool = memory_pool({"a": torch.ones(4)}, [{"a": torch.zeros(4)}])
        assert best_plane(measure(pool, {})).base == (0.0, 0.0)

    def test_outline(self):
        corners = [(0.0, 0.0), (2.0, 0.0), (2.0, 2.0), (0.0, 2.0)]
        inner = [(1.0, 1.0), (1.0, 0.0), (0.5, 1.5)]
        assert outline([*inner, *corners[::-1], corners[0]]) == corners
        assert outline([(1.0, 1.0)]) == [(1.0, 1.0)]
        assert outline([(1.0, 1.0), (0.0, 0.0), (0.5, 0.5)]) == [(0.0, 0.0), (1.0, 1.0)]
