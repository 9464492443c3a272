"""Bits of weights do not depend on how many threads torch has."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.checkpoints.adapters import Factors
from merging.lineages.mutation import LowRankMutation
from merging.lineages.slices import tensor_slices
from merging.method import MergeMethod
from merging.methods.fisher import Fisher
from merging.methods.karcher import Karcher
from merging.methods.nuslerp import NuSlerp
from merging.methods.regmean import RegMean
from merging.paths.noise import (
    BlockNoise,
    GaussianNoise,
    LowRankNoise,
    Noise,
    RowNoise,
    SingularNoise,
)
from merging.rules.spectral import low_rank_svd
from tests.merging.memory_pool import random_pool
from tests.merging.methods.method_cases import METHODS, merge, random_problem
from tests.merging.methods.statistics_cases import supply

# torch splits sums and functions from 2^15 entries on, BLAS products of far less
SHAPES = [(70001,), (1901, 37), (31, 2203)]
OPTIONS = {
    Karcher(task_vectors=True): SHAPES[:1],
    NuSlerp(flatten=False): SHAPES[:1],
    NuSlerp(flatten=False, row_wise=True): [(70001, 2), (31, 2203)],
}
NOISES = [GaussianNoise("deltas"), LowRankNoise(4, "base"), RowNoise(), BlockNoise()]


def check_equal_bits(compute: Callable[[], Tensor]) -> None:
    before, found = torch.get_num_threads(), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        try:
            found.append(compute().contiguous().numpy().tobytes())
        finally:
            torch.set_num_threads(before)
    assert found[0] == found[1] == found[2]


@pytest.mark.parametrize("method", [*METHODS, *OPTIONS], ids=repr)
def test_every_method(method: MergeMethod) -> None:
    experts = METHODS.get(method, 2)
    for shape in OPTIONS.get(method, SHAPES):
        given = random_problem(method, shape, 0, experts=experts, dtype=torch.float32)
        check_equal_bits(lambda given=given: merge(method, given))  # type: ignore[misc]


@pytest.mark.parametrize("shape", [(1901, 37), (301, 233)])
def test_methods_with_statistics(shape: tuple[int, ...], tmp_path: Path) -> None:
    given = random_problem(Fisher("nowhere", digests={}), shape, 0, dtype=torch.float32)
    grams = []
    for seed in range(3):
        inputs = torch.randn((500, shape[1]), generator=torch.Generator().manual_seed(seed))
        grams.append(inputs.T @ inputs / 500)
    supply(tmp_path / "gram", "gram", given.slot.experts, grams)
    supply(tmp_path / "fisher", "fisher", given.slot.experts, list(given.deltas.square()))
    # a floor above every entry: the result is then made of the sum in it
    for method in (RegMean(str(tmp_path / "gram")), Fisher(str(tmp_path / "fisher"), floor=1.0)):
        check_equal_bits(lambda method=method: merge(method, given))  # type: ignore[misc]


@pytest.mark.parametrize("noise", [*NOISES, SingularNoise()], ids=repr)
def test_every_noise(noise: Noise) -> None:
    pool = random_pool({"wide": (19, 4099), "tall": (36950, 19), "vector": (70001,)})
    for name in pool.names:
        check_equal_bits(lambda name=name: noise.on(name, pool)(7))  # type: ignore[misc]


def test_products_of_low_rank() -> None:
    rng = torch.Generator().manual_seed(0)
    for rows, rank, columns in ((674, 512, 549), (251, 256, 527), (46, 512, 133)):
        a = torch.randn((rank, columns), generator=rng)
        b = torch.randn((rows, rank), generator=rng)
        check_equal_bits(Factors(a, b, 0.3, False).product)
        check_equal_bits(lambda a=a, b=b: low_rank_svd(b @ a)[0])  # type: ignore[misc]


def test_mutations_of_low_rank() -> None:
    pool = random_pool({"tall": (36950, 19), "small": (1846, 20)})
    for name, tensor in tensor_slices(pool).items():
        parent = pool.deltas(name)[0].reshape(-1)

        def child(tensor=tensor, parent=parent) -> Tensor:  # type: ignore[no-untyped-def]
            change = LowRankMutation(seed=1, rank=3, size=0.5).change(tensor, 2.0)
            blocks = [change(block, parent[block.start : block.stop]) for block in tensor.blocks()]
            return torch.cat(blocks)

        check_equal_bits(child)
