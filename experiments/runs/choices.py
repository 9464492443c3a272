"""What can be chosen for an option: the files of its group, and the classes that they build."""

import importlib
import re
from collections.abc import Callable, Sequence
from importlib import resources
from typing import Any

_TARGET = re.compile(r"^\s*_target_: (\S+)$", re.MULTILINE)


def texts(group: str) -> dict[str, str]:
    """Returns the name of every file of a group, in order, to its text."""
    files = [file for file in (resources.files("conf") / group).iterdir() if file.is_file()]
    return {
        file.name.removesuffix(".yaml"): file.read_text(encoding="utf-8")
        for file in sorted(files, key=lambda file: file.name)
        if file.name.endswith(".yaml")
    }


def choices(group: str, fits: Callable[[Any], bool]) -> str:
    """Returns the names of a group's files whose class fits, as in "a, b or c"."""
    built = {name: _TARGET.findall(text) for name, text in texts(group).items()}
    return listed([name for name, paths in built.items() if paths and fits(_class(paths[0]))])


def listed(names: Sequence[str]) -> str:
    """Returns names as in "a, b or c"."""
    return " or ".join([", ".join(names[:-1]), *names[-1:]] if len(names) > 1 else names)


def _class(path: str) -> Any:
    module, _, name = path.rpartition(".")
    return getattr(importlib.import_module(module), name)
