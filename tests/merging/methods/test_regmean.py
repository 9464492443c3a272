"""RegMean: closed forms, the regression it solves, and the contract."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from merging.method import MergeError, Slot
from merging.methods.regmean import RegMean
from merging.statistics_files import StatisticsError
from tests.merging.methods.method_cases import Problem, merge, random_problem
from tests.merging.methods.statistics_cases import StatisticsContract, noise, supply

OUT, IN, EXPERTS = 5, 4, 3


def grams(width: int, seed: int, rows: int = 40) -> list[Tensor]:
    """Gram matrices of correlated inputs, float32 as on disk."""
    mixed = [noise(rows, width, seed=seed + i) @ noise(width, width, seed=99) for i in range(3)]
    return [(x.T @ x / rows).float().double() for x in mixed]


class TestContract(StatisticsContract):
    kind = "gram"
    method = RegMean

    def statistics(self, problem: Problem, seed: int) -> list[Tensor] | None:
        return grams(problem.base.shape[1], seed) if problem.base.dim() == 2 else None


@pytest.fixture
def given() -> Problem:
    problem = random_problem(RegMean("nowhere", digests={}), (OUT, IN), 3)
    return problem.but(weight=[1.0] * EXPERTS)


def solved(tmp_path: Path, given: Problem, own: list[Tensor], **options: float) -> Tensor:
    supply(tmp_path, "gram", given.slot.experts, own)
    return merge(RegMean(str(tmp_path), **options), given)


def test_published_formula(tmp_path: Path, given: Problem) -> None:
    """W = (sum G_i)^-1 (sum G_i W_i) with W (in, out) and shrunk G."""
    own = grams(IN, 0)
    shrunk = [0.9 * g + 0.1 * torch.diag(g.diagonal()) for g in own]
    experts = [(given.base + delta).T for delta in given.deltas]
    wanted = torch.linalg.inv(sum(shrunk)) @ sum(
        (g @ w for g, w in zip(shrunk, experts, strict=True)), torch.zeros(IN, OUT)
    )
    merged = solved(tmp_path, given, own, ridge=0.0)
    torch.testing.assert_close(merged, wanted.T, rtol=1e-9, atol=1e-9)


def test_weights_scale_the_objective(tmp_path: Path, given: Problem) -> None:
    own = grams(IN, 1)
    doubled = merge(
        RegMean(str(supplied(tmp_path / "a", given, own)), ridge=0.0),
        given.but(weight=[2.0, 1.0, 0.5]),
    )
    scaled = [g * w for g, w in zip(own, (2.0, 1.0, 0.5), strict=True)]
    torch.testing.assert_close(
        doubled, solved(tmp_path / "b", given, scaled, ridge=0.0), rtol=1e-9, atol=1e-9
    )


def supplied(directory: Path, given: Problem, own: list[Tensor]) -> Path:
    supply(directory, "gram", given.slot.experts, own)
    return directory


def test_one_expert_returns_itself(tmp_path: Path, given: Problem) -> None:
    one = Problem(
        Slot(given.slot.name, given.slot.experts[:1]),
        given.base,
        given.deltas[:1],
        {"weight": torch.ones(1, dtype=torch.float64)},
    )
    merged = solved(tmp_path, one, grams(IN, 2)[:1])
    torch.testing.assert_close(merged, given.base + given.deltas[0], rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("ridge", [0.0, 1e-6, 1.0])
def test_equal_grams_return_the_average(tmp_path: Path, given: Problem, ridge: float) -> None:
    merged = solved(tmp_path, given, grams(IN, 3)[:1] * EXPERTS, ridge=ridge)
    average = given.base + given.deltas.mean(0)
    torch.testing.assert_close(merged, average, rtol=1e-10, atol=1e-10)


def test_no_correlations_weight_columns_by_energy(tmp_path: Path, given: Problem) -> None:
    """shrink=0 leaves the diagonal: column j is the average weighted by the inputs' energy."""
    own = grams(IN, 4)
    energy = torch.stack([g.diagonal() for g in own])[:, None]
    wanted = given.base + (given.deltas * energy).sum(0) / energy.sum(0)
    merged = solved(tmp_path, given, own, shrink=0.0, ridge=0.0)
    torch.testing.assert_close(merged, wanted, rtol=1e-10, atol=1e-10)


