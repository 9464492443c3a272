"""Trains one LoRA expert for each task once and keeps them in a cache."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.quickstart import corpus
from experiments.experts.sentences import sentences
from experiments.experts.sentences import training as sentence_training
from experiments.experts.smollm import tasks, training
from experiments.experts.smollm.tasks import CHOICES, TASKS, Cut, LanguageTask
from experiments.experts.training import language_model, loop
from experiments.experts.training.language_model import Lora, open_model, open_tokenizer, save
from experiments.experts.training.loop import Schedule
from experiments.runs.cache import appearing, digest_of, made_once
from experiments.runs.processes import torch_threads
from experiments.runs.progress import ProgressBar
from experiments.runs.sources import Sources
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.hashing import file_sha256

log = logging.getLogger(__name__)


def _lora() -> Lora:
    linear = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
    return Lora(rank=8, alpha=16, dropout=0.0, targets=linear)


@dataclass(frozen=True)
class SmollmSettings:
    """What is trained.

    Args:
        schedule: of each expert; texts, which are longer than questions, come in half batches.
        dtype: of the base's weights meanwhile; the adapter's are float32.
    """

    schedule: Schedule
    lora: Lora = field(default_factory=_lora)
    cut: Cut = field(default_factory=Cut)
    dtype: str = "bfloat16"
    device: str = "cpu"


def prepare(
    cache_dir: Path,
    *,
    base: str,
    files: Mapping[str, Mapping[str, Path]],
    settings: SmollmSettings,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> Sources:
    """Returns base and one adapter for each of `TASKS`, trained on first use.

    A finished folder carries a digest of the base, the files, all settings, the versions it
    depends on and this code in its name; see `made_once`. A killed training is continued after
    the last expert that was finished.

    Args:
        base: directory or Hugging Face id of a causal language model.
        files: as `tasks.source_files` gives them.
        seed: of adapters, splits and the order of the examples.
        threads: of the training; None: as many as torch has now.

    Raises:
        ValueError: files or base cannot be used; names them.
    """
    opened = Checkpoint.open(base)
    name = f"smollm-{_identity(opened, files, settings, seed)}"
    folder = cache_dir.expanduser().resolve() / name

    def make(draft: Path) -> None:
        log.info("preparing the experts of the language model in %s", folder)
        read = tasks.read_all(files, settings.cut, seed)
        with torch_threads(threads):
            _make(PoolFolder(draft, TASKS), folder, base, read, settings, seed, progress)

    made_once(folder, make, resume=True)
    pool = PoolFolder(folder, TASKS)
    return Sources(str(opened.path), {name: str(path) for name, path in pool.experts.items()})


def _identity(
    base: Checkpoint,
    files: Mapping[str, Mapping[str, Path]],
    settings: SmollmSettings,
    seed: int,
) -> str:
    data = {
        task: {part: file_sha256(path) for part, path in named.items()}
        for task, named in files.items()
    }
    modules = (tasks, training, language_model, loop, corpus, sentences, sentence_training)
    code = [Path(str(module.__file__)) for module in modules]
    return digest_of([base.sha256, data, asdict(settings), seed], code)


def _make(
    draft: PoolFolder,
    finished: Path,
    base: str,
    read: Sequence[LanguageTask],
    settings: SmollmSettings,
    seed: int,
    progress: bool,
) -> None:
    """Makes every part of a pool that is not there yet."""
    if not draft.tasks.is_dir():
        with appearing(draft.tasks) as out:
            for task in read:
                tasks.write_task(task, out, PoolFolder(finished, TASKS).tasks)
    tokenizer = open_tokenizer(base)
    total = settings.schedule.steps * len(read)
    with ProgressBar(total, "smollm", "step", shown=progress, leave=True) as bar:
        for task in read:
            if draft.experts[task.name].is_dir():
                bar.update(settings.schedule.steps)
            else:
                with appearing(draft.experts[task.name]) as out:
                    _train(task, base, tokenizer, settings, seed, out, bar)


def _train(
    task: LanguageTask,
    base: str,
    tokenizer: Any,
    settings: SmollmSettings,
    seed: int,
    out: Path,
    bar: ProgressBar,
) -> None:
    losses: list[float] = []

    schedule = settings.schedule
    if task.name not in CHOICES:
        schedule = replace(schedule, batch=-(-schedule.batch // 2))

    def advance(loss: float) -> None:
        losses.append(loss)
        bar.update(note=f"loss {loss:.2f}")

    bar.describe(f"smollm, once: training {task.name}")
    model = open_model(
        base,
        settings.lora,
        seed=seed,  # the same for all: their first factors start alike
        device=torch.device(settings.device),
        dtype=getattr(torch, settings.dtype),
    )
    training.train(
        model,
        tokenizer,
        task.train,
        schedule,
        seed=seed,
        label=task.name,
        on_step=advance,
    )
    save(model, base, out)
    (out / "training.json").write_text(json.dumps({"losses": losses}) + "\n", encoding="utf-8")
