"""The attack without a model: naive word for word, false alarms, and leaks that it finds."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.evaluator import Score
from evaluators.memorization.blind import blind_interval, blind_ranking, blind_scores
from evaluators.memorization.canary_auc import CanaryAuc
from evaluators.memorization.exposure import Exposure
from evaluators.memorization.extraction import Extraction
from evaluators.memorization.membership import Membership
from evaluators.memorization.roc import auc
from evaluators.requests import PerToken
from experiments.runs.model_scores import ModelScores, told_apart
from merging.arrays import Flags
from tests.evaluators.conftest import sentence
from tests.evaluators.memorization.conftest import canary_line

WORDS = 1 / np.arange(1, 501) / np.sum(1 / np.arange(1, 501))


def drawn(
    draw: np.random.Generator, side: int, *, other_words: bool = False, longer: float = 1.0
) -> tuple[list[list[int]], Flags]:
    """Zipf's words; the first half are members."""
    others = WORDS.copy()
    others[50:80] *= 4.0 if other_words else 1.0
    members = np.arange(2 * side) < side
    texts = []
    for inside in members:
        length = int(draw.integers(10, 60) * (longer if inside else 1.0))
        shares = others / others.sum() if inside else WORDS
        texts.append(draw.choice(len(WORDS), length, p=shares).tolist())
    return texts, members


def leaky(texts: list[list[int]], members: Flags) -> bool:
    scores = blind_scores(texts, members)
    area = auc(scores[members], scores[~members])
    return blind_interval(area, int(members.sum()), int((~members).sum()))[0] > 0.5


def naive(texts: list[list[int]], members: Flags) -> list[float]:
    """One text after the other, by the definition."""
    vocabulary = {token for text in texts for token in text}
    logs = np.log([len(text) for text in texts])
    sizes = (logs - logs.mean()) / logs.std()
    order = [sum(members[:i] == members[i]) for i in range(len(texts))]
    folds = min(5, int(members.sum()), int((~members).sum()))
    words, lengths = [], []
    for i, text in enumerate(texts):
        known = [j for j in range(len(texts)) if order[j] % folds != order[i] % folds]
        ratio = 0.0
        for side in (True, False):
            pile = [token for j in known if members[j] == side for token in texts[j]]
            for token in text:
                share = (pile.count(token) + 1) / (len(pile) + len(vocabulary))
                ratio += math.log(share) * (1 if side else -1) / len(text)
        words.append(ratio)
        means = [np.mean([sizes[j] for j in known if members[j] == s]) for s in (True, False)]
        lengths.append((means[0] - means[1]) * sizes[i])
    standard = (np.array(words) - np.mean(words)) / np.std(words)
    return [float(word + 4 * length) for word, length in zip(standard, lengths, strict=True)]


def test_scores_are_the_definitions() -> None:
    texts, members = drawn(np.random.default_rng(1), 7)
    members[[2, 9]] = members[[9, 2]]
    assert blind_scores(texts, members) == pytest.approx(naive(texts, members))


def test_a_fair_split_is_rarely_called_leaky() -> None:
    """At most 3.5 % of 400 splits without a difference, of 20 or 100 texts; 2.5 % are meant."""
    for side in (10, 50):
        draw = np.random.default_rng(side)
        assert np.mean([leaky(*drawn(draw, side)) for _ in range(400)]) <= 0.035


@pytest.mark.parametrize("leak", [{"other_words": True}, {"longer": 1.6}])
def test_other_words_and_longer_texts_are_found(leak: dict[str, float]) -> None:
    draw = np.random.default_rng(0)
    assert np.mean([leaky(*drawn(draw, 100, **leak)) for _ in range(20)]) >= 0.9  # type: ignore[arg-type]


def test_nothing_can_be_learnt_from_one_text() -> None:
    members = np.array([True, False, False])
    assert blind_scores([[1], [2, 3], [4]], members).tolist() == [0, 0, 0]


