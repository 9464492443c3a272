"""Noise: its moments, its seeds, its shape, and where it lies relative to the task vectors."""

from __future__ import annotations

import json
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.described import describe
from merging.paths.noise import (
    BlockNoise,
    GaussianNoise,
    LowRankNoise,
    Noise,
    RowNoise,
    SingularNoise,
    StagedNoise,
    TensorNoise,
    noise_from_description,
)
from merging.paths.path import Path, Walk
from merging.paths.singular_pairs import SingularPairNoise
from tests.merging.memory_pool import memory_pool, random_pool

SHAPES = {"a": (24, 40), "b": (24, 40), "bias": (30,), "conv": (6, 4, 3)}
KINDS: list[Noise] = [
    GaussianNoise(),
    LowRankNoise(),
    TensorNoise(),
    RowNoise(),
    BlockNoise(7),
    SingularNoise(),
]
SHAPED: list[Noise] = [
    TensorNoise(),
    SingularPairNoise(),
    RowNoise(),
    BlockNoise(7),
    SingularNoise(),
]


def name_of(noise: object) -> str:
    return type(noise).__name__


def rms(tensor: Tensor) -> float:
    return float(tensor.double().square().mean().sqrt())


@pytest.mark.parametrize("name", SHAPES)
@pytest.mark.parametrize("unit", ["one", "base", "deltas"])
@pytest.mark.parametrize("cls", [type(kind) for kind in KINDS])
def test_mean_is_zero_and_size_is_the_unit(cls: Any, unit: str, name: str) -> None:
    pool = random_pool(SHAPES, scale=0.3)
    draw = cls(unit=unit).on(name, pool)
    draws = torch.stack([draw(seed) for seed in range(300)]).double()
    wanted = {"one": 1.0, "base": rms(pool.base_tensor(name)), "deltas": rms(pool.deltas(name))}
    squares = draws.square().mean(dim=tuple(range(1, draws.dim())))
    error = float(squares.std()) / math.sqrt(len(draws))
    assert abs(float(squares.mean()) - wanted[unit] ** 2) < 4 * error + 1e-9
    deviation = draws.std(0) / math.sqrt(len(draws))
    assert ((draws.mean(0) / deviation).square().mean()) < 1.6  # 1 expected
    assert draws.dtype == torch.float64
    assert draw(0).dtype == torch.float32
    assert draw(0).shape == SHAPES[name]


@pytest.mark.parametrize("rank", [1, 4])
def test_entries_of_low_rank_noise_have_unit_variance_and_no_correlation(rank: int) -> None:
    draw = LowRankNoise(rank).on("a", random_pool({"a": (3, 4)}))
    flat = torch.stack([draw(seed).reshape(-1) for seed in range(4000)]).double()
    covariance = flat.T @ flat / len(flat)
    # The fourth moment of an entry is 3 + 6 / rank, at most 9.
    assert (covariance - torch.eye(12)).abs().max() < 5 * math.sqrt(9 / 4000)


def test_gaussian_noise_is_normal() -> None:
    draw = GaussianNoise().on("w", random_pool({"w": (200, 200)}))
    values = np.sort(draw(5).double().numpy().ravel())
    normal = np.array([0.5 * (1 + math.erf(v / math.sqrt(2))) for v in values[::40]])
    empirical = (np.arange(len(values)) / len(values))[::40]
    assert np.abs(normal - empirical).max() < 1.95 / math.sqrt(len(values))  # Kolmogorov, 0.1 %


@pytest.mark.parametrize("noise", KINDS, ids=name_of)
def test_noise_depends_on_seed_and_name_alone(noise: Noise) -> None:
    pool = random_pool(SHAPES)
    draw = noise.on("a", pool)
    first = draw(1)
    torch.randn(7)  # the global generator has no say
    draw(2).zero_()  # what a caller does with a draw is his own
    assert torch.equal(first, draw(1))
    assert torch.equal(first, noise.on("a", pool)(1))
    assert not torch.equal(first, draw(2))


