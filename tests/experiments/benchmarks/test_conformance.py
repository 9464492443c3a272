"""A dozen families in every run, all types of the installed transformers in slow ones."""

import copy
import re
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PPLCNetConfig, ViTConfig
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from experiments.benchmarks.conformance import merged_models
from experiments.benchmarks.conformance.__main__ import PAGE, README, read
from experiments.benchmarks.conformance.page import page, sentence, told, verdict
from experiments.benchmarks.conformance.rows import row
from experiments.benchmarks.conformance.tiny_models import EXPERTS, save
from merging.checkpoints.architecture import is_classifier_config

RIGHT = ("merge", "likelihoods", "generation", "population")
FAMILIES: dict[str, tuple[str, ...]] = {
    "llama": RIGHT,
    "gpt2": RIGHT,
    "gemma3_text": RIGHT,
    "mixtral": RIGHT,
    "hy_v4": RIGHT,  # chooses among keys where rows are long
    "mamba": RIGHT,  # reads the weight of a layer otherwise than through the layer
    "qwen2_vl": RIGHT,
    "bert": RIGHT,
    "t5": RIGHT,
    "prophetnet": RIGHT,  # its output layer sees several states of each token
    "marian": ("merge",),  # its file lacks what its class computes
    "tipsv2": ("merge",),  # converted, and its file's names are others' that a part leaves out
    "vit": ("merge",),
    "embedding_gemma2_text": ("merge",),  # entries of its configuration differ by layer
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", FAMILIES)
def test_families_come_out_right(name: str) -> None:
    cells = row(name)["cells"]
    assert {capability: cells.get(capability) for capability in FAMILIES[name]} == dict.fromkeys(
        FAMILIES[name], "right"
    )
    assert not [cell for cell in cells.values() if cell.startswith("wrong")]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", ["higgs_audio_v2", "diffusion_gemma"])
def test_logits_that_stand_for_no_token_are_refused(name: str) -> None:
    """Of codes of sounds, and of a canvas that is filled at once."""
    cells = row(name)["cells"]
    assert cells.pop("merge") == "right"
    assert all(re.match(r"refused: .* tokens of 128 stand for others", c) for c in cells.values())
    assert set(cells) == {"likelihoods", "generation"}


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", sorted(set(CONFIG_MAPPING) - set(FAMILIES)))
def test_every_row_of_the_page_comes_out_again(name: str) -> None:
    found, known = row(name), read().get(name)
    if known is None:
        pytest.skip("the rows are of another release of transformers")
    if "mergekit" not in found.get("cells", {}):
        known.get("cells", {}).pop("mergekit", None)
    assert known == found
    assert "cells" not in found or verdict(found) != "wrong"


def test_page_and_readme_say_what_the_rows_say() -> None:
    rows, readme = read(), README.read_text(encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == page(rows)
    assert sentence(rows) in " ".join(readme.split())
    assert not [name for name, row in rows.items() if "cells" in row and verdict(row) == "wrong"]
    assert told(readme, rows) == readme


def test_what_is_changed_after_the_merge_is_found(tmp_path: Path) -> None:
    saved = save("gpt2", tmp_path)
    base, found = saved.load("base"), copy.deepcopy(saved.load("a"))
    states: dict[str, Any] = {name: saved.load(name).state_dict() for name in ("base", *EXPERTS)}
    right = {name: tensor.double() for name, tensor in found.state_dict().items()}
    assert merged_models.faults(found, base, right, states) == []
    found.requires_grad_(False).transformer.h[0].ln_1.bias[3] += 1e-5
    assert merged_models.faults(found, base, right, states) == ["transformer.h.0.ln_1.bias is off"]
    found.lm_head.weight = torch.nn.Parameter(found.lm_head.weight.clone())
    assert merged_models.faults(found, base, right, states)[1:] == ["other tensors are tied"]


def test_a_classifier_without_a_class_for_its_encoder_is_merged_head_and_all() -> None:
    config = PPLCNetConfig(architectures=["PPLCNetForImageClassification"])
    assert not is_classifier_config(config)
    assert is_classifier_config(ViTConfig(architectures=["ViTForImageClassification"]))


def test_the_page_counts_words_and_gives_each_reason_once() -> None:
    rows = [
        {"type": "x", "class": "X", "cells": {"merge": "right"}, "notes": []},
        {"type": "y", "class": "Y", "cells": {"merge": "refused: Y is odd"}, "notes": []},
        {"type": "z", "class": "Z", "cells": {"merge": "refused: Z is odd"}, "notes": []},
        {"type": "w", "not built": "too large"},
    ]
    written = page({str(one["type"]): one for one in rows})
    assert "3 are built tiny: 1 are right in all that they can do, 2 are refused" in written
    assert "- merge: 2 refused, 1 right" in written
    assert f"{len([*CONFIG_MAPPING]) - 4} of which have not been tried yet" in written
    assert "- merge refused: CLASS is odd: `y`, `z`" in written
    assert "- too large: `w`" in written
