"""Plans, order of answers, memory, time, and what a run must leave alone."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForSequenceClassification,
)

from evaluators.engine.batching import grown
from evaluators.engine.engine import Engine
from evaluators.engine.forward import token_log_probs
from evaluators.engine.resident import Resident
from evaluators.requests import (
    Classify,
    EvaluationError,
    Generate,
    Loglikelihood,
    TransientFailure,
)
from tests.evaluators.conftest import kick, language_resident
from tests.evaluators.engine.test_likelihood import random_requests


def test_mixed_requests_are_answered_in_order(llama: Resident) -> None:
    likelihoods = random_requests(1, 6, 30)
    generations = tuple(Generate((40 + i, 50), 4) for i in range(6))
    mixed = [each for pair in zip(likelihoods, generations, strict=True) for each in pair]
    engine = Engine(llama)
    answers = engine.run(mixed)
    for i, alone in enumerate(engine.run(likelihoods)):
        assert answers[2 * i].total == pytest.approx(alone.total, rel=1e-5)
    assert answers[1::2] == engine.run(generations)


def test_no_requests_no_answers(llama: Resident) -> None:
    assert Engine(llama).run([]) == []


def test_same_requests_same_bits_and_no_second_plan(
    llama: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests = (*random_requests(1, 10, 40), Generate((40, 50), 4))
    engine = Engine(llama)
    before = engine.run(requests)
    kick(llama, seed=5)
    changed = engine.run(requests)
    kick(llama, seed=5, scale=-0.2)  # back, but for rounding

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("planned again")

    monkeypatch.setattr("evaluators.engine.engine._jobs", refuse)
    assert changed != before
    assert engine.run(requests) == engine.run(requests)


def test_a_changed_list_is_planned_again(llama: Resident) -> None:
    requests: list[Any] = [Loglikelihood((40,), (50,))]
    engine = Engine(llama)
    first = engine.run(requests)
    requests[0] = Loglikelihood((41,), (50, 51))
    assert engine.run(requests)[0].total != first[0].total


def test_weights_mode_and_global_noise_are_left_alone(llama: Resident) -> None:
    torch.manual_seed(7)
    np.random.seed(7)
    weights = {n: t.clone() for n, t in llama.module.state_dict().items()}
    torch_state, numpy_state = torch.get_rng_state(), np.random.get_state()[1].copy()
    Engine(llama).run([*random_requests(1, 4, 9), Generate((40, 50), 4, temperature=1.0)])
    assert torch.equal(torch.get_rng_state(), torch_state)
    assert np.array_equal(np.random.get_state()[1], numpy_state)
    assert not llama.module.training
    assert all(torch.equal(t, weights[n]) for n, t in llama.module.state_dict().items())
    assert not llama.module.lm_head._forward_pre_hooks


class _Memory(TorchDispatchMode):
    """A device on which so many passes fail that have more than some rows of hidden states."""

    def __init__(self, rows: int, times: float = math.inf) -> None:
        super().__init__()
        self._rows, self._left = rows, times

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        large = func is torch.ops.aten.embedding.default and out.shape[0] > self._rows
        if large and self._left > 0:
            self._left -= 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20 GiB")
        return out


def test_out_of_memory_halves_the_budget_and_remembers(llama: Resident) -> None:
    requests = random_requests(1, 16, 30)
    expected = Engine(llama, batch_tokens=64).run(requests)
    engine = Engine(llama, batch_tokens=4096)
    with _Memory(rows=4):
        answers = engine.run(requests)
    assert engine.batch_tokens < 4096
    np.testing.assert_allclose(
        [each.total for each in answers], [each.total for each in expected], rtol=1e-5
    )


def test_want_of_memory_that_passes_changes_no_bit(llama: Resident) -> None:
    requests = random_requests(1, 16, 30)
    engine = Engine(llama, batch_tokens=256)
    expected = engine.run(requests)
    with _Memory(rows=0, times=1):
        assert engine.run(requests) == expected
    assert engine.batch_tokens == 256


def test_out_of_memory_with_one_row_is_a_failure(llama: Resident) -> None:
    engine = Engine(llama, batch_tokens=4096)
    with (
        _Memory(rows=0),
        pytest.raises(TransientFailure, match="out of memory with one row per batch: free some"),
    ):
        engine.run(random_requests(1, 16, 30))
    assert engine.batch_tokens == 4096  # the next candidate gets the whole budget again
    assert len(engine.run(random_requests(1, 16, 30))) == 16


def test_other_errors_are_not_swallowed(llama: Resident) -> None:
    def fail(*_: Any) -> None:
        raise RuntimeError("a bug")

    llama.module.register_forward_pre_hook(fail)
    with pytest.raises(RuntimeError, match="a bug"):
        Engine(llama).run([Loglikelihood((3,), (4,))])


@pytest.mark.parametrize("request_", [Loglikelihood((3,), (4,)), Generate((3, 4), 5)])
def test_time_limit(llama: Resident, request_: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 7))
    monkeypatch.setattr("evaluators.engine.batching.time.monotonic", lambda: float(next(clock)))
    with pytest.raises(TransientFailure, match=r"timed out after 7\.0 s; the limit is 5 s"):
        Engine(llama, timeout_s=5).run([request_])


def test_bad_options_are_refused(llama: Resident) -> None:
    with pytest.raises(ValueError, match="batch_tokens must be at least 1 or null, got 0"):
        Engine(llama, batch_tokens=0)
    with pytest.raises(ValueError, match="timeout_s must be above 0 seconds or null, got 0"):
        Engine(llama, timeout_s=0)


def test_unlimited_batches_start_at_a_sensible_size(llama: Resident) -> None:
    assert Engine(llama, batch_tokens=None).batch_tokens == 8192


def test_batches_grow_into_the_free_memory() -> None:
    assert grown(8192, 1000, 1999) == 8192
    assert grown(8192, 1000, 16_000) == 8192 * 8
    assert grown(8192, 0, 10**12) == 8192
    assert grown(8192, 1, 10**12) == 1 << 18


def test_the_body_is_compiled_for_plain_passes_alone(
    llama: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[int] = []

    def fake(forward: Any, *, dynamic: bool) -> Any:
        def compiled(*arguments: Any, **options: Any) -> Any:
            calls.append(1)
            return forward(*arguments, **options)

        return compiled

    monkeypatch.setattr("torch.compile", fake)
    requests = (*random_requests(1, 10, 40), Generate((40, 50), 4))
    expected = Engine(llama).run(requests)
    engine = Engine(llama, compile=True)
    assert engine.run(requests) == expected
    assert calls
    assert "forward" not in vars(llama.module.model)
    calls.clear()
    norm = {"model.norm.weight": torch.zeros(32)}
    assert engine.run_population(requests, [norm])[0] == expected
    assert not calls


def test_head_logits_equal_single_rows(bert: Resident) -> None:
    texts = ["a", "a longer text than that", "seven", "x" * 90]
    tokenizer = bert.info.tokenizer
    requests = [
        Classify(head, {k: torch.tensor(v) for k, v in tokenizer(text).items()})
        for head in ("sentiment", "topic")
        for text in texts
    ]
    answers = Engine(bert, batch_tokens=64).run(requests)
    for request, answer in zip(requests, answers, strict=True):
        one = {k: v.unsqueeze(0) for k, v in request.inputs.items()}
        with torch.no_grad():
            logits = bert.classifiers[request.head](**one).logits[0]
        np.testing.assert_allclose(answer.logits, logits.numpy(), atol=1e-5)


def test_mask_is_made_where_inputs_have_none(bert: Resident) -> None:
    short, long = torch.tensor([1, 9, 2]), torch.tensor([1, *range(30, 60), 2])
    requests = [Classify("topic", {"input_ids": ids}) for ids in (short, long)]
    together = Engine(bert).run(requests)
    alone = [Engine(bert).run([each])[0] for each in requests]
    for a, b in zip(together, alone, strict=True):
        np.testing.assert_allclose(a.logits, b.logits, atol=1e-5)


def test_a_decoders_head_without_padding_token_reads_row_by_row() -> None:
    config = LlamaConfig(
        vocab_size=99,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_labels=3,
        pad_token_id=None,
    )
    torch.manual_seed(0)
    model = LlamaForSequenceClassification(config)
    resident = Resident(model.base_model, tokenizer=None, classifiers={"topic": model})
    rows = [torch.arange(3, 3 + n) for n in (2, 7, 4)]
    answers = Engine(resident).run([Classify("topic", {"input_ids": row}) for row in rows])
    for row, answer in zip(rows, answers, strict=True):
        with torch.no_grad():
            logits = model(input_ids=row.unsqueeze(0)).logits[0]
        np.testing.assert_allclose(answer.logits, logits.numpy(), atol=1e-6)


def test_images_are_batched(vit: Resident) -> None:
    rows: list[int] = []
    vit.classifiers["digits"].register_forward_pre_hook(
        lambda _, __, options: rows.append(options["pixel_values"].shape[0]), with_kwargs=True
    )
    noise = torch.Generator().manual_seed(0)
    images = [torch.randn(3, 8, 8, generator=noise) for _ in range(5)]
    requests = [Classify("digits", {"pixel_values": image}) for image in images]
    answers = Engine(vit).run(requests)
    assert rows == [5]
    with torch.no_grad():
        logits = vit.classifiers["digits"](pixel_values=torch.stack(images)).logits
    np.testing.assert_allclose([each.logits for each in answers], logits.numpy(), atol=1e-6)


def test_bfloat16_scores_are_summed_in_float32(checkpoints: Path) -> None:
    path = checkpoints / "llama"
    model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.bfloat16)
    coarse = Resident(model, tokenizer=AutoTokenizer.from_pretrained(path))
    requests = (*random_requests(1, 8, 30), Generate((40, 50), 4))
    answers = Engine(coarse).run(requests)
    exact = Engine(language_resident(path)).run(requests)
    for a, b in zip(answers[:-1], exact[:-1], strict=True):
        assert a.total == pytest.approx(b.total, rel=0.01)
    logits = model(input_ids=torch.tensor([[9, 8]])).logits[0]
    token = torch.tensor([5, 6])
    log_probs, _ = token_log_probs(logits, torch.arange(2), token)
    expected = logits.double().log_softmax(dim=-1)[torch.arange(2), token]
    torch.testing.assert_close(log_probs.double(), expected, rtol=1e-6, atol=1e-6)


def test_unknown_head_is_refused(bert: Resident) -> None:
    with pytest.raises(ValueError, match="no classification head 'topics'; this model has sent"):
        Engine(bert).run([Classify("topics", {"input_ids": torch.tensor([1])})])


def test_nan_in_a_head_is_a_failure(bert: Resident) -> None:
    bert.write({"embeddings.LayerNorm.weight": torch.full((32,), float("inf"))})
    with pytest.raises(EvaluationError, match="head 'topic' gives logits that are not finite"):
        Engine(bert).run([Classify("topic", {"input_ids": torch.tensor([1, 5])})])
