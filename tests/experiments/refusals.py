"""The command line in this process, and what every refusal has in common."""

from __future__ import annotations

import logging
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from experiments.cli import main

_LOG = re.compile(r"^(DEBUG|INFO|WARNING) \w")


@dataclass(frozen=True)
class Ended:
    """How a command ended."""

    code: int | str | None
    stdout: str
    stderr: str

    @property
    def messages(self) -> list[str]:
        """Lines on standard error that are no log lines."""
        lines = self.stderr.splitlines()
        return [line for line in lines if line.strip() and not _LOG.match(line)]


@dataclass(frozen=True)
class Shell:
    """A working directory, and commands run in it."""

    cwd: Path
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: str) -> Ended:
        """Runs ``evomerge ARGUMENTS`` in this process."""
        self.capsys.readouterr()
        code: int | str | None
        with own_logging():
            try:
                code = main(arguments)
            except SystemExit as error:
                code = error.code
        return Ended(code, *self.capsys.readouterr())

    def refuse(self, pattern: str, *arguments: str) -> None:
        """Asserts that the command is refused in one sentence and leaves no trace."""
        before = tree(self.cwd)
        ended = self.run(*arguments)
        assert ended.code == 2, ended
        assert len(ended.messages) == 1, ended.stderr
        message = ended.messages[0]
        assert re.match(rf"evomerge {arguments[0]}( \w+)?: ", message), message
        assert re.search(pattern, message), f"{message!r} does not match {pattern!r}"
        assert ended.stdout == "", "the search or its pre-flight had begun to report"
        assert tree(self.cwd) == before, "something half-written is left"


def tree(directory: Path) -> dict[str, int]:
    """Returns every path below `directory` with the time of its last change."""
    return {
        str(path.relative_to(directory)): path.stat().st_mtime_ns
        for path in sorted(directory.rglob("*"))
    }


@contextmanager
def own_logging() -> Iterator[None]:
    """Hydra replaces the root logger's handlers and sys.argv; puts both back."""
    root = logging.getLogger()
    handlers, level, argv = list(root.handlers), root.level, sys.argv
    try:
        yield
    finally:
        root.handlers, sys.argv = handlers, argv
        root.setLevel(level)
