"""Weights rounded to NF4: the published table, the nearest level, and which layers are rounded."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModelForCausalLM

from experiments.experts.training.language_model import Lora
from experiments.experts.training.nf4 import BLOCK, levels, round_linear_layers, rounded
from experiments.experts.training.regime import Regime
from experiments.papers.csirt.bases import TinyBase
from experiments.papers.csirt.cells import CsirtCell, CsirtSetting, trained
from experiments.papers.csirt.corpus import CorpusSize
from merging.checkpoints.checkpoint import Checkpoint
from tests.builders import llama

# QLoRA, arXiv 2305.14314, appendix E
PUBLISHED = [
    -1.0,
    -0.6961928009986877,
    -0.5250730514526367,
    -0.39491748809814453,
    -0.28444138169288635,
    -0.18477343022823334,
    -0.09105003625154495,
    0.0,
    0.07958029955625534,
    0.16093020141124725,
    0.24611230194568634,
    0.33791524171829224,
    0.44070982933044434,
    0.5626170039176941,
    0.7229568362236023,
    1.0,
]


def test_levels_are_those_of_the_paper() -> None:
    assert levels().tolist() == pytest.approx(PUBLISHED, abs=3e-7)


@given(st.integers(0, 2**31), st.integers(1, 5), st.integers(1, 70), st.floats(1e-6, 1e6))
def test_every_entry_goes_to_the_nearest_level_of_its_block(
    seed: int, rows: int, columns: int, size: float
) -> None:
    draw = torch.Generator().manual_seed(seed)
    weight = torch.randn(rows, columns, generator=draw) * size
    found = rounded(weight)
    assert found.shape == weight.shape
    table = torch.tensor(PUBLISHED, dtype=torch.float64)
    given_, got = weight.flatten().double(), found.flatten().double()
    for start in range(0, len(given_), BLOCK):
        block = given_[start : start + BLOCK]
        scale = block.abs().max()
        error = (block[:, None] - table * scale).abs().min(dim=1).values
        ours = (block - got[start : start + BLOCK]).abs()
        assert torch.allclose(ours, error, rtol=0, atol=1e-6 * float(scale))


def test_a_block_of_zeros_stays_zero_and_a_dtype_stays() -> None:
    weight = torch.zeros(2, BLOCK, dtype=torch.bfloat16)
    weight[1, 3] = -2.0
    found = rounded(weight)
    assert found.dtype is torch.bfloat16
    assert torch.equal(found, weight)


def test_linear_layers_are_rounded_and_nothing_else(tmp_path: Path) -> None:
    model = AutoModelForCausalLM.from_pretrained(llama(tmp_path / "base"))
    before = {name: value.clone() for name, value in model.state_dict().items()}
    round_linear_layers(model)
    for name, value in model.state_dict().items():
        if "_proj" in name:
            assert torch.equal(value, rounded(before[name])), name
            assert not torch.equal(value, before[name]), name
        else:
            assert torch.equal(value, before[name]), name


@pytest.mark.parametrize("lora", [None, Lora(2, 4, 0.0, ("q_proj",))])
def test_a_regime_in_four_bits_starts_from_the_rounded_base(
    tmp_path: Path, lora: Lora | None
) -> None:
    base = TinyBase(16, 24, layers=1, heads=2, records=8, epochs=1.0, lot=4)
    size = CorpusSize(records=24, canaries=1, clones=1, variants=3, held_out=4)
    still = Regime(32, epochs=0.1, learning_rate=1e-12)  # so that the start shows
    common = CsirtSetting(
        {"tiny": base}, size, {"V1": still, "VA": still}, {"V1"}, lora, 256, tmp_path
    )
    rounded_cell, plain = CsirtCell("tiny", 0, "raw", "V1"), CsirtCell("tiny", 0, "raw", "VA")
    assert common.start(plain) == common.base("tiny")
    assert common.identity(rounded_cell) != common.identity(plain)
    want = AutoModelForCausalLM.from_pretrained(common.base("tiny"))
    round_linear_layers(want)
    found = AutoModelForCausalLM.from_pretrained(common.start(rounded_cell))
    for name, value in want.state_dict().items():
        assert torch.equal(found.state_dict()[name], value), name
    expert = trained(common, rounded_cell)
    if lora is None:
        opened = Checkpoint.open(str(expert))
        name = "model.layers.0.mlp.up_proj.weight"
        assert torch.allclose(opened[name], want.state_dict()[name], atol=1e-9)
    else:
        assert (expert / "adapter_config.json").exists()
