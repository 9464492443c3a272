"""Standard output whose reader may leave, as in ``evomerge search --help | head``."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, TextIO

STATUS = 141  # 128 + SIGPIPE: what a shell reports of a program that this signal has ended


@contextmanager
def quiet_pipe() -> Iterator[None]:
    """Ends the process with status 141 and without a word once nobody reads its output.

    SIGPIPE itself stays ignored: it would also end a search that loses its tracker.
    """
    stream = sys.stdout
    sys.stdout = PipeOutput(stream)
    try:
        yield
        sys.stdout.flush()
    except SystemExit:
        sys.stdout.flush()
        raise
    finally:
        sys.stdout = stream


class PipeOutput:
    """A text stream that raises SystemExit where `stream` raises BrokenPipeError.

    Hydra and logging let a SystemExit through; of an error they would print a traceback.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Writes `text`; see `TextIO.write`."""
        with self._ended_by_reader():
            return self._stream.write(text)

    def flush(self) -> None:
        """Writes what is buffered; see `TextIO.flush`."""
        with self._ended_by_reader():
            self._stream.flush()

    @contextmanager
    def _ended_by_reader(self) -> Iterator[None]:
        try:
            yield
        except BrokenPipeError:  # what is still buffered must go somewhere when Python exits
            os.dup2(os.open(os.devnull, os.O_WRONLY), self._stream.fileno())
            raise SystemExit(STATUS) from None

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)
