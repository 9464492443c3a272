"""The same search on every kind of expert; the saved model scores what the report says."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
import transformers

from experiments.cli import main
from tests import builders
from tests.experiments.local import write_texts

World = tuple[Path, dict[str, Path]]


def qwen2(root: Path) -> World:
    base = builders.qwen2(root / "base", dtype=torch.bfloat16)
    names = ("a", "b")
    return base, {
        name: builders.qwen2(root / name, like=base, seed=i + 1, dtype=torch.bfloat16)
        for i, name in enumerate(names)
    }


def gpt_neox(root: Path) -> World:
    base = builders.gpt_neox(root / "base")
    return base, {k: builders.gpt_neox(root / k, like=base, seed=i) for i, k in enumerate("ab")}


def lora(root: Path) -> World:
    base = builders.llama(root / "base")
    adapters = {
        "a": builders.lora_adapter(root / "a", base, rank=2, alpha=4, seed=1),
        "b": builders.lora_adapter(
            root / "b", base, rank=4, alpha=16, seed=2, targets=["q_proj", "down_proj"]
        ),
    }
    return base, adapters


@pytest.mark.parametrize("make", [qwen2, gpt_neox, lora], ids=lambda make: make.__name__)
def test_language_models(make: Callable[[Path], World], tmp_path: Path) -> None:
    base, experts = make(tmp_path)
    for i, split in enumerate(("search", "selection", "report")):
        write_texts(tmp_path / f"{split}.jsonl", first=100 * i)
    panels = []
    for panel, split in (
        ("search_on", "search"),
        ("select_on", "selection"),
        ("report_on", "report"),
    ):
        panels += [
            f"evaluator@{panel}=perplexity",
            f"{panel}.text.data={tmp_path}/{split}.jsonl",
        ]
    run = search(tmp_path, base, experts, panels)
    evolved = evolved_row(run)["report"]["scores"]
    model = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    assert sum(p.numel() for p in model.parameters()) > 0
    out = tmp_path / "scores.json"
    code = main(
        [
            "evaluate",
            f"model={run}/model",
            "evaluator@report_on=perplexity",
            f"report_on.text.data={tmp_path}/report.jsonl",
            "device=cpu",
            f"out={out}",
        ]
    )
    assert code == 0
    again = json.loads(out.read_text())["scores"]
    assert again == pytest.approx(evolved, rel=1e-6)


def test_bert_heads_stay_with_their_task(tmp_path: Path) -> None:
    base = builders.bert_classifier(tmp_path / "base", kind="encoder")
    experts = {
        "sentiment": builders.bert_classifier(tmp_path / "s", num_labels=2, like=base, seed=1),
        "topic": builders.bert_classifier(tmp_path / "t", num_labels=3, like=base, seed=2),
    }
    panels = []
    for i, (panel, split) in enumerate(
        (("search_on", "search"), ("select_on", "selection"), ("report_on", "report"))
    ):
        lines = [{"text": f"word {i} {j}", "label": j % 2} for j in range(12)]
        data = tmp_path / f"{split}.jsonl"
        data.write_text("".join(json.dumps(line) + "\n" for line in lines))
        panels += [
            f"evaluator@{panel}=accuracy",
            f"{panel}.accuracy.data={data}",
            f"{panel}.accuracy.head={'topic'}",
        ]
    run = search(tmp_path, base, experts, panels)
    assert transformers.AutoModel.from_pretrained(run / "model") is not None
    for head, labels in (("sentiment", 2), ("topic", 3)):
        model = transformers.AutoModelForSequenceClassification.from_pretrained(
            run / "model" / "heads" / head
        )
        assert model.config.num_labels == labels
    tokenizer = transformers.AutoTokenizer.from_pretrained(run / "model" / "heads" / "topic")
    hits = []
    for line in map(json.loads, (tmp_path / "report.jsonl").read_text().splitlines()):
        with torch.no_grad():
            logits = model(**tokenizer(line["text"], return_tensors="pt")).logits
        hits.append(int(logits.argmax()) == line["label"])
    assert evolved_row(run)["report"]["scores"]["accuracy/accuracy"] == pytest.approx(
        float(np.mean(hits))
    )


def test_vit_classifiers(tmp_path: Path) -> None:
    base = builders.vit_classifier(tmp_path / "base", encoder=True)
    experts = {
        name: builders.vit_classifier(tmp_path / name, num_labels=2 + i, like=base, seed=i)
        for i, name in enumerate(("cats", "dogs"))
    }
    rng = np.random.default_rng(0)
    panels = []
    for panel, split in (
        ("search_on", "search"),
        ("select_on", "selection"),
        ("report_on", "report"),
    ):
        images = rng.integers(0, 256, (10, 8, 8, 3), dtype=np.uint8)
        np.savez(tmp_path / f"{split}.npz", images=images, labels=np.arange(10) % 2)
        panels += [
            f"evaluator@{panel}=accuracy",
            f"{panel}.accuracy.data={tmp_path}/{split}.npz",
            f"{panel}.accuracy.head=cats",
        ]
    run = search(tmp_path, base, experts, panels)
    model = transformers.AutoModelForImageClassification.from_pretrained(
        run / "model" / "heads" / "dogs"
    )
    assert model.config.num_labels == 3


def search(root: Path, base: Path, experts: dict[str, Path], panels: list[str]) -> Path:
    """Runs a search of four evaluations in this process and returns its directory."""
    pairs = ",".join(f"{name}:{path}" for name, path in experts.items())
    run = root / "run"
    code = main(
        [
            "search",
            "experts=local",
            f"experts.base={base}",
            f"experts.experts={{{pairs}}}",
            *panels,
            "objective=raw",
            "method=ties",
            "baselines=few",
            "tracker=none",
            "strategy=random",
            "budget.evaluations=4",
            "device=cpu",
            f"out={run}",
        ]
    )
    assert code == 0
    return run


def evolved_row(run: Path) -> dict[str, dict[str, dict[str, float]]]:
    rows = json.loads((run / "summary.json").read_text())["models"]
    row: dict[str, dict[str, dict[str, float]]] = rows[-1]
    assert row["kind"] == "evolved"
    return row
