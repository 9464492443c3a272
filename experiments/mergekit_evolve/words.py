"""``mergekit_evolve=FILE`` as words of the command line."""

import re
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from experiments.mergekit_evolve.values import EvolveError, value
from experiments.runs.choices import texts

_WORD = "mergekit_evolve="
_BUDGET = 100  # mergekit-evolve's --max-fevals


@dataclass(frozen=True)
class Evolution:
    """What a file asks for.

    Args:
        options: name on the command line to value.
        notes: a sentence for every key that is not honoured to the letter.
    """

    options: Mapping[str, Any]
    notes: Sequence[str]


def with_file(words: Sequence[str]) -> list[str]:
    """Returns the words behind those of the file that ``mergekit_evolve=`` names.

    What another word says goes before the file. Notes are printed. Exits with status 2 and a
    sentence where the file is none of mergekit-evolve's.
    """
    named = [word.removeprefix(_WORD) for word in words if word.startswith(_WORD)]
    if not named or named == ["null"]:
        return list(words)
    given = {word.lstrip("+~").partition("=")[0] for word in words}
    try:
        if len(named) > 1 or "experiment" in given:
            raise EvolveError("the file is a whole experiment: leave the other one out")
        evolution = read_file(Path(named[0]).expanduser())
    except EvolveError as error:
        print(f"{sys.argv[0]}: {_WORD}{named[0]}: {error}", file=sys.stderr)
        sys.exit(2)
    unread = _unread(words)
    left = [f"{part}: the space that is chosen reads none; left out" for part in unread]
    for note in (*evolution.notes, *left):
        print(f"{_WORD}{named[0]}: {note}", file=sys.stderr)
    own = [  # of a part that is replaced, the file's options have no meaning
        f"{name}={spelt(each)}"
        for name, each in evolution.options.items()
        if not {name, name.partition(".")[0]} & {*given, *unread}
    ]
    return [word for word in with_more(words, own) if not word.startswith(_WORD)]


def _unread(words: Sequence[str]) -> list[str]:
    """Returns what a file sets and the space of another word does not read."""
    chosen = next((word.partition("=")[2] for word in words if word.startswith("space=")), "")
    text = texts("space").get(chosen)
    return [each for each in ("method", "grouping") if text and f"${{{each}}}" not in text]


def with_more(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """Returns the words with `more` before the first ``NAME=VALUE``.

    Hydra takes ``-m a=1`` and ``a=1 --cfg job``, but not ``a=1 -m b=2``.
    """
    first = next((i for i, w in enumerate(words) if "=" in w and not w.startswith("-")), 0)
    return [*words[:first], *more, *words[first:]]


def read_file(path: Path) -> Evolution:
    """Returns what a file (of mergekit 0.1.5) asks for; raises EvolveError, naming the key."""
    from experiments.mergekit_evolve import genome, tasks  # imports torch

    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise EvolveError(f"cannot be read ({error.strerror}): correct its path") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise EvolveError(f"not YAML: {error}") from None
    if not isinstance(content, Mapping) or not {"genome", "tasks"} <= set(content):
        raise EvolveError("it has no genome, or no tasks: this is no file of mergekit-evolve")
    if not isinstance(content["genome"], Mapping):
        raise EvolveError(f"genome: expected a table, got {content['genome']!r}")
    known = ("genome", "tasks", "random_init", *tasks.KEYS)
    unknown = [key for key in content if key not in known]
    unknown += [f"genome.{key}" for key in content["genome"] if key not in genome.KEYS]
    notes = [f"{key}: no key of mergekit-evolve; left out" for key in unknown]
    random = value(content, "random_init", bool, default=False)
    options = {
        "name": genome.simple(path.stem),
        **genome.read_genome(content["genome"], notes, random=random),
        "tasks": tasks.read_tasks(content, notes),
        "objective": "raw",
        "budget": _BUDGET,
        "experiment_file": True,
    }
    return Evolution(options, notes)


def spelt(option: Any) -> str:
    """Returns a value in the grammar of Hydra's command line.

    Example:
        >>> spelt({"a": [1.5, None, "x y", "null"]})
        '{a:[1.5,null,"x y","null"]}'
    """
    if isinstance(option, Mapping):
        return "{" + ",".join(f"{key}:{spelt(each)}" for key, each in option.items()) + "}"
    if isinstance(option, list):
        return "[" + ",".join(map(spelt, option)) + "]"
    if not isinstance(option, str):
        return "null" if option is None else str(option)
    word = re.fullmatch(r"(?i)null|true|false|nan|inf", option)
    if re.fullmatch(r"[A-Za-z_][A-Za-z0-9_./-]*", option) and not word:
        return option
    escaped = re.sub(
        r'(\\*)("|$)', lambda found: found[1] * 2 + found[2].replace('"', '\\"'), option
    )
    return f'"{escaped}"'
