"""`evomerge runs`: the runs below a directory."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from experiments.runs.errors import UserError, one_sentence


def runs(arguments: Sequence[str]) -> None:
    """Lists the runs below a directory: state, evaluations, fitness, time and strategy."""
    parser = argparse.ArgumentParser(prog="evomerge runs", description=runs.__doc__)
    parser.add_argument("directory", type=Path, nargs="?", default=Path("runs"))
    options = parser.parse_args(arguments)
    with one_sentence("evomerge runs"):
        from experiments.reports.listing import listing

        lines = listing(options.directory)
        if not lines:
            raise UserError(f"{options.directory} holds no run: name a directory above some")
        print("\n".join(lines))
