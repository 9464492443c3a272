"""Statistics with noise: sensitivity, scale, projection, and the way of their price."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from torch import Tensor

from evaluators.requests import EvaluationError
from experiments.gathering.items import Item
from experiments.gathering.private import PrivateStatistics
from experiments.runs.starts import others
from merging.checkpoints.mechanisms import DiscreteGaussianMechanism
from merging.privacy import accounting
from merging.statistics_files import (
    Origin,
    StatisticsKind,
    read_origin,
    records_of,
    write_statistics,
)
from search.privacy.private_noise import SCALE
from tests.experiments.gathering.test_statistics import gather, pool_options
from tests.experiments.refusals import Shell

WIDTHS = {"a": 3, "b": 5}
SHAPES = {name: (width, width) for name, width in WIDTHS.items()}


def private(**options: Any) -> PrivateStatistics:
    return PrivateStatistics(**{"data": "d", "clip": 1.0, "noise_multiplier": 2.0, **options})


def unit(scale: float, seed: int) -> list[Item]:
    """An item whose statistics are made of its numbers."""
    numbers = torch.randn(4, 5, generator=torch.Generator().manual_seed(seed)) * scale
    return [Item({"x": numbers})]


def statistics(items: Sequence[Item]) -> dict[str, Tensor]:
    rows = items[0].inputs["x"]
    return {name: rows[:, :w].T @ rows[:, :w] / len(rows) for name, w in WIDTHS.items()}


@given(
    st.tuples(st.floats(0.001, 1e4), st.integers(0, 99)),
    st.floats(0.01, 1e3),
    st.sampled_from(["gram", "fisher"]),
)
@settings(max_examples=60, deadline=None)
def test_one_item_moves_all_tensors_together_by_at_most_the_stated_part_of_the_noise(
    item: tuple[float, int], sigma: float, kind: StatisticsKind
) -> None:
    mechanism = private(clip=0.7, noise_multiplier=sigma)
    squares = 0
    for part in statistics(unit(*item)).values():
        entries = mechanism.whole(part, kind, len(WIDTHS)).tolist()
        squares += sum(entry**2 for row in entries for entry in row)
    assert squares * Fraction(sigma) ** 2 <= SCALE**2  # sigma sensitivity <= noise, exactly


def test_small_parts_stay_whole_and_what_is_not_finite_counts_nothing() -> None:
    part, noise = torch.tensor([[0.5, 0.1], [0.1, 0.5]]), SCALE / 2.0  # sigma
    whole = private().whole(part, "gram", 1) / noise * 2  # clip, times the width
    expected = torch.tensor([[0.5, 0.0], [0.1 * math.sqrt(2), 0.5]])
    torch.testing.assert_close(whole, expected, atol=1e-6, rtol=0)
    halved = private(clip=0.5).whole(10 * part, "fisher", 1) / noise * 0.5
    assert float(torch.linalg.vector_norm(halved)) == pytest.approx(0.5, rel=1e-5)
    assert not private().whole(part * math.inf, "gram", 1).any()


@pytest.mark.parametrize("kind", ["gram", "fisher"])
def test_the_noise_has_the_stated_scale(kind: StatisticsKind) -> None:
    """Far from zero, where projection changes nothing: norms of two tensors together."""
    mechanism, units = private(clip=2.0, noise_multiplier=0.01), [unit(1.0, 0)] * 50

    def strong(items: Sequence[Item]) -> Mapping[str, Tensor]:
        if kind == "fisher":
            return {name: torch.full((40, 40), 1.0) for name in WIDTHS}
        return {name: torch.eye(40) for name in WIDTHS}

    large = dict.fromkeys(WIDTHS, (40, 40))
    drawn = []
    for seed in range(8):
        found = mechanism.release(units, strong, kind, large, secret=seed)
        quiet = private(clip=2.0, noise_multiplier=1e-8).release(units, strong, kind, large)
        for name, tensor in found.items():
            drawn.append(50 * tensor.double() - 50 * quiet[name])
    noise = torch.stack(drawn)
    expected = 0.01 * math.sqrt(2) * 2.0 * (40 if kind == "gram" else 1)
    if kind == "gram":
        diagonal = noise.diagonal(dim1=1, dim2=2)
        rows, columns = torch.tril_indices(40, 40, -1)
        lower = noise[:, rows, columns]
        assert float(diagonal.std()) == pytest.approx(expected, rel=0.1)
        assert float(lower.std()) == pytest.approx(expected / math.sqrt(2), rel=0.05)
    else:
        assert float(noise.std()) == pytest.approx(expected, rel=0.05)


def test_gram_matrices_stay_symmetric_and_positive_and_fisher_positive() -> None:
    units = [unit(1.0, i) for i in range(3)]
    for tensor in private().release(units, statistics, "gram", SHAPES, secret=1).values():
        assert torch.equal(tensor, tensor.T) or torch.allclose(tensor, tensor.T, atol=1e-5)
        assert float(torch.linalg.eigvalsh(tensor.double()).min()) > -1e-4
    for tensor in private().release(units, statistics, "fisher", SHAPES, secret=1).values():
        assert float(tensor.min()) >= 0


def test_with_hardly_any_noise_it_is_the_mean_over_items() -> None:
    units = [unit(0.1, i) for i in range(5)]
    found = private(noise_multiplier=1e-8, clip=10.0).release(units, statistics, "gram", SHAPES)
    for name in WIDTHS:
        mean = torch.stack([statistics(each)[name] for each in units]).mean(0)
        torch.testing.assert_close(found[name], mean, atol=1e-6, rtol=1e-4)


def test_an_item_that_cannot_be_read_counts_nothing_and_two_releases_differ() -> None:
    def failing(items: Sequence[Item]) -> dict[str, Tensor]:
        if float(items[0].inputs["x"].abs().max()) > 50:
            raise EvaluationError("secret")
        return statistics(items)

    units = [unit(0.1, 0), unit(1e3, 1)]
    quiet = private(noise_multiplier=1e-8, clip=10.0)
    found = quiet.release(units, failing, "gram", SHAPES)
    torch.testing.assert_close(found["a"], statistics(units[0])["a"] / 2, atol=1e-6, rtol=1e-4)
    for tensor in quiet.release(units[1:], failing, "gram", SHAPES).values():
        assert float(tensor.abs().max()) < 1e-5  # the noise alone
    one, other = (private().release(units[:1], statistics, "fisher", SHAPES) for _ in range(2))
    assert not torch.equal(one["a"], other["a"])


def test_the_price_is_that_of_the_gaussian_mechanism() -> None:
    spend = private(noise_multiplier=4.0, data={"x": "d", "y": "e"}).spend("y", "gram")
    assert spend.dataset == "e"
    assert spend.epsilon == accounting.epsilon([DiscreteGaussianMechanism(4.0)], 1e-5)
    assert spend.mechanisms == (DiscreteGaussianMechanism(4.0),)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"clip": 0.0}, "privacy.clip must be a finite number above 0, got 0.0"),
        ({"noise_multiplier": math.inf}, "privacy.noise_multiplier must be a finite number"),
        ({"delta": 0.0}, "privacy.delta must be above 0 and below 1, got 0.0"),
    ],
)
def test_options_are_refused_by_name(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        private(**options)
    with pytest.raises(ValueError, match="names no data set for expert 'b': give one name for"):
        private(data={"a": "d"}).check(["a", "b"])


def test_files_without_a_release_are_as_before_and_have_no_record(tmp_path: Path) -> None:
    origin = Origin("gram", "e" * 64, "b" * 64, "digest", "float32", 0, 4, 99)
    path = write_statistics(tmp_path, origin, {"w": torch.eye(2)})
    assert "privacy" not in origin.to_json()
    assert read_origin(path) == origin
    ((_, record),) = records_of(tmp_path).values()
    assert record is None


def test_from_a_release_to_the_ledger_of_a_merge(
    world: Path, shell: Shell, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path / "state"))
    release = ["privacy=statistics", "privacy.data=letters", "privacy.noise_multiplier=6"]
    command = gather(world, "kind=gram", "out=stats", *release)
    ended = shell.run(*command)
    assert ended.code == 0, ended.stderr
    files = sorted((shell.cwd / "stats").glob("*.safetensors"))
    assert len(files) == 3
    origin = read_origin(files[0])
    assert (origin.data, origin.items, origin.tokens) == ("letters", 4, 0)
    before = {file: file.read_bytes() for file in files}
    assert len({file.stat().st_mtime_ns for file in files}) == 1, "dates tell how long each took"
    assert shell.run(*command).code == 0  # what is there is kept: nothing is released again
    assert before == {file: file.read_bytes() for file in files}
    merge = ["method=regmean", "method.statistics=stats"]
    ended = shell.run("merge", *pool_options(world), *merge, "out=merged")
    assert ended.code == 0, ended.stderr
    assert all(
        t.isfinite().all() for t in load_file(shell.cwd / "merged/model.safetensors").values()
    )
    privacy = json.loads((shell.cwd / "merged" / "recipe.json").read_text())["privacy"]
    assert [spend["dataset"] for spend in privacy["spends"]] == ["letters"] * 3
    together = accounting.epsilon([DiscreteGaussianMechanism(6.0, 1.0, 3)], 1e-5)
    assert privacy["data_sets"]["letters"]["epsilon"] <= 3 * together
    assert "statistics" not in str(privacy["unrecorded"])
    assert len(others("letters", {})) == 3
    files[0].unlink()
    ended = shell.run(*command)  # another release of the same items, and the first one counts
    assert "alone; 1 other run on letters, kept or thrown away, adds (ε, δ) = (" in ended.stdout
    assert len(others("letters", {})) == 4
    shell.refuse("to give one of the 4 search items away", *command, "privacy.delta=0.25")
    ended = shell.run(*gather(world, "kind=gram", "out=stats"))
    assert ended.code == 2
    assert "was gathered otherwise (data: 'letters' there" in ended.stderr
    shell.refuse(
        "choose privacy=statistics", *gather(world, "out=s", "privacy=means", *release[1:2])
    )