@pytest.mark.parametrize("noise", KINDS, ids=name_of)
def test_tensors_of_one_shape_get_independent_noise(noise: Noise) -> None:
    pool = random_pool({"a": (24, 40)})
    same = memory_pool(
        {n: pool.base_tensor("a") for n in "ab"},
        [dict.fromkeys("ab", delta) for delta in pool.deltas("a")],
    )
    first, second = noise.on("a", same), noise.on("b", same)
    correlations = [
        float(torch.nn.functional.cosine_similarity(a.flatten(), b.flatten(), 0))
        for a, b in ((first(seed), second(seed)) for seed in range(60))
    ]
    error = np.std(correlations) / math.sqrt(len(correlations))
    assert abs(np.mean(correlations)) < 3 * error
    most = 0.75 if isinstance(noise, TensorNoise) else 0.35  # of three numbers: 1 / sqrt(3)
    assert np.std(correlations) < most  # 1 if the two were the same up to the sign


@pytest.mark.parametrize("rank", [1, 3])
def test_rank_of_low_rank_noise(rank: int) -> None:
    pool = random_pool(SHAPES)
    assert torch.linalg.matrix_rank(LowRankNoise(rank).on("a", pool)(0)) == rank
    assert torch.linalg.matrix_rank(LowRankNoise(rank).on("conv", pool)(0).reshape(6, -1)) == rank
    assert torch.equal(LowRankNoise(rank).on("bias", pool)(0), GaussianNoise().on("bias", pool)(0))


@pytest.mark.parametrize("noise", SHAPED, ids=name_of)
def test_shaped_noise_lies_outside_the_affine_span(noise: Noise) -> None:
    pool = random_pool(SHAPES)
    flat = torch.cat([noise.on(name, pool)(3).flatten() for name in pool.names]).double()
    span = torch.cat([pool.deltas(n).reshape(3, -1) for n in pool.names], 1).double()
    inside = span.T @ torch.linalg.lstsq(span.T, flat[:, None]).solution
    least = 0.3 if isinstance(noise, TensorNoise) else 0.8  # two tensors hold most of it
    assert torch.linalg.vector_norm(flat[:, None] - inside) > least * torch.linalg.vector_norm(
        flat
    )


def test_whole_noise_lies_in_the_affine_span() -> None:
    pool = random_pool(SHAPES)
    noise = TensorNoise(whole=True)
    flat = torch.cat([noise.on(name, pool)(3).flatten() for name in SHAPES]).double()
    span = torch.cat([pool.deltas(name).reshape(3, -1) for name in SHAPES], 1).double()
    inside = span.T @ torch.linalg.lstsq(span.T, flat[:, None]).solution
    assert torch.allclose(inside[:, 0], flat, atol=1e-5)


def test_staged_noise_is_the_one_and_then_the_other() -> None:
    pool = random_pool(SHAPES)
    staged = StagedNoise(TensorNoise(whole=True), 3, RowNoise())
    assert noise_from_description(json.loads(json.dumps(describe(staged)))) == staged
    for number in range(5):
        path = Path().perturbed(number, 0.5).moved(((number, 0.25), (4 - number, 2.0)))
        alone = [staged.first, staged.then]
        for name in SHAPES:
            found = Walk(pool, None, staged, 7).tensor(name, path)
            parts = [
                Walk(pool, None, alone[n >= 3], 7).tensor(name, Path().moved(((n, c),)))
                - pool.base_tensor(name)
                for n, c in path.steps[0]
            ]
            assert torch.allclose(found, pool.base_tensor(name) + sum(parts), atol=1e-5)


def test_rows_of_row_noise_lie_in_the_span_of_the_experts_rows() -> None:
    pool = random_pool({"w": (6, 20)})
    noise, deltas = RowNoise().on("w", pool)(0).double(), pool.deltas("w").double()
    numbers = [torch.linalg.lstsq(deltas[:, i].T, noise[i, :, None]) for i in range(6)]
    for i, found in enumerate(numbers):
        torch.testing.assert_close(deltas[:, i].T @ found.solution[:, 0], noise[i])
    assert len({round(float(found.solution[0]), 6) for found in numbers}) == 6


def test_blocks_of_block_noise_are_multiples_of_the_delta() -> None:
    pool = random_pool({"w": (5, 5)}, experts=1)
    ratio = (BlockNoise(4).on("w", pool)(0) / pool.deltas("w")[0]).flatten()
    for block in torch.split(ratio, 4):
        torch.testing.assert_close(block, block[:1].expand_as(block), rtol=1e-5, atol=0)
    assert len({round(float(block[0]), 4) for block in torch.split(ratio, 4)}) == 7