def objective(weight: Tensor, given: Problem, own: list[Tensor]) -> float:
    total = 0.0
    for gram, delta in zip(own, given.deltas, strict=True):
        gap = weight - given.base - delta
        total += float((gap @ gram * gap).sum())
    return total


@pytest.mark.parametrize("seed", range(5))
def test_is_the_minimum_of_its_objective(tmp_path: Path, given: Problem, seed: int) -> None:
    own = grams(IN, 10 * seed)
    merged = solved(tmp_path, given, own, shrink=1.0, ridge=0.0)
    least = objective(merged, given, own)
    assert least < objective(given.base + given.deltas.mean(0), given, own)
    for step in range(5):
        moved = merged + 1e-3 * noise(OUT, IN, seed=step)
        assert least < objective(moved, given, own)


def test_directions_without_data_get_the_average(tmp_path: Path, given: Problem) -> None:
    """Inputs 2 and 3 are always zero; the Gram matrices are singular there."""
    own = grams(IN, 5)
    for gram in own:
        gram[2:] = 0
        gram[:, 2:] = 0
    merged = solved(tmp_path, given, own)
    average = given.base + given.deltas.mean(0)
    torch.testing.assert_close(merged[:, 2:], average[:, 2:])
    assert not torch.allclose(merged[:, :2], average[:, :2])
    torch.testing.assert_close(
        solved(tmp_path / "zero", given, [g * 0 for g in own], ridge=0.0), average
    )


def test_singular_grams_without_a_ridge_are_refused(tmp_path: Path, given: Problem) -> None:
    few = [x.T @ x for x in (noise(1, IN, seed=i) for i in range(EXPERTS))]  # rank 3 of 4
    with pytest.raises(MergeError, match=r"'layers.0.weight' are singular: set ridge abo"):
        solved(tmp_path, given, few, shrink=1.0, ridge=0.0)
    assert solved(tmp_path, given, few, shrink=1.0).isfinite().all()


def test_badly_scaled_inputs_are_no_singular_ones(tmp_path: Path, given: Problem) -> None:
    """One input of a million times the others' size, as language models have."""
    size = torch.tensor([1e6, 1.0, 1.0, 1e-3], dtype=torch.float64)
    own = [g * size * size[:, None] for g in grams(IN, 6)]
    rescaled = Problem(given.slot, given.base / size, given.deltas / size, given.knobs)
    plain = solved(tmp_path / "a", given, grams(IN, 6), ridge=0.0)
    merged = solved(tmp_path / "b", rescaled, own, ridge=0.0)
    torch.testing.assert_close(merged * size, plain, rtol=1e-5, atol=1e-5)  # float32 on disk


def test_weights_stored_transposed(tmp_path: Path, given: Problem) -> None:
    own = grams(IN, 7)
    plain = solved(tmp_path / "a", given, own)
    supply(tmp_path / "b", "gram", given.slot.experts, own, transposed=(given.slot.name,))
    turned = Problem(given.slot, given.base.T, given.deltas.transpose(1, 2), given.knobs)
    torch.testing.assert_close(merge(RegMean(str(tmp_path / "b")), turned), plain.T)


def test_other_parameters_are_averaged(tmp_path: Path, given: Problem) -> None:
    supply(tmp_path, "gram", given.slot.experts, None)
    merged = merge(RegMean(str(tmp_path)), given.but(weight=[1.0, 2.0, 1.0]))
    mixed = (given.deltas[0] + 2 * given.deltas[1] + given.deltas[2]) / 4
    torch.testing.assert_close(merged, given.base + mixed)


def test_files_that_disagree(tmp_path: Path, given: Problem) -> None:
    supply(tmp_path, "gram", given.slot.experts, grams(IN, 8))
    supply(tmp_path, "gram", given.slot.experts[:1], None)
    with pytest.raises(StatisticsError, match=r"files disagree whether 'layers.0.weight' is the"):
        merge(RegMean(str(tmp_path)), given)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shrink": 1.5}, r"shrink is 1.5, expected a number in \[0, 1\]"),
        ({"ridge": -1.0}, r"ridge is -1.0, expected a number of at least 0"),
        ({"ridge": float("nan")}, r"ridge is nan, expected"),
    ],
)
def test_options_are_checked(options: dict[str, float], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        RegMean("nowhere", **options)
