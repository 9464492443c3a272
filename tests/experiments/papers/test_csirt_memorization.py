"""csirt_memorization: cells and their resumption, sums, verdicts from numbers, and the page."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.utils import instantiate

from experiments.experts.training.regime import Regime, TrainingPrivacy
from experiments.papers.csirt import cells as cells_module
from experiments.papers.csirt import published
from experiments.papers.csirt.bases import TinyBase
from experiments.papers.csirt.cells import (
    BASE,
    CsirtCell,
    CsirtSetting,
    is_finished,
    planned,
    run_cell,
    trained,
)
from experiments.papers.csirt.corpus import CorpusSize
from experiments.papers.csirt.jobs import work
from experiments.papers.csirt.merge_section import merge_section
from experiments.papers.csirt.page import PageNumbers, page
from experiments.papers.csirt.procedure import CsirtMemorization
from experiments.papers.csirt.scores import CellScores, cliffs_delta, fraction, wilcoxon
from experiments.papers.csirt.verdicts import verdicts
from experiments.suites.plan import PlannedRun
from merging.checkpoints.privacy_record import read_record

REGIMES = {
    "V0": Regime(4),
    "V0fs": Regime(4, epochs=0.375),
    "V1": Regime(32),
    "VA": Regime(32),
    "VB": Regime(4),
    "V2": Regime(32, sampling="poisson", privacy=TrainingPrivacy(1e-4, 8.0)),
    "V2-as-released": Regime(
        32, sampling="poisson", privacy=TrainingPrivacy(1e-4, 8.0, clipping="as_released")
    ),
}
PAPER = {
    BASE: 1.4,
    "V0": 4.5,
    "V0fs": 2.5,
    "V1": 2.6,
    "VA": 2.7,
    "VB": 3.9,
    "V2": 1.5,
    "V2-as-released": 2.5,
}
SEEDS = (1, 2, 3)


def setting(tmp_path: Path, size: CorpusSize | None = None) -> CsirtSetting:
    base = TinyBase(16, 24, layers=1, heads=2, records=8, epochs=1.0, lot=4)
    return CsirtSetting(
        {"tiny": base}, size or CorpusSize(), REGIMES, ("V1", "VB"), None, 256, tmp_path / "cache"
    )


def write_cells(
    folder: Path, exposures: dict[str, float], hidden: dict[str, float], slugs: float
) -> CellScores:
    """Writes made-up cells with these mean exposures, canaries around them."""
    folder.mkdir()
    forms = {"raw": [n for n in exposures if n != BASE], "pseudonymised": ["V0"]}
    cells = planned(SEEDS, ["tiny"], forms)  # type: ignore[arg-type]
    for cell in cells:
        mean = exposures[cell.regime] if cell.form == "raw" else hidden[cell.regime]
        spread = np.random.default_rng([cell.seed, 7]).normal(0, 0.3, 20)
        noise = np.random.default_rng([cell.seed, len(cell.regime)]).normal(0, 0.05, 20)
        found = mean + spread - spread.mean() + noise - noise.mean()
        told = {"value": mean, "chance": 1.4, "cases": found.tolist()}
        half = {"value": 0.5, "chance": 0.5, "cases": None}
        scores = {"values/exposure": told, "values/ranked_first": half}
        for name in ("members/loss_auc", "members/min_k_auc", "members/min_k_plus_auc"):
            scores[name] = half
        scores |= {"tokens/auc": half, "tokens/auc_of_means": half, "bands/macro_f1": half}
        if cell.form == "pseudonymised":
            value = slugs if cell.regime == "V0" else 1.4
            scores["slugs/exposure"] = {**told, "value": value}
        price = {"noise_multiplier": 0.6, "epsilon": 8.0, "delta": 1e-4}
        training = {"longest_record_tokens": 160, "updates": 75, "empty_lots": 0}
        holds = cell.regime == "V2"
        content = {"scores": scores, "training_s": 1.0, "scoring_s": 1.0}
        content["training"] = {**training, "privacy": {**price, "holds": holds}}
        (folder / f"{cell.name}.json").write_text(json.dumps(content))
    return CellScores(cells, folder)


def test_recovered_fraction_of_the_paper_is_that_of_its_table() -> None:
    found = [published.recovered(model, "V1") for model in published.EXPOSURE]
    assert found == pytest.approx([0.89, 1.14, 1.33, 0.66], abs=0.01)
    assert np.mean([x for x in found if x]) == pytest.approx(1.00, abs=0.01)


def test_recovered_fraction_and_paired_differences(tmp_path: Path) -> None:
    found = write_cells(tmp_path / "c", PAPER, {BASE: 1.4, "V0": 1.5}, 1.5)
    whole, each = found.recovered("tiny", "V1")
    assert whole == pytest.approx(2.0 / 1.9)
    assert each == pytest.approx([2.0 / 1.9] * 3)
    assert found.recovered("tiny", "V2")[0] == pytest.approx(2.0 / 3.0)
    paired = found.paired([("V2", "V1"), ("V0fs", "V1")], ["tiny"])
    one = paired["tiny", "V2", "V1"]
    assert one.difference == pytest.approx(-1.1)
    assert one.pairs == 60
    assert one.q < 1e-6
    assert -1.0 <= one.delta < -0.9
    assert paired["tiny", "V0fs", "V1"].q >= paired["tiny", "V0fs", "V1"].p


def test_verdicts_follow_from_the_numbers(tmp_path: Path) -> None:
    hidden = {BASE: 1.4, "V0": 2.2}
    text = verdicts(write_cells(tmp_path / "paper", PAPER, hidden, 1.5))
    assert "**Reproduces**: fewer updates alone" in text
    assert "Recovered fraction 1.05" in text
    assert "**Reproduces**: of V1's two changes the large lot lowers" in text
    assert "large lots alone -1.80 bits, NF4 alone -0.60" in text
    assert "**Does not reproduce**: that DP-SGD adds nothing" in text
    assert "**Reproduces**: with the published clipping fault" in text
    assert "**Reproduces**: pseudonyms cut" in text
    assert "**Reproduces**: slugs are not memorized" in text
    other = {**PAPER, "V0fs": 4.4, "VA": 4.0, "V2": 2.6, "V2-as-released": 1.5}
    text = verdicts(write_cells(tmp_path / "other", other, {BASE: 1.4, "V0": 4.5}, 4.5))
    assert "**Does not reproduce**: fewer updates alone" in text
    assert "**Does not reproduce**: that of V1's two changes" in text
    assert "**Reproduces**: correct DP-SGD adds nothing" in text
    assert "**Does not reproduce**: the published clipping fault" in text
    assert "**Does not reproduce**: pseudonyms cut" in text
    assert "**Does not reproduce**: slugs at the floor" in text


def test_where_nothing_is_remembered_there_is_no_verdict(tmp_path: Path) -> None:
    nothing = dict.fromkeys(PAPER, 1.5)
    text = verdicts(write_cells(tmp_path / "none", nothing, {BASE: 1.4, "V0": 1.4}, 1.4))
    assert "**Undecided**, all of it: V0 lies +0.00 bits" in text
    assert "eproduce" not in text


def test_page_shows_paper_and_ours(tmp_path: Path) -> None:
    found = write_cells(tmp_path / "c", PAPER, {BASE: 1.4, "V0": 1.5}, 1.5)
    facts = PageNumbers(
        "evomerge search experiment=csirt_memorization", 60.0, 2, setting(tmp_path), False
    )
    text = page(found, [], facts)
    assert "| V0: raw: small lot | 4.50 ± 0.00 | 3.49 | 4.48 | 4.98 | 3.60 |" in text
    assert "| chance | 1.40 | 1.40 |" in text
    assert "| VB: NF4 alone | 3.90 ± 0.00 | 2.82 | 3.85 | 4.79 | 2.19 |" in text
    assert "| VA - V0: large lot alone | -1.80 | -2.00 | -1.53 | -1.79 | -0.96 |" in text
    assert "| V2: NF4, DP-SGD, epsilon 8 | 1.50 ± 0.00 |  |  |  |  |" in text
    assert "| V0 - V1 | 1.05 (1.05 to 1.05) | 0.89 | 1.15 | 1.33 | 0.66 |" in text
    assert "| V0 - VA | 1.11 (1.11 to 1.11) | 0.94 | 1.24 | 1.32 | 1.61 |" in text
    assert "| V2 | 0.600 | 0.60000 | 8.00 | yes | nothing |" in text
    assert "| V2-as-released | 0.600 | 0.00375 | 8.00 | no |" in text
    assert "A trial" not in text
    trial = PageNumbers("x", 1.0, 1, facts.setting, True)
    assert "too small to conclude anything" in page(found, [], trial)


def merged(
    root: Path, setting: str, variant: str, points: dict[str, tuple[float, float]]
) -> PlannedRun:
    """Writes what a search leaves; `points` are skill and exposure on held-out items by model."""
    run = root / setting / variant
    run.mkdir(parents=True)
    models = [
        {
            "name": name,
            "kind": "evolved" if name == "evolved" else "expert",
            "report": {"scores": {"bands/macro_f1": skill, "canaries/exposure": memory}},
        }
        for name, (skill, memory) in points.items()
    ]
    (run / "summary.json").write_text(json.dumps({"models": models}))
    return PlannedRun("merge", setting, variant, 0, (), run)


@pytest.mark.parametrize(
    ("limited", "word"), [((0.89, 2.0), "**Reached**"), ((0.80, 2.0), "**Not reached**")]
)
def test_merges_are_compared_on_held_out_items(
    tmp_path: Path, limited: tuple[float, float], word: str
) -> None:
    runs = []
    for name, plain in (("a", (0.9, 5.0)), ("b", (0.8, 4.0))):
        for variant, evolved in (("unconstrained", (0.9, 4.4)), ("constrained", limited)):
            points = {"plain": plain, "private": (0.2, 1.4), "evolved": evolved}
            runs.append(merged(tmp_path, name, variant, points))
    text = merge_section(runs, {"unconstrained": None, "constrained": 0.4}, 100)
    assert "| plain | 0.850 ± 0.071 | 4.50 ± 0.71 | +3.10 |" in text  # once for each setting
    assert "| merge, constrained |" in text
    assert "worst expert's (constrained: 0.4). Reported" in text
    assert f"{word}: at most half" in text
    assert "The limit leaves 20 % of 3.00 bits above chance" in text
    assert "Front, of means: merge, unconstrained (0.900, 4.40 bits); merge, constrained" in text
    assert "plain (" not in text.partition("Front")[2].partition(".\n")[0]
    assert ("What the experts bring" in text) == (word == "**Not reached**")


def test_small_statistics() -> None:
    assert math.isnan(fraction(1.0, 0.0))
    same = np.array([1.0, 2.0])
    assert wilcoxon(same, same) == 1.0
    assert cliffs_delta(np.array([1.0, 3.0]), np.array([2.0, 2.0])) == 0.0


def test_a_cell_is_trained_and_scored_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = CorpusSize(records=24, canaries=1, clones=1, variants=3, held_out=4)
    common = setting(tmp_path, size)
    out = tmp_path / "cells"
    out.mkdir()
    cell = CsirtCell("tiny", 0, "pseudonymised", "V0fs")
    run_cell(common, cell, out)
    content = json.loads((out / f"{cell.name}.json").read_text())
    assert content["training"]["label"] == "V0fs"
    assert len(content["scores"]["values/exposure"]["cases"]) == 10
    assert len(content["scores"]["slugs/exposure"]["cases"]) == 10
    expert = trained(common, cell)
    assert read_record(expert) is None
    before = (out / f"{cell.name}.json").read_bytes()

    def refuse(*args: object, **options: object) -> None:
        raise AssertionError("trained again")

    monkeypatch.setattr(cells_module, "train_expert", refuse)
    run_cell(common, cell, out)
    (out / f"{cell.name}.json").unlink()
    run_cell(common, cell, out)  # scored again, from the expert that is there
    again = json.loads((out / f"{cell.name}.json").read_text())
    assert again["scores"] == json.loads(before)["scores"]
    other = replace(common, regimes={**REGIMES, "V0fs": Regime(4, learning_rate=1e-3)})
    assert is_finished(common, cell, out)
    assert not is_finished(other, cell, out)
    assert common.expert(CsirtCell("tiny", 1, "pseudonymised", "V0fs")) != expert


def test_work_grows_with_presentations_and_privacy(tmp_path: Path) -> None:
    common = setting(tmp_path)
    each = {name: work(common, CsirtCell("tiny", 0, "raw", name)) for name in (BASE, *REGIMES)}
    assert each[BASE] < each["V0fs"] < each["V0"] == each["V1"] < each["V2"]


def composed(*overrides: str) -> CsirtMemorization:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("search", overrides=["experiment=csirt_memorization", *overrides])
        procedure: CsirtMemorization = instantiate(config.procedure, _convert_="all")
    return procedure


def test_configuration_plans_the_experiment_and_its_trial(tmp_path: Path) -> None:
    assert "102, 90 of them experts to be trained; 0 finished" in composed().plan(tmp_path)
    assert "merges       9 searches" in composed().plan(tmp_path)
    assert "8, 6 of them experts" in composed("fast=true").plan(tmp_path)
    assert "merges       0 searches" in composed("procedure.merging=null").plan(tmp_path)


def test_the_published_models_take_the_same_procedure(tmp_path: Path) -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("search", overrides=["experiment=csirt_memorization_slm"])
        procedure = instantiate(config.procedure, _convert_="all")
    assert "gemma3-1b, qwen3-1.7b, llama32-3b, vaultgemma-1b\n" in procedure.plan(tmp_path)


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("procedure.forms.raw=[V0,V0fs,V1]", "procedure.forms.raw lacks V2"),
        ("procedure.forms.raw=[V9]", "names the regime 'V9', there are only V0, V0fs"),
        ("procedure.nf4=[V8]", "procedure.nf4 names the regime 'V8', there are only V0, V0fs"),
        ("+procedure.small.regimes=1", "procedure.small.regimes is unknown"),
    ],
)
def test_an_experiment_without_meaning_is_refused(override: str, message: str) -> None:
    with pytest.raises(Exception, match=message):
        composed(override)


def test_trial_runs_and_writes_its_page(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "experiments.cli", "search"]
    command += ["experiment=csirt_memorization", "fast=true", f"runs={tmp_path}"]
    env = {**os.environ, "OMP_NUM_THREADS": "1", "EVOMERGE_CACHE": str(tmp_path / "cache")}
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    (page,) = tmp_path.glob("csirt_memorization-*/RESULTS.md")
    text = page.read_text()
    assert "too small to conclude anything" in text
    assert "| merge, constrained |" in text
    assert "8/8 cells" in done.stderr
