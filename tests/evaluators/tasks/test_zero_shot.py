"""Images matched with the words of classes, against transformers' own forward pass."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModel, AutoTokenizer

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.tasks.zero_shot import ZeroShot
from merging.checkpoints.experts import ExpertPool
from merging.hull.gram import measure
from merging.lora.low_rank import LowRankProduct
from tests import builders
from tests.evaluators.conftest import opened

WriteLines = Callable[..., str]
CLASSES = ["cat", "dog", "fox"]


def pictures(path: Path, labels: Any) -> str:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (len(labels), 12, 12, 3)).astype(np.uint8)
    np.savez(path / "images.npz", images=images, labels=np.array(labels))
    return str(path / "images.npz")


def own_logits(directory: Path, data: str, prompts: list[str]) -> torch.Tensor:
    """Of every image and prompt, by the model's own forward pass."""
    model, tokenizer = (
        AutoModel.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    processor = AutoImageProcessor.from_pretrained(directory)
    images = [Image.fromarray(one) for one in np.load(data)["images"]]
    texts = tokenizer(prompts, padding="max_length", max_length=24, return_tensors="pt")
    texts.pop("token_type_ids", None)
    with torch.no_grad():
        return model(**texts, **processor(images, return_tensors="pt")).logits_per_image


@pytest.mark.parametrize("kind", ["clip", "siglip"])
def test_logits_are_those_of_the_model(tmp_path: Path, kind: str) -> None:
    base = builders.clip(tmp_path / kind, kind=kind)
    data = pictures(tmp_path, ["dog", "fox", "cat", "dog", "cat", "dog"])
    resident = opened(base)
    evaluator = ZeroShot(resident.info, data=data, templates=["{} here"])
    scores = evaluator.score(Engine(resident).run(evaluator.items.requests))
    logits = own_logits(base, data, [f"{name} here" for name in CLASSES])
    labels = torch.tensor([1, 2, 0, 1, 0, 1])
    assert logits.std(-1).min() > 1e-3
    assert scores["accuracy"].cases == pytest.approx(
        (logits.argmax(-1) == labels).double().numpy()
    )
    expected = logits.log_softmax(-1)[torch.arange(6), labels]
    assert scores["log_likelihood"].cases == pytest.approx(expected.numpy(), abs=1e-4)


def test_prompts_of_a_class_are_averaged(tmp_path: Path) -> None:
    """The mean direction of the texts, and the scale of the model."""
    base, data = builders.clip(tmp_path / "clip"), pictures(tmp_path, [0, 1, 2, 1])
    resident, templates = opened(base), ["{} here", "{} out there"]
    evaluator = ZeroShot(resident.info, data=data, classes=CLASSES, templates=templates)
    scores = evaluator.score(Engine(resident).run(evaluator.items.requests))
    model, tokenizer = AutoModel.from_pretrained(base), AutoTokenizer.from_pretrained(base)
    rows = []
    for name in CLASSES:
        texts = [template.replace("{}", name) for template in templates]
        encoded = tokenizer(texts, padding="max_length", max_length=24, return_tensors="pt")
        encoded.pop("token_type_ids", None)
        vectors = model.get_text_features(**encoded).pooler_output
        mean = (vectors / vectors.norm(dim=-1, keepdim=True)).mean(0)
        rows.append(mean / mean.norm())
    images = torch.stack([request.inputs["pixel_values"] for request in evaluator.items.requests])
    seen = model.get_image_features(pixel_values=images).pooler_output
    logits = (
        model.logit_scale.exp() * (seen / seen.norm(dim=-1, keepdim=True)) @ torch.stack(rows).T
    )
    expected = logits.log_softmax(-1)[torch.arange(4), torch.tensor([0, 1, 2, 1])]
    assert scores["log_likelihood"].cases == pytest.approx(expected.detach().numpy(), abs=1e-4)


def test_classes_are_embedded_once(tmp_path: Path) -> None:
    seen: list[int] = []
    resident = opened(builders.clip(tmp_path / "clip"))
    data = pictures(tmp_path, [0, 1, 2, 1])
    evaluator = ZeroShot(resident.info, data=data, classes=CLASSES)
    engine = Engine(resident)
    engine.run(evaluator.items.requests)  # the first compares with the model's own logits
    resident.module.text_projection.register_forward_hook(
        lambda _, __, output: seen.append(len(output))
    )
    engine.run(evaluator.items.requests)
    assert seen == [3]


def test_a_population_is_scored_one_by_one(tmp_path: Path) -> None:
    """Differences of layers that see patches and of those that see rows, each as if written."""
    resident = opened(builders.clip(tmp_path / "clip"))
    evaluator = ZeroShot(resident.info, data=pictures(tmp_path, [0, 1, 2]), classes=CLASSES)
    draw = torch.Generator().manual_seed(0)
    names = [f"{side}_model.encoder.layers.0.mlp.fc1.weight" for side in ("text", "vision")]
    candidates = [
        {
            name: LowRankProduct(
                torch.randn(2, 32, generator=draw), torch.randn(64, 2, generator=draw)
            )
            for name in names
        }
        for _ in range(2)
    ]
    found = Engine(resident).run_population(evaluator.items.requests, candidates)
    for candidate, answers in zip(candidates, found, strict=True):
        written = opened(tmp_path / "clip")
        written.write({n: written.tensor(n) + delta.b @ delta.a for n, delta in candidate.items()})
        expected = Engine(written).run(evaluator.items.requests)
        assert isinstance(answers, list)
        for one, other in zip(answers, expected, strict=True):
            assert one.similarities == pytest.approx(other.similarities, abs=1e-4)  # type: ignore[union-attr]


def test_what_cannot_be_asked_is_refused(
    tmp_path: Path, bert: Resident, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = pictures(tmp_path, [0, 1, 2])
    resident = opened(builders.clip(tmp_path / "clip"))
    with pytest.raises(ValueError, match="names of at least two classes"):
        ZeroShot(resident.info, data=data)
    with pytest.raises(ValueError, match="label 2 is none of the 2 classes"):
        ZeroShot(resident.info, data=data, classes=CLASSES[:2])
    with pytest.raises(ValueError, match="every template needs"):
        ZeroShot(resident.info, data=data, classes=CLASSES, templates=["a photo"])
    with pytest.raises(ValueError, match="'in all of this photo cat' of a class has 26 tokens"):
        ZeroShot(resident.info, data=data, classes=CLASSES, templates=["in all of this photo {}"])
    evaluator = ZeroShot(resident.info, data=data, classes=CLASSES)
    with pytest.raises(ValueError, match="BertModel has no embeddings of images and texts"):
        Engine(bert).run(evaluator.items.requests)
    own = type(resident.module).forward

    def otherwise(*arguments: Any, **options: Any) -> Any:
        output = own(*arguments, **options)
        output.logits_per_image = output.logits_per_image * 1.01
        return output

    monkeypatch.setattr(type(resident.module), "forward", otherwise)
    with pytest.raises(ValueError, match="in a way of its own"):
        Engine(resident).run(evaluator.items.requests)


def test_the_scale_of_logits_counts_in_distances(tmp_path: Path) -> None:
    """A parameter that is one number has a place in the hull, too."""
    base = builders.clip(tmp_path / "clip")
    expert = builders.clip(tmp_path / "expert", like=base, seed=1, scale=0.05)
    pool = ExpertPool.open(str(base), {"expert": str(expert)})
    squares = sum(float(pool.deltas(name).double().square().sum()) for name in pool.names)
    assert pool.deltas("logit_scale").shape == (1,)
    assert measure(pool, {}).matrix[0, 0] == pytest.approx(squares)
