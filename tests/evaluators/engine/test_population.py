"""Candidates that share a pass, against the same candidates written and asked one by one."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from evaluators.engine.engine import Engine
from evaluators.engine.population import refusal_of
from evaluators.engine.resident import Resident
from evaluators.requests import (
    Classify,
    EvaluationError,
    Generate,
    Loglikelihood,
    Request,
    Response,
    TokenStatistics,
)
from merging.lora.low_rank import LowRankProduct
from tests.evaluators.conftest import kick, language_resident, sentence
from tests.evaluators.engine.test_engine import _Memory
from tests.evaluators.engine.test_likelihood import few_shot, random_requests

Deltas = dict[str, LowRankProduct | Tensor]


def random_deltas(resident: Resident, seed: int, *, scale: float = 0.03) -> Deltas:
    """Factors of rank 1 to 3 for every matrix, whole differences for every vector."""
    noise = torch.Generator().manual_seed(seed)
    deltas: Deltas = {}
    for i, (name, parameter) in enumerate(resident.module.named_parameters()):
        if parameter.dim() == 1:
            deltas[name] = scale * torch.randn(parameter.shape, generator=noise)
        else:
            rank = 1 + (seed + i) % 3
            rows, columns = parameter.shape
            a = torch.randn(rank, columns, generator=noise)
            deltas[name] = LowRankProduct(a, scale * torch.randn(rows, rank, generator=noise))
    return deltas


def mixed_deltas(resident: Resident, seeds: Sequence[int]) -> list[Deltas]:
    """One pair of factors per matrix, and different shares of it."""
    whole = random_deltas(resident, 0, scale=0.1)
    shared = {name: each for name, each in whole.items() if isinstance(each, LowRankProduct)}
    return [
        {
            name: LowRankProduct(each.a, each.b, torch.linspace(-1, seed, len(each.a)))
            for name, each in shared.items()
        }
        for seed in seeds
    ]


def one_by_one(
    resident: Resident, requests: Sequence[Request], candidates: Sequence[Mapping[str, Any]]
) -> list[list[Response]]:
    """Every candidate's dense weights in a model of its own forward passes."""
    centre = {name: p.clone() for name, p in resident.module.named_parameters()}
    found = []
    for deltas in candidates:
        weights = dict(centre)
        for name, delta in deltas.items():
            weights[name] = centre[name] + (
                delta.product() if isinstance(delta, LowRankProduct) else delta
            )
        resident.write(weights)
        found.append(Engine(resident).run(requests))
    resident.write(centre)
    return found


def assert_close(found: Sequence[Any], expected: Sequence[Sequence[Any]]) -> None:
    for answers, others in zip(found, expected, strict=True):
        for one, other in zip(answers, others, strict=True):
            if isinstance(other, type(one)) and hasattr(one, "text"):
                assert one.text == other.text
            elif hasattr(one, "total"):
                assert one.total == pytest.approx(other.total, rel=2e-5, abs=2e-5)
            elif hasattr(one, "logits"):
                np.testing.assert_allclose(one.logits, other.logits, atol=2e-5)
            else:
                np.testing.assert_allclose(one.log_probs, other.log_probs, atol=2e-5)
                np.testing.assert_allclose(one.deviations, other.deviations, atol=2e-5)


def language_requests(resident: Resident) -> tuple[Request, ...]:
    encode = resident.info.tokenizer.encode
    generations = [
        Generate(tuple(encode(sentence(i, 2 + i))), 4 + 3 * (i % 3), stop=("e",)[: i % 2])
        for i in range(5)
    ]
    generations += [Generate((*range(60, 80), 90 + i), 5) for i in range(3)]
    sampled = Generate(tuple(encode("the")), 6, temperature=1.0, seed=3)
    return (
        *random_requests(2, 9, 40),
        *few_shot(3, 30, 3),
        *generations,
        sampled,
        TokenStatistics(tuple(range(40, 60))),
    )


@pytest.mark.parametrize("name", ["llama", "qwen2", "gpt_neox", "gpt2"])
@pytest.mark.parametrize("pass_tokens", [60, 10_000])
def test_population_equals_one_by_one(checkpoints: Path, name: str, pass_tokens: int) -> None:
    resident = language_resident(checkpoints / name)  # qwen2 and gpt2 have tied embeddings
    kick(resident, scale=0.1)
    requests = language_requests(resident)
    candidates = [random_deltas(resident, seed) for seed in range(4)]
    candidates.append({})
    del candidates[2][next(iter(candidates[2]))]
    engine = Engine(resident, pass_tokens=pass_tokens)
    before = {n: p.clone() for n, p in resident.module.named_parameters()}
    found = engine.run_population(requests, candidates)
    assert_close(found, one_by_one(resident, requests, candidates))
    assert len({str(each) for each in found}) == 5
    assert all(torch.equal(p, before[n]) for n, p in resident.module.named_parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in resident.module.modules())


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_mixtures_of_the_same_factors_hold_them_once(checkpoints: Path, name: str) -> None:
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    requests = language_requests(resident)
    candidates = [*mixed_deltas(resident, [0, 1, 2]), {}]
    found = Engine(resident).run_population(requests, candidates)
    assert_close(found, one_by_one(resident, requests, candidates))


