"""As `racing_gain`, with twenty other seeds: what racing gains but for the luck of five.

EVOMERGE_CACHE=DIR python -m experiments.benchmarks racing_gain_seeds
"""

from collections.abc import Iterator

from experiments.benchmarks.measured import Measured
from experiments.benchmarks.racing_gain import BAR, EVALUATIONS, Arm, rows

_SEEDS = range(5, 25)


def measure() -> Iterator[Measured]:
    """Yields the row of successive halving."""
    halving = Arm("halving", ("racing=halving",), 3 * EVALUATIONS, BAR)
    yield from rows("quickstart, 210 search items, 20 other seeds", (), [halving], _SEEDS)
