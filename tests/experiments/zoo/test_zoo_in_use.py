"""A zoo as people use it: filled by verbs and searches, read by all that reads checkpoints."""

from __future__ import annotations

import json
import shutil
from contextlib import chdir
from pathlib import Path
from typing import Any

import pytest

from experiments.cli import main
from merging.zoo.store import Zoo
from tests.experiments.local import EXPERTS, overrides
from tests.experiments.refusals import Shell, own_logging, tree

POPSIZE = 32


def contents(directory: Path) -> dict[str, bytes]:
    files = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.read_bytes() for path in files}


def search(root: Path, *more: str) -> None:
    with own_logging():
        main(["search", *overrides(root, "in_hull=null", *more)])


def population(*more: str) -> list[str]:
    sizes = [f"strategy.popsize={POPSIZE}", f"strategy.population.size={POPSIZE}"]
    return ["strategy=crossover", *sizes, f"budget.evaluations={2 * POPSIZE}", *more]


@pytest.fixture(scope="module")
def kept(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a crossover search ``run`` and the ``zoo`` that it was told to fill."""
    folder = tmp_path_factory.mktemp("kept")
    with chdir(folder):
        search(world, *population("out=run", f"zoo={folder}/zoo"))
    return folder


@pytest.fixture
def zoo(kept: Path) -> Zoo:
    return Zoo.open(kept / "zoo")


def named(zoo: Zoo, end: str) -> str:
    return next(model.name for model in zoo.models() if model.name.endswith(end))


class TestSearch:
    def test_keeps_who_lived_beside_base_and_experts(self, zoo: Zoo) -> None:
        kinds = {model.name: model.kind for model in zoo.models()}
        stored = [name for name, kind in kinds.items() if kind == "stored"]
        assert stored == ["base", *sorted(f"base-{name}" for name in EXPERTS)]
        assert POPSIZE <= len(kinds) - len(stored) <= POPSIZE + 1
        assert not zoo.check()

    def test_a_population_costs_less_than_one_model(self, zoo: Zoo, world: Path) -> None:
        recipes = [model for model in zoo.models() if model.kind == "recipe"]
        whole = (world / "base" / "model.safetensors").stat().st_size
        assert len(recipes) >= POPSIZE
        assert sum(model.own_bytes for model in recipes) < whole / 2

    def test_a_second_start_adds_nothing(self, zoo: Zoo, kept: Path, world: Path) -> None:
        before, models = tree(kept / "zoo"), zoo.models()
        with chdir(kept):
            search(world, *population("out=run", f"zoo={kept}/zoo"))
        assert zoo.models() == models
        assert tree(kept / "zoo") == before

    def test_the_winner_opens_as_the_run_wrote_it(
        self, zoo: Zoo, kept: Path, shell: Shell
    ) -> None:
        name = named(zoo, "-winner")
        done = shell.run("zoo", "open", name, "--zoo", str(zoo.directory), "--out", "winner")
        assert done.code == 0, done
        opened = contents(shell.cwd / "winner")
        model = contents(kept / "run" / "model")
        assert opened.pop("recipe.json") == (kept / "run" / "recipe.json").read_bytes()
        assert model.pop("recipe.json"), "the one for readers elsewhere"
        assert opened == model

    def test_its_run_is_rebuilt_from_the_zoo_when_the_directories_are_gone(
        self, kept: Path, shell: Shell
    ) -> None:
        run = shell.cwd / "run"
        run.mkdir()
        shutil.copy(kept / "run" / "config.yaml", run)
        recipe = json.loads((kept / "run" / "recipe.json").read_text())
        for ingredient in (recipe["base"], *recipe["experts"].values()):
            ingredient["source"] = str(shell.cwd / "gone")
        (run / "recipe.json").write_text(json.dumps(recipe))
        done = shell.run("rebuild", str(run / "recipe.json"), "--out", "again")
        assert done.code == 0, done
        name = "model.safetensors"
        again, model = shell.cwd / "again" / name, kept / "run" / "model" / name
        assert again.read_bytes() == model.read_bytes()


class TestSource:
    def sources(self, zoo: Zoo) -> list[str]:
        at = f"zoo:{zoo.directory}"
        experts = ",".join(f"{name}:'{at}/base-{name}'" for name in EXPERTS)
        return [f"experts.base={at}/base", f"experts.experts={{{experts}}}"]

    def test_a_search_from_a_zoo_finds_the_same_and_may_be_kept_later(
        self, zoo: Zoo, kept: Path, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """Without a zoo to fill; then it is told of one, killed meanwhile, and started again."""
        line = population("out=run", *self.sources(zoo))
        with chdir(tmp_path):
            search(world, *line)
            for name in ("history.jsonl", "model/model.safetensors", "model/config.json"):
                assert (tmp_path / "run" / name).read_bytes() == (kept / "run" / name).read_bytes()
            later, add_recipe = Zoo.open(tmp_path / "zoo", create=True), Zoo.add_recipe
            count = iter(range(100))

            def killed(self: Zoo, *given: Any) -> Any:
                if next(count) == 5:
                    raise KeyboardInterrupt
                return add_recipe(self, *given)

            monkeypatch.setattr(Zoo, "add_recipe", killed)
            search(world, *line, f"zoo={later.directory}")
            assert len(later.models()) == 9, "base, experts and five of the population"
            search(world, *line, f"zoo={later.directory}")
        assert [(model.kind, model.bytes > 10**5) for model in later.models()] == [
            (model.kind, model.bytes > 10**5) for model in zoo.models()
        ]

    def test_a_merge_from_a_zoo_is_the_same(self, zoo: Zoo, world: Path, shell: Shell) -> None:
        options = [o for o in overrides(world) if o.startswith("experts")]
        assert shell.run("merge", *options, "out=plain").code == 0
        assert shell.run("merge", *options, *self.sources(zoo), "out=zoo").code == 0
        plain, other = (contents(shell.cwd / name) for name in ("plain", "zoo"))
        assert plain["model.safetensors"] == other["model.safetensors"]
        assert plain.keys() == other.keys()

    def test_recipes_are_experts_and_ingredients_of_recipes(
        self, zoo: Zoo, world: Path, shell: Shell, tmp_path: Path
    ) -> None:
        """A recipe over recipes that lie in a zoo which was moved."""
        moved = Path(shutil.copytree(zoo.directory, tmp_path / "moved"))
        shutil.rmtree(moved / "views")
        (moved / "views").mkdir()
        first, winner = named(zoo, "-c002"), named(zoo, "-winner")
        experts = f"experts.experts={{a:'zoo:{moved}/{first}',b:'zoo:{moved}/{winner}'}}"
        base = ["experts=local", f"experts.base=zoo:{moved}/base"]
        assert shell.run("merge", *base, experts, "out=nested").code == 0
        recipe = str(shell.cwd / "nested" / "recipe.json")
        added = shell.run("zoo", "add", recipe, "--zoo", str(moved))
        assert added.code == 0, added
        assert "note" not in added.stdout
        again = Path(shutil.move(moved, tmp_path / "again"))
        done = shell.run("zoo", "open", "nested-winner", "--zoo", str(again), "--out", "opened")
        assert done.code == 0, done
        name = "model.safetensors"
        opened, merged = shell.cwd / "opened" / name, shell.cwd / "nested" / name
        assert opened.read_bytes() == merged.read_bytes()
