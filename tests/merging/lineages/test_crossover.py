"""Crossovers and mutations: against float64, at their ends, and what their numbers mean."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.lineages.crossover import (
    ArithmeticCrossover,
    CrossoverOperator,
    PointCrossover,
    SlerpCrossover,
    SplitSlerpCrossover,
    TensorCrossover,
    UniformCrossover,
)
from merging.lineages.lineage import Crossed, Founder, Lineage, Mutated
from merging.lineages.mutation import LowRankMutation, Mutation, ScaleMutation, SignMutation
from merging.lineages.slices import EntryRange, TensorSlice, tensor_slices
from merging.spaces.lineage import LineageSpace
from tests.merging.lineages.naive_lineage import Vectors, naive
from tests.merging.memory_pool import memory_pool, random_pool

SHAPES: dict[str, tuple[int, ...]] = {
    "embed": (700, 100),  # two blocks
    "layers.0.w": (4, 3, 5),
    "layers.0.wide": (2, 70000),  # a row is more than a block
    "layers.1.bias": (66000,),  # a vector of two blocks
    "layers.1.none": (0, 3),
    "layers.2.w": (6, 7),
    "number": (),
    "head": (3, 2),
}
A, B = Founder("expert0"), Founder("expert1")
CROSSOVERS: list[CrossoverOperator] = [
    UniformCrossover(1),
    UniformCrossover(2, 0.1),
    PointCrossover((0.3,)),
    PointCrossover((0.25, 0.9)),
    PointCrossover((0.1, 0.11, 0.7)),
    PointCrossover((0.5,), "layers"),
    PointCrossover((0.2, 0.7), "layers"),
    TensorCrossover(3),
    TensorCrossover(4, 0.8),
    ArithmeticCrossover(0.3),
    ArithmeticCrossover(1.7),
    SlerpCrossover(0.3),
    SlerpCrossover(-0.5),
    SplitSlerpCrossover(0.2, 0.8),
    SplitSlerpCrossover(0.999, 1.0),
]
MUTATIONS: list[Mutation] = [
    ScaleMutation(-1.5),
    LowRankMutation(1, 2, 0.5),
    SignMutation(2, 0.25),
    SignMutation(3, 1.0),
]


def ones_pool(*values: float, shapes: dict[str, tuple[int, ...]] = SHAPES) -> ExpertPool:
    """A base of zeros, experts whose deltas have one value everywhere."""
    deltas = [
        {name: torch.full(shape, value) for name, shape in shapes.items()} for value in values
    ]
    return memory_pool({name: torch.zeros(shape) for name, shape in shapes.items()}, deltas)


@pytest.fixture(scope="module")
def pool() -> ExpertPool:
    """Its base is zero: weights are task vectors."""
    pool = random_pool(SHAPES)
    zeros = {name: torch.zeros(shape) for name, shape in SHAPES.items()}
    return memory_pool(zeros, [{n: pool.deltas(n)[i] for n in SHAPES} for i in range(3)])


def founders_of(pool: ExpertPool) -> dict[str, Vectors]:
    return {
        expert: {name: pool.deltas(name)[i].double().numpy() for name in pool.names}
        for i, expert in enumerate(pool.expert_names)
    }


def bred(pool: ExpertPool, lineage: Lineage) -> dict[str, Tensor]:
    return dict(LineageSpace(pool).decode(lineage))


def flat(weights: dict[str, Tensor]) -> Tensor:
    return torch.cat([tensor.reshape(-1) for tensor in weights.values()])


@pytest.mark.parametrize("by", CROSSOVERS, ids=repr)
def test_crossovers_agree_with_float64(pool: ExpertPool, by: CrossoverOperator) -> None:
    expected = naive(Crossed(A, B, by), founders_of(pool))
    exact = isinstance(by, UniformCrossover | PointCrossover | TensorCrossover)
    for name, tensor in bred(pool, Crossed(A, B, by)).items():
        error = np.abs(tensor.double().numpy() - expected[name])
        assert tensor.shape == SHAPES[name]
        assert error.max(initial=0) <= (0 if exact else 1e-6), name


@pytest.mark.parametrize("by", MUTATIONS, ids=repr)
def test_mutations_agree_with_float64(pool: ExpertPool, by: Mutation) -> None:
    expected = naive(Mutated(A, by), founders_of(pool))
    for name, tensor in bred(pool, Mutated(A, by)).items():
        error = np.abs(tensor.double().numpy() - expected[name])
        assert tensor.shape == SHAPES[name]
        assert error.max(initial=0) <= (0 if isinstance(by, SignMutation) else 2e-6), name


IDENTITY_PARENTS: list[tuple[CrossoverOperator, int | None]] = [
    (UniformCrossover(1, 1), 0),
    (UniformCrossover(1, 0), 1),
    (UniformCrossover(1), None),
    (PointCrossover((1.0,)), 0),
    (PointCrossover((0.0,)), 1),
    (PointCrossover((0.0,), "layers"), 1),
    (PointCrossover((0.0, 1.0)), 1),
    (PointCrossover((0.4, 0.4)), 0),
    (PointCrossover((0.0, 0.4, 0.4, 1.0)), 1),
    (PointCrossover((0.4, 0.6)), None),
    (TensorCrossover(1, 1), 0),
    (TensorCrossover(1, 0), 1),
    (TensorCrossover(1), None),
    (ArithmeticCrossover(1), 0),
    (ArithmeticCrossover(0), 1),
    (ArithmeticCrossover(0.5), None),
    (SlerpCrossover(1), 0),
    (SlerpCrossover(0), 1),
    (SlerpCrossover(1.5), None),
    (SplitSlerpCrossover(1, 1), 0),
    (SplitSlerpCrossover(0, 1), 1),
    (SplitSlerpCrossover(1, 0), 1),
    (SplitSlerpCrossover(0, 0), 0),
    (SplitSlerpCrossover(0.5, 1), None),
]


@pytest.mark.parametrize(("by", "side"), IDENTITY_PARENTS, ids=repr)
def test_a_child_of_one_parent_is_that_parent_to_the_bit(
    by: CrossoverOperator, side: int | None
) -> None:
    assert by.identity_parent == side
    pool = random_pool({"layers.0.w": (5, 4), "layers.1.w": (30,)})
    child = bred(pool, Crossed(A, B, by))
    same = [
        all(torch.equal(child[n], bred(pool, parent)[n]) for n in pool.names) for parent in (A, B)
    ]
    assert same == [side == 0, side == 1] or isinstance(by, TensorCrossover)


@pytest.mark.parametrize(
    ("by", "idle"),
    [
        (ScaleMutation(1), True),
        (ScaleMutation(-1), False),
        (SignMutation(1, 0), True),
        (SignMutation(1, 0.1), False),
        (LowRankMutation(1, 1, 0), True),
        (LowRankMutation(1, 1, 0.1), False),
    ],
    ids=repr,
)
def test_an_idle_mutation_changes_no_bit(by: Mutation, idle: bool) -> None:
    assert by.idle == idle
    pool = random_pool({"w": (50, 4)})
    assert torch.equal(bred(pool, Mutated(A, by))["w"], bred(pool, A)["w"]) == idle


@pytest.mark.parametrize("share", [0.01, 0.3, 0.5, 0.99])
def test_uniform_takes_its_share_in_every_tensor(share: float) -> None:
    pool = ones_pool(1.0, 0.0, shapes={"w": (300, 1000), "v": (300, 1000), "u": (300000,)})
    child = bred(pool, Crossed(A, B, UniformCrossover(5, share)))
    sd = math.sqrt(share * (1 - share) / 300000)
    for tensor in child.values():
        assert abs(float(tensor.mean()) - share) < 4.5 * sd + 2**-17
    again = bred(pool, Crossed(A, B, UniformCrossover(6, share)))
    agreement = share**2 + (1 - share) ** 2
    spread = 4.5 * math.sqrt(agreement * (1 - agreement) / 300000) + 2**-15
    for other in (child["v"], child["u"].view(300, 1000), again["w"], child["w"].roll(65, 0)):
        assert abs(float((child["w"] == other).double().mean()) - agreement) < spread


@pytest.mark.parametrize("cuts", [(0.0,), (1.0,), (0.5,), (0.25, 0.75), (0.0, 0.1), (0.9, 1.0)])
def test_points_cut_the_flattened_vector_where_they_say(cuts: tuple[float, ...]) -> None:
    shapes = {"a": (3, 4), "b": (7,), "c": (2, 2), "d": (1,)}  # 24 entries; 0.25 lies inside a
    child = flat(bred(ones_pool(1, 2, shapes=shapes), Crossed(A, B, PointCrossover(cuts))))
    first, second = (round(cut * 24) for cut in (*cuts, 1.0)[:2])
    expected = [1.0] * first + [2.0] * (second - first) + [1.0] * (24 - second)
    assert child.tolist() == expected


def test_points_may_cut_anywhere() -> None:
    shapes = {"a": (3, 4), "b": (7,), "c": (2, 2), "d": (1,)}
    pool = ones_pool(1, 2, shapes=shapes)
    for at in range(25):
        child = flat(bred(pool, Crossed(A, B, PointCrossover((at / 24,)))))
        assert child.tolist() == [1.0] * at + [2.0] * (24 - at)
    three = flat(bred(pool, Crossed(A, B, PointCrossover((0.75, 0.25, 0.5)))))
    assert three.tolist() == [1.0] * 6 + [2.0] * 6 + [1.0] * 6 + [2.0] * 6


@pytest.mark.parametrize("cut", [0.0, 0.1, 0.25, 0.5, 0.75, 1.0])
def test_points_over_layers_leave_tensors_whole(cut: float) -> None:
    names = ["embed", "layers.0.w", "layers.0.b", "layers.1.w", "layers.2.w", "layers.3.w", "norm"]
    pool = ones_pool(1, 2, shapes=dict.fromkeys(names, (3,)))
    child = bred(pool, Crossed(A, B, PointCrossover((cut,), "layers")))
    layer = [0, 0, 0, 1, 2, 3, 3]
    for name, number in zip(names, layer, strict=True):
        assert child[name].tolist() == [1 if number < round(cut * 4) else 2] * 3


def test_layers_are_counted_through_all_stacks() -> None:
    names = [
        "shared",
        "encoder.block.0.w",
        "encoder.block.1.w",
        "encoder.norm",
        "decoder.block.0.w",
    ]
    pool = ones_pool(1, shapes=dict.fromkeys(names, (2, 2)))
    assert [(p.layer, p.layers, p.offset, p.total) for p in tensor_slices(pool).values()] == [
        (0, 3, 0, 20),
        (0, 3, 4, 20),
        (1, 3, 8, 20),
        (1, 3, 12, 20),
        (2, 3, 16, 20),
    ]
    assert tensor_slices(ones_pool(1, shapes={"w": (2,)}))["w"].layers == 1


def test_per_tensor_takes_its_share_of_tensors() -> None:
    pool = ones_pool(1.0, 0.0, shapes={f"t{i}": (1,) for i in range(2000)})
    for share in (0.2, 0.5):
        mean = float(flat(bred(pool, Crossed(A, B, TensorCrossover(1, share)))).mean())
        assert abs(mean - share) < 4.5 * math.sqrt(share * (1 - share) / 2000)


def test_slerp_goes_round_the_circle() -> None:
    deltas = [{"w": torch.tensor([[2.0, 0.0]])}, {"w": torch.tensor([[0.0, 3.0]])}]
    pool = memory_pool({"w": torch.zeros(1, 2)}, deltas)
    for weight in (-1.0, -0.25, 0.5, 1 / 3, 2.0):
        child = bred(pool, Crossed(A, B, SlerpCrossover(weight)))["w"]
        angle = weight * math.pi / 2  # from the second parent to the first
        expected = torch.tensor([[2 * math.sin(angle), 3 * math.cos(angle)]])
        torch.testing.assert_close(child, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("factor", [2.0, -1.0, 0.0, 1.0])
def test_slerp_of_parallel_opposite_and_zero_vectors_is_linear(factor: float) -> None:
    pool = random_pool({"w": (9, 9)})
    weights = [bred(pool, each)["w"] for each in (A, Mutated(A, ScaleMutation(factor)))]
    for by in (SlerpCrossover(0.25), SplitSlerpCrossover(1.0, 0.25)):
        child = bred(pool, Crossed(A, Mutated(A, ScaleMutation(factor)), by))["w"]
        expected = 0.25 * weights[0] + 0.75 * weights[1]
        torch.testing.assert_close(child, expected, rtol=1e-6, atol=1e-6)


def test_low_rank_noise_has_the_size_and_the_rank_it_says(pool: ExpertPool) -> None:
    parent, child = bred(pool, A), bred(pool, Mutated(A, LowRankMutation(7, 2, 0.5)))
    for name in ("embed", "layers.1.bias", "layers.2.w", "head", "number"):
        noise = child[name].double() - parent[name].double()
        ratio = float(noise.norm() / parent[name].double().norm())
        assert ratio == pytest.approx(0.5, rel=1e-5)
    values = torch.linalg.svdvals(child["embed"].double() - parent["embed"].double())
    assert values[1] > 0.1 * values[0]
    assert values[2] < 1e-5 * values[0]


def test_low_rank_noise_leaves_a_zero_tensor_at_zero() -> None:
    deltas = [{"w": torch.ones(4, 4), "v": torch.zeros(4, 4)}]
    pool = memory_pool({"w": torch.ones(4, 4), "v": torch.ones(4, 4)}, deltas)
    child = bred(pool, Mutated(A, LowRankMutation(1, 2, 0.5)))
    assert torch.equal(child["v"], torch.ones(4, 4))
    assert not torch.equal(child["w"], 2 * torch.ones(4, 4))


def test_sign_flip_takes_its_share() -> None:
    pool = ones_pool(1.0, shapes={"w": (400, 1000)})
    child = bred(pool, Mutated(A, SignMutation(1, 0.1)))["w"]
    assert torch.equal(child.abs(), torch.ones(400, 1000))
    share = float((child < 0).double().mean())
    assert abs(share - 0.1) < 4.5 * math.sqrt(0.09 / 400000) + 2**-17


def test_blocks_are_full_rows_and_cover_the_tensor() -> None:
    for shape in [*SHAPES.values(), (65536,), (65537,), (1, 65536), (2, 65537), (3, 0)]:
        tensor = TensorSlice("w", shape, 0, 1, 0, 1)
        blocks = list(tensor.blocks())
        assert [block.number for block in blocks] == list(range(len(blocks)))
        assert [b.start for b in blocks] == [0, *(b.stop for b in blocks)][: len(blocks)]
        assert (blocks[-1].stop if blocks else 0) == math.prod(shape)
        for block in blocks:
            assert tensor.columns == 0 or block.start % tensor.columns == 0
            assert block.stop - block.start <= max(65536, tensor.columns)
    tensor = TensorSlice("w", (700, 100), 0, 1, 0, 1)
    assert next(tensor.blocks()) == EntryRange(tensor, 0, 0, 65500)


def test_equal_numbers_make_equal_operators() -> None:
    assert UniformCrossover(np.int64(3), np.float32(0.5)) == UniformCrossover(3, 0.5)  # type: ignore[arg-type]
    assert PointCrossover([0.5, 0.25]) == PointCrossover((0.25, 0.5))  # type: ignore[arg-type]
    assert (
        repr(ArithmeticCrossover(-0.0))
        == repr(ArithmeticCrossover(0))
        == "ArithmeticCrossover(weight=0.0)"
    )
    assert (
        Crossed(A, B, SlerpCrossover(1))
        == Crossed(A, B, SlerpCrossover(1.0))
        != Crossed(B, A, SlerpCrossover(1.0))
    )


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (UniformCrossover, {"seed": 1.5}, "seed must be a whole number, got 1.5"),
        (UniformCrossover, {"seed": True}, "seed must be a whole number, got True"),
        (
            UniformCrossover,
            {"seed": 1, "share": 1.5},
            r"share must hold fractions in \[0, 1\], got 1.5",
        ),
        (TensorCrossover, {"seed": 1, "share": "0.5"}, "share must hold fractions .* got '0.5'"),
        (TensorCrossover, {"seed": 1, "share": math.nan}, "share must hold fractions .* got nan"),
        (
            PointCrossover,
            {"cuts": ()},
            r"cuts must be one or more fractions in \[0, 1\], got \(\)",
        ),
        (PointCrossover, {"cuts": 0.5}, "cuts must be one or more fractions .* got 0.5"),
        (PointCrossover, {"cuts": (0.5, 2)}, "cuts must hold fractions .* got 2"),
        (
            PointCrossover,
            {"cuts": (0.5,), "over": "rows"},
            "over must be 'vector' or 'layers', got 'rows'",
        ),
        (ArithmeticCrossover, {"weight": math.inf}, "weight must be a finite number, got inf"),
        (SlerpCrossover, {"weight": None}, "weight must be a finite number, got None"),
        (SplitSlerpCrossover, {"cut": -0.1, "weight": 1}, "cut must hold fractions .* got -0.1"),
        (
            SplitSlerpCrossover,
            {"cut": 0.1, "weight": "x"},
            "weight must be a finite number, got 'x'",
        ),
        (ScaleMutation, {"factor": math.nan}, "factor must be a finite number, got nan"),
        (LowRankMutation, {"seed": 1, "rank": 0, "size": 1}, "rank must be at least 1, got 0"),
        (LowRankMutation, {"seed": 1, "rank": 1, "size": -1}, "size must be at least 0, got -1"),
        (SignMutation, {"seed": 1, "share": 2}, "share must hold fractions .* got 2"),
    ],
)
def test_wrong_numbers_are_refused(make: Any, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(**options)
