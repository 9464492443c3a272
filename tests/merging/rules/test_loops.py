"""Compiled loops against the blocks of torch operations: the same bits, whatever they get."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from enum import IntEnum

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.linear import Linear
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties
from merging.rules import blocks, kernels, loops
from merging.rules.blocks import RuledMethod
from merging.rules.cache import ParameterStack
from merging.rules.compiled_rule import (
    Compilable,
    CompiledRule,
    EntryType,
    RuleKind,
    SelectionKind,
)
from tests.merging.methods.method_cases import METHODS, name_of, random_knobs
from tests.merging.rules.test_blocks import MORE, RULED, bits, whole_experts

METHODS_HERE = [
    *RULED,
    *MORE,
    Ties(majority="count", normalize=False),
    DareTies(rescale=False),
    Della(rescale=False),
]
CPU = torch.device("cpu")
FLOATS = [torch.float32, torch.bfloat16, torch.float16]


def both(
    method: RuledMethod, tensors: ParameterStack, knobs: dict[str, Tensor], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    """By blocks, and by the loops."""
    rule = method.rule(tensors, knobs)
    assert isinstance(rule, Compilable)
    assert loops.suits(rule.compiled(), tensors, CPU)
    found = tuple(torch.full(tensors.base.shape, 7.0, dtype=dtype) for _ in range(2))
    blocks.write(rule, tensors, found[0], length=1 + tensors.base.numel())
    loops.run(rule.compiled(), tensors.base, found[1])
    return found[0], found[1]


@pytest.mark.parametrize("numbers", [RuleKind, SelectionKind, EntryType])
def test_kernels_know_the_numbers_of_rules(numbers: type[IntEnum]) -> None:
    """They keep constants of their own: numba notices changes of their own file only."""
    assert {number.name: getattr(kernels, number.name) for number in numbers} == {
        number.name: number.value for number in numbers
    }


def same(left: Tensor, right: Tensor) -> bool:
    return bits(left.view(torch.uint8)) == bits(right.view(torch.uint8))


@pytest.mark.parametrize("method", METHODS_HERE, ids=repr)
@settings(max_examples=15, deadline=None)
@given(
    shape=st.sampled_from([(0,), (1,), (37,), (255,), (256,), (257,), (2, 3, 4), (9, 101)]),
    dtype=st.sampled_from(FLOATS),
    into=st.sampled_from([torch.float32, torch.float32, torch.bfloat16, torch.float64]),
    seed=st.integers(0, 99),
    experts=st.integers(1, 12),
)
def test_loops_give_the_bits_of_the_blocks(
    method: RuledMethod,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    into: torch.dtype,
    seed: int,
    experts: int,
) -> None:
    count = 2 if name_of(method) == "slerp" else max(2, experts)
    tensors = whole_experts(count, shape, dtype, seed)
    for candidate in range(3):
        knobs = random_knobs(method, count, torch.float32, seed + candidate)
        assert same(*both(method, tensors, knobs, into))


@pytest.mark.parametrize("method", METHODS_HERE, ids=repr)
def test_a_row_of_its_own_deltas(method: RuledMethod) -> None:
    count = METHODS.get(method, 3)
    tensors = whole_experts(count, (31, 33), torch.float32, 5)
    rows = tuple(
        replace(row, stored=row.delta(), is_full_checkpoint=False) if number else row
        for number, row in enumerate(tensors.rows)
    )
    knobs = random_knobs(method, count, torch.float32, 5)
    assert same(*both(method, replace(tensors, rows=rows), knobs, torch.float32))


@pytest.mark.parametrize("method", [Linear(), TaskArithmetic(), Ties(), DareTies()], ids=name_of)
def test_what_is_not_a_number_stays_where_it_is(method: RuledMethod) -> None:
    count = METHODS[method]
    tensors = whole_experts(count, (600,), torch.float32, 6)
    for place, value in ((3, torch.nan), (300, torch.inf), (301, -torch.inf), (599, -0.0)):
        tensors.rows[0].stored[place] = value
    plain, ours = both(
        method, tensors, random_knobs(method, count, torch.float32, 6), torch.float32
    )
    assert same(plain.isnan(), ours.isnan())
    assert same(plain.nan_to_num(), ours.nan_to_num())
    assert not ours.isfinite().all()


@pytest.mark.parametrize("density", [0.0, 0.013, 0.5, 0.987, 1.0])
@pytest.mark.parametrize("method", [Ties(), DareLinear(), Della()], ids=name_of)
def test_cuts_within_a_block_and_at_its_edges(method: RuledMethod, density: float) -> None:
    tensors = whole_experts(3, (1000,), torch.bfloat16, 7)  # many equal magnitudes
    knobs = random_knobs(method, 3, torch.float32, 7) | {"density": torch.full((3,), density)}
    assert same(*both(method, tensors, knobs, torch.float32))


def test_ranks_of_long_rows() -> None:
    tensors = whole_experts(3, (2**15 + 300,), torch.float32, 8)  # int32 instead of int16
    assert same(*both(Della(), tensors, random_knobs(Della(), 3, torch.float32, 8), torch.float32))


@pytest.mark.parametrize("into", [torch.float32, torch.bfloat16])
def test_threads_share_a_large_parameter(into: torch.dtype) -> None:
    tensors = whole_experts(2, (2**20 + 77,), torch.bfloat16, 9)
    knobs = random_knobs(Ties(), 2, torch.float32, 9)
    before, found = torch.get_num_threads(), []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        try:
            found.append(both(Ties(), tensors, knobs, into)[1])
        finally:
            torch.set_num_threads(before)
    assert same(found[0], found[1])


def test_large_parameters_take_the_loops_and_small_ones_the_blocks(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    whole_run = loops.run

    def run(compiled: object, base: Tensor, out: Tensor) -> None:
        sizes.append(out.numel())
        whole_run(compiled, base, out)  # type: ignore[arg-type]

    monkeypatch.setattr(loops, "run", run)
    for size in (1000, 2**17):
        tensors = whole_experts(3, (size,), torch.float32, 1)
        rule = Ties().rule(tensors, random_knobs(Ties(), 3, torch.float32, 1))
        blocks.write(rule, tensors, torch.empty(size))
    assert sizes == [2**17]


@pytest.mark.parametrize(
    ("arithmetic", "stored"), [(torch.float64, torch.float32), (torch.float32, torch.float64)]
)
def test_other_arithmetic_is_left_to_the_blocks(
    arithmetic: torch.dtype, stored: torch.dtype
) -> None:
    tensors = whole_experts(3, (10,), torch.float32, 1)
    rows = tuple(replace(row, stored=row.stored.to(stored)) for row in tensors.rows)
    compiled = CompiledRule(RuleKind.COMBINATION, rows, [0.5] * 3)
    other = replace(tensors, rows=rows, dtype=arithmetic)
    assert not loops.suits(compiled, other, CPU)
    assert loops.suits(compiled, tensors, CPU)
    assert not loops.suits(compiled, tensors, torch.device("meta"))


@pytest.mark.parametrize("tiny", [1e-60, -1e-42, 1e39])
def test_numbers_that_float32_cannot_hold_are_left_to_the_blocks(tiny: float) -> None:
    tensors = whole_experts(3, (10,), torch.float32, 1)
    compiled = CompiledRule(RuleKind.COMBINATION, tensors.rows, [0.0, 0.5, tiny])
    assert not loops.suits(compiled, tensors, CPU)


def test_results_are_written_in_every_mode() -> None:
    tensors = whole_experts(2, (2**20,), torch.bfloat16, 3)
    rule = Linear().rule(tensors, random_knobs(Linear(), 2, torch.float32, 3))
    assert isinstance(rule, Compilable)
    with torch.inference_mode():
        inferred = torch.empty(2**20, dtype=torch.bfloat16)
    parameter = torch.nn.Parameter(torch.empty(2**20, dtype=torch.bfloat16))
    before = torch.get_num_threads()
    torch.set_num_threads(2)
    try:
        with torch.inference_mode():
            loops.run(rule.compiled(), tensors.base, inferred)
        with torch.no_grad():
            loops.run(rule.compiled(), tensors.base, parameter)
    finally:
        torch.set_num_threads(before)
    assert torch.equal(inferred, parameter)


BUSY = """
import torch
from merging.rules import loops
from merging.methods.ties import Ties
from tests.merging.methods.method_cases import random_knobs
from tests.merging.rules.test_blocks import whole_experts

tensors = whole_experts(3, (2**20,), torch.bfloat16, 4)
rule = Ties().rule(tensors, random_knobs(Ties(), 3, torch.float32, 4)).compiled()
torch.set_num_threads(1)
expected = torch.empty(2**20)
loops.run(rule, tensors.base, expected)
torch.set_num_threads(2)
for _ in range(30):
    found = torch.empty(2**20)
    loops.run(rule, tensors.base, found)
    assert torch.equal(found, expected)
"""


def test_threads_do_not_compute_in_each_others_memory() -> None:
    crowded = {**os.environ, "MALLOC_ARENA_MAX": "1"}  # what is given back is taken at once
    done = subprocess.run(
        [sys.executable, "-c", BUSY], env=crowded, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
