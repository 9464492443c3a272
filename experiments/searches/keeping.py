"""What a search keeps in a zoo: its winner and who lived at the end, beside base and experts."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from filelock import FileLock
from omegaconf import DictConfig

from experiments.runs.directory import check_writable, run_identity
from experiments.runs.errors import UserError
from experiments.searches.outcome import SearchOutcome
from experiments.zoo.adding import absent, add_absent, free_name
from experiments.zoo.dates import hide_dates
from experiments.zoo.names import as_name
from experiments.zoo.sizes import size_text
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.sources import resolve
from merging.recipe import Recipe
from merging.zoo.store import Zoo, default_directory


def zoo_directory(option: bool | str | None) -> Path | None:
    """Returns the zoo that the option `zoo` names; None: none is to be written."""
    if not option:
        return None
    return default_directory() if option is True else Path(str(option)).expanduser()


def check_place(config: DictConfig) -> None:
    """Refuses a zoo that is of another version, no zoo, or cannot be written, before any work.

    Raises:
        UserError, ZooError: names the remedy.
    """
    if (directory := zoo_directory(config.zoo)) is None:
        return
    if _existing(directory) is None and directory.exists() and any(directory.iterdir()):
        raise UserError(f"zoo={directory} holds something else: name a zoo, or a new directory")
    check_writable(directory, "zoo")


def check_room(config: DictConfig, pool: ExpertPool) -> list[str]:
    """Returns, for a person, what the zoo that the run is told of lacks; nothing without one.

    Raises:
        UserError, CheckpointError: there is no room for it, or it does not take base or an expert.
    """
    if (directory := zoo_directory(config.zoo)) is None:
        return []
    missing = absent(_existing(directory), _directories(pool))
    check_writable(directory, "zoo", sum(missing.values()))
    if not missing:
        return [f"zoo         {directory} has base and experts"]
    size = size_text(sum(missing.values()))
    return [f"zoo         {directory} will be given {', '.join(missing)} ({size})"]


def kept_winner(config: DictConfig, run: Path) -> str | None:
    """Returns the source of the run's winner in the zoo that the run is told of; None: not yet."""
    directory = zoo_directory(config.zoo)
    zoo = None if directory is None else _existing(directory)
    if zoo is None or not (file := run / "recipe.json").is_file():
        return None
    # the last to be added
    name = _kept(zoo, f"{_prefix(config, run)}-winner", json.loads(file.read_text("utf-8")))
    return None if name is None else f"zoo:{zoo.directory}/{name}"


def keep(config: DictConfig, outcome: SearchOutcome) -> None:
    """Adds what the run's zoo, if any, lacks of base, experts, population and winner.

    Raises:
        ZooError: it cannot be written.
    """
    if (directory := zoo_directory(config.zoo)) is None:
        return
    zoo = Zoo.open(directory, create=True)
    with FileLock(zoo.directory / "searches.lock"):  # runs of a sweep look for the same experts
        _fill(zoo, _prefix(config, outcome.run), outcome)
    if config.privacy:
        hide_dates(zoo)


def _fill(zoo: Zoo, prefix: str, outcome: SearchOutcome) -> None:
    add_absent(zoo, _directories(outcome.references.ingredients.pool))
    winner = outcome.finalists[0].id
    for number, recipe in outcome.population.items():
        if number != winner:
            _add_once(zoo, f"{prefix}-c{number:03d}", recipe, {})
    card = outcome.run / "model" / "README.md"
    side = {card.name: card.read_bytes()} if card.is_file() else {}
    _add_once(zoo, f"{prefix}-winner", outcome.recipe, side)


def _add_once(zoo: Zoo, name: str, recipe: Recipe, side: Mapping[str, bytes]) -> None:
    """Adds a recipe, unless an earlier start has."""
    content = recipe.to_json()
    if _kept(zoo, name, content) is None:
        zoo.add_recipe(content, free_name(zoo, name), side)


def _kept(zoo: Zoo, name: str, content: Mapping[str, Any]) -> str | None:
    """Returns what a recipe is called in a zoo: `name`, or with a number where others had it."""
    wanted = _undated(content)
    for model in zoo.models():
        numbered = re.fullmatch(rf"{re.escape(name)}(-\d+)?", model.name)
        if numbered and model.kind == "recipe" and _undated(zoo.recipe(model.name)) == wanted:
            return model.name
    return None


def _undated(recipe: Mapping[str, Any]) -> Any:
    """Returns a recipe as files hold it, without the version that wrote it."""
    return json.loads(json.dumps({k: v for k, v in recipe.items() if k != "created_by"}))


def _existing(directory: Path) -> Zoo | None:
    return Zoo.open(directory) if (directory / "format").exists() else None


def _prefix(config: DictConfig, run: Path) -> str:
    """Returns what begins the names of a run's models: its directory's name, and its identity."""
    name, identity = (
        as_name(run.absolute().name),
        run_identity(config)[:8],
    )
    return name if name.endswith(identity) else f"{name}-{identity}"


def _directories(pool: ExpertPool) -> dict[str, Path]:
    """Returns the source of base and experts, and where each lies."""
    experts = {source: resolve(source) for source in pool.sources.values()}
    return {pool.base.source: pool.base.path, **experts}
