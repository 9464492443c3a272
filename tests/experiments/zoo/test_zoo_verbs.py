"""``evomerge zoo``: every verb, and what each refuses in one sentence."""

from __future__ import annotations

import json
import shlex
import shutil
from pathlib import Path
from typing import Any

import pytest

from experiments.zoo.adding import default_name
from merging.checkpoints.privacy_record import PrivacyRecord, PrivacySpend, write_record
from merging.zoo.store import Added, Zoo
from tests import builders
from tests.experiments.local import EXPERTS, overrides
from tests.experiments.refusals import Ended, Shell, tree


@pytest.fixture
def shell(shell: Shell, monkeypatch: pytest.MonkeyPatch) -> Shell:
    """A shell with a zoo of its own in the working directory."""
    monkeypatch.setenv("EVOMERGE_ZOO", str(shell.cwd / "zoo"))
    return shell


def well(shell: Shell, *arguments: str) -> Ended:
    ended = shell.run("zoo", *arguments)
    assert ended.code == 0, ended
    return ended


def add_world(shell: Shell, world: Path) -> Zoo:
    well(shell, "add", str(world / "base"), *(f"{world}/base-{name}" for name in EXPERTS))
    return Zoo.open(shell.cwd / "zoo")


def with_record(world: Path, place: Path) -> Path:
    shutil.copytree(world / "base-code", place)
    spend = PrivacySpend("letters", 2.5, 1e-5, "none", "0", release="training 1")
    write_record(place, PrivacyRecord((spend,)))
    return place


def test_list_counts_every_byte_once(shell: Shell, world: Path) -> None:
    add_world(shell, world)
    well(shell, "add", str(world / "base"), "--name", "twin")
    well(shell, "add", str(with_record(world, shell.cwd / "private")))
    listed = json.loads(well(shell, "list", "--json").stdout)
    rows = {row["name"]: row for row in listed["models"]}
    assert list(rows) == ["base", *sorted(f"base-{name}" for name in EXPERTS), "private", "twin"]
    stored = sum(row["part_bytes"] for row in listed["models"])
    assert stored == pytest.approx(listed["stored_bytes"])
    assert rows["twin"]["shared_bytes"]["base"] == rows["twin"]["needed_bytes"]
    assert rows["private"]["privacy"]["data_sets"]["letters"]["epsilon"] == 2.5
    table = well(shell, "list", "--plot", "sharing.png").stdout
    assert "letters 2.5" in table
    assert "no record" in table
    assert (shell.cwd / "sharing.png").read_bytes().startswith(b"\x89PNG")
    assert rows["base"]["own_bytes"] == 0
    well(shell, "remove", "base", "twin")
    well(shell, "gc")
    well(shell, "check")


def test_show_says_what_is_known(shell: Shell, world: Path) -> None:
    add_world(shell, world)
    well(shell, "add", str(with_record(world, shell.cwd / "private")))
    shown = well(shell, "show", "private").stdout
    assert "model.embed_tokens.weight" in shown
    assert "base-code" in shown.partition("shares with")[2]
    assert "Privacy: (ε, δ) = (2.5, 1e-05) per record of data set letters" in shown
    assert "Not private" in well(shell, "show", "base").stdout


def test_open_gives_the_files_back(shell: Shell, world: Path) -> None:
    add_world(shell, world)
    well(shell, "open", "base-prose", "--out", "again")
    for path in (world / "base-prose").iterdir():
        assert (shell.cwd / "again" / path.name).read_bytes() == path.read_bytes()
    shell.refuse("again exists already", "zoo", "open", "base", "--out", "again")


