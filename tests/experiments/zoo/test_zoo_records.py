"""Privacy records of a zoo's models: whose they are, and which of equal weights one is meant."""

from __future__ import annotations

import json
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.zoo.adding import absent, add_absent
from merging.checkpoints.privacy_record import (
    RECORD_FILE,
    PrivacyRecord,
    PrivacySpend,
    write_record,
)
from merging.privacy.ledger import Ledger
from merging.zoo.store import Zoo
from merging.zoo_recipes import ingredients_in, read_recipe
from tests.experiments.refusals import Ended, Shell

SPEND = PrivacySpend("letters", 2.5, 1e-5, "none", "0", release="training 1")
WEIGHTS = "model.safetensors"


@pytest.fixture
def zoo(shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch) -> Zoo:
    """A zoo with a base, and beside it the experts ``code``, with a record, and ``prose``."""
    monkeypatch.setenv("EVOMERGE_ZOO", str(shell.cwd / "zoo"))
    shutil.copytree(world / "base-code", shell.cwd / "code")
    shutil.copytree(world / "base-prose", shell.cwd / "prose")
    write_record(shell.cwd / "code", PrivacyRecord((SPEND,)), words=["What it was trained on."])
    well(shell, "zoo", "add", str(world / "base"))
    return Zoo.open(shell.cwd / "zoo")


def well(shell: Shell, *arguments: str) -> Ended:
    ended = shell.run(*arguments)
    assert ended.code == 0, ended
    return ended


def cell(shell: Shell, name: str) -> str:
    """What the list says of a model's privacy."""
    lines = well(shell, "zoo", "list").stdout.splitlines()
    return next(line for line in lines if line.startswith(f"{name} "))


def merged(shell: Shell, name: str, *experts: str) -> Path:
    """The recipe in the zoo, and the directory, of a merge of models of the zoo."""
    listed = ",".join(f"{each}:zoo:{each}" for each in experts)
    options = ["experts=local", "experts.base=zoo:base", f"experts.experts={{{listed}}}"]
    well(shell, "merge", *options, f"out={name}-plain")
    well(shell, "zoo", "add", f"{name}-plain/recipe.json", "--name", name)
    return shell.cwd / f"{name}-plain"


def test_a_record_of_other_weights_is_refused_and_hides_no_model(shell: Shell, zoo: Zoo) -> None:
    shutil.copy(shell.cwd / "prose" / WEIGHTS, shell.cwd / "code" / WEIGHTS)
    shell.refuse("it was written for weights", "zoo", "add", "code")
    with pytest.raises(ValueError, match="written for weights"):
        absent(zoo, {"code": shell.cwd / "code"})
    zoo.add(shell.cwd / "code", "stale")
    assert "bad record" in cell(shell, "stale")
    assert "no record" in cell(shell, "base")
    rows = json.loads(well(shell, "zoo", "list", "--json").stdout)["models"]
    assert "for weights" in {row["name"]: row["privacy"] for row in rows}["stale"]["error"]
    shell.refuse("stale in the zoo .*written for weights", "zoo", "show", "stale")


def test_an_edited_ledger_of_a_recipe_is_refused(shell: Shell, zoo: Zoo) -> None:
    well(shell, "zoo", "add", "code", "prose")
    file = merged(shell, "mix", "code", "prose") / "recipe.json"
    content = json.loads(file.read_text())
    content["privacy"]["data_sets"]["letters"]["epsilon"] = 0.001
    file.write_text(json.dumps(content))
    shell.refuse("recipe.json: its ledger: it was edited", "zoo", "add", str(file))
    zoo.add_recipe(content, "edited", {})
    assert "bad record" in cell(shell, "edited")
    assert "letters 2.5" in cell(shell, "mix")


def test_show_says_what_was_written_beside_the_weights(shell: Shell, zoo: Zoo) -> None:
    well(shell, "zoo", "add", "code")
    assert "Privacy: What it was trained on." in well(shell, "zoo", "show", "code").stdout


