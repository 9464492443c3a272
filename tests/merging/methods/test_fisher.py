"""Fisher-weighted averaging: closed forms entry by entry, and the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.methods.fisher import Fisher
from tests.merging.methods.method_cases import Problem, merge, random_problem
from tests.merging.methods.statistics_cases import StatisticsContract, noise, supply


class TestContract(StatisticsContract):
    kind = "fisher"
    method = Fisher

    def statistics(self, problem: Problem, seed: int) -> list[Tensor]:
        return [noise(*problem.base.shape, seed=seed + i).square() for i in range(3)]


@pytest.fixture
def given() -> Problem:
    problem = random_problem(Fisher("nowhere", digests={}), (5, 4), 3)
    return problem.but(weight=[1.0, 1.0, 1.0])


def merged_with(tmp_path: Path, given: Problem, own: list[Tensor], **options: float) -> Tensor:
    supply(tmp_path, "fisher", given.slot.experts, own)
    return merge(Fisher(str(tmp_path), **options), given)


def fishers(seed: int = 0) -> list[Tensor]:
    return [noise(5, 4, seed=seed + i).square().float().double() for i in range(3)]


def test_published_formula(tmp_path: Path, given: Problem) -> None:
    """Eq. (1): sum_i w_i F_i theta_i / sum_i w_i F_i."""
    own, weights = fishers(), (0.2, 0.5, 2.0)
    top = sum(w * f * (given.base + d) for w, f, d in zip(weights, own, given.deltas, strict=True))
    bottom = sum(w * f for w, f in zip(weights, own, strict=True))
    merged = merged_with(tmp_path, given.but(weight=list(weights)), own, floor=0.0)
    torch.testing.assert_close(merged, top / bottom, rtol=1e-10, atol=1e-10)


def test_equal_fishers_return_the_average(tmp_path: Path, given: Problem) -> None:
    merged = merged_with(tmp_path, given, fishers()[:1] * 3)
    torch.testing.assert_close(merged, given.base + given.deltas.mean(0))


def test_entry_that_one_expert_alone_reads_is_its_own(tmp_path: Path, given: Problem) -> None:
    own = fishers()
    own[0][1, 2] = own[2][1, 2] = 0
    merged = merged_with(tmp_path, given, own, floor=0.0)
    torch.testing.assert_close(merged[1, 2], (given.base + given.deltas[1])[1, 2])


@pytest.mark.parametrize("floor", [0.0, 1e-6])
def test_entries_that_nobody_reads_are_averaged(
    tmp_path: Path, given: Problem, floor: float
) -> None:
    own = fishers()
    for fisher in own:
        fisher[0] = 0
    average = given.base + given.deltas.mean(0)
    torch.testing.assert_close(merged_with(tmp_path, given, own, floor=floor)[0], average[0])
    nothing = [f * 0 for f in own]
    torch.testing.assert_close(merged_with(tmp_path, given, nothing, floor=floor), average)


def test_floor_is_a_fraction_of_the_mean(tmp_path: Path, given: Problem) -> None:
    own = fishers()
    floor = 0.3 * float(torch.stack(own).mean())
    raised = [f.clamp(min=floor) for f in own]
    torch.testing.assert_close(
        merged_with(tmp_path / "a", given, own, floor=0.3),
        merged_with(tmp_path / "b", given, raised, floor=0.0),
        rtol=1e-6,
        atol=1e-6,
    )


@pytest.mark.parametrize("size", [2.0**-80, 2.0**40])
def test_unit_of_the_likelihood_changes_nothing(
    tmp_path: Path, given: Problem, size: float
) -> None:
    own = fishers()
    torch.testing.assert_close(
        merged_with(tmp_path / "a", given, own),
        merged_with(tmp_path / "b", given, [f * size for f in own]),
        rtol=1e-12,
        atol=1e-12,
    )


def test_lies_between_the_experts(tmp_path: Path, given: Problem) -> None:
    experts = given.base + given.deltas
    merged = merged_with(tmp_path, given, fishers(9))
    assert (merged >= experts.min(0).values - 1e-12).all()
    assert (merged <= experts.max(0).values + 1e-12).all()


def test_options_are_checked() -> None:
    with pytest.raises(ValueError, match=r"fisher: floor is -0.1, expected a number of at least"):
        Fisher("nowhere", floor=-0.1)
