"""The quickstart as entries of the configuration: its experts, and its data files."""

from pathlib import Path

from experiments.experts.quickstart.prepare import prepare
from experiments.runs.sources import Sources


def experts(cache_dir: str, seed: int = 0, threads: int | None = 1) -> Sources:
    """Returns base and experts of the quickstart, trained on first use (a few minutes).

    Args:
        seed: of the training; not the seed of a search.
        threads: of the training; None: torch's own choice.
    """
    return prepare(Path(cache_dir), seed=seed, threads=threads).sources


def data_file(cache_dir: str, name: str, seed: int = 0) -> str:
    """Returns the path of a quickstart data file, for example ``code.search.jsonl``."""
    return str(prepare(Path(cache_dir), seed=seed).data / name)


def tasks_dir(cache_dir: str, seed: int = 0) -> str:
    """Returns the folder of the quickstart's lm-eval task files."""
    return str(prepare(Path(cache_dir), seed=seed).tasks)
