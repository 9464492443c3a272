"""Merges worked out by hand, and what each method does at its edges."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from merging.method import MergeMethod, Slot
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
from merging.methods.iso_c import IsoC
from merging.methods.karcher import Karcher
from merging.methods.linear import Linear
from merging.methods.model_stock import ModelStock
from merging.methods.multi_slerp import MultiSlerp
from merging.methods.nearswap import Nearswap
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.methods.tsv_m import TsvM
from tests.merging.methods.method_cases import (
    Problem,
    merge,
    name_of,
    random_problem,
)


def problem(deltas: list[Any], base: Any = None, **knobs: float | list[float]) -> Problem:
    """A float64 merge of the given numbers; experts are a, b, c, ..."""
    stacked = torch.tensor(deltas, dtype=torch.float64)
    origin = (
        torch.zeros_like(stacked[0]) if base is None else torch.tensor(base, dtype=torch.float64)
    )
    names = tuple("abcdefgh"[: len(stacked)])
    values = {k: torch.tensor(v, dtype=torch.float64) for k, v in knobs.items()}
    return Problem(Slot("w", names), origin, stacked, values)


def test_linear() -> None:
    given = problem([[2.0, 0.0], [0.0, 4.0]], base=[1.0, 1.0], weight=[1.0, 3.0])
    assert merge(Linear(), given).tolist() == [1.5, 4.0]
    assert merge(Linear(normalize=False), given).tolist() == [6.0, 16.0]


def test_linear_goes_beyond_the_experts() -> None:
    given = problem([[1.0], [0.0]], base=[1.0], weight=[2.0, -1.0])
    assert merge(Linear(), given).tolist() == [3.0]


def test_task_arithmetic() -> None:
    given = problem([[2.0, 0.0], [0.0, 4.0]], base=[1.0, 1.0], weight=[1.0, -0.5], scale=0.5)
    assert merge(TaskArithmetic(), given).tolist() == [2.0, 0.0]


def test_slerp_of_a_right_angle() -> None:
    given = problem([[1.0, -1.0], [0.0, 0.0]], base=[0.0, 1.0], weight=[1.0, 1.0])
    half = math.sqrt(0.5)
    assert merge(Slerp(), given).tolist() == pytest.approx([half, half], rel=1e-12)


def test_slerp_ends_at_the_experts() -> None:
    given = random_problem(Slerp(), (4, 3), 0)
    torch.testing.assert_close(
        merge(Slerp(), given.but(weight=[1.0, 0.0])), given.base + given.deltas[0]
    )
    torch.testing.assert_close(
        merge(Slerp(), given.but(weight=[0.0, 1.0])), given.base + given.deltas[1]
    )


def test_slerp_of_opposite_vectors_is_linear() -> None:
    given = problem([[1.0, 2.0], [-2.0, -4.0]], weight=[1.0, 3.0])
    assert merge(Slerp(), given).tolist() == pytest.approx([-1.25, -2.5], rel=1e-12)


def test_nuslerp_rows_and_columns() -> None:
    given = problem([[[1.0, 0.0], [0.0, 1.0]], [[0.0, 1.0], [0.0, 3.0]]], weight=[1.0, 1.0])
    half = math.sqrt(0.5)
    rows = merge(NuSlerp(flatten=False, row_wise=True), given)
    assert rows.reshape(-1).tolist() == pytest.approx([half, half, 0.0, 2.0], abs=1e-12)
    columns = merge(NuSlerp(flatten=False), given)
    assert columns[:, 0].tolist() == pytest.approx([0.5, 0.0], abs=1e-12)  # one is zero: linear


def test_spherical_means_of_two_are_slerp() -> None:
    given = random_problem(Slerp(), (5, 4), 2, size=1.0)
    a, b = (given.base + delta for delta in given.deltas)
    given.deltas[1] = b * (a.norm() / b.norm()) - given.base  # equal lengths
    exact = Karcher(tolerance=1e-13, max_iterations=200)
    torch.testing.assert_close(merge(exact, given), merge(Slerp(), given))


def test_karcher_centres_the_directions() -> None:
    given = problem([[1.0, 0.0], [0.0, 1.0], [0.0, 1.0]], weight=[1.0, 1.0, 1.0])
    angle = math.pi / 3  # two thirds of the way
    expected = [math.cos(angle), math.sin(angle)]
    merged = merge(Karcher(tolerance=1e-13, max_iterations=200), given)
    assert merged.tolist() == pytest.approx(expected, rel=1e-10)


def test_a_zero_vector_only_shortens_a_spherical_mean() -> None:
    given = problem([[3.0, 4.0], [0.0, 0.0]], weight=[1.0, 1.0])
    for method in (MultiSlerp(), Karcher()):
        assert merge(method, given).tolist() == pytest.approx([1.5, 2.0], rel=1e-12)


def test_opposite_vectors_have_no_spherical_mean_and_average_linearly() -> None:
    given = problem([[3.0, 4.0], [-6.0, -8.0]], weight=[1.0, 1.0])
    for method in (MultiSlerp(), Karcher()):
        assert merge(method, given).tolist() == pytest.approx([-1.5, -2.0], rel=1e-12)


def test_an_opposite_vector_does_not_turn_a_spherical_mean_by_rounding() -> None:
    given = random_problem(Karcher(), (50,), 0, experts=2).but(weight=[3.0, 1.0])
    given.deltas[1] = -3 * given.deltas[0]
    for method in (MultiSlerp(task_vectors=True), Karcher(task_vectors=True)):
        expected = given.base + given.deltas[0] * (3 + 3) / 4  # the mean of the lengths
        torch.testing.assert_close(merge(method, given), expected)


def test_ties() -> None:
    given = problem(
        [[1.0, -2.0, 0.1, 4.0], [3.0, 1.0, 0.2, -5.0]],
        weight=[1.0, 1.0],
        density=[0.75, 0.75],
        scale=2.0,
    )
    # 0.1 and 0.2 are trimmed; the larger mass decides each sign; one of two then agrees
    assert merge(Ties(), given).tolist() == [4.0, -4.0, 0.0, -10.0]
    assert merge(Ties(normalize=False), given).tolist() == [8.0, -4.0, 0.0, -10.0]


def test_ties_averages_with_the_weights_of_those_who_agree() -> None:
    ones = [1.0, 1.0, 1.0]
    given = problem([[1.0], [4.0], [-1.0]], weight=[3.0, 1.0, -2.0], density=ones, scale=1.0)
    # shares 3, 4 and 2 all agree: 9 / (3 + 1 + 2)
    assert merge(Ties(), given).tolist() == [1.5]


def test_ties_by_count() -> None:
    ones = [1.0, 1.0, 1.0]
    given = problem([[1.0], [1.0], [-9.0]], weight=ones, density=ones, scale=1.0)
    assert merge(Ties(), given).tolist() == [-9.0]
    assert merge(Ties(majority="count"), given).tolist() == [1.0]


def test_ties_without_a_majority_stays_at_the_base() -> None:
    given = problem([[1.0], [-1.0]], [5.0], weight=[1.0, 1.0], density=[1.0, 1.0], scale=1.0)
    for majority in ("mass", "count"):
        assert merge(Ties(majority=majority), given).tolist() == [5.0]


@pytest.mark.parametrize("method", [DareLinear(), DareTies(), Della(), DellaLinear()], ids=name_of)
def test_full_density_drops_nothing_and_none_drops_all(method: MergeMethod) -> None:
    given = random_problem(method, (5, 4), 0, experts=1).but(weight=[1.0], scale=1.0)
    torch.testing.assert_close(
        merge(method, given.but(density=[1.0])), given.base + given.deltas[0]
    )
    assert torch.equal(merge(method, given.but(density=[0.0])), given.base)


def test_breadcrumbs_removes_both_ends() -> None:
    delta = [5.0, -1.0, 2.0, -4.0, 3.0]
    given = problem([delta], weight=[1.0], density=[0.4], gamma=[0.2], scale=1.0)
    assert merge(Breadcrumbs(), given).tolist() == [0.0, 0.0, 0.0, -4.0, 3.0]
    # no room for that many outliers: the density wins
    assert merge(Breadcrumbs(), given.but(density=[0.8], gamma=[0.6])).tolist() == [
        0.0,
        -1.0,
        2.0,
        -4.0,
        3.0,
    ]


def test_sce() -> None:
    given = problem([[3.0, 1.0, 2.0], [-1.0, 1.0, 4.0]], density=0.9, scale=1.0)
    # variances 4, 0, 1: both of the two that vary; weights (9 + 4) / 30 and (1 + 16) / 30
    expected = [3.0, 0.0, (13 * 2 + 17 * 4) / 30]
    assert merge(Sce(), given).tolist() == pytest.approx(expected, rel=1e-12)
    assert merge(Sce(normalize=False), given)[0].item() == pytest.approx(3 * 13 / 30, rel=1e-12)


def test_sce_has_nothing_to_select_among_equal_experts() -> None:
    given = problem([[0.1, -0.7, 0.3]] * 3, base=[1.0, 2.0, 3.0], density=0.9, scale=1.0)
    assert torch.equal(merge(Sce(), given), given.base)
    whole = merge(Sce(), given.but(density=1.0))
    torch.testing.assert_close(whole, given.base + given.deltas[0])


def test_model_stock() -> None:
    given = problem([[1.0, 0.0], [1.0, math.sqrt(3.0)]], scale=1.0)
    t = 2 * 0.5 / 1.5  # 60 degrees
    expected = [t * 1.0, t * math.sqrt(3.0) / 2]
    assert merge(ModelStock(), given).tolist() == pytest.approx(expected, rel=1e-12)


def test_model_stock_of_parallel_deltas_is_their_mean_and_of_opposed_ones_the_base() -> None:
    parallel = problem([[1.0, 2.0], [3.0, 6.0]], base=[1.0, 1.0], scale=1.0)
    assert merge(ModelStock(), parallel).tolist() == pytest.approx([3.0, 5.0], rel=1e-12)
    opposed = problem([[1.0, 2.0], [-3.0, -6.0]], base=[1.0, 1.0], scale=1.0)
    assert merge(ModelStock(), opposed).tolist() == [1.0, 1.0]


def test_nearswap() -> None:
    given = problem([[0.5, -0.25, 2.0, -8.0, 0.0]], t=0.5)
    assert merge(Nearswap(), given).tolist() == [0.5, -0.25, 0.5, -0.5, 0.0]


def test_tsv_m_keeps_leading_directions_and_separates_them() -> None:
    given = problem([[[3.0, 0.0], [0.0, 1.0]], [[0.0, 0.0], [0.0, 2.0]]], scale=1.0)
    merged = merge(TsvM(), given)
    assert merged.reshape(-1).tolist() == pytest.approx([3.0, 0.0, 0.0, 2.0], abs=1e-12)


def test_tsv_m_of_one_expert_is_the_expert() -> None:
    given = random_problem(TsvM(), (6, 4), 0, experts=1).but(scale=1.0)
    torch.testing.assert_close(merge(TsvM(), given), given.base + given.deltas[0])


@pytest.mark.parametrize("method", [TsvM(), IsoC()], ids=name_of)
def test_spectral_methods_ignore_directions_that_are_only_rounding(method: MergeMethod) -> None:
    noise = torch.Generator().manual_seed(0)
    left = torch.randn(3, 20, 2, generator=noise)
    right = torch.randn(3, 2, 30, generator=noise)
    given = random_problem(method, (20, 30), 0, dtype=torch.float32)  # low rank, as of LoRA
    given.deltas[:] = left @ right
    spoiled = given.deltas * (1 + 1e-7 * torch.randn(given.deltas.shape, generator=noise))
    other = Problem(given.slot, given.base, spoiled, given.knobs)
    torch.testing.assert_close(merge(method, given), merge(method, other), rtol=1e-4, atol=1e-4)


def test_tsv_m_of_equal_experts_is_their_leading_part() -> None:
    given = random_problem(TsvM(), (6, 6), 0, experts=2).but(scale=1.0)
    given.deltas[1] = given.deltas[0]
    left, values, right = torch.linalg.svd(given.deltas[0])
    expected = given.base + left[:, :3] @ torch.diag(values[:3]) @ right[:3]
    torch.testing.assert_close(merge(TsvM(), given), expected)


def test_iso_c_gives_all_directions_the_mean_value() -> None:
    given = problem([[[3.0, 0.0], [0.0, 0.5]], [[0.0, 0.0], [0.0, 0.5]]], scale=1.0)
    merged = merge(IsoC(), given)
    assert merged.reshape(-1).tolist() == pytest.approx([2.0, 0.0, 0.0, 2.0], abs=1e-12)
