"""A shell for commands that must be refused, in which long work is an error."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from experiments.experts.quickstart import source
from experiments.runs import progress
from merging.checkpoints.experts import ExpertPool
from tests.experiments.refusals import Shell


@pytest.fixture
def shell(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Shell:
    """A shell in an empty directory."""
    monkeypatch.setattr(
        progress, "_LONG_S", math.inf
    )  # a busy machine says no more than a quiet one
    cwd = tmp_path / "cwd"
    cwd.mkdir()
    monkeypatch.chdir(cwd)
    return Shell(cwd, capsys)


@pytest.fixture
def idle(monkeypatch: pytest.MonkeyPatch) -> None:
    """Fails a test that trains the quickstart, reads all weights or holds them in memory."""

    def forbidden(*_: object, **__: object) -> None:
        pytest.fail("long work began before the refusal")

    monkeypatch.setattr(source, "prepare", forbidden)
    monkeypatch.setattr(source, "prepare_texts", forbidden)
    monkeypatch.setattr(ExpertPool, "check_finite", forbidden)
    monkeypatch.setattr(ExpertPool, "resident", forbidden)
