"""Membership inference: scores word for word in float64, known answers, a model that remembers."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.memorization.membership import Membership, min_k, min_k_plus
from evaluators.memorization.reference_losses import write_reference
from evaluators.panel import Panel
from evaluators.requests import PerToken, TokenStatistics
from experiments.setup.racing_checks import check_cases
from search.objective import WeightedMean
from search.racing.racing import Halving
from tests.evaluators.conftest import sentence
from tests.evaluators.memorization.conftest import TEXTS

WriteLines = Callable[..., str]


def answered(log_probs: list[float]) -> PerToken:
    values = np.array(log_probs)
    return PerToken(values, np.full(len(values), -1.0), np.full(len(values), 2.0))


def test_min_k_plus_is_the_papers(fresh: Resident) -> None:
    """Eq. (3) and (4) in float64 on the logits of one forward pass."""
    tokens = (1, *fresh.info.tokenizer.encode(sentence(3, 9)))
    with torch.no_grad():
        logits = fresh.module(torch.tensor([tokens[:-1]])).logits[0].double()
    log_p = logits.log_softmax(-1)
    chosen = log_p.gather(1, torch.tensor(tokens[1:])[:, None]).squeeze(1)
    mean = (log_p.exp() * log_p).sum(-1)
    sigma = ((log_p.exp() * log_p.square()).sum(-1) - mean.square()).sqrt()
    for values, plus in ((chosen, False), ((chosen - mean) / sigma, True)):
        for k in (0.1, 0.2, 1.0):
            count = max(1, int(len(values) * k))
            expected = float(values.sort().values[:count].mean())
            (answer,) = Engine(fresh).run([TokenStatistics(tokens)])
            assert isinstance(answer, PerToken)
            mine = min_k_plus(answer, k) if plus else min_k(answer.log_probs, k)
            assert mine == pytest.approx(expected, rel=1e-4)


def test_known_answer(fresh: Resident, write_lines: WriteLines) -> None:
    rows = [
        {"text": t, "member": m} for t, m in zip("abcd", (True, False, True, False), strict=True)
    ]
    evaluator = Membership(fresh.info, data=write_lines(rows), k=0.5)
    answers = [answered(each) for each in ([-1, -1], [-2, -4], [-0.5, -4.5], [-3, -1])]
    scores = evaluator.score(answers)
    assert list(scores) == list(evaluator.metrics)
    assert scores["loss_auc"].value == 0.75  # -1 beats -3 and -2; -2.5 beats -3 only
    assert scores["loss_auc"].cases == pytest.approx([1.25, 1.25, 0.25, 0.25])
    assert scores["min_k_auc"].value == 0.5  # -1 and -4.5 against -4 and -3
    assert scores["min_k_plus_auc"].value == 0.5
    assert scores["loss_tpr_1"].value == 0.5
    assert scores["loss_tpr_1"].chance == pytest.approx(1 / 3)
    assert scores["loss_advantage"].value == 0.5


def test_cases_spread_as_the_area_does(fresh: Resident, write_lines: WriteLines) -> None:
    """Their variance over N is that of DeLong, DeLong and Clarke-Pearson: V10 / m + V01 / n."""
    texts = [{"text": chr(97 + i), "member": i < 5} for i in range(20)]
    evaluator = Membership(fresh.info, data=write_lines(texts), attacks=("loss",))
    values = np.random.default_rng(0).normal(-2, 1, 20)
    score = evaluator.score([answered([value]) for value in values])["loss_auc"]
    assert score.cases is not None
    below = (values[:5, None] > values[5:]).mean(axis=1)
    above = (values[:5, None] > values[5:]).mean(axis=0)
    assert score.cases.mean() == pytest.approx(below.mean())
    assert score.cases.var() / 20 == pytest.approx(below.var() / 5 + above.var() / 15)


def test_a_race_refuses_items_that_are_compared_with_each_other(
    fresh: Resident, write_lines: WriteLines
) -> None:
    """An interval of all of them can be had: shrinkage reads that."""
    panel = Panel("search", {"m": Membership(fresh.info, data=write_lines(TEXTS))})
    objective = WeightedMean(normalize="raw")
    check_cases(OmegaConf.create({"choose": "shrinkage"}), None, panel, objective, {})
    with pytest.raises(ValueError, match="m/loss_auc is no mean over scores of single items"):
        check_cases(OmegaConf.create({"choose": "svt"}), Halving(), panel, objective, {})


def test_what_was_trained_on_is_found(
    fresh: Resident, memorized: Resident, write_lines: WriteLines
) -> None:
    evaluator = Membership(memorized.info, data=write_lines(TEXTS))
    before = evaluator.score(Engine(fresh).run(evaluator.items.requests))
    after = evaluator.score(Engine(memorized).run(evaluator.items.requests))
    for attack in ("loss", "min_k", "min_k_plus"):
        assert after[f"{attack}_auc"].value == 1.0
        assert after[f"{attack}_tpr_10"].value == 1.0
        low, high = after[f"{attack}_auc"].interval or (0.0, 0.0)
        assert 0.5 < low < high == 1.0
    assert before["loss_auc"].value < 1.0


def test_reference_is_subtracted(fresh: Resident, write_lines: WriteLines, tmp_path: Path) -> None:
    data = write_lines(TEXTS)
    plain = Membership(fresh.info, data=data)
    losses = plain.losses(Engine(fresh).run(plain.items.requests))
    write_reference(tmp_path / "base.json", "base", losses)
    evaluator = Membership(
        fresh.info,
        data=data,
        attacks=("reference", "loss"),
        reference=str(tmp_path / "base.json"),
    )
    answers = Engine(fresh).run(evaluator.items.requests)
    assert next(iter(evaluator.metrics)) == "reference_auc"
    same = evaluator.score(answers)  # the reference against itself knows nothing
    assert same["reference_auc"].value == 0.5
    assert same["reference_advantage"].value == 0.0
    part = evaluator.subset([3, 0])
    assert part.score([answers[3], answers[0]])["reference_auc"].value == 0.5
    moved = dict(losses)
    first = evaluator.items.digests[0]
    moved[first] = [
        loss + 5.0 for loss in moved[first]
    ]  # hard for the reference, so the likeliest member now
    write_reference(tmp_path / "base.json", "base", moved)
    evaluator = Membership(
        fresh.info, data=data, attacks=("reference",), reference=str(tmp_path / "base.json")
    )
    assert evaluator.score(answers)["reference_auc"].value == pytest.approx(0.5 + 0.5 / 5)


def test_long_texts_are_cut(short: Resident, write_lines: WriteLines) -> None:
    rows = [{"text": sentence(i, 40), "member": bool(i)} for i in range(2)]
    evaluator = Membership(short.info, data=write_lines(rows))
    for request in evaluator.items.requests:
        assert isinstance(request, TokenStatistics)
        assert len(request.tokens) == 1 + 48
    evaluator.score(Engine(short).run(evaluator.items.requests))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"attacks": ["loss", "zlib"]},
            r"attacks must be some of loss, reference, .* got \['loss",
        ),
        ({"attacks": []}, "attacks must be some of"),
        ({"attacks": ["loss", "loss"]}, "each once"),
        ({"attacks": ["reference"]}, r"the files reference=\[\] need each other"),
        ({"attacks": ["lira"], "reference": "x"}, r"lira \(two or more\) .*=\['x'\] need each"),
        ({"reference": "x.json"}, r"the files reference=\['x.json'\] need each other"),
        ({"k": 0.0}, r"k must lie in \(0, 1\], got 0.0"),
        (
            {"attacks": ["reference"], "reference": "x.json"},
            "x.json does not exist: write_ref",
        ),
        ({"take": "0:1"}, "holds 1 members among 1 texts: at least one member and one other"),
    ],
)
def test_wrong_options_are_refused(
    fresh: Resident, write_lines: WriteLines, options: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Membership(fresh.info, data=write_lines(TEXTS), **options)


def test_damaged_data_is_refused(fresh: Resident, write_lines: WriteLines) -> None:
    with pytest.raises(ValueError, match="'member' must be true for a member or false, got 1"):
        Membership(fresh.info, data=write_lines([{"text": "a", "member": 1}]))
    with pytest.raises(ValueError, match="item 10: its text comes twice"):
        Membership(fresh.info, data=write_lines([*TEXTS, TEXTS[0]]))
    evaluator = Membership(fresh.info, data=write_lines(TEXTS))
    with pytest.raises(ValueError, match=r"a subset of .* holds 2 members among 2 texts"):
        evaluator.subset([0, 2])


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "is not JSON"),
        ("[]", "has no 'losses'; write_reference writes it"),
        ('{"losses": {}}', "lacks 10 of 10 texts: write it from the same data"),
    ],
)
def test_damaged_references_are_refused(
    fresh: Resident, write_lines: WriteLines, tmp_path: Path, content: str, message: str
) -> None:
    (tmp_path / "base.json").write_text(content)
    with pytest.raises(ValueError, match=message):
        Membership(
            fresh.info,
            data=write_lines(TEXTS),
            attacks=("reference",),
            reference=str(tmp_path / "base.json"),
        )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda losses: float(np.mean(losses)), r"has no losses for a text of \d+ tokens: write"),
        (lambda losses: losses[:-1], r"has \d+ losses for a text of \d+ tokens: write it anew"),
        (lambda losses: [float("nan"), *losses[1:]], "losses must be finite numbers"),
    ],
)
def test_references_of_other_tokens_are_refused(
    fresh: Resident,
    write_lines: WriteLines,
    tmp_path: Path,
    change: Callable[[list[float]], Any],
    message: str,
) -> None:
    data = write_lines(TEXTS)
    plain = Membership(fresh.info, data=data)
    losses = plain.losses(Engine(fresh).run(plain.items.requests))
    changed = {digest: change(values) for digest, values in losses.items()}
    (tmp_path / "base.json").write_text(json.dumps({"losses": changed}))
    with pytest.raises(ValueError, match=message):
        Membership(
            fresh.info,
            data=data,
            attacks=("reference",),
            reference=str(tmp_path / "base.json"),
        )


def test_references_find_what_was_trained_on(
    fresh: Resident, memorized: Resident, write_lines: WriteLines, tmp_path: Path
) -> None:
    """References that differ a little and were trained on none of the texts."""
    data, draw = write_lines(TEXTS), np.random.default_rng(0)
    plain = Membership(fresh.info, data=data)
    losses = plain.losses(Engine(fresh).run(plain.items.requests))
    files = [str(tmp_path / f"{number}.json") for number in range(3)]
    for file in files:
        own = {d: (v + draw.normal(0, 0.2, len(v))).tolist() for d, v in losses.items()}
        write_reference(Path(file), "a reference", own)
    evaluator = Membership(
        fresh.info, data=data, attacks=("reference", "wbc", "lira"), reference=files
    )
    scores = evaluator.score(Engine(memorized).run(evaluator.items.requests))
    for attack in ("reference", "wbc", "lira"):
        assert scores[f"{attack}_auc"].value == 1.0
        assert (scores[f"{attack}_auc"].interval or (0.0, 0.0))[0] > 0.5
    before = evaluator.score(Engine(fresh).run(evaluator.items.requests))
    assert all(before[f"{attack}_auc"].value < 1.0 for attack in ("reference", "wbc", "lira"))