def test_singular_noise_scales_the_directions_of_each_delta() -> None:
    rng = torch.Generator().manual_seed(0)
    low = [torch.randn(9, 2, generator=rng) @ torch.randn(2, 12, generator=rng) for _ in "ab"]
    pool = memory_pool({"w": torch.zeros(9, 12)}, [{"w": delta} for delta in low])
    noise = SingularNoise().on("w", pool)(0).double()
    columns = torch.linalg.qr(torch.cat(low, 1).double()[:, [0, 1, 12, 13]])[0]
    assert torch.linalg.vector_norm(noise - columns @ (columns.T @ noise)) < 1e-5
    alone = memory_pool({"w": torch.zeros(9, 12)}, [{"w": low[0]}])
    left, values, right = torch.linalg.svd(low[0].double(), full_matrices=False)
    core = left.T @ SingularNoise().on("w", alone)(0).double() @ right.T
    off = core - torch.diag(torch.diag(core))
    assert off.abs().max() < 1e-5
    assert (torch.diag(core)[:2] / values[:2]).std() > 0.1


@pytest.mark.parametrize("noise", SHAPED, ids=name_of)
def test_a_tensor_that_one_expert_alone_changes_moves(noise: Noise) -> None:
    delta, zero = (
        torch.randn(9, 12, generator=torch.Generator().manual_seed(0)),
        torch.zeros(9, 12),
    )
    pool = memory_pool({"w": zero}, [{"w": zero}, {"w": delta}, {"w": zero}])
    draws = torch.stack([noise.on("w", pool)(seed) for seed in range(200)])
    squares = draws.double().square().mean((1, 2))
    error = float(squares.std()) / math.sqrt(len(draws))
    assert abs(float(squares.mean()) - rms(pool.deltas("w")) ** 2) < 4 * error


@pytest.mark.parametrize("noise", SHAPED, ids=name_of)
def test_order_of_experts_changes_no_bit(noise: Noise) -> None:
    pool = random_pool(SHAPES)
    turned = pool.select(["expert2", "expert0", "expert1"])
    for name in pool.names:
        assert torch.equal(noise.on(name, pool)(1), noise.on(name, turned)(1))


@pytest.mark.parametrize("noise", KINDS, ids=name_of)
@pytest.mark.parametrize("shape", [(0,), (0, 3), (), (1,), (1, 1)])
def test_small_tensors_survive(noise: Noise, shape: tuple[int, ...]) -> None:
    drawn = noise.on("w", random_pool({"w": shape}))(0)
    assert drawn.shape == shape
    assert torch.isfinite(drawn).all()


@pytest.mark.parametrize(
    "noise",
    [GaussianNoise("base"), LowRankNoise(2, "base"), GaussianNoise("deltas"), *SHAPED],
    ids=repr,
)
def test_noise_relative_to_nothing_is_zero(noise: Noise) -> None:
    zero = torch.zeros(4, 5)
    assert not noise.on("w", memory_pool({"w": zero}, [{"w": zero}]))(0).any()


@pytest.mark.parametrize(
    "noise", [*KINDS, LowRankNoise(7, "base"), BlockNoise(3, "one")], ids=repr
)
def test_description_comes_back(noise: Noise) -> None:
    assert noise_from_description(describe(noise)) == noise


def test_options_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="unit of the noise must be 'one', 'base' or 'deltas', "):
        GaussianNoise("two")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="rank of the noise must be at least 1, got 0"):
        LowRankNoise(0)
    with pytest.raises(ValueError, match="size of a block must be at least 1 entry, got 0"):
        BlockNoise(0)


@pytest.mark.parametrize(
    ("description", "message"),
    [
        ({"_target_": "merging.paths.noise.Loud"}, "noise 'merging.paths.noise.Loud' cannot"),
        ({"_target_": "os.system"}, "'os.system' is no noise"),
        ({"_target_": "merging.methods.ties.Ties"}, "'merging.methods.ties.Ties' is no noise"),
        (
            {"_target_": "merging.paths.noise.GaussianNoise", "x": 1},
            "noise .*GaussianNoise: .*'x'",
        ),
    ],
)
def test_descriptions_that_make_no_noise_are_refused(
    description: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        noise_from_description(description)
