"""The one exception that reaches a person: a sentence, without a traceback."""

import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from experiments.runs.choices import listed, texts

_GROUPS = ("space", "strategy", "method", "objective", "grouping", "noise", "initial", "racing")
_BESIDES = {  # what no entry of the configuration builds
    "ResidentModel": "backend=resident",
    "open_pool": "--source NAME=PATH",
    "save_model": "adapter_rank=null",
    "write_statistics": "evomerge statistics kind=KIND out=DIRECTORY experts=... "
    "evaluator@gather_on=...",
    "write_reference": "evomerge reference-losses MODEL DATA OUT",
}


class UserError(Exception):
    """Something that the user can mend; the message is one sentence that says how."""


@contextmanager
def explained() -> Iterator[None]:
    """Turns the errors of checking and assembling into UserError.

    EVOMERGE_DEBUG=1 in the environment shows the traceback instead.

    Only for code that runs before the long work: there a ValueError is about the input. Hydra
    wraps what a constructor raises; the cause is what the user needs, and the key it came from.
    Messages from below name classes; those of the remedy get the option that chooses them.
    """
    try:
        yield
    except UserError:
        raise
    except (ValueError, OSError, HydraException, OmegaConfBaseException) as error:
        if os.environ.get("EVOMERGE_DEBUG"):
            raise
        raise UserError(_sentence(error)) from error


@contextmanager
def one_sentence(command: str) -> Iterator[None]:
    """Ends the process with status 2 and a UserError's sentence on standard error.

    As SystemExit, which Hydra lets through: of an error it would print a traceback.
    """
    try:
        yield
    except UserError as error:
        print(f"{command}: {error}", file=sys.stderr)
        sys.exit(2)


def _sentence(error: BaseException) -> str:
    key = str(error).rpartition("full_key: ")[2] if "full_key: " in str(error) else ""
    cause = error
    while cause.__cause__ is not None and "full_key: " in str(cause):
        cause = cause.__cause__
    text = with_options(" ".join(str(cause).split()))
    return f"{key}: {text}" if key and cause is not error else text


def with_options(text: str) -> str:
    """Returns a message in which the remedy says how to choose a class.

    The remedy follows the last colon and begins with a verb; else there is none.

    Example:
        >>> with_options("Ties: no rank: choose Knots or TsvM")
        'Ties: no rank: choose Knots (method=knots) or TsvM (method=tsv_m)'
    """
    problem, colon, remedy = text.rpartition(": ")
    if not remedy[:1].islower():
        return text
    for name in sorted(set(re.findall(rf"\b(?:[A-Z]\w+|{'|'.join(_BESIDES)})\b", remedy))):
        if options := _BESIDES.get(name) or _options_of(name):
            remedy = re.sub(rf"\b{name}\b", f"{name} ({options})", remedy)
    return f"{problem}{colon}{remedy}"


def _options_of(name: str) -> str:
    """Returns the entries of the configuration that build a class, as ``GROUP=A or B``."""
    target = re.compile(rf"^ *_target_: [\w.]+\.{name}$", re.MULTILINE)
    options = []
    for group in _GROUPS:
        named = [entry for entry, text in texts(group).items() if target.search(text)]
        if named:
            options.append(f"{group}={listed(named)}")
    return " or ".join(options)
