"""The contract of merge methods; a new one joins by a line in `method_cases`."""

from __future__ import annotations

import dataclasses
import importlib
import math
from pathlib import Path

import pytest
import torch
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

import conf
from merging import methods
from merging.method import Knob, MergeError, MergeMethod, Slot
from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
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
from merging.plan import method_from_description
from tests.merging.methods.method_cases import (
    METHODS,
    SHAPES,
    WITH_STATISTICS,
    Problem,
    merge,
    name_of,
    random_problem,
    start_knobs,
)

every_method = pytest.mark.parametrize("method", METHODS, ids=name_of)
seeds = st.integers(0, 2**20)
WITH_UNITS = {Nearswap(), Slerp(), Karcher(), MultiSlerp()}  # size of deltas matters to them


def bits(tensor: Tensor) -> bytes:
    return tensor.numpy().tobytes()


@every_method
def test_is_a_merge_method(method: MergeMethod) -> None:
    assert isinstance(method, MergeMethod)
    names = [knob.name for knob in method.knobs]
    assert names
    assert len(set(names)) == len(names)
    assert all(isinstance(knob, Knob) for knob in method.knobs)
    assert hash(method) == hash(dataclasses.replace(method))  # type: ignore[type-var]


@every_method
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_shape_and_dtype_are_kept_and_arguments_unchanged(
    method: MergeMethod, shape: tuple[int, ...], dtype: torch.dtype
) -> None:
    given = random_problem(method, shape, 0, dtype=dtype)
    before = bits(given.base), bits(given.deltas), {k: bits(v) for k, v in given.knobs.items()}
    merged = merge(method, given)
    assert merged.shape == given.base.shape
    assert merged.dtype == dtype
    assert merged.isfinite().all()
    merged.fill_(7)  # a new tensor: the base keeps its values
    assert before == (
        bits(given.base),
        bits(given.deltas),
        {k: bits(v) for k, v in given.knobs.items()},
    )


@every_method
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_zero_deltas_return_the_base_bit_for_bit(
    method: MergeMethod, shape: tuple[int, ...]
) -> None:
    start = start_knobs(method, METHODS[method], torch.float32)
    given = random_problem(method, shape, 1, dtype=torch.float32, size=0.0, knobs=start)
    given.base[given.base < -0.5] = -0.0
    assert bits(merge(method, given)) == bits(given.base)


@every_method
@settings(max_examples=30, deadline=None)
@given(seed=seeds, shape=st.sampled_from(SHAPES), data=st.data())
def test_order_of_experts_changes_nothing(
    method: MergeMethod, seed: int, shape: tuple[int, ...], data: st.DataObject
) -> None:
    given = random_problem(method, shape, seed, dtype=torch.float32)
    order = data.draw(st.permutations(range(METHODS[method])))
    assert torch.equal(merge(method, given), merge(method, given.permuted(list(order))))


@every_method
@settings(max_examples=40, deadline=None)
@given(
    seed=seeds,
    shape=st.sampled_from(SHAPES),
    exponent=st.integers(-30, 15),
    kind=st.sampled_from(["normal", "integers", "one zero", "all equal", "opposite", "base"]),
)
def test_results_are_finite(
    method: MergeMethod, seed: int, shape: tuple[int, ...], exponent: int, kind: str
) -> None:
    given = random_problem(method, shape, seed, dtype=torch.float32, size=1.0)
    deltas = given.deltas
    if kind == "integers":
        deltas.round_()
    elif kind == "one zero":
        deltas[0] = 0
    elif kind == "all equal":
        deltas[:] = deltas[0].clone()
    elif kind == "opposite":
        deltas[0] = -deltas[-1]
    elif kind == "base":
        deltas[:] = -given.base  # every expert is the zero vector
    deltas.mul_(10.0**exponent)
    assert merge(method, given).isfinite().all()


@every_method
def test_same_call_same_bits(method: MergeMethod) -> None:
    given = random_problem(method, (6, 5), 3, dtype=torch.float32)
    assert torch.equal(merge(method, given), merge(method, given))


@pytest.mark.parametrize("method", [m for m in METHODS if m not in WITH_UNITS], ids=name_of)
@pytest.mark.parametrize("size", [1e-3, 1e-15, 1e-180])
def test_small_deltas_merge_like_large_ones(method: MergeMethod, size: float) -> None:
    large = random_problem(method, (6, 5), 4)
    large.base.zero_()
    small = Problem(large.slot, large.base, large.deltas * size, large.knobs)
    torch.testing.assert_close(merge(method, small) / size, merge(method, large))


@every_method
def test_number_of_experts_is_checked(method: MergeMethod) -> None:
    given = random_problem(method, (3,), 0, experts=1)
    nothing = Problem(
        Slot("w", ()), given.base, given.deltas[:0], start_knobs(method, 0, given.base.dtype)
    )
    with pytest.raises(MergeError, match=rf"{name_of(method)} merges .* experts?, 0 given"):
        merge(method, nothing)


