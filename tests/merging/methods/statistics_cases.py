"""The contract of merge methods that read statistics; the files are made up for each problem."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from itertools import permutations
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from merging.method import MergeError, MergeMethod, Slot
from merging.methods.fisher import Fisher
from merging.methods.regmean import RegMean
from merging.plan import describe_method, method_from_description
from merging.statistics_files import (
    Origin,
    StatisticsError,
    StatisticsKind,
    path_of,
    read_origin,
    write_statistics,
)
from tests.merging.methods.method_cases import SHAPES, Problem, merge, random_problem, start_knobs

Method = RegMean | Fisher


def origin(kind: StatisticsKind, expert: str, **more: Any) -> Origin:
    given: dict[str, Any] = {
        "base": "base", "data": "data", "dtype": "float32", "seed": 0, "items": 3, "tokens": 9
    }  # fmt: skip
    return Origin(kind=kind, expert=expert, **given | more)


def supply(
    directory: Path,
    kind: StatisticsKind,
    experts: Sequence[str],
    statistics: Sequence[Tensor] | None,
    name: str = "layers.0.weight",
    **more: Any,
) -> None:
    """Writes a file for every expert; None: the tensor is averaged."""
    directory.mkdir(exist_ok=True)
    for i, expert in enumerate(experts):
        tensors = {} if statistics is None else {name: statistics[i].float().contiguous()}
        averaged = {"averaged": (name,)} if statistics is None else {}
        write_statistics(directory, origin(kind, expert, **averaged, **more), tensors)


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


class StatisticsContract:
    """What both methods promise; a subclass says how to make up statistics."""

    kind: StatisticsKind
    method: Callable[..., Method]

    def statistics(self, problem: Problem, seed: int) -> list[Tensor] | None:
        raise NotImplementedError

    def supplied(self, directory: Path, problem: Problem, seed: int = 0) -> Method:
        found = self.statistics(problem, seed)
        supply(directory, self.kind, problem.slot.experts, found)
        return self.method(statistics=str(directory))

    def problem(self, shape: tuple[int, ...], seed: int = 0, **options: Any) -> Problem:
        return random_problem(self.method("nowhere", digests={}), shape, seed, **options)

    @pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_shape_and_dtype_are_kept_and_arguments_unchanged(
        self, tmp_path: Path, shape: tuple[int, ...], dtype: torch.dtype
    ) -> None:
        given = self.problem(shape, dtype=dtype)
        copies = given.base.clone(), given.deltas.clone()
        merged = merge(self.supplied(tmp_path, given), given)
        assert (merged.shape, merged.dtype) == (given.base.shape, dtype)
        assert merged.isfinite().all()
        merged.fill_(7)
        assert torch.equal(given.base, copies[0])
        assert torch.equal(given.deltas, copies[1])

    @pytest.mark.parametrize("shape", SHAPES, ids=str)
    def test_zero_deltas_return_the_base_bit_for_bit(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        given = self.problem(shape, dtype=torch.float32, size=0.0)
        given.base[given.base < -0.5] = -0.0
        merged = merge(self.supplied(tmp_path, given), given)
        assert merged.numpy().tobytes() == given.base.numpy().tobytes()

    @pytest.mark.parametrize("shape", [(), (3,), (4, 6), (2, 3, 4)], ids=str)
    def test_order_of_experts_changes_nothing(
        self, tmp_path: Path, shape: tuple[int, ...]
    ) -> None:
        given = self.problem(shape, dtype=torch.float32)
        method = self.supplied(tmp_path, given)
        for order in permutations(range(3)):
            assert torch.equal(merge(method, given), merge(method, given.permuted(list(order))))

    @pytest.mark.parametrize("size", [1e-30, 1e-3, 1e15])
    def test_scales_with_the_deltas(self, tmp_path: Path, size: float) -> None:
        given = self.problem((6, 5))
        given.base.zero_()
        method = self.supplied(tmp_path, given)
        scaled = Problem(given.slot, given.base, given.deltas * size, given.knobs)
        torch.testing.assert_close(merge(method, scaled) / size, merge(method, given))

    def test_arguments_are_checked(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        method = self.supplied(tmp_path, given)
        name = type(method).__module__.rpartition(".")[2]
        with pytest.raises(MergeError, match=r"knob .wieght. is unknown at .*: give weight"):
            merge(method, given.but(wieght=1.0))
        with pytest.raises(MergeError, match=rf"{name}: knob 'weight' is -1.0 .* \[0.0, inf\]"):
            merge(method, given.but(weight=[1.0, -1.0, 1.0]))
        with pytest.raises(MergeError, match=r"weights \[0.0, 0.0, 0.0\] .* sum to zero"):
            merge(method, given.but(weight=[0.0, 0.0, 0.0]))
        with pytest.raises(MergeError, match=r"deltas of tensor 'layers.0.weight' are .* expect"):
            merge(method, Problem(given.slot, given.base, given.deltas[:, :2], given.knobs))
        none = Problem(
            Slot("w", ()), given.base, given.deltas[:0], start_knobs(method, 0, torch.float64)
        )
        with pytest.raises(MergeError, match=rf"{name} merges at least 1 expert, 0 given"):
            merge(method, none)

    def test_expert_of_weight_zero_leaves_no_trace(self, tmp_path: Path) -> None:
        given = self.problem((4, 6)).but(weight=[1.0, 2.0, 0.0])
        method = self.supplied(tmp_path, given)
        pair = Problem(
            Slot(given.slot.name, given.slot.experts[:2]),
            given.base,
            given.deltas[:2],
            {"weight": given.knobs["weight"][:2]},
        )
        torch.testing.assert_close(merge(method, given), merge(method, pair), atol=1e-6, rtol=1e-6)

    def test_is_a_merge_method_that_a_recipe_holds(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        method = self.supplied(tmp_path, given)
        assert isinstance(method, MergeMethod)
        assert hash(method) == hash(self.method(statistics=str(tmp_path)))
        description = json.loads(json.dumps(describe_method(method)))
        assert list(description["digests"]) == sorted(
            path_of(tmp_path, self.kind, expert).name for expert in given.slot.experts
        )
        rebuilt = method_from_description(description)
        assert rebuilt == method
        assert torch.equal(merge(rebuilt, given), merge(method, given))

    def test_other_statistics_are_refused_by_a_recipe(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        description = describe_method(self.supplied(tmp_path, given))
        self.supplied(tmp_path, given, seed=1)
        expert = given.slot.experts[0]
        with pytest.raises(
            StatisticsError, match=rf"{expert}\) has content \w+, the merge was described with \w+"
        ):
            merge(method_from_description(description), given)

    def test_file_that_came_later_is_refused(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        early = self.method(statistics=str(tmp_path))
        self.supplied(tmp_path, given)
        with pytest.raises(StatisticsError, match=r"described with no such file: "):
            merge(early, given)

    def test_missing_directory_and_file(self, tmp_path: Path) -> None:
        remedy = f"gather {self.kind} of these experts into"
        with pytest.raises(StatisticsError, match=f"nowhere does not exist: {remedy}"):
            self.method(statistics=str(tmp_path / "nowhere"))
        given = self.problem((4, 6))
        self.supplied(tmp_path, given)
        lost = path_of(tmp_path, self.kind, given.slot.experts[1])
        lost.unlink()
        with pytest.raises(
            StatisticsError,
            match=rf"no statistics of expert {given.slot.experts[1]}: .*{lost.name} .*{remedy}",
        ):
            merge(self.method(statistics=str(tmp_path)), given)

    def test_missing_tensor_and_wrong_shape(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        other = Problem(Slot("other", given.slot.experts), given.base, given.deltas, given.knobs)
        method = self.supplied(tmp_path, given)
        with pytest.raises(StatisticsError, match=r"holds nothing for tensor 'other' of expert"):
            merge(method, other)
        small = [torch.ones(2, 2)] * 3
        supply(tmp_path, self.kind, given.slot.experts, small)
        with pytest.raises(StatisticsError, match=r"shape \(2, 2\), expected \(\d, 6\): gather"):
            merge(self.method(statistics=str(tmp_path)), given)

    def test_file_of_another_expert_and_damaged_file(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        self.supplied(tmp_path, given)
        first, second, _ = (path_of(tmp_path, self.kind, e) for e in given.slot.experts)
        content = first.read_bytes()
        first.write_bytes(second.read_bytes())
        with pytest.raises(StatisticsError, match=rf"holds {self.kind} of expert .*, expected"):
            merge(self.method(statistics=str(tmp_path)), given)
        first.write_bytes(content[:-8])
        with pytest.raises(StatisticsError, match=r"is no statistics file or is damaged .*delete"):
            merge(self.method(statistics=str(tmp_path)), given)

    def test_equal_statistics_have_equal_bytes(self, tmp_path: Path) -> None:
        given = self.problem((4, 6))
        self.supplied(tmp_path / "a", given)
        self.supplied(tmp_path / "b", given)
        for expert in given.slot.experts:
            a, b = (path_of(tmp_path / each, self.kind, expert) for each in "ab")
            assert a.read_bytes() == b.read_bytes()
            assert read_origin(a) == read_origin(b)
