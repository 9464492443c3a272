"""The experiment dedup: its command at the size of a trial, sums, verdicts, bad input."""

import json
import math
import os
import re
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from experiments.papers.dedup import jobs, selection
from experiments.papers.dedup.cells import Pair
from experiments.papers.dedup.digit_pools import DigitPool
from experiments.papers.dedup.jobs import DedupJob
from experiments.papers.dedup.page import PageFacts, _on_test, page
from experiments.papers.dedup.pools import DedupCluster, PrivateExpert, PrivateTraining
from experiments.papers.dedup.rows import price_text
from experiments.papers.dedup.ways import DedupSetting
from merging.checkpoints.privacy_record import PrivacySpend
from merging.deduplication.blocking import ModelBlocks
from merging.deduplication.substitution import Candidates
from merging.privacy.ledger import Ledger
from search.deduplication.bases import Member, cross_bases

ROOT = Path(__file__).parents[3]


def command(tmp_path: Path, *options: str) -> subprocess.CompletedProcess[str]:
    pythonpath = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH")]))
    environment = {**os.environ, "PYTHONPATH": pythonpath, "EVOMERGE_STATE": str(tmp_path / "s")}
    environment.pop("EVOMERGE_SENTENCES", None)
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", "search", "experiment=dedup", *options,
         f"cache={tmp_path / 'cache'}", f"out={tmp_path / 'run'}"],
        capture_output=True, text=True, env=environment, cwd=tmp_path, check=False,
    )  # fmt: skip


def test_without_sentences_the_remedy_is_named(tmp_path: Path) -> None:
    done = command(tmp_path)
    assert done.returncode != 0
    assert "set EVOMERGE_SENTENCES" in done.stderr
    assert "Traceback" not in done.stderr


def pool() -> DigitPool:
    experts = {f"A{e}": PrivateExpert("A", e) for e in (1, 8)}
    return DigitPool(
        title="x",
        parts={"A": 80},
        experts=experts,
        clusters={"same": DedupCluster("A1", ["A8"])},
        training=PrivateTraining(16, 4, 1e-3),
        block_size=32,
        ways=["dred", "dred-published"],
        public=20,
        validation=60,
        test=60,
    )


def verdicts(
    tmp_path: Path,
    base: float,
    leftovers: float,
    ratio: float,
    after: float,
    test_after: float = 0.89,
) -> list[str]:
    setting = DedupSetting({"digits": pool()}, tmp_path, tmp_path)
    spent = {"epsilon": 8.0, "delta": 1e-5, "added": 8.0}
    trivial = {
        "blocks": 400, "untouched": 0.01, "exact": 1.0, "base": base, "base_test": base,
        "leftovers_ratio": 0.01, "leftovers": leftovers, "leftovers_test": base,
        "before": 0.9, "test_before": 0.9,
        "epsilon": spent, "base_epsilon": {**spent, "epsilon": 1.0},
    }  # fmt: skip
    figures = {
        "ratio": ratio, "before": 0.9, "after": after,
        "test_before": 0.9, "test_after": test_after,
        "epsilon": {**spent, "added": 9.0}, "validations": 9, "noes": 2,
    }  # fmt: skip
    noisy = {"targets": {"A8": {**figures, "ratio": 0.01}}}
    found: dict[DedupJob, Any] = {
        DedupJob("digits", "baselines", "same", "A8"): trivial,
        DedupJob("digits", "dred", "same", "A8"): figures,
        DedupJob("digits", "dred-published", "same"): noisy,
    }
    text = page(found, PageFacts("command", 1.0, 1, setting, False, []))
    return [line.split("**")[1] for line in text.splitlines() if line.startswith("**")]


def test_the_verdict_follows_from_sound_ways_where_the_base_fails(tmp_path: Path) -> None:
    yes, no, none = "Reproduces", "Does not reproduce", "No target"
    assert verdicts(tmp_path, 0.8, 0.8, 1 / 36, 0.89) == [yes, yes]
    part = "Reproduces on the validation items alone"
    assert verdicts(tmp_path, 0.8, 0.8, 1 / 36, 0.89, test_after=0.88) == [part, part]
    assert verdicts(tmp_path, 0.8, 0.8, 1 / 34, 0.89, test_after=0.88) == [no, no]
    assert verdicts(tmp_path, 0.8, 0.89, 1 / 36, 0.89) == [yes, none]
    assert verdicts(tmp_path, 0.8, 0.8, 1 / 34, 0.89) == [no, no]
    assert verdicts(tmp_path, 0.89, 0.8, 1 / 36, 0.89) == [none, none]
    assert verdicts(tmp_path, 0.8, 0.8, 1 / 36, 0.88) == [none, none]


def test_a_larger_loss_on_items_that_no_check_has_seen_is_said() -> None:
    figures = {"test_before": 0.6, "test_after": 0.57, "validations": 85}
    assert "it loses 3.0 points" in _on_test(figures, 0.015)
    assert _on_test(figures, 0.03) == ""


def test_epsilons_are_rounded_up() -> None:
    assert price_text({"epsilon": 8.001, "added": 9.0}) == "8.01 (9.00)"
    assert price_text({"epsilon": 0.1 + 0.2, "added": 0.3}) == "0.30"


