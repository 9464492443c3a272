"""Names of a zoo's models as people spell them."""

import re
import shlex
from collections.abc import Iterable

from experiments.runs.errors import UserError
from experiments.runs.spelling import did_you_mean
from merging.zoo.store import Zoo, default_directory


def as_name(text: str) -> str:
    """Returns a text as the name of a model.

    Example:
        >>> as_name("a folder/b+c")
        'a-folder-b-c'
    """
    return re.sub(r"[^A-Za-z0-9_.-]+", "-", text).strip(".-")


def verb(zoo: Zoo, *words: str) -> str:
    """Returns a line that a person may run on this zoo; without ``--zoo`` where it is the default.

    Args:
        words: verb and names.
    """
    default = default_directory().expanduser().resolve()
    place = [] if zoo.directory == default else ["--zoo", str(zoo.directory)]
    return f"evomerge zoo {shlex.join([*words, *place])}"


def check_known(zoo: Zoo, names: Iterable[str]) -> None:
    """Raises UserError for a name that no model has; says which was probably meant."""
    known = [model.name for model in zoo.models()]
    for name in names:
        if name not in known:
            some = ", ".join(known[:8]) + (", ..." if len(known) > 8 else "") or "none yet"
            raise UserError(
                f"there is no model {name!r} in the zoo {zoo.directory}, only {some}"
                f"{did_you_mean(name, known)}"
            )
