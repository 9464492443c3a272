"""Greedy answers against transformers' generate; sampling, stop texts and end tokens."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.engine.engine import Engine
from evaluators.engine.generation import _sample
from evaluators.engine.resident import Resident
from evaluators.requests import EvaluationError, Generate
from tests.evaluators.conftest import kick, language_resident, sentence


def prompt(resident: Resident, text: str) -> tuple[int, ...]:
    return tuple(resident.info.tokenizer.encode(text))


def reference(resident: Resident, request: Generate) -> str:
    ids = torch.tensor([request.prompt[-(resident.info.max_length - request.max_new_tokens) :]])
    out = resident.module.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_new_tokens=request.max_new_tokens,
        do_sample=False,
        pad_token_id=0,
    )
    text = resident.info.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
    for stop in request.stop:
        text = text.split(stop)[0]
    return str(text)


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_greedy_equals_generate_in_any_batch(checkpoints: Path, name: str) -> None:
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    requests = [
        Generate(prompt(resident, sentence(i, 1 + i)), 8 + i % 3, stop=("e", "\n")[: i % 3])
        for i in range(9)
    ]
    expected = [reference(resident, each) for each in requests]
    for batch_tokens in (1, 150, 10_000):
        answers = Engine(resident, batch_tokens=batch_tokens).run(requests)
        assert [each.text for each in answers] == expected


@pytest.mark.parametrize("name", ["llama", "gpt2", "gpt_neox", "qwen2"])
def test_examples_before_all_prompts_are_computed_once(checkpoints: Path, name: str) -> None:
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    examples = sentence(9, 12)
    requests = [
        Generate(prompt(resident, examples + sentence(i, 1 + i)), 5 + i % 3) for i in range(6)
    ]
    requests.append(Generate(prompt(resident, "something else"), 6))
    expected = [reference(resident, each) for each in requests]
    tokens: list[int] = []
    resident.module.register_forward_pre_hook(
        lambda _, __, options: tokens.append(options["input_ids"].numel()), with_kwargs=True
    )
    for batch_tokens in (1, 300, 10_000):
        tokens.clear()
        answers = Engine(resident, batch_tokens=batch_tokens).run(requests)
        assert [each.text for each in answers] == expected
    read = sum(tokens[: tokens.index(max(tokens)) + 1])  # the examples, then all that is left
    assert read < 0.6 * sum(len(each.prompt) for each in requests)


def test_too_long_prompt_loses_its_left_end(short: Resident) -> None:
    request = Generate(prompt(short, sentence(1, 30)), 10)
    assert Engine(short).run([request])[0].text == reference(short, request)


def test_stop_text_across_tokens_is_cut(llama: Resident) -> None:
    ask = prompt(llama, sentence(2, 5))
    whole = Engine(llama).run([Generate(ask, 30)])[0].text
    stop = whole[7:10]
    answers = Engine(llama).run([Generate(ask, 30, stop=("no such text", stop))])
    assert answers[0].text == whole[: whole.index(stop)]


def test_stopping_ends_the_work(llama: Resident) -> None:
    ask = prompt(llama, sentence(2, 5))
    whole = Engine(llama).run([Generate(ask, 30)])[0].text
    steps: list[int] = []
    llama.module.register_forward_hook(lambda *_: steps.append(1))
    Engine(llama).run([Generate(ask, 30, stop=(whole[2],))])
    assert len(steps) <= 3


def test_end_token_ends_the_answer(llama: Resident) -> None:
    ask = prompt(llama, sentence(3, 4))
    with torch.no_grad():
        first = int(llama.module(torch.tensor([ask])).logits[0, -1].argmax())
    llama.module.generation_config.eos_token_id = [2, first]
    assert Engine(llama).run([Generate(ask, 20)])[0].text == ""


def test_equal_requests_run_once(llama: Resident) -> None:
    rows: list[int] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, options: rows.append(options["input_ids"].shape[0]), with_kwargs=True
    )
    answers = Engine(llama).run([Generate(prompt(llama, "abc"), 3)] * 4)
    assert set(rows) == {1}
    assert len(answers) == 4


def test_sampling_depends_on_its_seed_alone(llama: Resident) -> None:
    ask = prompt(llama, sentence(4, 5))
    requests = [Generate(ask, 12, temperature=1.0, seed=seed) for seed in range(4)]
    alone = [Engine(llama).run([each])[0].text for each in requests]
    torch.manual_seed(99)
    state = torch.get_rng_state()
    together = Engine(llama).run([Generate(prompt(llama, "x" * 30), 12), *requests])
    assert [each.text for each in together[1:]] == alone
    assert len(set(alone)) > 1
    assert torch.equal(torch.get_rng_state(), state)


def test_sampled_frequencies_follow_temperature_and_nucleus() -> None:
    probs = np.array([0.5, 0.2, 0.15, 0.1, 0.05])
    logits = torch.tensor(np.log(probs))
    noise = torch.Generator().manual_seed(0)
    drawn = Counter(_sample(logits, 1.0, 1.0, noise) for _ in range(4000))
    np.testing.assert_allclose([drawn[i] / 4000 for i in range(5)], probs, atol=0.03)
    nucleus = Counter(_sample(logits, 1.0, 0.7, noise) for _ in range(2000))
    assert set(nucleus) == {0, 1}
    np.testing.assert_allclose(nucleus[0] / 2000, 5 / 7, atol=0.04)
    cold = Counter(_sample(logits, 0.05, 1.0, noise) for _ in range(200))
    assert set(cold) == {0}


def test_nan_weights_are_a_failure_with_its_reason(llama: Resident) -> None:
    llama.write({"model.norm.weight": torch.full((32,), float("nan"))})
    with pytest.raises(EvaluationError, match="a generated token has no finite logits"):
        Engine(llama).run([Generate((3, 4), 5)])


def test_no_room_for_the_prompt_is_refused(short: Resident) -> None:
    with pytest.raises(ValueError, match="max_new_tokens 48 leaves no room"):
        Engine(short).run([Generate((3, 4), 48)])


def test_empty_prompt_is_refused(short: Resident) -> None:
    with pytest.raises(ValueError, match="a prompt of at least one token"):
        Engine(short).run([Generate((), 5)])
