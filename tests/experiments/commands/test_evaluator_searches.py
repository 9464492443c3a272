"""One search for every kind of evaluator, from a line to a report and a card."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping
from itertools import pairwise
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import pytest
from PIL import Image

from tests import builders
from tests.evaluators.conftest import asked_of_images, sentence, sounds
from tests.experiments.refusals import Shell

Rows: TypeAlias = list[Mapping[str, Any]]
Parts: TypeAlias = tuple[Path, dict[str, Path], dict[str, str]]
"""Base, experts, and files of items by the names of their tasks."""


def write(path: Path, rows: Rows) -> str:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")
    return str(path)


def token_heads(root: Path) -> Parts:
    base = builders.bert_classifier(root / "base", kind="encoder", scale=0.2)
    experts = {
        name: builders.bert_classifier(root / name, kind=kind, num_labels=n, like=base)
        for name, kind, n in (("names", "tokens", 3), ("spans", "spans", 2))
    }
    words = [sentence(i, 5).split() for i in range(40)]
    labelled: Rows = [
        {"tokens": [*own, str(i)], "tags": [i % 3] * 6} for i, own in enumerate(words)
    ]
    asked: Rows = [
        {"question": f"what {i}", "context": " ".join(own), "answers": own[i % 5]}
        for i, own in enumerate(words)
    ]
    files = {
        "names": write(root / "names.jsonl", labelled),
        "spans": write(root / "spans.jsonl", asked),
    }
    return base, experts, files


def sentences(root: Path) -> Parts:
    base = builders.sentence_encoder(root / "base")
    experts = {
        name: builders.sentence_encoder(root / name, like=base, seed=i)
        for i, name in enumerate(("near", "far"), start=1)
    }
    texts = [f"{sentence(i, 4)} {i}" for i in range(41)]
    pairs: Rows = [
        {"text1": a, "text2": b, "score": sum((Counter(a) & Counter(b)).values()) / len(a)}
        for a, b in pairwise(texts)
    ]
    queries: Rows = [{"query": texts[i], "documents": texts[i + 1]} for i in range(40)]
    files = {
        "near": write(root / "near.jsonl", pairs),
        "far": write(root / "far.jsonl", queries),
    }
    return base, experts, files


def images(root: Path) -> Parts:
    base = builders.clip(root / "base")
    experts = {
        name: builders.clip(root / name, like=base, seed=i, scale=0.05)
        for i, name in enumerate(("cats", "dogs"), start=1)
    }
    draw = np.random.default_rng(0)
    rows: Rows = []
    for i in range(40):
        pixels = draw.integers(0, 255, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(root / f"{i}.png")
        rows.append({"image": f"{i}.png", "label": ["cat", "dog", "fox"][i % 3]})
    words = ',templates:["{} here"]'
    file = write(root / "cats.jsonl", rows)
    return base, experts, {"cats": f"{{task:{file}{words}}}"}


def turned(root: Path) -> Parts:
    base = builders.encoder_decoder(root / "base")
    experts = {
        name: builders.encoder_decoder(root / name, like=base, seed=i, scale=0.05)
        for i, name in enumerate(("down", "up"), start=1)
    }
    rows: Rows = [{"source": f"{sentence(i, 3)} {i}", "target": "fox"} for i in range(40)]
    choices: Rows = [
        {"question": f"what {i}", "choices": ["fox", "dog"], "answer": i % 2} for i in range(40)
    ]
    files = {
        "down": write(root / "down.jsonl", rows),
        "up": write(root / "up.jsonl", choices),
    }
    return base, experts, files


def heard(root: Path) -> Parts:
    base = builders.encoder_decoder(root / "base", kind="whisper")
    experts = {
        name: builders.encoder_decoder(root / name, kind="whisper", like=base, seed=i, scale=0.05)
        for i, name in enumerate(("near", "far"), start=1)
    }
    file = write(root / "near.jsonl", sounds(root, count=16))
    return base, experts, {"near": f"{{task:{file},max_new_tokens:5}}"}


def seen(root: Path) -> Parts:
    base = builders.llava(root / "base")
    experts = {
        name: builders.llava(root / name, like=base, seed=i, scale=0.05)
        for i, name in enumerate(("near", "far"), start=1)
    }
    return base, experts, {"seen": write(root / "seen.jsonl", asked_of_images(root, 24))}


@pytest.mark.parametrize(
    ("parts", "metrics"),
    [
        (token_heads, ["accuracy", "f1"]),
        pytest.param(sentences, ["spearman", "ndcg"], marks=pytest.mark.slow),
        pytest.param(images, ["accuracy"], marks=pytest.mark.slow),
        pytest.param(turned, ["bits_per_byte", "acc"], marks=pytest.mark.slow),
        pytest.param(seen, ["acc"], marks=pytest.mark.slow),
        pytest.param(heard, ["word_error_rate"], marks=pytest.mark.slow),
    ],
)
def test_a_search_from_a_line_to_report_and_card(
    shell: Shell, tmp_path: Path, parts: Callable[[Path], Parts], metrics: list[str]
) -> None:
    base, experts, files = parts(tmp_path)
    own = ",".join(f"{name}:{path}" for name, path in experts.items())
    ended = shell.run(
        "search",
        f"base={base}",
        f"experts={{{own}}}",
        f"tasks=[{','.join(files.values())}]",
        "budget=4",
        "finalists=2",
        "tracker=none",
        "baselines=few",
        "device=cpu",
    )
    assert ended.code == 0, ended.stderr
    (run,) = (shell.cwd / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    judged = [f"{task}/{metric}" for task, metric in zip(files, metrics, strict=True)]
    assert [term["key"] for term in summary["terms"]] == judged
    report, card = (run / "report.html").read_text(), (run / "model" / "README.md").read_text()
    for task in files:
        assert task in report
        assert task in card