def test_classifiers(bert: Resident) -> None:
    kick(bert, scale=0.1)
    tokenizer = bert.info.tokenizer
    requests = [
        Classify(head, {k: torch.tensor(v) for k, v in tokenizer(text).items()})
        for head in ("sentiment", "topic")
        for text in ("a", "a longer text than that", "seven", "x" * 60)
    ]
    candidates = [random_deltas(bert, seed) for seed in range(3)]
    for pass_tokens in (1, 100, 5000):
        found = Engine(bert, pass_tokens=pass_tokens).run_population(requests, candidates)
        assert_close(found, one_by_one(bert, requests, candidates))


def test_images(vit: Resident) -> None:
    noise = torch.Generator().manual_seed(0)
    images = [torch.randn(3, 8, 8, generator=noise) for _ in range(3)]
    requests = [Classify("digits", {"pixel_values": image}) for image in images]
    candidates = [
        {n: d for n, d in random_deltas_of_layers(vit, seed).items() if "layers" in n}
        for seed in range(3)
    ]
    found = Engine(vit).run_population(requests, candidates)
    assert_close(found, one_by_one(vit, requests, candidates))


def random_deltas_of_layers(resident: Resident, seed: int) -> Deltas:
    noise = torch.Generator().manual_seed(seed)
    return {
        name: LowRankProduct(
            torch.randn(2, parameter.shape[1], generator=noise),
            0.1 * torch.randn(parameter.shape[0], 2, generator=noise),
        )
        for name, parameter in resident.module.named_parameters()
        if parameter.dim() == 2
    }


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_large_batches_are_written_in_turns(
    checkpoints: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Some batches are large enough for a candidate alone, and others are shared between them."""
    monkeypatch.setattr("evaluators.engine.population._alone_tokens", lambda _: 100)
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    requests = (*language_requests(resident), *random_requests(5, 3, 120))
    mixed, other = mixed_deltas(resident, [2])[0], random_deltas(resident, 1)
    candidates = [random_deltas(resident, 0), mixed, {}, other]
    expected = one_by_one(resident, requests, candidates)
    before = {n: p.clone() for n, p in resident.module.named_parameters()}
    hooked: list[bool] = []
    layer = next(m for m in resident.module.modules() if type(m).__name__ in ("Linear", "Conv1D"))
    resident.module.register_forward_pre_hook(lambda *_: hooked.append(bool(layer._forward_hooks)))
    engine = Engine(resident, batch_tokens=200, pass_tokens=90)
    assert_close(engine.run_population(requests, candidates), expected)
    assert set(hooked) == {True, False}
    assert all(torch.equal(p, before[n]) for n, p in resident.module.named_parameters())
    bad: Deltas = {resident_norm(resident): torch.full((32,), float("nan"))}
    assert isinstance(engine.run_population(requests, [bad])[0], EvaluationError)
    assert all(torch.equal(p, before[n]) for n, p in resident.module.named_parameters())


def resident_norm(resident: Resident) -> str:
    names = [name for name, p in resident.module.named_parameters() if p.dim() == 1]
    return names[-1]


def test_finished_candidates_leave_the_batch(llama: Resident) -> None:
    """Rows drop out unevenly: one candidate ends at once, another writes on."""
    ask = tuple(llama.info.tokenizer.encode(sentence(2, 5)))
    whole = Engine(llama).run([Generate(ask, 30)])[0].text
    requests = [Generate(ask, 30, stop=(whole[2],)), Generate((*ask, 70), 2)]
    candidates: list[Deltas] = [{}, *(random_deltas(llama, seed) for seed in range(3))]
    assert llama.capabilities.shares
    assert all(refusal_of(llama, deltas) is None for deltas in candidates)  # measured here
    rows: list[int] = []
    handle = llama.module.register_forward_pre_hook(
        lambda _, __, options: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    found = Engine(llama).run_population(requests, candidates)
    handle.remove()
    assert_close(found, one_by_one(llama, requests, candidates))
    assert rows[:3] == [4, 8, 8]  # first what the prompts begin with
    assert set(rows[3:]) <= {3, 4, 2, 1}


@pytest.mark.parametrize("name", ["llama", "gpt2"])
def test_candidates_keep_to_a_generation_config_and_search_beams(
    checkpoints: Path, name: str
) -> None:
    """Beams take transformers' generate, a candidate and a prompt at a time."""
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    resident.module.generation_config.repetition_penalty = 1.2
    tokens = resident.info.tokenizer.encode
    requests = [
        Generate(tuple(tokens(sentence(i, 2 + i))), 6, options=options, temperature=temperature)
        for i, (options, temperature) in enumerate(
            [((), 0.0), ((), 1.0), ((("num_beams", 2),), 0.0), ((("num_beams", 3),), 0.9)]
        )
    ]
    candidates = [random_deltas(resident, seed) for seed in range(3)]
    expected = one_by_one(resident, requests, candidates)
    state = torch.get_rng_state()
    assert_close(Engine(resident).run_population(requests, candidates), expected)
    assert torch.equal(torch.get_rng_state(), state)
    bad: Deltas = {resident_norm(resident): torch.full((32,), float("nan"))}
    first, second = Engine(resident).run_population(requests[2:], [candidates[0], bad])
    assert_close([first], [expected[0][2:]])
    assert "a generated token has no finite logits" in str(second)


def test_one_bad_candidate_fails_alone(llama: Resident) -> None:
    requests = (*random_requests(1, 5, 20), Generate((40, 50), 6))
    bad: Deltas = {"model.norm.weight": torch.full((32,), float("nan"))}
    candidates = [random_deltas(llama, 1), bad, {}]
    first, second, third = Engine(llama).run_population(requests, candidates)
    assert isinstance(second, EvaluationError)
    assert "no finite log-prob" in str(second)
    assert_close([first, third], one_by_one(llama, requests, [candidates[0], {}]))
    only = Engine(llama).run_population([requests[-1]], [bad, bad])
    assert all("a generated token has no finite logits" in str(each) for each in only)


def test_passes_are_sized_by_tokens(llama: Resident) -> None:
    candidates = [random_deltas(llama, seed) for seed in range(7)]
    assert all(refusal_of(llama, deltas) is None for deltas in candidates)  # measured here
    rows: list[int] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, options: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    requests = (Loglikelihood(tuple(range(10, 29)), (30, 31)),)  # 20 tokens are read
    Engine(llama, pass_tokens=70).run_population(requests, candidates)
    assert rows == [2, 2, 3]


def test_factors_beyond_the_room_are_taken_in_turns(
    llama: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("evaluators.engine.engine._FACTOR_BYTES", 1)
    candidates = [random_deltas(llama, seed) for seed in range(3)]
    assert all(refusal_of(llama, deltas) is None for deltas in candidates)  # measured here
    rows: list[int] = []
    llama.module.register_forward_pre_hook(
        lambda _, __, options: rows.append(len(options["input_ids"])), with_kwargs=True
    )
    found = Engine(llama).run_population(random_requests(1, 1, 20), candidates)
    assert rows == [1, 1, 1]
    assert len(found) == 3


def test_what_cannot_share_a_pass_is_refused(llama: Resident, vit: Resident) -> None:
    two = LowRankProduct(torch.ones(1, 3), torch.ones(2, 1))
    with pytest.raises(ValueError, match=r"the model has no parameter or buffer 'model.layer'"):
        refusal_of(llama, {"model.layer": two})
    norm = "model.norm.weight"
    reason = refusal_of(llama, {norm: LowRankProduct(torch.ones(1, 32), torch.ones(1, 1))})
    assert reason == f"{norm} has shape (32,), its difference (1, 32)"
    matrix = "model.layers.0.mlp.up_proj.weight"
    dense = refusal_of(llama, {matrix: torch.zeros(64, 32)})
    assert dense == f"{matrix} belongs to a Linear, whose rows cannot have weights each"
    assert refusal_of(llama, random_deltas(llama, 0)) is None
    token = torch.zeros(1, 1, 32)
    with pytest.raises(ValueError, match=r"cannot share a pass: embeddings.cls_token belongs to"):
        Engine(vit).run_population([], [{"embeddings.cls_token": token}])


def test_a_layer_that_sees_no_rows_is_refused(llama: Resident) -> None:
    layer = llama.module.model.layers[0].mlp.up_proj
    layer.register_forward_pre_hook(lambda _, arguments: (arguments[0].flatten(0, 1)[:7],))
    candidates = [random_deltas(llama, seed) for seed in range(2)]
    with pytest.raises(ValueError, match="is not read through its layer, row by row"):
        Engine(llama).run_population(random_requests(0, 2, 9), candidates)
    assert "weight" not in llama.module.model.norm.__dict__


def test_out_of_memory_halves_the_budget_for_all(llama: Resident) -> None:
    requests = random_requests(1, 8, 30)
    candidates = [random_deltas(llama, seed) for seed in range(3)]
    expected = one_by_one(llama, requests, candidates)
    with _Memory(rows=4):
        found = Engine(llama, pass_tokens=4096).run_population(requests, candidates)
    assert_close(found, expected)
