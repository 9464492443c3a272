"""Token statistics against a plain forward pass in float64."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from evaluators.engine import token_statistics
from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.engine.token_statistics import vocabulary_statistics
from evaluators.requests import (
    EvaluationError,
    Likelihood,
    Loglikelihood,
    PerToken,
    TokenStatistics,
)
from tests.evaluators.conftest import kick, language_resident


def random_requests(seed: int, count: int, longest: int) -> tuple[TokenStatistics, ...]:
    draw = np.random.default_rng(seed)
    return tuple(
        TokenStatistics((1, *draw.integers(3, 259, draw.integers(1, longest)).tolist()))
        for _ in range(count)
    )


def reference(resident: Resident, request: TokenStatistics) -> PerToken:
    """One row, no padding, the definitions word for word in float64."""
    tokens = torch.tensor(request.tokens)
    with torch.no_grad():
        log_p = resident.module(input_ids=tokens[None, :-1]).logits[0].double().log_softmax(-1)
    p = log_p.exp()
    mean = (p * log_p).sum(-1)
    deviation = (p * (log_p - mean[:, None]) ** 2).sum(-1).sqrt()
    chosen = log_p[torch.arange(len(tokens) - 1), tokens[1:]]
    return PerToken(chosen.numpy(), mean.numpy(), deviation.numpy())


@pytest.mark.parametrize("name", ["llama", "gpt2", "qwen2"])
@pytest.mark.parametrize("chunk", [1 << 25, 700])
def test_equals_float64(
    checkpoints: Path, name: str, chunk: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(token_statistics, "_CHUNK_ELEMENTS", chunk)
    resident = language_resident(checkpoints / name)
    kick(resident, scale=0.1)
    requests = random_requests(0, 12, 40)
    for request, answer in zip(
        requests, Engine(resident, batch_tokens=150).run(requests), strict=True
    ):
        assert isinstance(answer, PerToken)
        expected = reference(resident, request)
        for mine, exact in (
            (answer.log_probs, expected.log_probs),
            (answer.means, expected.means),
            (answer.deviations, expected.deviations),
        ):
            assert mine.dtype == np.float64
            assert mine.shape == (len(request.tokens) - 1,)
            np.testing.assert_allclose(mine, exact, rtol=2e-5, atol=2e-5)


def test_equal_texts_and_other_requests_share_a_run(llama: Resident) -> None:
    request = TokenStatistics((1, 40, 50, 60))
    likelihood = Loglikelihood((1,), (40, 50, 60))
    first, total, second = Engine(llama).run([request, likelihood, request])
    assert isinstance(first, PerToken)
    assert second is first
    assert isinstance(total, Likelihood)
    assert first.log_probs.sum() == pytest.approx(total.total, rel=1e-5)


def test_peaked_and_masked_distributions_are_exact() -> None:
    """Where the difference of two sums would lose every digit, and where a token cannot be."""
    exact = torch.tensor([[30.0, 0.0, 0.0, 0.0], [3.0, 1.0, 0.0, -2.0]], dtype=torch.float64)
    log_p = exact.log_softmax(-1)
    mean = (log_p.exp() * log_p).sum(-1)
    deviation = (log_p.exp() * (log_p - mean[:, None]) ** 2).sum(-1).sqrt()
    means, deviations = vocabulary_statistics(exact.float())
    assert means.tolist() == pytest.approx(mean.tolist(), rel=1e-5)
    assert deviations.tolist() == pytest.approx(deviation.tolist(), rel=1e-5)
    masked = torch.cat([exact.float(), torch.full((2, 3), -torch.inf)], dim=1)
    again = vocabulary_statistics(masked)
    assert again[0].tolist() == pytest.approx(mean.tolist(), rel=1e-5)
    assert again[1].tolist() == pytest.approx(deviation.tolist(), rel=1e-5)


def test_lengths_are_checked(short: Resident) -> None:
    Engine(short).run([TokenStatistics(tuple(range(3, 3 + 49)))])
    for count in (1, 50):
        with pytest.raises(ValueError, match=rf"needs 2 to 49 tokens, .* got {count}"):
            Engine(short).run([TokenStatistics(tuple(range(3, 3 + count)))])


def test_a_broken_model_is_named(llama: Resident) -> None:
    llama.write({"lm_head.weight": torch.full((259, 32), torch.nan)})
    with pytest.raises(EvaluationError, match="no finite log-probability"):
        Engine(llama).run([TokenStatistics((1, 5, 6))])


def test_classifiers_are_refused(bert: Resident) -> None:
    with pytest.raises(ValueError, match="is no causal language model; token statistics need"):
        Engine(bert).run([TokenStatistics((1, 5, 6))])
