"""The quickstart as entries of the configuration: its experts, and its data files."""

from collections.abc import Mapping
from pathlib import Path

from experiments.experts.quickstart.prepare import (
    QuickstartSettings,
    Training,
    prepare,
    prepare_texts,
)
from experiments.experts.quickstart.tasks import HeldOut
from experiments.runs.sources import Sources


def experts(
    cache_dir: str, training: Mapping[str, Training], seed: int = 0, threads: int | None = 1
) -> Sources:
    """Returns base and experts of the quickstart, trained on first use (a minute or two).

    Args:
        training: of every expert, by its name.
        seed: of the training; not the seed of a search.
        threads: of the training; None: torch's own choice.
    """
    settings = QuickstartSettings(dict(training))
    return prepare(Path(cache_dir), settings, seed=seed, threads=threads).sources


def data_file(cache_dir: str, name: str, seed: int = 0) -> str:
    """Returns the path of a quickstart data file, for example ``code.search.jsonl``."""
    return str(prepare_texts(Path(cache_dir), HeldOut(), seed=seed) / "data" / name)


def tasks_dir(cache_dir: str, seed: int = 0) -> str:
    """Returns the folder of the quickstart's lm-eval task files."""
    return str(prepare_texts(Path(cache_dir), HeldOut(), seed=seed) / "tasks")