def test_it_stands_beside_every_attack(fresh: Resident, write_lines: Callable[..., str]) -> None:
    """Members that are longer: a leak that no model has to be asked for, in a subset as well."""
    rows = [
        {"text": f"{i} {sentence(i, 4 + 9 * (i % 2))}", "member": i % 2 == 1} for i in range(40)
    ]
    evaluator = Membership(fresh.info, data=write_lines(rows), attacks=("loss",))
    silent = PerToken(np.zeros(3), np.zeros(3), np.ones(3))
    scores = evaluator.score([silent] * 40)
    assert list(scores) == list(evaluator.metrics)
    assert scores["loss_auc"].value == 0.5
    assert scores["blind_auc"].value == 1.0
    few = evaluator.subset([0, 1, 2]).score([silent] * 3)
    assert few["blind_auc"].value == 0.5  # one member teaches nothing


def values(
    draw: np.random.Generator, *, bias: float = 0.0, longer: int = 0
) -> list[list[list[int]]]:
    """Forty canaries of 11 candidates: random digits, and what is special of planted ones."""
    canaries = []
    for _ in range(40):
        candidates = [draw.integers(0, 10, draw.integers(4, 9)) for _ in range(11)]
        planted = np.append(candidates[0], draw.integers(0, 10, longer))
        planted[draw.random(len(planted)) < bias] = 7
        canaries.append([each.tolist() for each in (planted, *candidates[1:])])
    return canaries


@pytest.mark.parametrize(
    ("special", "runs", "least", "most"),
    [({}, 200, 0.0, 0.035), ({"bias": 0.8}, 20, 0.9, 1.0), ({"longer": 2}, 20, 0.9, 1.0)],
)
def test_planted_values_that_are_special_are_told_and_others_are_not(
    special: dict[str, Any], runs: int, least: float, most: float
) -> None:
    draw = np.random.default_rng(3)
    told = [blind_ranking(values(draw, **special)) for _ in range(runs)]
    assert least <= np.mean([score.interval[0] > 0.5 for score in told if score.interval]) <= most
    assert len([score for score in told if score.interval]) == runs


@pytest.mark.parametrize("kind", [Exposure, CanaryAuc, Extraction])
def test_it_stands_beside_every_attack_on_canaries(
    kind: type[Exposure | CanaryAuc | Extraction], llama: Resident, write_lines: Callable[..., str]
) -> None:
    """Planted values with a letter of their own; the model has nothing to do with the answer."""
    lines = [canary_line(i) for i in range(12)]
    for line in lines:
        start, end = line["span"]
        line["text"] = line["text"][:start] + "zzz" + line["text"][start:]
        line["span"] = [start, end + 3]
    evaluator = kind(llama.info, data=write_lines(lines))
    answers = Engine(llama).run(evaluator.items.requests)
    scores = evaluator.score(answers)
    assert list(scores) == list(evaluator.metrics)
    assert scores["blind_auc"].value == 1.0
    assert (scores["blind_auc"].interval or (0, 0))[0] > 0.5
    few = evaluator.subset([2])
    assert few.blind["blind_auc"].value == 0.5  # one canary teaches nothing


def test_what_is_said() -> None:
    blind = {"m/blind_auc": Score(0.75, None, 0.5, (0.625, 0.875))}
    fair = {"m/blind_auc": Score(0.5, None, 0.5, (0.375, 0.625))}
    cells = [ModelScores.of(name, "expert", "report", blind) for name in "ab"]
    assert told_apart([*cells, ModelScores.of("a", "expert", "search", fair)]) == [
        "report task 'm': what was trained on can be told from the rest without the model (AUC "
        "0.750, 0.625 to 0.875): the attacks' scores say nothing about memorization",
        "search task 'm': that what was trained on differs from the rest without the model is not "
        "shown (AUC 0.500, 0.375 to 0.625)",
    ]
