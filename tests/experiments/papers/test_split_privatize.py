"""The experiment split_privatize: what is sent, who reads it, verdicts, its command as a trial."""

import json
import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from experiments.experts.sentences.training import sentence_schedule
from experiments.experts.split.contributing_tokens import ContributingSettings
from experiments.experts.split.customer import Customer
from experiments.experts.split.directions import DirectionSettings
from experiments.experts.training.loop import Schedule
from experiments.papers.split_privatize.attackers import (
    AWARE,
    CLEAN,
    NEAREST,
    NOISED,
    AttackSettings,
    LikeliestToken,
)
from experiments.papers.split_privatize.front import Front
from experiments.papers.split_privatize.merges import Kept
from experiments.papers.split_privatize.page import SplitFacts, page, verdicts
from experiments.papers.split_privatize.plot import write_plot
from experiments.papers.split_privatize.points import (
    NO_NOISE,
    FrontPoint,
    NoiseWay,
    SplitSetting,
    SplitSide,
    SplitTraining,
)
from experiments.papers.split_privatize.procedure import SplitPrivatize
from experiments.papers.split_privatize.texts import SplitData
from tests import builders

ROOT = Path(__file__).parents[3]
TASKS = ("sst2", "trec", "subj")
ATTACKS = AttackSettings(
    texts=8,
    matched=4,
    public_states=24,
    matched_steps=3,
    candidates=2,
    schedule=Schedule(20, 8, 3e-3),
    negatives=100,
)
WAYS = {
    "uniform": NoiseWay([1.0, 30.0]),
    "contributing": NoiseWay([0.6], ContributingSettings()),
    "directions": NoiseWay([1.0], directions=DirectionSettings(count=3, steps=20), seeds=1),
}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The class of a sentence is the letter that it repeats."""
    root = tmp_path_factory.mktemp("sentences")
    for task in TASKS:
        for file, count in (("train", 100), ("valid", 24), ("test", 32)):
            rows = [
                {"text": f"{'ab'[i % 2] * (2 + i % 4)} {task} {file} {i}", "label": i % 2}
                for i in range(count)
            ]
            path = root / task / f"{file}.jsonl"
            path.parent.mkdir(exist_ok=True)
            path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return root


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.bert_classifier(tmp_path_factory.mktemp("base") / "bert", kind="encoder")


@pytest.fixture(scope="module")
def setting(data: Path, base: Path) -> SplitSetting:
    texts = SplitData(str(data), "sst2", TASKS[1:], str(base), 40, 24, 20, 24)
    training = SplitTraining(sentence_schedule(4, 8, 1e-3))
    return SplitSetting(texts, WAYS, training, ATTACKS)


@pytest.mark.parametrize("blocks", [0, 1])
def test_noise_hides_from_all_attackers_what_they_read_without(
    setting: SplitSetting, blocks: int
) -> None:
    side = SplitSide(setting, 0, blocks)
    points = {
        (way, ratio): side.figures(FrontPoint(0, blocks, way, ratio))["success"]
        for way, ratio in ((NO_NOISE, 0.0), ("uniform", 30.0))
    }
    clean, noised = points.values()
    assert clean[CLEAN] > 0.5
    if blocks == 0:
        assert clean[NEAREST] == clean[AWARE] == 1.0
    assert NOISED not in clean
    for attacker in (NEAREST, CLEAN, NOISED, AWARE):
        assert noised[attacker] < 0.4


@pytest.mark.parametrize(("way", "ratio"), [("contributing", 0.6), ("directions", 1.0)])
def test_what_is_sent_is_what_a_customer_sends(
    setting: SplitSetting, tmp_path: Path, way: str, ratio: float
) -> None:
    """States of like lengths run together; but for a last bit they are the customer's own."""
    side = SplitSide(setting, 3, 1)
    noise = side._privatization(side._settings(way, ratio, "seed"))
    sent = side._sent(noise, "customer", tmp_path)
    states = [state for batch in sent.batches() for state in batch.apart()]
    customer = Customer(side.bottom, noise)
    for i, example in enumerate(side.texts.customer):
        own = customer.states(example, f"customer {i}")
        assert torch.allclose(states[i], own, atol=1e-5)


