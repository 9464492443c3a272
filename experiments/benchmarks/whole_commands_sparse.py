"""Whole commands of methods that trim or draw, as `whole_commands` measures them; one round."""

import tempfile
from collections.abc import Iterable
from pathlib import Path

from experiments.benchmarks.measured import Measured
from experiments.benchmarks.whole_commands import LARGE, beside, made

METHODS = "ties", "dare_ties", "breadcrumbs", "della"


def measure() -> Iterable[Measured]:
    """Yields the rows; see `experiments.benchmarks`."""
    with tempfile.TemporaryDirectory() as folder:
        home = made(Path(folder) / "large", LARGE)
        for method in METHODS:
            yield from beside(home, method, bars=(8, 4), rounds=1)
