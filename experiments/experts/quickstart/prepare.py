"""Trains the quickstart's base and experts once and keeps them in a cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import logging
import platform
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import LlamaForCausalLM
from transformers.utils import logging as transformers_logging

from experiments.experts.quickstart import corpus, tasks, tokenizer, training
from experiments.experts.quickstart.corpus import DOMAINS, EVALUATION_SPLITS, Domain
from experiments.experts.quickstart.tasks import HeldOut
from experiments.experts.quickstart.training import ModelSize, Schedule, Stream
from experiments.runs.progress import ProgressBar
from merging.files import apply_umask

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class QuickstartPool:
    """Where a prepared quickstart lies.

    Args:
        base: model folder of the base.
        experts: name -> model folder.
        data: folder of ``<domain>.<split>.jsonl`` and ``choice.<split>.jsonl``.
        tasks: folder of lm-eval task files ``quickstart_choice_<split>.yaml``.
    """

    base: Path
    experts: Mapping[str, Path]
    data: Path
    tasks: Path

    @classmethod
    def at(cls, folder: Path, experts: Iterable[str]) -> QuickstartPool:
        """Returns the layout below a folder, for experts of these names."""
        folders = {name: folder / "experts" / name for name in experts}
        return cls(folder / "base", folders, folder / "data", folder / "tasks")


@dataclass(frozen=True)
class Training:
    """How one expert is made from the base: on which domain, and how long and fast."""

    domain: str
    schedule: Schedule


def _pool() -> dict[str, Training]:
    """Returns the quickstart's experts: of unequal strength, and two of them for one domain."""
    return {
        "code": Training("code", Schedule(steps=200, rate=3e-4, final=0.05)),
        "prose": Training("prose", Schedule(steps=250, rate=1e-3, final=0.05)),
        "headers": Training("headers", Schedule(steps=250, rate=1e-3, final=0.05)),
        "headers_hot": Training("headers", Schedule(steps=250, rate=2e-3, final=0.05)),
    }


@dataclass(frozen=True)
class QuickstartSettings:
    """What is trained, and on how much text it is judged.

    The base stops while it still learns fast, so that every expert also learns what all domains
    share: their average is then better than the base everywhere. The experts are trained at
    unequal rates and one domain has two, as in pools found in practice, so that equal weights
    are not the best ones.

    Args:
        size: of the model.
        base: training on all domains in equal shares.
        experts: name -> training from the base; at least one for each of `DOMAINS`.
        held_out: how much text each split asks.
    """

    size: ModelSize = field(default_factory=ModelSize)
    base: Schedule = field(default_factory=lambda: Schedule(steps=400, rate=4e-3, final=0.3))
    experts: Mapping[str, Training] = field(default_factory=_pool)
    held_out: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self) -> None:
        trained = {made.domain for made in self.experts.values()}
        if trained != set(DOMAINS):
            raise ValueError(
                f"experts: expected some for each of {', '.join(DOMAINS)}, got "
                f"{', '.join(sorted(trained)) or 'none'}"
            )
        asked = self.held_out
        longest = max(asked.chunk_bytes, asked.context_bytes + asked.continuation_bytes)
        if longest >= self.size.context:
            raise ValueError(
                f"held_out: a text of {longest} bytes does not fit the model, expected less than "
                f"its context of {self.size.context}; raise size.context or shorten the text"
            )


def prepare(
    cache_dir: Path,
    *,
    seed: int = 0,
    threads: int | None = None,
    settings: QuickstartSettings | None = None,
    progress: bool = True,
) -> QuickstartPool:
    """Returns a base, experts for all of `DOMAINS` and held-out data, trained on first use.

    Training runs on the CPU. A finished folder carries a digest of all settings, the versions it
    depends on and this code in its name; it appears at once or not at all, and a second process
    waits for the first.

    Args:
        cache_dir: folder that keeps what was prepared.
        seed: of the weights, the splits and the order of the text.
        threads: of the training; None: as many as torch has now.
        settings: what is trained; None: the quickstart's own.
        progress: show a bar with the time left.

    Raises:
        ValueError: there is too little text on this machine.
    """
    chosen = settings or QuickstartSettings()
    folder = cache_dir.expanduser().resolve() / f"quickstart-{digest_of(chosen, seed)}"
    finished = QuickstartPool.at(folder, chosen.experts)
    if folder.is_dir():
        return finished
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{folder}.lock"):
        if not folder.is_dir():  # another process may have made it while this one waited
            log.info("preparing the quickstart in %s", folder)
            with _appearing(folder) as unfinished, _threads(threads):
                domains = _read(chosen.held_out, seed)
                draft = QuickstartPool.at(unfinished, chosen.experts)
                _write_data(draft, finished, domains, chosen, seed)
                _train_all(draft, domains, chosen, seed, progress)
    return finished