def test_who_has_which_sentence_is_the_seeds_and_no_text_is_in_two_parts(
    setting: SplitSetting,
) -> None:
    first, second = (setting.data.texts(setting.base, seed) for seed in (0, 1))
    assert first.customer != second.customer
    assert first.test == second.test
    parts = [{each.tokens for each in part} for part in (first.customer, first.public, first.test)]
    assert sum(map(len, parts)) == len(set.union(*parts)) == 40 + 24 + 20
    with pytest.raises(ValueError, match=r"100 training sentences.*need 140"):
        replace(setting.data, public=100).sentences()


def test_a_depth_that_the_base_lacks_is_refused_before_any_work(setting: SplitSetting) -> None:
    options: dict[str, Any] = {"training": setting.training, "attacks": ATTACKS, "merging": None}
    with pytest.raises(ValueError, match=r"procedure.depths names 3, the base has 2 blocks"):
        SplitPrivatize(
            data=setting.data, seeds=[0], depths={0: 1, 3: 1}, ways=WAYS, **options, small={},
            fast=False, cache="", workers=1, remarks=[], results=None,
        )  # fmt: skip


def front(points: Mapping[tuple[str, float], Sequence[float]], contributing: float = 0.0) -> Front:
    """Points of accuracy and success on three seeds; `contributing` is added to its accuracy."""
    found = {
        FrontPoint(seed, 0, way, ratio): {
            "accuracy": accuracy
            + seed / 1000
            + contributing * (way == "contributing") * (9 + seed),
            "success": {NEAREST: success / 2, CLEAN: success, AWARE: success, "blind": 0.1}
            | {"trivial": 0.05},
        }
        for (way, ratio), (accuracy, success) in points.items()
        for seed in range(3)
    }
    return Front(found)


BOTH = {
    (NO_NOISE, 0.0): (0.9, 1.0),
    ("uniform", 1.0): (0.89, 0.5),
    ("uniform", 2.0): (0.8, 0.1),
    ("contributing", 0.6): (0.89, 0.5),
    ("contributing", 1.2): (0.8, 0.1),
}


def words(setting: SplitSetting, of: Front, kept: Sequence[Kept] = ()) -> list[str]:
    facts = SplitFacts("command", 1.0, 1, setting, False, [], [])
    return [line[2 : line.index("**", 2)] for line in verdicts(of, kept, facts)]


def test_verdicts_follow_from_the_numbers(setting: SplitSetting) -> None:
    assert words(setting, front(BOTH))[:2] == ["Not reached", "Undecided"]
    assert words(setting, front({**BOTH, ("uniform", 3.0): (0.891, 0.38)}))[0] == "Reached"
    assert words(setting, front({**BOTH, ("uniform", 3.0): (0.889, 0.38)}))[0] == "Not reached"
    assert words(setting, front(BOTH, 0.001))[1] == "Reproduces"
    assert words(setting, front(BOTH, -0.001))[1] == "The opposite"
    kept = [Kept(seed, "sst2", 0.5, 0.9, 0.885) for seed in range(3)]
    assert words(setting, front(BOTH), kept)[-1] == "Reached"
    less = [*kept, Kept(0, "trec", 0.5, 0.9, 0.87)]
    assert words(setting, front(BOTH), less)[-1] == "Reached by score, not by gain"
    less = [*kept, Kept(0, "trec", 0.5, 0.9, 0.84)]
    assert words(setting, front(BOTH), less)[-1] == "Not reached"


