"""A model made and asked again, beside what its files and its card say."""

import filecmp
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf

from evaluators.requests import EvaluationError, TransientFailure
from evaluators.split import Split
from experiments.reports.card_head import Parents
from experiments.reports.card_numbers import count_numbers, differences
from experiments.reports.model_card import static_card
from experiments.runs.directory import finished_run
from experiments.runs.errors import UserError, explained
from experiments.runs.files import Json, read_json, read_lines, write_lines
from experiments.runs.model_scores import IN_HULL, ModelScores, models_of
from experiments.runs.progress import ProgressBar
from experiments.runs.shown import shown
from experiments.searches.published import card_of, shown_recipe
from experiments.searches.references import References
from experiments.setup.ingredients import Ingredients, open_ingredients
from experiments.setup.parts import SearchParts
from experiments.zoo.opening import open_sources
from merging.checkpoints.experts import ExpertPool
from merging.recipe import Recipe
from merging.saving.rebuild import rebuild
from merging.weights import Weights


def verified(named: Path, copy: Path | None, tolerance: float) -> list[str]:
    """Prints what is as it is said to be, and returns what is not, a sentence each.

    Args:
        named: a run's directory, or the recipe of a run or of a static merge.
        copy: of the card; None: the one beside the weights.
        tolerance: how far apart two numbers may lie.

    Raises:
        UserError: there is no such model or card, or it cannot be made or asked again.
    """
    with explained():
        made = _open(named)
        card = (copy or made.model / "README.md").read_text(encoding="utf-8")
        folder = tempfile.TemporaryDirectory(dir=made.model.parent, prefix=".", suffix=".tmp")
    with explained(), folder as room:
        wrong = made.files(Path(room) / "model")
        try:
            again = made.card(Path(room))
        except (EvaluationError, TransientFailure) as error:
            raise UserError(f"{named} cannot be scored again: {error}") from error
    found = differences(card, again, tolerance)
    if not found:
        print(f"card        {count_numbers(again)} numbers, each as {made.teller}")
    return [*wrong, *found]


@dataclass(frozen=True)
class _Made:
    """A static merge: its recipe and experts, and the folder of its weights."""

    model: Path
    recipe: Recipe
    pool: ExpertPool

    def files(self, room: Path) -> list[str]:
        """Writes the model into `room`; returns which files of its folder are other ones.

        Hidden files and an adapter, which says how near it is, are not the recipe's.
        """
        with ProgressBar(len(self.pool.names), "rebuilding", "tensor") as bar:

            def watched(weights: Weights) -> Weights:
                return shown(weights, lambda _: bar.update())

            rebuild(self.recipe, self.pool, room, shown=watched)
        self.beside(room)
        names = [f.relative_to(room) for f in sorted(room.rglob("*")) if f.is_file()]
        names.remove(Path("README.md"))
        lost = [name for name in names if not (self.model / name).is_file()]
        other = [
            name
            for name in names
            if name not in lost and not filecmp.cmp(room / name, self.model / name, shallow=False)
        ]
        held = {f.relative_to(self.model) for f in self.model.rglob("*") if f.is_file()}
        added = [
            name
            for name in sorted(held - {*names, Path("README.md"), Path("recipe.json")})
            if name.parts[0] != "adapter" and not any(p.startswith(".") for p in name.parts)
        ]
        if not lost and not other and not added:
            print(f"files       {len(names)}, each bit for bit what {self.model} holds")
        return [
            *(f"{self.model / name} is not there: the recipe gives it" for name in lost),
            *(f"{self.model / name} is not what the recipe gives" for name in other),
            *(f"{self.model / name} is there: the recipe gives no such file" for name in added),
        ]

    def beside(self, room: Path) -> None:
        """Adds what else the model's maker wrote from the recipe."""

    @property
    def teller(self) -> str:
        """What the card's numbers are compared with, in words."""
        return "the recipe has it"

    def card(self, room: Path) -> str:
        """Returns the card as it is written today."""
        return static_card(self.recipe.to_json(), Parents.of(self.pool))