def digest_of(settings: QuickstartSettings, seed: int) -> str:
    """Returns 16 hexadecimal digits that change with settings, seed, versions or this code."""
    versions = {"python": platform.python_version()}
    versions |= {package: version(package) for package in ("torch", "transformers", "tokenizers")}
    plain = [dataclasses.asdict(settings), seed, versions]
    digest = hashlib.sha256(json.dumps(plain, sort_keys=True).encode())
    for module in (corpus, tokenizer, training, tasks):
        digest.update(Path(str(module.__file__)).read_bytes())
    digest.update(Path(__file__).read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _appearing(folder: Path) -> Iterator[Path]:
    """Yields an empty folder beside `folder` that becomes it if nothing fails.

    What a killed process left is removed; the caller holds the lock.
    """
    unfinished = folder.with_name(f".{folder.name}.unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    unfinished.mkdir()
    try:
        yield unfinished
        apply_umask(unfinished)
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


@contextmanager
def _threads(count: int | None) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _read(held_out: HeldOut, seed: int) -> dict[str, Domain]:
    counts = {split: size.documents for split, size in held_out.sizes().items()}
    return {
        domain: corpus.split_documents(documents, domain=domain, seed=seed, held_out=counts)
        for domain, documents in corpus.read_domains().items()
    }


def _write_data(
    unfinished: QuickstartPool,
    finished: QuickstartPool,
    domains: Mapping[str, Domain],
    settings: QuickstartSettings,
    seed: int,
) -> None:
    unfinished.data.mkdir()
    unfinished.tasks.mkdir()
    tasks.write_texts(domains, settings.held_out, unfinished.data, seed)
    tasks.write_choices(domains, settings.held_out, unfinished.data, seed)
    tasks.write_tasks(unfinished.tasks, finished.data, EVALUATION_SPLITS)


def _train_all(
    folders: QuickstartPool,
    domains: Mapping[str, Domain],
    settings: QuickstartSettings,
    seed: int,
    progress: bool,
) -> None:
    """Trains and saves the base, then each expert from the base's weights."""
    size, base = settings.size, settings.base
    streams = {
        name: Stream.of(domain.train, window=size.context) for name, domain in domains.items()
    }
    model = training.new_model(size, seed=seed)
    schedules = [base, *(made.schedule for made in settings.experts.values())]
    windows = sum(schedule.steps * schedule.batch for schedule in schedules)
    with ProgressBar(windows, "quickstart", "window", shown=progress, leave=True) as bar:
        _train(model, "base", streams, base, seed, bar)
        _save(model, size, folders.base)
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, made in settings.experts.items():
            model.load_state_dict(start)
            _train(model, name, {made.domain: streams[made.domain]}, made.schedule, seed, bar)
            _save(model, size, folders.experts[name])


def _train(
    model: LlamaForCausalLM,
    label: str,
    streams: Mapping[str, Stream],
    schedule: Schedule,
    seed: int,
    bar: ProgressBar,
) -> None:
    def advance(loss: float) -> None:
        bar.update(schedule.batch, f"loss {loss:.2f}")

    bar.describe(f"quickstart, once: training {label}")
    training.train(model, streams, schedule, seed=seed, label=label, on_step=advance)


def _save(model: LlamaForCausalLM, size: ModelSize, out: Path) -> None:
    output: Any = transformers_logging
    bars = output.is_progress_bar_enabled()
    output.disable_progress_bar()  # one per file, across the bar of the training
    try:
        model.save_pretrained(out)
    finally:
        if bars:
            output.enable_progress_bar()
    tokenizer.byte_tokenizer(size.context).save_pretrained(out)
