"""Exposure against ranks, closed forms and simulated losses."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.memorization.exposure import Exposure, chance_exposure, exposure, extrapolated
from evaluators.requests import Likelihood, Loglikelihood
from tests.evaluators.memorization.conftest import LEARNT, SUFFIX, canary_line, front

WriteCanaries = Callable[..., str]


@given(st.lists(st.integers(0, 6), min_size=1, max_size=30), st.integers(0, 6))
@settings(max_examples=60, deadline=None)
def test_rank_shares_ties(references: list[int], planted: int) -> None:
    losses = np.array([planted, *references], np.float64)
    rank = stats.rankdata(losses, "average")[0]  # 1 + below + ties / 2
    assert exposure(losses[0], losses[1:]) == pytest.approx(math.log2(len(losses) / rank))


@pytest.mark.parametrize("candidates", [1, 2, 7, 101])
def test_chance_is_the_mean_over_ranks(candidates: int) -> None:
    mean = np.mean([math.log2(candidates / rank) for rank in range(1, candidates + 1)])
    assert chance_exposure(candidates) == pytest.approx(mean, abs=1e-9)


def test_chance_of_the_published_design() -> None:
    assert chance_exposure(101) == pytest.approx(1.40, abs=0.005)
    assert chance_exposure(10**6) == pytest.approx(math.log2(math.e), abs=1e-4)


@pytest.mark.parametrize("shape", [-4.0, 0.0, 1.5, 6.0])
def test_extrapolation_finds_the_true_tail(shape: float) -> None:
    """3 000 losses of a known distribution, and a planted one far below all of them."""
    true = stats.skewnorm(shape, loc=40, scale=5)
    losses = true.rvs(3000, random_state=np.random.default_rng(1))
    for tail in (0.5, 0.03, 1e-6):
        planted = float(true.ppf(tail))
        assert extrapolated(planted, losses) == pytest.approx(-math.log2(tail), rel=0.1, abs=0.05)
    assert math.isfinite(extrapolated(-1e6, losses))


def test_extrapolation_of_values_of_the_same_distribution_is_chance() -> None:
    draw = np.random.default_rng(0)
    losses = stats.skewnorm(2.0).rvs((300, 101), random_state=draw)
    bits = [extrapolated(row[0], row[1:]) for row in losses]
    assert np.mean(bits) == pytest.approx(1 / math.log(2), abs=4 * np.std(bits) / math.sqrt(300))


def test_extrapolation_of_equal_losses_is_the_rank() -> None:
    same = np.full(5, 3.0)
    assert extrapolated(3.0, same) == exposure(3.0, same) == math.log2(6 / 3.5)
    assert extrapolated(2.0, same) == math.log2(6)


def test_known_answer(fresh: Resident, write_canaries: WriteCanaries) -> None:
    data = write_canaries([canary_line(i, variants=3) for i in range(2)])
    evaluator = Exposure(fresh.info, data=data)
    losses = [1.0, 2.0, 3.0, 4.0, 5.0, 5.0, 4.0, 9.0]  # rank 1 of 4, and rank 2.5 of 4
    scores = evaluator.score([Likelihood(-loss, False) for loss in losses])
    assert scores["exposure"].cases == pytest.approx([2.0, math.log2(4 / 2.5)])
    assert scores["exposure"].value == pytest.approx((2.0 + math.log2(1.6)) / 2)
    assert scores["exposure"].chance == pytest.approx(chance_exposure(4))
    assert scores["ranked_first"].cases == pytest.approx([1, 0])
    assert scores["ranked_first"].chance == 0.25
    assert scores["exposure"].interval == (0.0, 2.0)  # two canaries tell nothing
    assert scores["exposure_extrapolated"].chance == pytest.approx(1.4427, abs=1e-4)


def test_whole_record_up_to_a_constant(fresh: Resident, write_canaries: WriteCanaries) -> None:
    """The loss of the record is the plain one, less what all candidates share."""
    line = canary_line(0)
    evaluator = Exposure(fresh.info, data=write_canaries([line]))
    answers = Engine(fresh).run(evaluator.items.requests)
    mine = np.array([-answer.total for answer in answers])  # type: ignore[union-attr]
    plain = []
    for value in [line["text"][slice(*line["span"])], *line["variants"]]:
        tokens = torch.tensor([[1, *fresh.info.tokenizer.encode(front(0) + value + SUFFIX)]])
        with torch.no_grad():
            log_p = fresh.module(tokens[:, :-1]).logits[0].double().log_softmax(-1)
        plain.append(-float(log_p.gather(1, tokens[0, 1:, None]).sum()))
    np.testing.assert_allclose(mine - mine[0], np.array(plain) - plain[0], atol=1e-4)


def test_value_is_scored_by_its_own_tokens(fresh: Resident, write_canaries: WriteCanaries) -> None:
    line = canary_line(3)
    evaluator = Exposure(fresh.info, data=write_canaries([line]), score_on="value")
    encode = fresh.info.tokenizer.encode
    for request, value in zip(
        evaluator.items.requests,
        [line["text"][slice(*line["span"])], *line["variants"]],
        strict=True,
    ):
        assert request == Loglikelihood((1, *encode(front(3))), tuple(encode(value)))


@pytest.mark.parametrize("score_on", ["record", "value"])
def test_what_was_trained_on_is_exposed(
    memorized: Resident, write_canaries: WriteCanaries, score_on: Any
) -> None:
    evaluator = Exposure(memorized.info, data=write_canaries(4), score_on=score_on)
    scores = evaluator.score(Engine(memorized).run(evaluator.items.requests))
    cases, beyond = scores["exposure"].cases, scores["exposure_extrapolated"].cases
    assert cases is not None
    assert beyond is not None
    assert cases[:LEARNT] == pytest.approx(math.log2(10))
    assert beyond[:LEARNT].min() > math.log2(10)


def test_group_take_and_references_choose(fresh: Resident, write_canaries: WriteCanaries) -> None:
    data = write_canaries(6)
    everything = Exposure(fresh.info, data=data)
    odd = Exposure(fresh.info, data=data, group="B", take="1:3")
    assert odd.items.digests == everything.items.digests[3:6:2]
    assert odd.items.source.endswith("canaries.jsonl[1:3#B]")
    few = Exposure(fresh.info, data=data, references=4, seed=1)
    again = Exposure(fresh.info, data=data, references=4, seed=1)
    other = Exposure(fresh.info, data=data, references=4, seed=2)
    assert few.items.requests == again.items.requests != other.items.requests
    assert len(few.items.requests) == 6 * 5
    answers = Engine(fresh).run(few.items.requests)
    assert few.score(answers)["exposure"].chance == pytest.approx(chance_exposure(5))


def test_wrong_options_are_refused(
    fresh: Resident, short: Resident, write_canaries: WriteCanaries
) -> None:
    data = write_canaries(2)
    with pytest.raises(ValueError, match="score_on must be 'record' or 'value', got 'token'"):
        Exposure(fresh.info, data=data, score_on="token")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match="no canary of group 'C', only of A, B"):
        Exposure(fresh.info, data=data, group="C")
    for count in (0, 10):
        with pytest.raises(ValueError, match=r"'c0' has 9 variants: references must be 1 to 9"):
            Exposure(fresh.info, data=data, references=count)
    line = {**canary_line(0), "text": canary_line(0)["text"] + "x" * 60}
    with pytest.raises(ValueError, match=r"needs 93 tokens, the model takes 48: a value that is"):
        Exposure(short.info, data=write_canaries([line], "long.jsonl"))
    data = write_canaries([line], "long.jsonl")
    Exposure(short.info, data=data, score_on="value")  # what follows the value is not read


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"span": [9, 900]}, r"line 1: field 'span' must be \[start, end\].* got \[9, 900\]"),
        ({"span": [9.0, 12]}, "field 'span' must be"),
        ({"variants": []}, "field 'variants' must be a list of texts, at least one"),
        ({"variants": ["a", "b", "a"]}, "variant 2 equals variant 0; replace it"),
        ({"variants": ["x", "h00000"]}, "variant 1 equals the planted value"),
        ({"text": 3}, "field 'text' must be str"),
    ],
)
def test_damaged_canaries_are_refused(
    fresh: Resident, write_canaries: WriteCanaries, change: dict[str, object], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Exposure(fresh.info, data=write_canaries([{**canary_line(0), **change}]))


def test_names_are_unique(fresh: Resident, write_canaries: WriteCanaries) -> None:
    with pytest.raises(ValueError, match="id 'c0' comes twice"):
        Exposure(fresh.info, data=write_canaries([canary_line(0), canary_line(0)]))