@dataclass(frozen=True)
class _Searched(_Made):
    """The winner of a run, and what scores it."""

    run: Path
    config: DictConfig
    parts: SearchParts
    ingredients: Ingredients

    def beside(self, room: Path) -> None:
        """Adds the recipe as others may read it."""
        shown_recipe(self.recipe).save(room / "recipe.json")

    @property
    def teller(self) -> str:
        """What the card's numbers are compared with: only held-out items are asked again."""
        files = "the run's files have it"
        return f"it came out again or {files}" if "report" in self.ingredients.panels else files

    def card(self, room: Path) -> str:
        """Returns the card with what all of its models score now on the held-out items."""
        summary = read_json(self.run / "summary.json")
        panel = self.ingredients.panels.get("report")
        if panel is None:
            print("scores      not asked again: the run has no held-out items")
            room = self.run
        else:
            scores = self._asked(summary, room)
            print(f"scores      {len(scores)} models, asked {panel.item_count} held-out items")
            summary |= {"models": [_row(row, scores) for row in summary["models"]]}
        return card_of(self.ingredients, summary, self.recipe.to_json(), room)

    def _asked(self, summary: Json, room: Path) -> Mapping[str, ModelScores]:
        """Returns what each model of a summary with a held-out score has there now, by its name.

        Fitness is in the run's own units: what base and experts scored on its search items.
        """
        known = [m for m in read_lines(self.run / "references.jsonl") if m["split"] == "search"]
        write_lines(room / "references.jsonl", [{**m, "id": i} for i, m in enumerate(known)])
        private: list[Split] = ["search"] if self.config.privacy else []
        references = References(self.ingredients, self.parts.baselines, room, unread=private)
        objective = references.bound(self.parts.objective)
        panel = self.ingredients.panels["report"]
        labels = {row.name for row in models_of(summary) if "report" in row.scores}
        statics = [n for n in self.parts.baselines if {n, f"{n} (static)"} & labels]
        scores = references.score(panel, statics=statics, winner=self.recipe.plan)
        if IN_HULL in labels:
            plan = Recipe.load(self.run / "in_hull" / "recipe.json").plan
            scores[IN_HULL] = references.score_saved(IN_HULL, "in_hull", panel, plan)
        return {name: own.judged(objective) for name, own in scores.items()}


def _row(row: Mapping[str, Any], scores: Mapping[str, ModelScores]) -> dict[str, Any]:
    """Returns an entry of a summary with other scores on the held-out items, if it has any."""
    if row["report"] is None:
        return dict(row)
    return {**row, "report": scores[row["name"]].cell()}


def _open(named: Path) -> _Made:
    """Returns what a run's directory or a recipe stands for, its experts by their content.

    Raises ValueError: it stands for nothing, or other experts lie there now.
    """
    file = named / "recipe.json" if named.is_dir() else named
    folder = file.parent
    run = finished_run(folder)
    recipe = Recipe.load(file)
    model = run / "model" if run else folder
    if not (model / "config.json").is_file():
        raise UserError(
            f"{model} holds no model that could be verified: evomerge rebuild {file} --out DIR "
            "writes it"
        )
    if run is None:
        open_sources(each.source for each in recipe.ingredients.values())
        return _Made(model, recipe, recipe.open_pool())
    config = cast(DictConfig, OmegaConf.load(run / "config.yaml"))
    parts = SearchParts.open(config)
    ingredients, _ = open_ingredients(config, parts)
    pool = ingredients.pool
    now = Recipe.of(pool, recipe.plan).ingredients
    for name, wanted in recipe.ingredients.items():
        if name not in now or replace(now[name], source=wanted.source) != wanted:
            raise UserError(f"{file}: {name} has other content now: put the old content back")
    return _Searched(model, recipe, pool, run, config, parts, ingredients)
