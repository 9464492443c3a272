"""A model that fails for a reason outside of it is tried again before that is believed of it."""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from types import TracebackType

from evaluators.requests import EvaluationError, TransientFailure, is_out_of_memory

logger = logging.getLogger(__name__)

PAUSES_S = (1.0, 5.0, 30.0, 120.0)
"""Seconds before the second try, and between looks at whether anything can be scored at all."""


class Try:
    """A block that may fail for a reason outside of the model; any other error goes through.

    Attributes:
        failure: why it failed, in words alone: an error holds the tensors of its frames; None:
            it did not.
    """

    failure: str | None = None

    def __enter__(self) -> "Try":
        """Returns itself."""
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> bool:
        """Takes the failure; returns whether there was one."""
        if isinstance(error, TransientFailure | OSError) or _out_of_memory(error):
            self.failure = (str(error) or type(error).__name__).splitlines()[0]
        return self.failure is not None


def tries(control: Callable[[], object]) -> Iterator[Try]:
    """Yields tries of one model until one does not fail for a reason outside of it.

    The second follows after a moment. The last one waits until another model can be scored on the
    same items, so that what fails then is the model's own fault::

        for one in tries(control):
            with one:
                scores = score(model)

    Args:
        control: scores the other model, and does for it what has to be done for any; its scores
            do not matter.

    Raises:
        EvaluationError: it fails where the other model can be scored.
        TransientFailure: nothing can be scored, after minutes of waiting: ask again another time.
    """
    yield (first := Try())
    if first.failure is None:
        return
    _pause(first.failure, PAUSES_S[0])
    yield (second := Try())
    if second.failure is None:
        return
    _await(control, second.failure)
    yield (last := Try())
    if last.failure is not None:
        raise EvaluationError(last.failure)


def _await(control: Callable[[], object], failure: str) -> None:
    for pause_s in (*PAUSES_S[1:], None):
        with (look := Try()), suppress(EvaluationError):
            control()
        if look.failure is None:
            return
        if pause_s is None:
            raise TransientFailure(
                f"{failure}; base and experts cannot be scored now either ({look.failure}): "
                "mend that, then run the same command again"
            )
        _pause(look.failure, pause_s)


def _pause(failure: str, seconds: float) -> None:
    logger.warning("%s; trying again in %.0f s", failure, seconds)
    time.sleep(seconds)


def _out_of_memory(error: BaseException | None) -> bool:
    return isinstance(error, RuntimeError | MemoryError) and is_out_of_memory(error)