def test_equal_blocks_alone_are_shared_exactly(tmp_path: Path) -> None:
    """A block is free where the base has it, or the target an earlier time."""
    draw = torch.Generator().manual_seed(0)
    base = {"a": torch.randn(4, 8, generator=draw), "b": torch.randn(3, generator=draw)}
    target = {name: tensor.clone() for name, tensor in base.items()}
    target["a"][1:] += 1
    target["a"][3] = target["a"][2]
    blocks, lent = ModelBlocks(target, 8), ModelBlocks(base, 8)
    pair = Pair.__new__(Pair)
    vars(pair).update(
        target=SimpleNamespace(blocks=blocks), candidates=Candidates.of(blocks, [lent])
    )
    assert pair.shared_exactly() == pytest.approx((2 * 8 + 3) / 35)


def test_the_stricter_baseline_keeps_head_and_small_tensors() -> None:
    draw = torch.Generator().manual_seed(0)
    shapes = {"a": (4, 8), "b": (3,), "classifier.weight": (2, 8)}
    base, target = ({n: torch.randn(s, generator=draw) for n, s in shapes.items()} for _ in "bt")
    blocks = ModelBlocks(target, 8)
    pair = Pair.__new__(Pair)
    vars(pair).update(
        target=SimpleNamespace(blocks=blocks),
        candidates=Candidates.of(blocks, [ModelBlocks(base, 8)]),
    )
    found = pair.given_up
    for name, weights in found.weights().items():
        assert torch.equal(weights, (base if name == "a" else target)[name])
    assert found.ratio == (16 + 3) / 51


def spent(*epsilons: float) -> Ledger:
    return Ledger().add(
        *(PrivacySpend("A", e, 0.0, "test", "1", release=f"A{e:g}") for e in epsilons)
    )


def test_a_chain_pays_for_what_it_has_lent(monkeypatch: pytest.MonkeyPatch) -> None:
    members = [Member(f"A{e}", "A", e, math.inf) for e in (1, 2, 3, 4)]
    targets: Any = {m.name: SimpleNamespace(ledger=spent(m.epsilon), blocks=None) for m in members}
    fits = list[list[float]]()

    def way(*_: Any, others: Any, **__: Any) -> Any:
        fits.append([sum(one.epsilon for one in ledger.spends) for ledger in others])
        figures = dict.fromkeys(("validations", "test_before", "test_after"), 0)
        return SimpleNamespace(pointers=np.zeros(1, int)), figures

    monkeypatch.setattr(selection, "run_way", way)
    monkeypatch.setattr(selection, "cluster_ratio", lambda *_: 1.0)
    table = selection._run(None, cross_bases(members), targets, lambda *_: None)  # type: ignore[arg-type]
    assert [row["target"] for row in table["rows"]] == ["A3", "A4", "A2"]
    assert [row["increase"] for row in table["rows"]] == [2, 2, 1 + 3 + 4]
    assert fits == [[], [], [3 + 2, 4 + 2]]


def test_a_fair_target_pays_for_those_before_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    digits = replace(
        pool(),
        experts={f"A{e}": PrivateExpert("A", e) for e in (1, 2, 4, 8)},
        clusters={"same": DedupCluster("A1", ["A8", "A2", "A4"])},
    )
    fits = dict[str, list[Ledger]]()

    def way(target: Any, *_: Any, others: Any, **__: Any) -> Any:
        fits[target.name] = list(others)
        return None, {}

    def made(_: Any, __: Any, name: str) -> Any:
        ledger = spent(digits.experts[name].epsilon)
        return SimpleNamespace(name=name, ledger=ledger, score=lambda *_: {"accuracy": 1.0})

    monkeypatch.setattr(jobs, "Target", made)
    monkeypatch.setattr(Pair, "of", lambda target, _: target)
    monkeypatch.setattr(jobs, "run_way", way)
    setting = DedupSetting({"digits": digits}, tmp_path, tmp_path)
    for kind, known in (("dred-fair", [spent(2), spent(4)]), ("dred", [])):
        jobs._run_in_turn(setting, DedupJob("digits", kind, "same"))
        assert list(fits) == ["A2", "A4", "A8"]
        assert fits["A8"] == known


@pytest.mark.slow
def test_the_trial_prints_compression_accuracy_and_epsilon(tmp_path: Path) -> None:
    pytest.importorskip("opacus")
    done = command(tmp_path, "fast=true")
    assert done.returncode == 0, done.stderr
    page = (tmp_path / "run" / "RESULTS.md").read_text()
    for part in ("A trial", "equal blocks only", "serve the base", "*published*", "ε*"):
        assert part in page
    assert (tmp_path / "run" / "ratios.png").stat().st_size > 10_000
    cells = {p.stem: json.loads(p.read_text()) for p in (tmp_path / "run/cells").glob("*.json")}
    for name, cell in cells.items():
        if name.endswith(("dred", "drd", "greedy", "svt")):
            floor = cell["before"] - 0.015
            assert "svt" in name or cell["after"] >= floor - 1e-9
            trivial = cells["-".join(name.split("-")[:3]) + "-baselines"]
            spent = [trivial[key]["epsilon"] for key in ("epsilon", "base_epsilon")]
            apart = "disjoint" in name
            assert math.isclose(cell["epsilon"]["added"], max(spent) if apart else sum(spent))
            assert max(spent) - 1e-9 <= cell["epsilon"]["epsilon"] <= sum(spent) + 1e-9
    again = command(tmp_path, "fast=true")
    jobs = re.search(r"jobs +(\d+), (\d+) finished", again.stdout)
    assert jobs is not None
    assert jobs[1] == jobs[2] != "0"
    assert (tmp_path / "run" / "RESULTS.md").exists()
