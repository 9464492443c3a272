"""The quickstart as entries of the configuration: its experts, and its data files."""

from __future__ import annotations

from pathlib import Path

from experiments.experts.quickstart.prepare import QuickstartPool, prepare
from experiments.runs.sources import Sources


def experts(cache_dir: str, seed: int = 0, threads: int | None = 1) -> Sources:
    """Returns base and experts of the quickstart, trained on first use (a few minutes).

    Args:
        seed: of the training; not the seed of a search.
        threads: of the training; None: torch's own choice.
    """
    found = prepare(Path(cache_dir), seed=seed, threads=threads)
    return Sources(str(found.base), {name: str(path) for name, path in found.experts.items()})


def data_file(cache_dir: str, name: str, seed: int = 0) -> str:
    """Returns the path of a quickstart data file, for example ``code.search.jsonl``."""
    return str(_found(cache_dir, seed).data / name)


def tasks_dir(cache_dir: str, seed: int = 0) -> str:
    """Returns the folder of the quickstart's lm-eval task files."""
    return str(_found(cache_dir, seed).tasks)


def _found(cache_dir: str, seed: int) -> QuickstartPool:
    return prepare(Path(cache_dir), seed=seed)