@pytest.mark.parametrize(
    ("method", "experts", "wanted"),
    [
        (Slerp(), 3, "exactly 2"),
        (Slerp(), 1, "exactly 2"),
        (NuSlerp(), 3, "exactly 2"),
        (Nearswap(), 2, "exactly 1"),
        (ModelStock(), 1, "at least 2"),
        (Sce(), 1, "at least 2"),
    ],
    ids=repr,
)
def test_wrong_number_of_experts(method: MergeMethod, experts: int, wanted: str) -> None:
    with pytest.raises(MergeError, match=rf"{wanted} experts?, {experts} given"):
        merge(method, random_problem(method, (3,), 0, experts=experts))


@every_method
def test_knob_outside_its_range(method: MergeMethod) -> None:
    good = random_problem(method, (3,), 0)
    for knob in method.knobs:
        wrong = [math.nan, math.inf]
        wrong += [knob.low - 0.1] if math.isfinite(knob.low) else []
        wrong += [knob.high + 0.1] if math.isfinite(knob.high) else []
        for value in wrong:
            values = torch.full_like(good.knobs[knob.name], value)
            bad = Problem(good.slot, good.base, good.deltas, good.knobs | {knob.name: values})
            message = (
                rf"{name_of(method)}: knob '{knob.name}' is .* expected a finite number in \["
            )
            with pytest.raises(MergeError, match=message):
                merge(method, bad)


@every_method
def test_knob_of_wrong_shape(method: MergeMethod) -> None:
    good = random_problem(method, (3,), 0)
    for knob in method.knobs:
        values = torch.ones(METHODS[method] + 1)
        bad = Problem(good.slot, good.base, good.deltas, good.knobs | {knob.name: values})
        with pytest.raises(MergeError, match=rf"knob '{knob.name}' has shape .* expected"):
            merge(method, bad)


@every_method
def test_knob_missing_or_unknown(method: MergeMethod) -> None:
    good = random_problem(method, (3,), 0)
    with pytest.raises(MergeError, match=r"knob 'wieght' is unknown at tensor .*: give "):
        merge(method, good.but(wieght=1.0))
    with pytest.raises(MergeError, match=rf"{name_of(method)}: knob '\w+' is missing"):
        merge(method, Problem(good.slot, good.base, good.deltas, {}))


@every_method
def test_layout_of_deltas_is_checked(method: MergeMethod) -> None:
    good = random_problem(method, (3, 2), 0)
    for deltas in (good.deltas[:, :2], good.deltas.float(), torch.cat([good.deltas, good.deltas])):
        with pytest.raises(
            MergeError, match=r"deltas of tensor 'layers.0.weight' are .* expected"
        ):
            merge(method, Problem(good.slot, good.base, deltas, good.knobs))


@pytest.mark.parametrize(
    "method",
    [
        Linear(),
        TaskArithmetic(normalize=True),
        Slerp(),
        NuSlerp(),
        MultiSlerp(),
        Karcher(),
        DareLinear(normalize=True),
        DellaLinear(normalize=True),
        Breadcrumbs(normalize=True),
    ],
    ids=repr,
)
def test_weights_that_sum_to_zero(method: MergeMethod) -> None:
    given = random_problem(method, (3,), 0, experts=2).but(weight=[0.7, -0.7])
    with pytest.raises(MergeError, match=r"weights \[.*\] of tensor .* sum to zero .* change one"):
        merge(method, given)


@pytest.mark.parametrize("cls", [Ties, DareTies, Della])
def test_unknown_majority(cls: type[Ties]) -> None:
    with pytest.raises(ValueError, match=r"majority is 'most', expected one of"):
        cls(majority="most")  # type: ignore[arg-type]


def test_every_method_has_a_file_a_configuration_and_a_place_in_the_list() -> None:
    listed = {name_of(method) for method in METHODS} | WITH_STATISTICS
    folder = Path(str(methods.__file__)).parent
    assert {path.stem for path in folder.glob("*.py")} - {"__init__"} == listed
    configured = Path(str(conf.__file__)).parent / "method"
    assert {path.stem for path in configured.glob("*.yaml")} == listed


@every_method
def test_configuration_names_every_option_at_its_default(method: MergeMethod) -> None:
    path = Path(str(conf.__file__)).parent / "method" / f"{name_of(method)}.yaml"
    text = path.read_text()
    assert text.startswith("# ")
    options = yaml.safe_load(text)
    module, _, cls = options.pop("_target_").rpartition(".")
    if "seed" in options:  # the run's
        assert options["seed"] == "${seed}"
        options["seed"] = 0
    if "inner" in options:
        options["inner"] = method_from_description(options["inner"])
    assert getattr(importlib.import_module(module), cls)(**options) == method
    assert list(options) == [field.name for field in dataclasses.fields(method)]  # type: ignore[arg-type]
