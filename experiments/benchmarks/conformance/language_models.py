"""Answers of the engine beside transformers' own, one request at a time."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import torch

from evaluators.engine.engine import Engine
from evaluators.engine.population import refusal_of
from evaluators.engine.resident import Resident
from evaluators.requests import Generate, Generated, Likelihood, Loglikelihood, Request, Response
from experiments.benchmarks.conformance.sizes import WINDOW
from experiments.benchmarks.conformance.tiny_models import ERRORS, reason, start_of
from merging.lora.low_rank import LowRankDeltas, LowRankProduct

_NEAR = 5e-5  # nats
_WORDS = (8, 80)  # neither special tokens nor those that stand for images
_CONFIGS = ((), (("no_repeat_ngram_size", 2), ("repetition_penalty", 1.3)))
_CANDIDATES = 2
_RANK = 2


def requests() -> tuple[Request, ...]:
    """Returns prompts by themselves and behind a common beginning, with answers and without."""
    noise = torch.Generator().manual_seed(2)

    def draw(count: int) -> tuple[int, ...]:
        return tuple(torch.randint(*_WORDS, (count,), generator=noise).tolist())

    shared = draw(2 * WINDOW)
    prompts = [draw(count) for count in (1, 17)]
    prompts += [shared + draw(count) for count in (1, 9, 20)]
    return (
        *(Loglikelihood(prompt, draw(3)) for prompt in prompts for _ in range(2)),
        *(Generate(p, (3, 7)[i % 2], options=_CONFIGS[i % 2]) for i, p in enumerate(prompts)),
    )


def likelihoods(resident: Resident, right: Any, other: Any) -> str:
    """Returns what the engine's log-likelihoods come to.

    Args:
        resident: holds the weights of `right`.
        right: the model as transformers loads it.
        other: one with other weights, whose answers must not pass for those of `right`.
    """
    asked = tuple(one for one in requests() if isinstance(one, Loglikelihood))
    return _compared(resident, right, other, asked)


def generation(resident: Resident, right: Any, other: Any) -> str:
    """Returns what greedy texts come to; see `likelihoods`."""
    asked = tuple(one for one in requests() if isinstance(one, Generate))
    return _compared(resident, right, other, asked)


def _compared(resident: Resident, right: Any, other: Any, asked: tuple[Request, ...]) -> str:
    tokenizer = resident.info.tokenizer
    try:
        wanted = [_own_answer(right, tokenizer, one) for one in asked]
    except ERRORS as error:  # its own code, on input of tokens alone
        wanted, why = None, reason(error)
    try:
        found = [Engine(resident, batch_tokens=n).run(asked) for n in (1, 8192)]
    except ValueError as error:
        return f"refused: {error}"
    except ERRORS as error:
        return f"wrong: {reason(error)}"
    if wanted is None:
        return f"wrong: answered, where transformers raises {why}"
    off = [_far(answers, wanted) for answers in found]
    if any(off):
        return f"wrong: {off[0]} of {len(wanted)} alone, {off[1]} in batches"
    others = (_own_answer(other, tokenizer, one) for one in asked)
    if all(_same(answer, own) for answer, own in zip(found[1], others, strict=True)):
        return "wrong: the answers of another model pass"
    return "right"


def population(resident: Resident, right: Any, merged: Sequence[str]) -> str:
    """Returns how candidates that differ in factors of `merged` answer together."""
    asked = requests()[1::3]
    names, why = _shareable(resident, merged)
    if not names:
        return f"refused: {why}"
    candidates = [_differences(resident, names, seed) for seed in range(_CANDIDATES)]
    try:
        found = Engine(resident).run_population(asked, candidates)
    except ValueError as error:
        return f"refused: {error}"
    except ERRORS as error:
        return f"wrong: {reason(error)}"
    for deltas, answers in zip(candidates, found, strict=True):
        own = copy.deepcopy(right)
        with torch.no_grad():
            for name, delta in deltas.items():
                assert isinstance(delta, LowRankProduct)
                own.get_parameter(name).add_(delta.product())
        if isinstance(answers, Exception):
            return f"wrong: {reason(answers)}"
        wanted = [_own_answer(own, resident.info.tokenizer, one) for one in asked]
        if off := _far(answers, wanted):
            return f"wrong: {off} of {len(asked)}"
        if not _far(answers[:1], [_own_answer(right, resident.info.tokenizer, asked[0])]):
            return "wrong: the answers of the centre pass"
    return "right"


def _shareable(resident: Resident, merged: Sequence[str]) -> tuple[list[str], str]:
    """Returns the matrices in which candidates of one pass may differ, or why there are none."""
    names, why = [], "it has no matrix"
    for name in merged:
        weight = resident.tensor(name)
        if weight.dim() == 2:
            refused = refusal_of(resident, {name: _factors(weight, 0)})
            names += [name] if refused is None else []
            why = refused or why
    return names, why


def _differences(resident: Resident, names: Sequence[str], seed: int) -> LowRankDeltas:
    return {
        name: _factors(resident.tensor(name), 100 * seed + number)
        for number, name in enumerate(names)
    }


def _factors(weight: torch.Tensor, seed: int) -> LowRankProduct:
    noise = torch.Generator().manual_seed(seed)
    rows, columns = weight.shape
    a = torch.randn(_RANK, columns, generator=noise)
    return LowRankProduct(a, 0.1 * torch.randn(rows, _RANK, generator=noise))


def _own_answer(model: Any, tokenizer: Any, request: Request) -> float | str:
    """Returns transformers' own answer, by a copy that was asked nothing before."""
    model = copy.deepcopy(model)
    if isinstance(request, Loglikelihood):
        return _log_likelihood(model, request)
    assert isinstance(request, Generate)
    ids = torch.tensor([request.prompt])
    start = 1 if model.config.is_encoder_decoder else ids.shape[1]
    out = model.generate(
        input_ids=ids,
        attention_mask=torch.ones_like(ids),
        max_length=start + request.max_new_tokens,  # as lm-eval asks
        do_sample=False,
        **dict(request.options or ()),
    )
    return str(tokenizer.decode(out[0, start:], skip_special_tokens=True))


@torch.inference_mode()
def _log_likelihood(model: Any, request: Loglikelihood) -> float:
    read, written = list(request.context), list(request.continuation)
    if model.config.is_encoder_decoder:
        inputs = {"input_ids": read, "decoder_input_ids": [start_of(model), *written[:-1]]}
    else:
        inputs = {"input_ids": read + written[:-1]}
    tensors = {name: torch.tensor([tokens]) for name, tokens in inputs.items()}
    logits = model(**tensors, use_cache=False).logits[0, -len(written) :]
    log_probs = logits.double().log_softmax(dim=-1)
    return float(log_probs.gather(1, torch.tensor(written)[:, None]).sum())


def _far(answers: Sequence[Response], wanted: Sequence[float | str]) -> int:
    """Returns how many answers are not the wanted ones."""
    return sum(not _same(a, w) for a, w in zip(answers, wanted, strict=True))


def _same(answer: Response, wanted: float | str) -> bool:
    if isinstance(answer, Likelihood):
        return abs(answer.total - float(wanted)) <= _NEAR
    return isinstance(answer, Generated) and answer.text == wanted