def test_check_names_a_flipped_bit(shell: Shell, world: Path) -> None:
    zoo = add_world(shell, world)
    assert "4 models" in well(shell, "check").stdout
    (pack, *_) = sorted((zoo.directory / "packs").iterdir())
    raw = bytearray(pack.read_bytes())
    raw[len(raw) // 2] ^= 1
    pack.chmod(0o644)
    pack.write_bytes(raw)
    ended = shell.run("zoo", "check")
    assert ended.code == 2
    assert pack.name in ended.stderr
    assert "base" in ended.stderr


class TestRecipes:
    @pytest.fixture
    def merged(self, shell: Shell, world: Path) -> Path:
        """A merge of two experts: a directory with its recipe."""
        experts = f"experts.experts={{code:{world}/base-code,prose:{world}/base-prose}}"
        options = ["experts=local", f"experts.base={world}/base", experts, "out=merged"]
        assert shell.run("merge", *options).code == 0
        return shell.cwd / "merged"

    def test_ingredients_are_found_by_content(
        self, shell: Shell, world: Path, merged: Path
    ) -> None:
        names = {"ground": "base", "first": "base-code", "second": "base-prose"}
        told = well(shell, "add", f"{merged}/recipe.json", "--name", "mix").stdout
        assert told.count("note: ") == 1, "nothing of it is there yet"
        assert all(str(world / folder) in told for folder in names.values())
        for name, folder in names.items():
            well(shell, "add", str(world / folder), "--name", name)
        shown = well(shell, "show", "mix").stdout
        assert all(f"zoo:{shell.cwd}/zoo/{name}" in shown for name in names)
        well(shell, "open", "mix", "--out", "opened")
        weights = "model.safetensors"
        assert (shell.cwd / "opened" / weights).read_bytes() == (merged / weights).read_bytes()
        shell.refuse("mix is a recipe that is made from first", "zoo", "remove", "first")
        well(shell, "remove", "first", "--force")

    def test_it_needs_what_its_ingredients_need(
        self, shell: Shell, world: Path, merged: Path
    ) -> None:
        def rows() -> tuple[Any, dict[str, Any]]:
            listed = json.loads(well(shell, "list", "--json").stdout)
            return listed, {row["name"]: row for row in listed["models"]}

        well(shell, "add", f"{merged}/recipe.json", "--name", "mix")
        assert rows()[1]["mix"]["plain_bytes"] is None
        assert "unknown" in well(shell, "list").stdout
        assert "1 model in" in well(shell, "list").stdout
        add_world(shell, world)
        listed, named = rows()
        parts = [named[name] for name in ("base", "base-code", "base-prose")]
        mix = named["mix"]
        assert mix["needed_bytes"] > max(part["needed_bytes"] for part in parts)
        assert mix["plain_bytes"] == named["base"]["plain_bytes"]
        for part in parts:
            assert mix["shared_bytes"][part["name"]] == part["needed_bytes"]
            assert part["own_bytes"] == 0, "the recipe needs it too"
        stored = sum(row["part_bytes"] for row in named.values())
        assert stored == pytest.approx(listed["stored_bytes"])
        well(shell, "list", "--plot", "sharing.png")

    def test_it_is_a_recipe_in_another_zoo_too(
        self, shell: Shell, world: Path, merged: Path
    ) -> None:
        """What the note says is what it takes: to open it where the directories are gone."""
        add_world(shell, world)
        well(shell, "add", f"{merged}/recipe.json", "--name", "mix")
        told = well(shell, "add", "zoo:mix", "--zoo", "other").stdout
        other = Zoo.open(shell.cwd / "other")
        assert other.model("mix").kind == "recipe"
        line = shlex.split(told.partition("evomerge zoo ")[2])
        assert line[-2:] == ["--zoo", str(other.directory)]
        assert all(source.startswith(f"zoo:{shell.cwd}/zoo/") for source in line[1:-2])
        well(shell, *line)
        well(shell, "open", "mix", "--zoo", "other", "--out", "opened")
        weights = "model.safetensors"
        assert (shell.cwd / "opened" / weights).read_bytes() == (merged / weights).read_bytes()

    def test_adapters_are_known_by_what_scales_them_too(
        self, shell: Shell, world: Path, tmp_path: Path
    ) -> None:
        adapter = builders.lora_adapter(tmp_path / "lora", world / "base")
        experts = f"experts.experts={{code:{world}/base-code,lora:{adapter}}}"
        options = ["experts=local", f"experts.base={world}/base", experts, "out=mixed"]
        assert shell.run("merge", *options).code == 0
        parts = [str(world / "base"), str(world / "base-code"), str(adapter)]
        well(shell, "add", *parts)
        told = well(shell, "add", "mixed/recipe.json").stdout
        assert "note" not in told
        shutil.rmtree(adapter)
        well(shell, "open", "mixed-winner", "--out", "opened")
        weights = "model.safetensors"
        opened, mixed = shell.cwd / "opened" / weights, shell.cwd / "mixed" / weights
        assert opened.read_bytes() == mixed.read_bytes()

    def test_both_zoos_are_named_where_an_ingredient_is_in_neither(
        self, shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        add_world(shell, world)
        experts = "experts.experts={code:zoo:base-code,prose:zoo:base-prose}"
        options = ["experts=local", "experts.base=zoo:base", experts, "out=merged"]
        assert shell.run("merge", *options).code == 0
        own = ["--zoo", str(shell.cwd / "other")]
        well(shell, "add", "merged/recipe.json", "--name", "mix", *own)
        well(shell, "add", str(world / "base"), *own)
        assert "note" not in well(shell, "check", *own).stdout, "the default zoo has the rest"
        monkeypatch.setenv("EVOMERGE_ZOO", own[1])
        assert "mix cannot be opened" in well(shell, "check", *own).stdout
        monkeypatch.setenv("EVOMERGE_ZOO", str(shell.cwd / "third"))
        pattern = f"mix: code is not in its zoo {own[1]}, and no model 'base-code' .*/third: add"
        shell.refuse(pattern, "zoo", "open", "mix", "--out", "opened", *own)

    def test_it_stands_wherever_a_checkpoint_may(
        self, shell: Shell, world: Path, merged: Path
    ) -> None:
        """A recipe that nobody has opened yet: in a mergekit file, scored, and rebuilt from."""
        add_world(shell, world)
        file = shell.cwd / "merge.yaml"
        models = "models: [{model: NAME}, {model: zoo:base-maths}]\nmerge_method: linear\n"
        shared = "parameters: {weight: 0.5}\n"
        for name, source in (("plain", str(merged)), ("stored", "zoo:mix")):
            if name == "stored":
                well(shell, "add", f"{merged}/recipe.json", "--name", "mix")
            file.write_text(models.replace("NAME", source) + shared)
            assert shell.run("merge", f"mergekit={file}", f"out={name}").code == 0
        weights = "model.safetensors"
        plain, stored = (shell.cwd / name / weights for name in ("plain", "stored"))
        assert plain.read_bytes() == stored.read_bytes()
        shutil.rmtree(shell.cwd / "zoo" / "views" / "mix")
        panel = ["evaluator@report_on=perplexity", f"report_on.text.data={world}/report.jsonl"]
        scores = [
            shell.run("evaluate", f"model={model}", *panel).stdout.partition("note")[0]
            for model in (merged, "zoo:mix")
        ]
        assert scores[0] == scores[1] != ""
        shutil.rmtree(shell.cwd / "zoo" / "views" / "mix")
        recipe, moved = str(shell.cwd / "plain" / "recipe.json"), "zoo:mix"
        name = next(iter(json.loads(Path(recipe).read_text())["experts"]))
        ended = shell.run("rebuild", recipe, "--out", "again", "--source", f"{name}={moved}")
        assert ended.code == 0, ended
        assert (shell.cwd / "again" / weights).read_bytes() == plain.read_bytes()

    def test_it_is_where_a_search_begins(self, shell: Shell, merged: Path, world: Path) -> None:
        well(shell, "add", f"{merged}/recipe.json", "--name", "mix")
        options = [*overrides(world), "space=full_weights", "strategy=mergevolve", "in_hull=null"]
        ended = shell.run("check", *options, "initial=recipe", "initial.path=zoo:mix")
        assert ended.code == 0, ended
        ended = shell.run("check", *options, "initial=recipe", "initial.path=zoo:mx")
        assert ended.code == 2
        assert "no model 'mx'" in ended.stderr


def test_a_search_is_refused_a_zoo_before_it_begins(shell: Shell, world: Path, idle: None) -> None:
    for name, version in (("later", "evomerge zoo 2\n"), ("other", None)):
        (shell.cwd / name).mkdir()
        (shell.cwd / name / ("format" if version else "photo")).write_text(version or "")
    options = overrides(world)
    shell.refuse("later is of another version", "search", *options, "zoo=later")
    shell.refuse("zoo=other holds something else", "search", *options, "zoo=other")
    shell.refuse("zoo=3: expected true or false or text or null", "check", *options, "zoo=3")


@pytest.mark.parametrize(
    ("words", "pattern"),
    [
        (["lst"], "unknown verb 'lst'.*did you mean list"),
        (["show", "bas-code"], "no model 'bas-code'.*did you mean base-code"),
        (["open", "bsae", "--out", "x"], "no model 'bsae'.*did you mean base"),
        (["remove", "base", "nothing"], "no model 'nothing'"),
        (["list", "--zoo", "elsewhere"], "elsewhere is no zoo"),
        (["list", "--plot", "a.txt"], "ends in .png"),
        (["list", "--plot", "gone/a.png"], "its directory does not exist"),
        (["add", "base"], "empty directory|does not exist|no Hugging Face id"),
        (["add", "a/base", "b/base"], "two of the models would be called 'base'"),
        (["add", "a/base", "b/other", "--name", "x"], "cannot have one name"),
        (["add", "begun"], "has no winner yet"),
        (["add", "zoo:bsae", "--name", "x"], "no model 'bsae'.*did you mean base"),
        (["add", "a/base", "--name", "x", "--base", "bsae"], "no model 'bsae'.*did you mean base"),
        (["add", "a/base/config.json"], "config.json is no recipe: .*directory, as a/base"),
    ],
)
def test_refusals(shell: Shell, world: Path, words: list[str], pattern: str) -> None:
    add_world(shell, world)
    for place in ("a/base", "b/base", "b/other"):
        shutil.copytree(world / "base", shell.cwd / place)
    (shell.cwd / "begun").mkdir()
    for name in ("history.jsonl", "config.yaml", "recipe.json"):
        (shell.cwd / "begun" / name).touch()
    shell.refuse(pattern, "zoo", *words)


@pytest.mark.parametrize("verb", ["search", "merge", "evaluate"])
def test_a_misspelt_source_is_refused(shell: Shell, world: Path, idle: None, verb: str) -> None:
    add_world(shell, world)
    line = [*overrides(world), "experts.experts={code:zoo:base-cod,prose:zoo:base-prose}"]
    options = {
        "search": line,
        "merge": [*line[:3], line[-1], "out=merged"],
        "evaluate": ["model=zoo:base-cod", "evaluator@report_on=perplexity", *_data(world)],
    }
    shell.refuse("no model 'base-cod'.*did you mean base-code", verb, *options[verb])


def _data(world: Path) -> list[str]:
    return [f"report_on.text.data={world}/report.jsonl"]


def test_a_name_that_is_taken_is_refused_before_anything_is_added(
    shell: Shell, world: Path
) -> None:
    """Of other content: weights, or a file beside them; the same is passed over."""
    add_world(shell, world)
    shutil.copytree(world / "base", shell.cwd / "more")
    shutil.copytree(world / "base-code", shell.cwd / "base")
    with_record(world, shell.cwd / "base-code")
    before = tree(shell.cwd / "zoo")
    for name in ("base", "base-code"):
        pattern = f"has a model '{name}' already.*evomerge zoo remove {name}$"
        shell.refuse(pattern, "zoo", "add", "more", name)
    assert "base  is there already" in well(shell, "add", str(world / "base")).stdout
    assert tree(shell.cwd / "zoo") == before


def test_an_add_that_was_stopped_continues(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = ["add", *(f"{world}/{name}" for name in ("base", "base-code", "base-prose"))]
    with monkeypatch.context() as patched:
        store, count = Zoo.add, iter(range(9))

        def stopped(self: Zoo, *given: Any, **options: Any) -> Added:
            if next(count) == 2:
                raise KeyboardInterrupt
            return store(self, *given, **options)

        patched.setattr(Zoo, "add", stopped)
        assert "the same command continues it" in shell.run("zoo", *line).stderr
    told = well(shell, *line).stdout
    assert told.count("is there already") == 2
    assert "base-prose  " in told
    assert len(Zoo.open(shell.cwd / "zoo").models()) == 3


def test_a_home_directory_is_meant_by_its_sign(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(shell.cwd / "home"))
    well(shell, "add", str(world / "base"), "--zoo=~/zoo")
    well(shell, "open", "base", "--zoo=~/zoo", "--out=~/base")
    assert (shell.cwd / "home" / "base" / "config.json").is_file()
    assert not (shell.cwd / "~").exists()


def test_names_of_hugging_face_snapshots() -> None:
    at = f"/cache/models--org--Some-7B/snapshots/{'0' * 40}"
    assert default_name(at) == "Some-7B"
