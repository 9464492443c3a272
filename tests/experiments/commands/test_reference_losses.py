"""The command that writes a reference model's losses, and the evaluator that reads them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.memorization.membership import Membership
from experiments.cli import main
from merging.checkpoints.checkpoint import Checkpoint
from tests import builders


def test_file_holds_the_models_own_losses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    base = builders.llama(tmp_path / "base", scale=0.2)
    data, out = tmp_path / "texts.jsonl", tmp_path / "losses.json"
    rows = [{"text": f"text {i}", "member": i < 2} for i in range(4)]
    data.write_text("\n".join(map(json.dumps, rows)))
    assert main(["reference-losses", str(base), str(data), str(out), "--device", "cpu"]) == 0
    assert "losses.json: 4 texts" in capsys.readouterr().out
    checkpoint = Checkpoint.open(str(base))
    module = checkpoint.module(dtype=torch.float32, device=torch.device("cpu"))
    resident = Resident(module, tokenizer=checkpoint.tokenizer())
    evaluator = Membership(
        resident.info, data=str(data), attacks=("reference",), reference=str(out)
    )
    scores = evaluator.score(Engine(resident).run(evaluator.items.requests))
    assert scores["reference_auc"].value == 0.5
    with pytest.raises(SystemExit, match="2"):
        main(["reference-losses", str(base), str(tmp_path / "none"), str(out)])
    assert "does not exist" in capsys.readouterr().err
