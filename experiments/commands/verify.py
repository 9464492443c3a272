"""`evomerge verify`: whether a model is what its recipe gives, and says what it scores."""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from experiments.runs.errors import one_sentence


def verify(arguments: Sequence[str]) -> None:
    """Makes a model again and asks it its held-out items; compares every number of its card.

    Exits with status 1 where a file or a number differs, after naming it.
    """
    parser = argparse.ArgumentParser(prog="evomerge verify", description=verify.__doc__)
    parser.add_argument("run", type=Path, metavar="RUN|RECIPE", help="a run, or a recipe.json")
    parser.add_argument(
        "--card", type=Path, help="a copy of the card, in place of the model's own"
    )
    parser.add_argument(
        "--tolerance",
        type=float,
        default=0.0,
        help="how far apart two numbers may lie: other machines round differently (default: 0)",
    )
    options = parser.parse_args(arguments)
    with one_sentence("evomerge verify"):
        from experiments.searches.verification import verified

        wrong = verified(options.run, options.card, options.tolerance)
    for line in wrong:
        print(f"evomerge verify: {line}", file=sys.stderr)
    if wrong:
        sys.exit(1)
