"""The engine's log-likelihoods against one plain forward pass for each request."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.engine.engine import Engine
from evaluators.engine.forward import token_log_probs
from evaluators.engine.resident import Resident
from evaluators.requests import EvaluationError, Likelihood, Loglikelihood
from tests.evaluators.conftest import kick, language_resident


def reference(resident: Resident, request: Loglikelihood) -> Likelihood:
    """One row, no padding, log-softmax of the whole vocabulary in float64."""
    longest = resident.info.max_length + 1
    tokens = torch.tensor([(request.context + request.continuation)[-longest:]])
    with torch.no_grad():
        logits = resident.module(input_ids=tokens[:, :-1]).logits[0].double()
    wanted = torch.tensor(request.continuation)
    scored = logits[-len(wanted) :]
    log_probs = scored.log_softmax(dim=-1)[torch.arange(len(wanted)), wanted]
    return Likelihood(float(log_probs.sum()), bool((scored.argmax(dim=-1) == wanted).all()))


def random_requests(seed: int, count: int, longest: int) -> tuple[Loglikelihood, ...]:
    draw = np.random.default_rng(seed)
    return tuple(
        Loglikelihood(
            tuple(draw.integers(3, 259, draw.integers(1, longest)).tolist()),
            tuple(draw.integers(3, 259, draw.integers(1, 9)).tolist()),
        )
        for _ in range(count)
    )


def assert_close(answers: list, expected: list[Likelihood]) -> None:
    assert [each.greedy for each in answers] == [each.greedy for each in expected]
    np.testing.assert_allclose(
        [each.total for each in answers], [each.total for each in expected], rtol=1e-5
    )


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_equals_plain_forward_passes(checkpoints: Path, name: str) -> None:
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    requests = random_requests(0, 25, 60)
    answers = Engine(resident, batch_tokens=300).run(requests)
    assert_close(answers, [reference(resident, each) for each in requests])


@given(st.integers(0, 10_000), st.integers(1, 700))
@settings(max_examples=15, deadline=None)
def test_batches_do_not_change_answers(checkpoints: Path, seed: int, batch_tokens: int) -> None:
    resident = language_resident(checkpoints / "llama")
    requests = random_requests(seed, 12, 40)
    answers = Engine(resident, batch_tokens=batch_tokens).run(requests)
    assert_close(answers, Engine(resident, batch_tokens=10_000).run(requests[::-1])[::-1])


def test_greedy_continuation_is_recognised(llama: Resident) -> None:
    context = (40, 50, 60)
    tokens = torch.tensor([context])
    with torch.no_grad():
        for _ in range(3):
            best = llama.module(tokens).logits[:, -1].argmax(dim=-1, keepdim=True)
            tokens = torch.cat([tokens, best], dim=1)
    right = tuple(tokens[0, 3:].tolist())
    wrong = (*right[:2], right[2] - 1)
    answers = Engine(llama).run([Loglikelihood(context, right), Loglikelihood(context, wrong)])
    assert [each.greedy for each in answers] == [True, False]


def test_too_long_context_loses_its_left_end(short: Resident) -> None:
    requests = [Loglikelihood(tuple(range(3, 103)), tuple(range(50, 50 + n))) for n in (1, 5, 48)]
    answers = Engine(short).run(requests)
    assert_close(answers, [reference(short, each) for each in requests])


def test_one_token_choices_share_a_row(llama: Resident) -> None:
    rows: list[int] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, options: rows.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    context = tuple(range(10, 40))
    choices = [Loglikelihood(context, (token,)) for token in range(65, 69)]
    longer = [Loglikelihood(context[:-2], (*context[-2:], 70))]  # the same row, cut elsewhere
    answers = Engine(llama).run(choices + longer)
    assert sum(rows) == 1
    assert_close(answers, [reference(llama, each) for each in choices + longer])


def few_shot(seed: int, shots: int, items: int) -> tuple[Loglikelihood, ...]:
    """Items of several answers each, all behind the same examples."""
    draw = np.random.default_rng(seed)

    def tokens(count: int) -> tuple[int, ...]:
        return tuple(draw.integers(3, 259, count).tolist())

    examples, asked = tokens(shots), []
    for _ in range(items):
        context = examples + tokens(int(draw.integers(5, 25)))
        answers = [tokens(int(draw.integers(1, 7))) for _ in range(int(draw.integers(1, 5)))]
        asked += [Loglikelihood(context, answer) for answer in answers]
    return tuple(asked)


@pytest.mark.parametrize(
    ("name", "batch_tokens"),
    [("llama", 40), ("llama", 300), ("llama", 5000)]
    + [(name, 300) for name in ("gpt2", "gpt_neox", "qwen2")],
)
def test_shared_beginnings_are_computed_once(
    checkpoints: Path, name: str, batch_tokens: int
) -> None:
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    requests = (*few_shot(0, 60, 6), *few_shot(1, 0, 3), *random_requests(0, 5, 30))
    expected = [reference(resident, each) for each in requests]
    tokens: list[int] = []
    resident.module.register_forward_pre_hook(
        lambda _, __, options: tokens.append(options["input_ids"].numel()), with_kwargs=True
    )
    engine = Engine(resident, batch_tokens=batch_tokens)
    assert_close(engine.run(requests), expected)
    whole = sum(len(each.context + each.continuation) - 1 for each in requests)
    assert sum(tokens) < 0.5 * whole
    tokens.clear()
    engine.run(requests)  # the second time nothing is tried out
    assert max(tokens) <= max(batch_tokens, 60)


@given(st.integers(0, 10_000), st.integers(1, 900), st.integers(0, 40))
@settings(max_examples=8, deadline=None)
def test_beginnings_do_not_change_answers(
    checkpoints: Path, seed: int, batch_tokens: int, shots: int
) -> None:
    resident = language_resident(checkpoints / "llama")
    requests = few_shot(seed, shots, 5)
    answers = Engine(resident, batch_tokens=batch_tokens).run(requests)
    assert_close(answers, [reference(resident, each) for each in requests])


def test_models_without_a_plain_cache_compute_whole_rows(
    llama: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert llama.capabilities.shares
    unable = dataclasses.replace(llama.capabilities, shares=False)
    monkeypatch.setitem(vars(llama), "capabilities", unable)
    requests = few_shot(0, 60, 6)
    options: list[dict] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, given: options.append(given), with_kwargs=True
    )
    assert_close(Engine(llama).run(requests), [reference(llama, each) for each in requests])
    assert not any("past_key_values" in each for each in options)


def test_short_beginnings_are_not_worth_it(llama: Resident) -> None:
    rows: list[int] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, options: rows.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    Engine(llama).run([Loglikelihood((7, 8, 9, 50 + i), (5, 60 + i, 7)) for i in range(9)])
    assert rows == [9]


def test_padded_tokens_stay_within_the_budget(llama: Resident) -> None:
    sizes: list[int] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, options: sizes.append(options["input_ids"].numel()), with_kwargs=True
    )
    Engine(llama, batch_tokens=128).run(random_requests(3, 40, 60))
    assert max(sizes) <= 128
    assert len(sizes) > 5


def test_only_scored_positions_reach_the_vocabulary(llama: Resident) -> None:
    seen: list[int] = []
    llama.module.lm_head.register_forward_hook(
        lambda _, __, logits: seen.append(logits.shape[:-1].numel())
    )
    Engine(llama).run([Loglikelihood(tuple(range(3, 203)), (7, 8))])
    assert seen == [2]


def test_log_probs_of_large_logits_are_exact_in_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("evaluators.engine.forward._CHUNK_ELEMENTS", 64)
    logits = 1e4 + 5 * torch.randn(30, 20, generator=torch.Generator().manual_seed(0))
    row, token = torch.arange(30).repeat(2), torch.arange(60) % 20
    log_probs, best = token_log_probs(logits, row, token)
    exact = logits.double().log_softmax(dim=-1)[row, token]
    torch.testing.assert_close(log_probs.double(), exact, rtol=0, atol=2e-6)
    assert torch.equal(best, logits.argmax(dim=-1)[row] == token)


def test_nan_weights_are_a_failure_with_its_reason(llama: Resident) -> None:
    llama.write({"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(EvaluationError, match="2 of 2 scored tokens have no finite log-prob"):
        Engine(llama).run([Loglikelihood((3, 4), (5, 6))])


def test_answer_longer_than_the_model_is_refused(short: Resident) -> None:
    with pytest.raises(ValueError, match="continuation has 49 tokens, the model takes 48"):
        Engine(short).run([Loglikelihood((3,), tuple(range(3, 52)))])


def test_empty_side_is_refused(llama: Resident) -> None:
    with pytest.raises(ValueError, match="at least one token on either side"):
        Engine(llama).run([Loglikelihood((), (5,))])


def test_encoders_cannot_be_asked(bert: Resident) -> None:
    with pytest.raises(ValueError, match="BertModel is no causal language model"):
        Engine(bert).run([Loglikelihood((3,), (5,))])
