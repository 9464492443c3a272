"""Greedy answers against transformers' generate; sampling, stop texts and end tokens."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.requests import EvaluationError, Generate
from tests import builders
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
    request = Generate(ask, 20)
    text = Engine(llama).run([request])[0].text
    assert text == reference(llama, request) == llama.info.tokenizer.decode([first])


@pytest.mark.parametrize("options", [None, (("max_time", 1e9),)])
def test_an_answer_is_cut_off_where_more_tokens_would_have_changed_it(
    llama: Resident, options: tuple[tuple[str, float], ...] | None
) -> None:
    """In batches and alone, for every limit: before the stop text, but not at its very end."""
    ask = prompt(llama, sentence(2, 5))
    stop = Engine(llama).run([Generate(ask, 30)])[0].text[7:10]
    limits = range(1, 31)
    whole = Engine(llama).run([Generate(ask, most, options=options) for most in limits])
    ended = Engine(llama).run(
        [Generate(ask, most, stop=("\0", stop), options=options) for most in limits]
    )
    assert all(answer.cut_off for answer in whole)
    expected = [stop not in answer.text for answer in whole]
    assert [answer.cut_off for answer in ended] == expected
    assert set(expected) == {True, False}
    first = builders.byte_tokenizer().encode(whole[0].text)[0]
    llama.module.generation_config.eos_token_id = [2, first]
    assert Engine(llama).run([Generate(ask, 1)])[0].cut_off is False


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


@pytest.mark.parametrize(
    ("top_p", "options"),
    [
        (0.7, None),
        (1.0, ()),
        (1.0, (("top_p", 0.6), ("typical_p", 0.9), ("repetition_penalty", 1.2))),
    ],
)
def test_samples_are_generates_own(
    llama: Resident, top_p: float, options: tuple[tuple[str, float], ...] | None
) -> None:
    """In a batch the tokens that each prompt alone gets behind `torch.manual_seed`."""
    llama.module.generation_config.min_p = 0.01
    requests = [
        Generate(prompt(llama, sentence(i, 1 + i)), 9, (), 0.8, top_p, seed=i, options=options)
        for i in range(5)
    ]
    plain = {"top_p": top_p, "top_k": 0, "min_p": 0.0}  # transformers has a top_k of its own
    expected = []
    for request in requests:
        ids = torch.tensor([request.prompt])
        torch.manual_seed(request.seed)
        out = llama.module.generate(
            ids,
            attention_mask=torch.ones_like(ids),
            max_new_tokens=9,
            do_sample=True,
            temperature=0.8,
            pad_token_id=0,
            **(plain if options is None else dict(options)),
        )
        expected.append(
            llama.info.tokenizer.decode(out[0, ids.shape[1] :], skip_special_tokens=True)
        )
    assert [answer.text for answer in Engine(llama).run(requests)] == expected


def test_a_search_that_transformers_does_not_bring_is_refused(llama: Resident) -> None:
    llama.module.generation_config.penalty_alpha = 0.6
    with pytest.raises(ValueError, match="ask for contrastive_search, which is not supported"):
        Engine(llama).run([Generate((5, 6), 4, options=(("top_k", 4),))])
    Engine(llama).run([Generate((5, 6), 4)])  # reads nothing of it


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