def test_a_row_of_fewer_seeds_is_compared_with_its_own_unprotected_split() -> None:
    found = {
        FrontPoint(seed, 0, NO_NOISE, 0.0): {"accuracy": 0.8 + seed / 10, "success": {CLEAN: 1.0}}
        for seed in range(2)
    }
    found[FrontPoint(1, 0, "steep", 1.0)] = {"accuracy": 0.85, "success": {CLEAN: 0.4}}
    of = Front(found)
    (row,) = of.noised
    assert of.loss(row) == pytest.approx([5.0])
    assert of.gain(row) == pytest.approx([0.6])


def test_the_likeliest_token_weighs_all_its_public_states() -> None:
    """Two near ones outweigh the nearest; a short noise is unlikely of a token of small eta."""
    states = torch.tensor([[0.9, 0.0], [-1.0, 0.0], [-1.0, 0.1], [0.9, 0.1]])
    tokens, sent = torch.tensor([5, 7, 7, 9]), [torch.zeros(1, 2)]
    same = torch.ones(4, dtype=torch.float64)
    assert LikeliestToken(states, tokens, same).recover(sent)[0].tolist() == [7]
    short = torch.tensor([8.0, 1.0, 1.0, 1.0], dtype=torch.float64)
    near = [torch.tensor([[0.89, 0.0]])]
    assert LikeliestToken(states, tokens, short).recover(near)[0].tolist() == [5]
    assert LikeliestToken(states, tokens, same / 1e3).recover(near)[0].tolist() == [7]


def test_curves_are_compared_at_equal_privacy() -> None:
    """A way that is as accurate at every privacy has no advantage, wherever its points lie."""
    along = {("contributing", r): (0.9 - 0.1 * r, 1 - r) for r in (0.3, 0.8)}
    straight = {(NO_NOISE, 0.0): (0.9, 1.0), ("uniform", 0.6): (0.84, 0.4), **along}
    assert np.allclose(front(straight).advantage("contributing", "uniform"), 0, atol=1e-9)
    higher = {key: (a + 0.02 * (key[0] == "contributing"), s) for key, (a, s) in straight.items()}
    assert (front(higher).advantage("contributing", "uniform") > 0).all()


def test_page_and_plot_are_of_all_points(setting: SplitSetting, tmp_path: Path) -> None:
    kept = [Kept(0, "sst2", 0.5, 0.9, 0.88)]
    facts = SplitFacts("command", 1.0, 1, setting, True, ["No guarantee."], ["a remark"])
    text = page(front(BOTH), kept, facts)
    for part in ("A trial", "a remark", "| 0 | contributing | 1.2 |", "> No guarantee."):
        assert part in text
    assert "| 0 | sst2 | 0.500 | 0.900 | 0.880 | 95.0 | 97.8 |" in text
    write_plot(front(BOTH), tmp_path / "front.png")
    assert (tmp_path / "front.png").stat().st_size > 10_000


@pytest.mark.slow
def test_the_trial_shows_front_and_merge_and_goes_on(
    data: Path, base: Path, tmp_path: Path
) -> None:
    pythonpath = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": pythonpath, "EVOMERGE_STATE": str(tmp_path / "s")}
    options = (
        "fast=true",
        *(f"procedure.small.data.{key}" for key in (f"data='{data}'", f"base='{base}'")),
        f"cache='{tmp_path / 'cache'}'",
        f"out='{tmp_path / 'run'}'",
    )

    def start() -> str:
        done = subprocess.run(
            [sys.executable, "-m", "experiments.cli", "search", "experiment=split_privatize",
             *options],
            capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
        )  # fmt: skip
        assert done.returncode == 0, done.stderr
        return (tmp_path / "run" / "RESULTS.md").read_text()

    text = start()
    for part in ("A trial", "Privacy against accuracy", "noised states of tokens were given out"):
        assert part in text
    assert (tmp_path / "run" / "front.png").stat().st_size > 10_000
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run/points").glob("*.json")}
    assert len(files) == 7
    next(iter(files)).unlink()
    again = start()
    assert [line for line in again.splitlines() if "time:" not in line] == [
        line for line in text.splitlines() if "time:" not in line
    ]
    assert sum(path.stat().st_mtime_ns != at for path, at in files.items()) == 1
