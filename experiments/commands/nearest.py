"""What was probably meant by a word of the command line that Hydra refuses."""

import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from typing import Any

from hydra import compose, initialize_config_module
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from experiments.runs.choices import listed
from experiments.runs.spelling import did_you_mean


@contextmanager
def nearest_words(config_name: str, words: Sequence[str]) -> Iterator[None]:
    """Adds to Hydra's own lines the nearest name for each misspelt option, group and choice."""
    _check_parts(config_name, words)
    try:
        yield
    except SystemExit as end:
        if end.code == 1:
            for line in suggestions(config_name, words):
                print(f"{sys.argv[0]}: {line}", file=sys.stderr)
        raise


def _check_parts(config_name: str, words: Sequence[str]) -> None:
    """Refuses a part that is replaced by nothing, which Hydra answers with a traceback."""
    nothing = [one for one in _overrides(words) if not one.is_delete() and one.value() is None]
    if not nothing:
        return
    with initialize_config_module("conf", version_base="1.3"):
        known = GlobalHydra.instance().config_loader().get_group_options
        for one in nothing:
            if choices := known(one.key_or_group):
                remedy = f"choose {listed(choices)}"
                print(f"{sys.argv[0]}: {one.input_line}: {remedy}", file=sys.stderr)
                sys.exit(2)


def suggestions(config_name: str, words: Sequence[str]) -> list[str]:
    """Returns a line for each word that nearly names an option, a group or a choice.

    Empty where all are spelt well, so that something else must have failed, and where the user
    has a configuration directory, which may know other names.
    """
    if any(word.startswith("--config") for word in words):
        return []
    with initialize_config_module("conf", version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        well_chosen, options, lines = [], [], []
        for override in _overrides(words):
            known = loader.get_group_options(override.key_or_group)
            if not known:
                options.append(override.key_or_group)
            for choice in _choices(override) if known else ():
                assignment = f"{override.get_key_element()}={choice}"
                if choice in known:
                    well_chosen.append(assignment)
                else:
                    lines.append(f"{assignment} is unknown{did_you_mean(choice, known)}")
        if not lines:
            with suppress(HydraException):  # a group at a place that there is not
                config = compose(config_name, well_chosen)
                names = [*loader.list_groups(""), *_dotted(OmegaConf.to_container(config))]
                unknown = [option for option in options if option not in names]
                lines = [f"{option} is unknown{did_you_mean(option, names)}" for option in unknown]
    return [line for line in lines if line.endswith("?")]


def _overrides(words: Sequence[str]) -> Iterator[Override]:
    """Yields what replaces something that there is; flags and additions are left out."""
    parser = OverridesParser.create()
    for word in words:
        with suppress(HydraException):
            override = parser.parse_override(word)
            if not override.is_add() and not override.is_force_add():
                yield override


def _choices(override: Override) -> list[str]:
    """Returns the names that a group is given: one, a list, or those of a sweep."""
    value = None if override.is_delete() else override.value()
    choices = value.list if isinstance(value, ChoiceSweep) else value
    listed = choices if isinstance(choices, list) else [choices]
    return [str(choice) for choice in listed if choice is not None]


def _dotted(tree: Any, prefix: str = "") -> Iterator[str]:
    """Yields the keys of a configuration at every level, with dots."""
    if isinstance(tree, Mapping):
        for key, value in tree.items():
            yield f"{prefix}{key}"
            yield from _dotted(value, f"{prefix}{key}.")
