"""``evomerge zoo best``: the privacy dial, asked of a zoo."""

from __future__ import annotations

import importlib.util
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from merging.checkpoints.privacy_record import PrivacyRecord, write_record
from merging.checkpoints.sources import resolve
from merging.zoo.store import Zoo
from merging.zoo_recipes import make_views
from tests.experiments.commands.test_dialled_merge import NOISE, record
from tests.experiments.refusals import Shell

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra dp"
)

ASKED = ("--base", "base", "--dataset")


@pytest.fixture
def zoo(shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A zoo with a base, three experts on one data set and one on another."""
    monkeypatch.setenv("EVOMERGE_STATE", str(shell.cwd / "state"))
    monkeypatch.setenv("EVOMERGE_ZOO", str(shell.cwd / "zoo"))
    for name in NOISE:
        folder = shutil.copytree(world / f"base-{name}", shell.cwd / name)
        write_record(folder, record(name))
    other = shutil.copytree(world / "base-code", shell.cwd / "other")
    write_record(other, record("code", "letters"))
    assert shell.run("zoo", "add", str(world / "base"), *NOISE, "other").code == 0
    return Zoo.open(shell.cwd / "zoo")


def test_the_best_merge_costs_at_most_what_is_asked(shell: Shell, zoo: Zoo) -> None:
    asked = ["zoo", "best", *ASKED]
    ended = shell.run(*asked, "tickets", "--epsilon", "4")
    assert ended.code == 0, ended
    ledger = zoo.recipe("best-tickets-4")["privacy"]
    assert list(ledger["data_sets"]) == ["tickets"]
    assert 2.2 < ledger["data_sets"]["tickets"]["epsilon"] <= 4
    make_views([source := f"zoo:{zoo.directory}/best-tickets-4"])
    assert (resolve(source) / "model.safetensors").is_file()
    shell.refuse("has a model 'best-tickets-4' already", *asked, "tickets", "--epsilon", "4")
    shell.refuse("no expert costs epsilon=0.1", *asked, "tickets", "--epsilon", "0.1")
    shell.refuse("a record of 'ticket' alone", *asked, "ticket", "--epsilon", "4")
    line = ["zoo", "best", *NOISE, "--base", "base", "--epsilon", "4", "--dataset"]
    shell.refuse("code in the zoo .* of 'tickets', not of 'letters' alone", *line, "letters")


def test_models_without_a_full_record_are_left_out_unless_they_are_named(
    shell: Shell, zoo: Zoo, world: Path
) -> None:
    half = shutil.copytree(world / "base-code", shell.cwd / "half")
    write_record(half, PrivacyRecord(record("code").spends, ("expert 'x'",)))
    stale = shutil.copytree(world / "base-prose", shell.cwd / "stale")
    shutil.copy(half / "privacy.json", stale)
    for folder in (half, stale):
        zoo.add(folder, folder.name)
    ended = shell.run("zoo", "best", *ASKED, "tickets", "--epsilon", "4")
    assert ended.code == 0, ended
    assert "left out: half, of which expert 'x' has no record" in ended.stdout
    assert "left out: stale in the zoo" in ended.stdout
    line = ["zoo", "best", "half", *ASKED, "tickets", "--epsilon", "4", "--name", "m"]
    ended = shell.run(*line)
    assert (ended.code, ended.stdout) == (2, "")
    assert "expert 'x' in expert 'half' has no privacy record" in ended.stderr


def test_what_was_drawn_is_listed_at_its_own_price_and_may_be_dialled_again(
    shell: Shell, zoo: Zoo, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("secrets.randbelow", lambda n: n - 1)  # the less private of two
    line = ["zoo", "best", *ASKED, "tickets", "--epsilon", "4", "--name", "drawn"]
    assert shell.run(*line).code == 0
    (row,) = [m for m in rows(shell) if m["name"] == "drawn"]
    alone = record("maths").spends[0].epsilon
    assert row["privacy"]["data_sets"]["tickets"]["epsilon"] <= 4 < alone
    assert row["drawn"]["data_sets"]["tickets"]["epsilon"] == alone
    assert not any(model["drawn"] for model in rows(shell) if model["name"] != "drawn")
    assert f"(drawn: tickets {alone:.4g})" in shell.run("zoo", "list").stdout
    shown = shell.run("zoo", "show", "drawn").stdout
    assert f"Privacy of what was drawn: (ε, δ) = ({alone:.4g}" in shown
    shutil.rmtree(zoo.directory / "views" / "drawn", ignore_errors=True)
    again = ["zoo", "best", "drawn", *ASKED, "tickets", "--epsilon", "4", "--name", "again"]
    assert shell.run(*again).code == 0


def rows(shell: Shell) -> Any:
    return json.loads(shell.run("zoo", "list", "--json").stdout)["models"]
