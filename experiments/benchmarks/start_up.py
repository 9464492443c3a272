"""How soon the command line answers: `evomerge --help` beside an interpreter that does nothing."""

import subprocess
import sys
from collections.abc import Iterable, Sequence

from experiments.benchmarks.measured import Measured, in_turns

LIMIT_S = 1.0


def measure() -> Iterable[Measured]:
    """Yields one row; its ratio is our time over the limit of a second."""
    ours, bare, _ = in_turns(
        lambda: _run(["-m", "experiments.cli", "--help"]), lambda: _run(["-c", "pass"]), rounds=9
    )
    yield Measured(
        "`evomerge --help`",
        ours,
        bare,
        "`python -c pass`",
        "s",
        ours / LIMIT_S,
        1.0,
        at_most=True,
        note="the ratio is ours over 1 s",
    )


def _run(arguments: Sequence[str]) -> None:
    subprocess.run([sys.executable, *arguments], check=True, stdout=subprocess.DEVNULL)
