"""Every saliency against what it is made of, computed plainly."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluators.panel import Panel
from evaluators.tasks.classification import Accuracy
from evaluators.tasks.multiple_choice import MultipleChoice
from evaluators.tasks.perplexity import Perplexity
from experiments.deduplication.loaded import HEAD, LoadedTarget
from experiments.deduplication.saliency.fisher import FisherSaliency
from experiments.deduplication.saliency.gradient import GradientSaliency
from experiments.deduplication.saliency.magnitude import MagnitudeSaliency
from experiments.deduplication.saliency.saliency import Saliency
from experiments.deduplication.saliency.wanda import WandaSaliency
from tests import builders

TEXTS = ["one two three", "six ten seven", "word word", "a longer line of words"]
LABELS = [0, 1, 2, 1]


def loaded(path: Path) -> LoadedTarget:
    return LoadedTarget.of(str(path), device="cpu", dtype=torch.float64)


def lines(path: Path, rows: list[dict[str, object]]) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


@pytest.fixture
def classifier(tmp_path: Path) -> tuple[LoadedTarget, Panel]:
    target = loaded(builders.bert_classifier(tmp_path / "m", num_labels=3, initializer_range=0.5))
    rows: list[dict[str, object]] = [
        {"text": t, "label": y} for t, y in zip(TEXTS, LABELS, strict=True)
    ]
    task = Accuracy(target.resident.info, data=lines(tmp_path / "d.jsonl", rows), head=HEAD)
    return target, Panel("search", {"task": task})


@pytest.fixture
def language(tmp_path: Path) -> tuple[LoadedTarget, Panel]:
    target = loaded(builders.llama(tmp_path / "m"))
    info = target.resident.info
    texts = Perplexity(info, data=lines(tmp_path / "t.jsonl", [{"text": t} for t in TEXTS]))
    questions: list[dict[str, object]] = [
        {"question": "one", "choices": ["two", "six"], "label": 1}
    ]
    choice = MultipleChoice(info, data=lines(tmp_path / "q.jsonl", questions))
    return target, Panel("search", {"text": texts, "choice": choice})


def scores(saliency: Saliency, target: LoadedTarget, panel: Panel | None) -> dict[str, Tensor]:
    before = {name: tensor.clone() for name, tensor in target.state.items()}
    found = dict(saliency.scores(target, panel, lambda _: None))
    assert not any(p.requires_grad for p in target.module.parameters())
    assert all(torch.equal(target.state[name], tensor) for name, tensor in before.items())
    return found


def test_gradient_of_a_classifier(classifier: tuple[LoadedTarget, Panel]) -> None:
    target, panel = classifier
    (task,) = panel.evaluators.values()
    inputs = [item.requests[0].inputs for item in task.items]
    for correct_only in (False, True):
        module = target.module.requires_grad_(True)
        module.zero_grad()
        right = []
        for given, label in zip(inputs, LABELS, strict=True):
            logits = module(**{k: v[None] for k, v in given.items()}).logits
            right.append(int(logits.argmax()) == label)
            if right[-1] or not correct_only:
                (-logits.log_softmax(-1)[0, label]).backward()
        expected = {n: p.grad.float() for n, p in module.named_parameters()}
        module.requires_grad_(False)
        assert 0 < sum(right) < len(right)
        found = scores(GradientSaliency(correct_only=correct_only), target, panel)
        assert found.keys() == expected.keys()
        for name, gradient in expected.items():
            torch.testing.assert_close(found[name], gradient, rtol=1e-4, atol=1e-7)
    words = next(name for name in found if "word_embeddings" in name)
    unread = (found[words] == 0).all(1)
    assert 0 < int(unread.sum()) < len(unread)  # tokens that no text has


def test_gradient_of_a_language_model(language: tuple[LoadedTarget, Panel]) -> None:
    target, panel = language
    tokenizer = target.resident.info.tokenizer
    module = target.module.requires_grad_(True)
    encode = tokenizer.encode
    rows = [([1], encode(text)) for text in TEXTS]
    rows.append((encode("one"), encode(" six", add_special_tokens=False)))
    for context, answer in rows:
        row = torch.tensor([[*context, *answer]])
        logits = module(row[:, :-1]).logits.log_softmax(-1)[0, -len(answer) :]
        (-logits.gather(1, row[0, -len(answer) :, None]).sum()).backward()
    expected = {name: p.grad.float() for name, p in module.named_parameters()}
    module.requires_grad_(False)
    found = scores(GradientSaliency(correct_only=False), target, panel)
    for name, gradient in expected.items():
        torch.testing.assert_close(found[name], gradient, rtol=1e-3, atol=1e-6)


def test_wanda_is_weight_times_norm_of_the_inputs(
    classifier: tuple[LoadedTarget, Panel],
) -> None:
    target, panel = classifier
    (task,) = panel.evaluators.values()
    seen: list[Tensor] = []
    layer = target.module.get_submodule("bert.encoder.layer.1.output.dense")
    handle = layer.register_forward_hook(lambda _, given, __: seen.append(given[0]))
    tokens: list[int] = []
    for item in task.items:
        tokens += item.requests[0].inputs["input_ids"].tolist()
        target.module(**{k: v[None] for k, v in item.requests[0].inputs.items()})
    handle.remove()
    found = scores(WandaSaliency(), target, panel)
    norms = torch.cat([x.flatten(0, -2) for x in seen]).norm(dim=0)
    weight = target.state["bert.encoder.layer.1.output.dense.weight"]
    expected = (weight.abs() * norms).float()
    torch.testing.assert_close(found["bert.encoder.layer.1.output.dense.weight"].float(), expected)
    table = "bert.embeddings.word_embeddings.weight"
    counts = np.bincount(tokens, minlength=len(target.state[table]))
    plain = target.state[table].abs().float() * torch.tensor(counts).sqrt()[:, None].float()
    torch.testing.assert_close(found[table].float(), plain)


def test_wanda_of_a_convolution_and_shapes_of_all(tmp_path: Path) -> None:
    target = loaded(builders.vit_classifier(tmp_path / "v"))
    images, labels = np.random.default_rng(0).integers(0, 255, (3, 8, 8, 3)), np.array([0, 1, 1])
    np.savez(tmp_path / "d.npz", images=images.astype(np.uint8), labels=labels)
    task = Accuracy(target.resident.info, data=str(tmp_path / "d.npz"), head=HEAD)
    panel = Panel("search", {"task": task})
    found = scores(WandaSaliency(), target, panel)
    pixels = torch.stack([i.requests[0].inputs["pixel_values"] for i in task.items]).double()
    norms = (pixels**2).sum((0, 2, 3)).sqrt()[None, :, None, None]
    name = next(name for name, tensor in target.state.items() if tensor.dim() == 4)
    torch.testing.assert_close(found[name].double(), target.state[name].abs() * norms, rtol=1e-5,
                               atol=1e-6)  # fmt: skip
    makers: list[Callable[[], Saliency]] = [
        lambda: GradientSaliency(correct_only=False), FisherSaliency, WandaSaliency,
        MagnitudeSaliency,
    ]  # fmt: skip
    for make in makers:
        each = scores(make(), target, panel)
        shapes = {name: p.shape for name, p in target.module.named_parameters()}
        assert {name: tensor.shape for name, tensor in each.items()} == shapes


def test_fisher_knows_the_head_too(classifier: tuple[LoadedTarget, Panel]) -> None:
    target, panel = classifier
    found = scores(FisherSaliency(), target, panel)
    (task,) = panel.evaluators.values()
    expected = torch.zeros_like(target.state["classifier.weight"])
    module = target.module.requires_grad_(True)
    for item in task.items:
        logits = module(**{k: v[None] for k, v in item.requests[0].inputs.items()}).logits[0]
        log_probs = logits.log_softmax(-1)
        for each in log_probs:
            (gradient,) = torch.autograd.grad(each, [module.classifier.weight], retain_graph=True)
            expected += each.detach().exp() * gradient**2 / len(task.items)
    module.requires_grad_(False)
    torch.testing.assert_close(found["classifier.weight"], expected.float(), rtol=1e-4, atol=1e-7)
