"""The one exception that reaches a person: a sentence, without a traceback."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException


class UserError(Exception):
    """Something that the user can mend; the message is one sentence that says how."""


@contextmanager
def explained() -> Iterator[None]:
    """Turns the errors of checking and assembling into UserError.

    EVOMERGE_DEBUG=1 in the environment shows the traceback instead.

    Only for code that runs before the long work: there a ValueError is about the input. Hydra
    wraps what a constructor raises; the cause is what the user needs, and the key it came from.
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
    text = " ".join(str(cause).split())
    return f"{key}: {text}" if key and cause is not error else text