def test_a_search_keeps_a_base_of_the_same_weights_with_its_record(
    shell: Shell, world: Path, zoo: Zoo
) -> None:
    well(shell, "zoo", "add", str(world / "base-code"), "--name", "code")
    private = {"code": shell.cwd / "code"}
    for _ in range(2):
        add_absent(zoo, private)
    assert [model.name for model in zoo.models()] == ["base", "code", "code-2"]
    assert Ledger.of_base(zoo.view("code-2")).spends == (SPEND,)


def test_of_equal_weights_the_model_is_taken_that_a_recipe_names(shell: Shell, zoo: Zoo) -> None:
    well(shell, "zoo", "add", "code", "prose")
    plain = merged(shell, "mix", "code", "prose")
    other = replace(SPEND, dataset="mails", release="training 2")
    for name, spends in (("a-twin", (SPEND, other)), ("twin", (SPEND, other)), ("same", (SPEND,))):
        twin = shutil.copytree(shell.cwd / "code", shell.cwd / name)
        write_record(twin, PrivacyRecord(spends))
        well(shell, "zoo", "add", name)
    well(shell, "zoo", "open", "mix", "--out", "opened")
    assert (shell.cwd / "opened" / WEIGHTS).read_bytes() == (plain / WEIGHTS).read_bytes()
    well(shell, "zoo", "remove", "code", "--force")
    assert ingredients_in(zoo, read_recipe(zoo, "mix"))["code"].endswith("/same")
    well(shell, "zoo", "remove", "same", "--force")
    ended = shell.run("zoo", "open", "mix", "--out", "again")
    assert "the recipe's ledger lacks training on data set 'mails'" in ended.stderr


def test_what_a_record_names_as_unrecorded_later_is_not_forgotten(shell: Shell, zoo: Zoo) -> None:
    well(shell, "zoo", "add", "code", "prose")
    merged(shell, "mix", "code", "prose")
    well(shell, "zoo", "remove", "code", "--force")
    write_record(shell.cwd / "code", PrivacyRecord((SPEND,), ("expert 'x'",)))
    well(shell, "zoo", "add", "code")
    ended = shell.run("zoo", "open", "mix", "--out", "opened")
    assert "lacks expert 'x' in expert 'code'" in ended.stderr


def test_what_is_opened_of_a_recipe_is_known_as_made_here(shell: Shell, zoo: Zoo) -> None:
    well(shell, "zoo", "add", "code", "prose")
    merged(shell, "mix", "code", "prose")
    well(shell, "zoo", "open", "mix", "--out", "opened")
    (shell.cwd / "opened" / RECORD_FILE).unlink()
    assert Ledger.of_base(shell.cwd / "opened").unrecorded == ("the base",)


def test_a_recipe_of_another_zoo_is_not_taken_for_one_of_the_same_name(
    shell: Shell, world: Path, zoo: Zoo
) -> None:
    well(shell, "zoo", "add", "code", "prose")
    merged(shell, "mix", "code", "prose")
    shutil.copytree(shell.cwd / "zoo", shell.cwd / "other")
    well(shell, "zoo", "remove", "mix")
    merged(shell, "mix2", "code")
    zoo.add_recipe(zoo.recipe("mix2"), "mix", {})  # other content
    line = ["merge", "experts=local", "experts.base=zoo:base"]
    experts = f"experts.experts={{mix:zoo:{shell.cwd}/other/mix,prose:zoo:prose}}"
    well(shell, *line, experts, "out=outer-plain")
    well(shell, "zoo", "add", "outer-plain/recipe.json", "--name", "outer")
    well(shell, "zoo", "open", "outer", "--out", "opened")
    shutil.move(shell.cwd / "other", shell.cwd / "gone")
    shutil.rmtree(shell.cwd / "zoo")
    shutil.copytree(shell.cwd / "gone", shell.cwd / "zoo")  # moved: found by name again
    well(shell, "zoo", "add", "outer-plain/recipe.json", "--name", "outer")
    well(shell, "zoo", "open", "outer", "--out", "again")
