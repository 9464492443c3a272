"""Extraction from a model that has learnt a text by heart, and from one that has not."""

from __future__ import annotations

from collections.abc import Callable

import pytest

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.memorization.extraction import Extraction
from evaluators.requests import Generate, Generated
from tests.evaluators.memorization.conftest import front

WriteCanaries = Callable[..., str]


def test_known_answer(fresh: Resident, write_canaries: WriteCanaries) -> None:
    lines = [
        {"id": str(i), "text": f"pin: {value};", "span": [5, 9], "variants": ["5678", "1299"]}
        for i, value in enumerate(["1234", "9999"])
    ]
    evaluator = Extraction(fresh.info, data=write_canaries(lines), samples=2, extra_tokens=1)
    texts = ["12345", "x5678", "56789", "1234;", "99x99", "01299"]
    scores = evaluator.score([Generated(text) for text in texts])
    assert scores["extracted"].cases == pytest.approx([1, 0])
    assert scores["extracted"].chance == 0.0
    assert scores["extracted_sampled"].cases == pytest.approx([0, 0])
    assert scores["extracted_sampled"].chance == 0.5  # 5678 of the first, 1299 of the second
    assert scores["common_prefix"].cases == pytest.approx([1, 0])
    assert scores["common_prefix"].chance == pytest.approx((0 + 0.5 + 0 + 0.5) / 4)


def test_prompt_is_what_stands_in_front(fresh: Resident, write_canaries: WriteCanaries) -> None:
    data = write_canaries(3)
    evaluator = Extraction(fresh.info, data=data, samples=2, extra_tokens=3, temperature=0.7)
    prompt = (1, *fresh.info.tokenizer.encode(front(0)))
    greedy, *sampled = evaluator.items.requests[:3]
    assert greedy == Generate(prompt, 6 + 3)
    assert isinstance(sampled[0], Generate)
    assert isinstance(sampled[1], Generate)
    assert sampled[0].temperature == 0.7
    assert sampled[0].seed != sampled[1].seed
    again = Extraction(fresh.info, data=data, samples=2, extra_tokens=3, temperature=0.7)
    assert again.items.requests == evaluator.items.requests
    assert "extracted_sampled" not in Extraction(fresh.info, data=data, samples=0).metrics


def test_what_was_learnt_by_heart_is_written(
    fresh: Resident, memorized: Resident, write_canaries: WriteCanaries
) -> None:
    evaluator = Extraction(memorized.info, data=write_canaries(3), samples=2)
    before = evaluator.score(Engine(fresh).run(evaluator.items.requests))
    assert before["extracted"].value == before["extracted_sampled"].value == 0.0
    after = evaluator.score(Engine(memorized).run(evaluator.items.requests))
    assert after["extracted"].cases == pytest.approx([1, 1, 0])
    assert after["common_prefix"].cases is not None
    assert after["common_prefix"].cases[:2] == pytest.approx([1, 1])
    assert after["extracted"].chance == 0.0


def test_wrong_options_are_refused(
    fresh: Resident, short: Resident, write_canaries: WriteCanaries
) -> None:
    data = write_canaries(2)
    with pytest.raises(ValueError, match="temperature must be above 0, got 0; set samples=0"):
        Extraction(fresh.info, data=data, temperature=0)
    with pytest.raises(ValueError, match=r"top_p must lie in \(0, 1\], got 1.5"):
        Extraction(fresh.info, data=data, top_p=1.5)
    with pytest.raises(ValueError, match="samples and extra_tokens must be 0 or more, got -1"):
        Extraction(fresh.info, data=data, samples=-1)
    with pytest.raises(ValueError, match="'c0' needs 62 tokens, the model takes 48: shorten"):
        Extraction(short.info, data=data, extra_tokens=40)
