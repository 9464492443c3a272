"""The front door: help, unknown verbs, and readers that leave before all is written."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator

import pytest

from experiments.cli import _VERBS
from experiments.commands.nearest import suggestions
from experiments.runs.errors import with_options
from tests.experiments.local import environment
from tests.experiments.refusals import Shell


@pytest.fixture
def closed_pipe() -> Iterator[int]:
    """The end to write to of a pipe that nobody reads."""
    reading, writing = os.pipe()
    os.close(reading)
    yield writing
    os.close(writing)


@pytest.mark.parametrize("verb", [None, *_VERBS])
def test_help_that_nobody_reads_ends_without_a_word(
    shell: Shell, verb: str | None, closed_pipe: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    with open(os.dup(closed_pipe), "w") as output:
        monkeypatch.setattr(sys, "stdout", output)
        ended = shell.run(*([] if verb is None else [verb]), "--help")
        assert sys.stdout is output
    assert ended.code == 141
    assert ended.stderr == ""


@pytest.mark.parametrize("line", [["search", "--cfg", "job"], ["compare", "--help"]])
def test_process_ends_quietly_when_its_reader_has_left(closed_pipe: int, line: list[str]) -> None:
    done = subprocess.run(
        [sys.executable, "-m", "experiments.cli", *line],
        stdout=closed_pipe,
        stderr=subprocess.PIPE,
        env=environment(),
        check=False,
    )
    assert (done.returncode, done.stderr) == (141, b"")


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("evomerge se", {"search"}),
        ("evomerge ", {"search", "split", "zoo", "rebuild"}),
        ("evomerge split ", {"vendor", "customer"}),
        ("evomerge search tracker=", {"tracker=wandb", "tracker=none"}),
        ("evomerge search budget.", {"budget.evaluations="}),
        ("evomerge zoo dedup schedule=", {"schedule=drd"}),
        ("evomerge rebuild ", set()),
    ],
)
def test_words_are_completed(
    shell: Shell, line: str, expected: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COMP_LINE", line)
    found = shell.run("-sc", "query=bash").stdout.split()
    assert expected <= set(found)
    assert len(found) == len(set(found))
    assert bool(found) == bool(expected)


@pytest.mark.parametrize(
    "words", [["--install-completion", "bash"], ["search", "-sc", "install=bash"]]
)
def test_completion_is_installed_for_the_command(shell: Shell, words: list[str]) -> None:
    script = shell.run(*words).stdout
    assert script.endswith("complete -o nospace -o default -F hydra_bash_completion evomerge\n")


def test_nothing_is_suggested_for_words_that_are_spelt_well() -> None:
    words = ["strategy=cma,random", "strategy.sigma=2", "+more=1", "~noise", "--multirun"]
    assert suggestions("search", words) == []
    assert suggestions("search", ["--config-dir", "mine", "strategy=cmaa"]) == []


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("knobs: Ties has no knob 'a'", "knobs: Ties has no knob 'a'"),
        ("no rank: choose Knots or another", "no rank: choose Knots (method=knots) or another"),
        ("no fitness: use MapElites", "no fitness: use MapElites (strategy=map_elites)"),
        ("too long: give fewer Tokens", "too long: give fewer Tokens"),
    ],
)
def test_remedies_say_which_option_chooses_a_class(message: str, expected: str) -> None:
    assert with_options(message) == expected
