"""TIES over the whole model, against the authors' steps on flattened vectors."""

from __future__ import annotations

import json
import math

import pytest
import torch
from torch import Tensor

from merging.checkpoints import experts as pools
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Layers, Whole
from merging.method import MergeError
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.knots import Knots
from merging.methods.ties import Ties
from merging.plan import MergePlan, uniform_plan
from merging.plans import plan_from_description
from tests.merging.memory_pool import memory_pool
from tests.merging.methods.method_cases import METHODS, merge, random_problem

WHOLE = Ties(trim="model")
SHAPES = {"embed": (61, 7), "layers.0.w": (9, 11), "layers.1.w": (40, 50), "layers.1.norm": (13,)}
MOVED = {"embed": 1e-4, "layers.0.w": 1e-2, "layers.1.w": 1e-3, "layers.1.norm": 3e-3}
DENSITIES = [0.07, 0.2, 0.55, 0.9]


def pool_of(dtype: torch.dtype = torch.float32, seed: int = 0) -> ExpertPool:
    """Three experts whose tensors moved unequally far."""
    rng = torch.Generator().manual_seed(seed)
    base = {n: 0.02 * torch.randn(shape, generator=rng) for n, shape in SHAPES.items()}
    base = {n: t.to(dtype).float() for n, t in base.items()}
    experts = []
    for _ in range(3):
        moved = {n: t + MOVED[n] * torch.randn(t.shape, generator=rng) for n, t in base.items()}
        experts.append({n: t.to(dtype).float() - base[n] for n, t in moved.items()})
    return memory_pool(base, experts)


def flattened(pool: ExpertPool) -> Tensor:
    return torch.cat([pool.deltas(name).flatten(1) for name in pool.names], dim=1).double()


def authors_merge(vectors: Tensor, densities: list[float]) -> Tensor:
    """Trim by kthvalue of the whole vector, elect by mass, mean of what agrees.

    Where the mass balances they take the sign of most entries of the model; here nobody wins.
    """
    trimmed = []
    for vector, density in zip(vectors, densities, strict=True):
        kept = max(1, round(density * len(vector)))
        cut = vector.abs().kthvalue(len(vector) - kept + 1).values
        trimmed.append(vector * (vector.abs() >= cut))
    rows = torch.stack(trimmed)
    agree = rows * rows.sum(0) > 0
    count = agree.sum(0).clamp(min=1)
    return (rows * agree).sum(0) / count


def plan_of(pool: ExpertPool, densities: list[float]) -> MergePlan:
    each = dict(zip(pool.expert_names, densities, strict=True))
    knobs = {"weight": 1.0, "density": each, "scale": 1.0}
    return MergePlan(WHOLE, Whole(), pool.expert_names, {"model": knobs})


def merged(pool: ExpertPool, plan: MergePlan) -> Tensor:
    weights = plan.weights(pool, dtype=torch.float32)
    moved = [weights[name].double() - pool.base_tensor(name).double() for name in pool.names]
    return torch.cat([tensor.flatten() for tensor in moved])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_equals_the_authors_steps_on_flattened_vectors(dtype: torch.dtype) -> None:
    pool = pool_of(dtype)
    held = [pool, *(pool.resident(pool.device, cache_bytes=size) for size in (0, 2000, 2**20))]
    for density in DENSITIES:
        densities = [density, 0.3, math.sqrt(density)]
        right = authors_merge(flattened(pool), densities)
        found = [merged(each, plan_of(pool, densities)) for each in held]
        torch.testing.assert_close(found[0], right, rtol=0, atol=1e-8)
        assert all(torch.equal(each, found[0]) for each in found[1:])


def test_tensors_that_moved_more_keep_more() -> None:
    pool = pool_of().select(["expert0"])
    weights = plan_of(pool, [0.2]).weights(pool, dtype=torch.float32)
    kept = {n: float((weights[n] != pool.base_tensor(n)).float().mean()) for n in pool.names}
    assert kept["embed"] < 0.01
    assert kept["layers.0.w"] > 0.8


def test_a_selection_of_experts_is_cut_as_in_the_whole_pool() -> None:
    pool = pool_of().resident(torch.device("cpu"))
    pair = pool.select(["expert2", "expert0"])
    right = authors_merge(flattened(pair), [0.2, 0.4])
    torch.testing.assert_close(merged(pool, plan_of(pair, [0.2, 0.4])), right, rtol=0, atol=1e-8)


def test_groups_are_cut_where_their_density_would_cut_the_whole_model() -> None:
    pool = pool_of()
    groups = dict(zip(("rest", "layers.0", "layers.1"), (0.1, 0.5, 0.3), strict=True))
    knobs = {g: {"weight": 1.0, "density": d, "scale": 1.0} for g, d in groups.items()}
    found = merged(pool, MergePlan(WHOLE, Layers(), pool.expert_names, knobs))
    vectors, start = flattened(pool), 0
    for name, shape in SHAPES.items():
        part = slice(start, start + math.prod(shape))
        density = groups[Layers().assign(list(SHAPES))[name]]
        right = authors_merge(vectors, [density] * 3)[part]
        torch.testing.assert_close(found[part], right, rtol=0, atol=1e-8)
        start = part.stop


def test_experts_are_read_twice_however_many_tensors_and_candidates(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    passes = []
    read = pools.task_vector

    def counted(*arguments):  # type: ignore[no-untyped-def]
        passes.append(arguments)
        yield from read(*arguments)

    monkeypatch.setattr(pools, "task_vector", counted)
    pool = pool_of()
    merged(pool, plan_of(pool, [0.2, 0.2, 0.2]))
    assert len(passes) == 2 * 3
    held = pool.resident(pool.device)
    for density in (0.2, 0.2 + 1e-4, 0.2):  # of the same leading bits
        merged(held, plan_of(held, [density] * 3))
    assert len(passes) == 4 * 3


def test_densities_of_0_and_1() -> None:
    pool = pool_of()
    assert not merged(pool, plan_of(pool, [0.0] * 3)).any()
    tensors = plan_of(pool, [1.0] * 3)
    plain = MergePlan(Ties(), Whole(), pool.expert_names, tensors.coefficients)
    assert torch.equal(merged(pool, tensors), merged(pool, plain))


def test_recipe_holds_the_option() -> None:
    pool = pool_of()
    plan = uniform_plan(WHOLE, Whole(), pool)
    again = plan_from_description(json.loads(json.dumps(plan.describe())))
    assert again == plan
    assert torch.equal(merged(pool, again), merged(pool, plan))  # type: ignore[arg-type]


def test_what_has_no_model_is_refused() -> None:
    given = random_problem(WHOLE, (4, 6), 0, dtype=torch.float32)
    with pytest.raises(MergeError, match=r"'layers.0.weight' cannot be .* set trim=tensor"):
        merge(WHOLE, given)
    with pytest.raises(ValueError, match=r"knots: .* set inner.trim=tensor"):
        Knots(WHOLE)
    with pytest.raises(ValueError, match=r"trim is 'all', expected one of \('tensor', 'model'\)"):
        Ties(trim="all")  # type: ignore[arg-type]
    options = [set(type(method).__dataclass_fields__) for method in METHODS]  # type: ignore[attr-defined]
    assert sum("trim" in each for each in options) == 1  # only TIES trims so in its paper
    assert not hasattr(BreadcrumbsTies(), "trim")
