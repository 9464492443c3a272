"""Every strategy and objective file spells out all options of what it builds, and builds it."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
import yaml

from search.constrained import Constrained
from search.objective import Pareto, WeightedMean, WorstTask
from tests.search.strategies.contract import AXES

CONF = Path(__file__).parents[2] / "conf"


def files(group: str) -> list[Path]:
    return sorted((CONF / group).glob("*.yaml"))


def read(path: Path) -> tuple[Any, dict[str, Any], bool]:
    options = yaml.safe_load(path.read_text().replace("${budget.evaluations}", "60"))
    options.pop("defaults", None)
    module, name = options.pop("_target_").rsplit(".", 1)
    return (
        getattr(importlib.import_module(module), name),
        options,
        options.pop("_partial_", False),
    )


@pytest.mark.parametrize("path", files("strategy"), ids=lambda path: path.stem)
def test_strategies_are_built_by_their_files(path: Path) -> None:
    build, options, partial = read(path)
    assert partial
    options = {name: _built(value) for name, value in options.items()}
    taken = set(inspect.signature(build).parameters) - set(options) - {"seed"}
    domain = {"axes": AXES[:3], "corners": {}, "starts": ["start"], "founders": ["a", "b", "c"]}
    domain["stages"] = {"all": (0, 1, 2)}
    assert taken <= set(domain), "what no space gives must be named in the file"
    candidates = build(**{name: domain[name] for name in taken}, seed=0, **options).ask()
    assert candidates[0].id == 0


def _built(value: Any) -> Any:
    """Returns what Hydra would build of a value that has a ``_target_`` of its own."""
    if not (isinstance(value, dict) and "_target_" in value):
        return value
    options = {name: _built(each) for name, each in value.items() if name != "_target_"}
    module, name = value["_target_"].rsplit(".", 1)
    return getattr(importlib.import_module(module), name)(**options)


@pytest.mark.parametrize("path", files("objective"), ids=lambda path: path.stem)
def test_objectives_are_built_by_their_files(path: Path) -> None:
    build, options, partial = read(path)
    assert not partial
    assert set(options) == set(inspect.signature(build).parameters)
    assert isinstance(build(**options), WeightedMean | Pareto | WorstTask | Constrained)


def test_there_is_a_file_for_every_name_that_is_promised() -> None:
    names = {path.stem for path in files("strategy")}
    assert {"cma", "de", "pso", "oneplusone", "ngopt", "random", "grid"} <= names
    assert {"normalized", "raw", "pareto", "worst"} <= {path.stem for path in files("objective")}
