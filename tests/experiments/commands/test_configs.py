"""Every configuration file composes, and names exactly the options of what it builds."""

from __future__ import annotations

import inspect
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_module
from hydra.utils import get_class, get_method
from omegaconf import DictConfig, OmegaConf

import conf
from docs import option_pages
from experiments.setup.pairing import DEFAULTS

ROOT = Path(str(conf.__file__)).parent
GROUPS = sorted(
    path.name for path in ROOT.iterdir() if path.is_dir() and path.name != "__pycache__"
)
FILES = sorted(path for group in GROUPS for path in (ROOT / group).glob("*.yaml"))

# What the program hands over at run time, so that a file must not name it.
RUN_TIME = {"self", "model", "pool", "dtype", "info", "run", "clock", "stream", "initial"}
RUN_TIME |= {"axes", "corners", "stages", "starts", "founders"}  # of a space's domain
SEED_IS_RUN_TIME = {"strategy"}
NOT_IN_SEARCH = {"saliency", "schedule", "privatization"}


def composed(*overrides: str, config: str = "search") -> DictConfig:
    with initialize_config_module("conf", version_base="1.3"):
        return compose(config, overrides=list(overrides))


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_file_composes_and_says_what_it_is(path: Path) -> None:
    group, name = path.parent.name, path.stem
    assert path.read_text(encoding="utf-8").startswith("#"), "the first line says what it is for"
    config = composed(*_choice(group, name))
    assert isinstance(config, DictConfig)


def _choice(group: str, name: str) -> list[str]:
    if group == "evaluator":
        return [f"evaluator@search_on={name}"]
    return [f"{'+' * (group in NOT_IN_SEARCH)}{group}={name}"]


@pytest.mark.parametrize("path", FILES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_file_names_every_option_of_its_target(path: Path) -> None:
    """A constructor's option that a file lacks could not be set from the command line."""
    if path.parent.name == "experiment":
        pytest.skip("an experiment holds differences only")
    raw = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(raw, dict)
    nodes = [raw] if "_target_" in raw else [v for v in raw.values() if isinstance(v, dict)]
    for node in nodes:
        if "_target_" in node and not path.stem.startswith("quickstart_"):
            _check_options(path, node)


def _check_options(path: Path, node: dict[Any, Any]) -> None:
    target = str(node["_target_"])
    try:
        built = get_class(target)
    except ValueError:
        built = get_method(target)
    known = set(inspect.signature(built).parameters) - RUN_TIME
    if path.parent.name in SEED_IS_RUN_TIME:
        known.discard("seed")
    named = {str(key) for key in node} - {"_target_", "_partial_", "defaults"}
    for entry in node.get("defaults", []):  # /method@methods.ties: ties
        group = next(iter(entry)) if isinstance(entry, dict) else entry
        if not group.startswith("override "):
            named |= {group.partition("@")[2].partition(".")[0]} - {""}
    assert named == known, f"{path.name}: {target}"


def test_every_option_has_a_comment_which_is_its_documentation() -> None:
    assert option_pages.pages()  # raises an error that names the option


def test_run_seed_reaches_every_random_method() -> None:
    config = composed("seed=7")
    for name, method in config.baselines.items():
        if name != "report" and "seed" in method:
            assert method.seed == 7, name


def test_parts_that_a_space_may_ignore_are_known_by_their_defaults() -> None:
    config = composed()
    assert {part: config[part]["_target_"] for part in DEFAULTS} == DEFAULTS


@pytest.mark.parametrize("verb", ["search", "merge", "evaluate", "dedup", "split"])
def test_primary_configurations_compose(verb: str) -> None:
    options = {"merge": ["out=x"], "evaluate": ["model=x"], "dedup": ["models={a:x}"]}
    options["split"] = ["base=x", "folder=y"]
    config = composed(*options.get(verb, []), config=verb)
    assert OmegaConf.to_container(config, resolve=True)
