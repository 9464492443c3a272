"""What a private search keeps in a zoo: what its ledger counts, and nothing else."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest

from merging.zoo.store import Zoo
from tests.experiments.refusals import Shell
from tests.experiments.searches.test_private_search import DESCENT, MEANS, items, options

__all__ = ["items"]

SMALL = ["evaluator@select_on=none", "save_model=false"]


@pytest.fixture(autouse=True)
def state(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(shell.cwd / "state"))


def kept(shell: Shell, line: list[str]) -> tuple[Zoo, list[str]]:
    """A zoo after a search, and the names of the recipes in it."""
    ended = shell.run("search", *line, "out=run", "zoo=zoo")
    assert ended.code == 0, ended.stderr
    zoo = Zoo.open(shell.cwd / "zoo")
    return zoo, [model.name for model in zoo.models() if model.kind == "recipe"]


def test_every_member_of_a_population_carries_the_whole_spend(
    shell: Shell, world: Path, items: Path
) -> None:
    line = options(world, items, *MEANS, *SMALL, "budget.evaluations=8")
    zoo, names = kept(shell, line)
    spends = json.loads((shell.cwd / "run" / "recipe.json").read_text())["privacy"]["spends"]
    assert [spend["dataset"] for spend in spends] == ["letters"]
    assert len(names) >= 4
    (date,) = {path.stat().st_mtime for path in zoo.directory.iterdir()}
    assert date // 86400 < time.time() // 86400, "nothing tells when it ended"
    for name in names:
        assert zoo.recipe(name)["privacy"]["spends"] == spends


def test_of_differences_the_winner_alone_is_kept(shell: Shell, world: Path, items: Path) -> None:
    _, names = kept(shell, options(world, items, *DESCENT, *SMALL, "budget.evaluations=4"))
    assert [name.rpartition("-")[2] for name in names] == ["winner"]


def test_runs_of_one_configuration_find_each_its_own_winner(
    shell: Shell, world: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Their noise differs, and with it their winners."""
    zoo, line = shell.cwd / "zoo", [*options(world, items, *MEANS, *SMALL), f"zoo={shell.cwd}/zoo"]
    recipes = []
    for place in ("a", "b"):
        (shell.cwd / place).mkdir()
        monkeypatch.chdir(shell.cwd / place)
        for _ in range(2):
            ended = shell.run("search", *line, "out=run", "budget.evaluations=4")
            assert ended.code == 0, ended
        (said,) = (row for row in ended.stdout.splitlines() if row.startswith("zoo "))
        kept = Zoo.open(zoo).recipe(said.rpartition("/")[2])
        assert kept == json.loads(Path("run/recipe.json").read_text())
        recipes.append(kept)
    assert recipes[0] != recipes[1]


def test_a_finished_run_is_not_taken_up_for_a_zoo(shell: Shell, world: Path, items: Path) -> None:
    """Its key is gone: what is told of a zoo later says how its winner gets there."""
    line = options(world, items, *MEANS, *SMALL, "budget.evaluations=4", "out=run")
    assert shell.run("search", *line).code == 0
    history = (shell.cwd / "run" / "history.jsonl").read_bytes()
    again = shell.run("search", *line, "zoo=zoo")
    assert "not there: evomerge zoo add run --zoo zoo adds the winner" in again.stdout
    assert (shell.cwd / "run" / "history.jsonl").read_bytes() == history
    assert shell.run("zoo", "add", "run", "--zoo", "zoo").code == 0
    shown = shell.run("zoo", "show", "run-winner", "--zoo", "zoo").stdout
    assert "per record of data set letters" in shown
