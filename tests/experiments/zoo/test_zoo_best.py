"""``evomerge zoo best``: the privacy dial, asked of a zoo."""

from __future__ import annotations

import importlib.util
import shutil
from pathlib import Path

import pytest

from merging.checkpoints.privacy_record import write_record
from merging.checkpoints.sources import resolve
from merging.zoo.store import Zoo
from merging.zoo_recipes import make_views
from tests.experiments.commands.test_dialled_merge import NOISE, record
from tests.experiments.refusals import Shell

pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("dp_accounting") is None, reason="needs the extra dp"
)


def test_the_best_merge_costs_at_most_what_is_asked(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(shell.cwd / "state"))
    monkeypatch.setenv("EVOMERGE_ZOO", str(shell.cwd / "zoo"))
    for name in NOISE:
        folder = shutil.copytree(world / f"base-{name}", shell.cwd / name)
        write_record(folder, record(name))
    other = shutil.copytree(world / "base-code", shell.cwd / "other")
    write_record(other, record("code", "letters"))
    assert shell.run("zoo", "add", str(world / "base"), *NOISE, "other").code == 0
    asked = ["zoo", "best", "--base", "base", "--dataset"]
    ended = shell.run(*asked, "tickets", "--epsilon", "4")
    assert ended.code == 0, ended
    zoo = Zoo.open(shell.cwd / "zoo")
    ledger = zoo.recipe("best-tickets-4")["privacy"]
    assert list(ledger["data_sets"]) == ["tickets"]
    assert 2.2 < ledger["data_sets"]["tickets"]["epsilon"] <= 4
    make_views([source := f"zoo:{zoo.directory}/best-tickets-4"])
    assert (resolve(source) / "model.safetensors").is_file()
    shell.refuse("has a model 'best-tickets-4' already", *asked, "tickets", "--epsilon", "4")
    shell.refuse("no expert costs epsilon=0.1", *asked, "tickets", "--epsilon", "0.1")
    shell.refuse("a record of 'ticket' alone", *asked, "ticket", "--epsilon", "4")
