"""Tiny models that the evaluators' tests share; `kick` changes one in place."""

from __future__ import annotations

import json
import wave
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageClassification,
    AutoModelForSequenceClassification,
    AutoTokenizer,
    ViTImageProcessor,
)

from evaluators.engine.resident import Resident
from merging.checkpoints.experts import ExpertPool
from tests import builders

WORDS = ("the", "quick", "brown", "fox", "jumps", "over", "lazy", "dog", "seven", "wizards", "box")


def sentence(seed: int, words: int) -> str:
    """Different for every seed, the same on every machine."""
    return " ".join(WORDS[(seed * 7 + i * i + seed * i) % len(WORDS)] for i in range(words))


SENTENCES = [
    {"tokens": sentence(i, 3 + i).split(), "tags": [(i + j) % 3 for j in range(3 + i)]}
    for i in range(6)
]
QUESTIONS = [
    {
        "question": sentence(i, 3),
        "context": sentence(i + 9, 6 + 9 * i),
        "answers": sentence(i + 9, 6 + 9 * i).split()[i % 3],
    }
    for i in range(6)
]

PAIRS = [
    {"text1": sentence(i, 4 + i), "text2": sentence(i // 2, 3 + i), "score": (i * 3) % 7}
    for i in range(8)
]
QUERIES = [
    {
        "query": f"{sentence(i, 3)} {i}",
        "documents": [sentence(i + 5, 6 + i), sentence(i + 6, 7 + i)],
    }
    for i in range(14)
]

TURNED = [
    {"source": sentence(i, 2 + 3 * i), "target": sentence(i + 3, 1 + 2 * i)} for i in range(5)
]


def opened(base: Path) -> Resident:
    """The base as a search opens it."""
    pool = ExpertPool.open(str(base), {"same": str(base)})
    return Resident.from_pool(pool, device="cpu", dtype=torch.float32)


def sounds(path: Path, rate: int = 16000, count: int = 4) -> list[dict[str, Any]]:
    draw, rows = np.random.default_rng(0), []
    for i in range(count):
        samples = (
            (8000 * draw.normal(size=4000 + 3000 * (i % 4))).clip(-32768, 32767).astype("<i2")
        )
        with wave.open(str(path / f"{i}.wav"), "wb") as file:
            file.setnchannels(1)
            file.setsampwidth(2)
            file.setframerate(rate)
            file.writeframes(samples.tobytes())
        rows.append({"audio": f"{i}.wav", "text": sentence(i, 2 + i % 4)})
    return rows


def asked_of_images(path: Path, count: int) -> list[dict[str, Any]]:
    draw, rows = np.random.default_rng(0), []
    for i in range(count):
        pixels = draw.integers(0, 255, (12, 12, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(path / f"{i}.png")
        choices = ["fox", "lazy dog", sentence(i, 2)]
        rows.append(
            {"image": f"{i}.png", "question": f"what {i}", "choices": choices, "label": i % 3}
        )
    return rows


def kick(resident: Resident, seed: int = 1, scale: float = 0.2) -> None:
    """Writes noise on every parameter through `Resident.write`."""
    noise = torch.Generator().manual_seed(seed)
    resident.write(
        {
            name: parameter + scale * torch.randn(parameter.shape, generator=noise)
            for name, parameter in resident.module.named_parameters()
        }
    )


def language_resident(path: Path, **options: Any) -> Resident:
    return Resident(
        AutoModelForCausalLM.from_pretrained(path),
        tokenizer=AutoTokenizer.from_pretrained(path),
        **options,
    )


@pytest.fixture(scope="session")
def checkpoints(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("checkpoints")
    builders.llama(root / "llama", scale=0.2)
    builders.llama(root / "short", scale=0.2, max_position_embeddings=48)
    builders.gpt2(root / "gpt2", scale=0.2)
    builders.gpt_neox(root / "gpt_neox", scale=0.2)
    builders.qwen2(root / "qwen2", scale=0.2)
    builders.bert_classifier(root / "bert", num_labels=3)
    builders.vit_classifier(root / "vit", num_labels=4)
    return root


@pytest.fixture
def llama(checkpoints: Path) -> Resident:
    resident = language_resident(checkpoints / "llama")
    kick(resident)  # away from the flat distribution of a fresh model
    return resident


@pytest.fixture
def short(checkpoints: Path) -> Resident:
    """At most 48 tokens."""
    resident = language_resident(checkpoints / "short")
    kick(resident)
    return resident


@pytest.fixture
def bert(checkpoints: Path) -> Resident:
    """Two heads over one encoder."""
    path = checkpoints / "bert"
    first = AutoModelForSequenceClassification.from_pretrained(path)
    second = AutoModelForSequenceClassification.from_pretrained(path)
    second.bert = first.bert
    with torch.no_grad():
        second.classifier.weight.neg_()
    return Resident(
        first.bert,
        tokenizer=AutoTokenizer.from_pretrained(path),
        classifiers={"sentiment": first, "topic": second},
    )


@pytest.fixture(scope="session")
def token_heads(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    """A base with experts that label words and find spans."""
    root = tmp_path_factory.mktemp("heads")
    base = builders.bert_classifier(root / "base", kind="encoder", scale=0.2)
    experts = {
        kind: str(builders.bert_classifier(root / kind, kind=kind, num_labels=n, like=base))
        for kind, n in (("tokens", 3), ("spans", 2))
    }
    return ExpertPool.open(str(base), experts)


@pytest.fixture
def heads(token_heads: ExpertPool) -> Resident:
    return Resident.from_pool(token_heads, device="cpu", dtype=torch.float32)


@pytest.fixture(scope="session")
def sentence_pool(tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
    """A sentence encoder with a dense layer behind it, and an expert."""
    root = tmp_path_factory.mktemp("sentences")
    base = builders.sentence_encoder(root / "base")
    expert = builders.sentence_encoder(root / "expert", like=base, seed=1)
    return ExpertPool.open(str(base), {"expert": str(expert)})


@pytest.fixture
def embedder(sentence_pool: ExpertPool) -> Resident:
    return Resident.from_pool(sentence_pool, device="cpu", dtype=torch.float32)


@pytest.fixture
def clip(tmp_path: Path) -> Resident:
    return opened(builders.clip(tmp_path / "clip"))


@pytest.fixture
def llava(tmp_path: Path) -> Resident:
    return opened(builders.llava(tmp_path / "llava"))


@pytest.fixture(scope="session")
def bases(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Encoder-decoders."""
    root = tmp_path_factory.mktemp("bases")
    for kind in ("t5", "bart", "whisper"):
        builders.encoder_decoder(root / kind, kind=kind)
    return root


@pytest.fixture
def t5(bases: Path) -> Resident:
    return opened(bases / "t5")


@pytest.fixture
def whisper(bases: Path) -> Resident:
    return opened(bases / "whisper")


@pytest.fixture
def vit(checkpoints: Path) -> Resident:
    path = checkpoints / "vit"
    model = AutoModelForImageClassification.from_pretrained(path)
    return Resident(
        model.base_model,
        tokenizer=None,
        image_processor=ViTImageProcessor.from_pretrained(path),
        classifiers={"digits": model},
    )


@pytest.fixture
def write_lines(tmp_path: Path) -> Callable[..., str]:
    def write(rows: Sequence[dict[str, Any]], name: str = "data.jsonl") -> str:
        path = tmp_path / name
        path.write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        return str(path)

    return write
