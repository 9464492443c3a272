"""Cuts the quickstart's text, trains its base and experts, once, and keeps all in a cache."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.quickstart import corpus, tasks, training
from experiments.experts.quickstart.corpus import DOMAINS, EVALUATION_SPLITS, Document
from experiments.experts.quickstart.tasks import HeldOut
from experiments.experts.quickstart.tokenizer import byte_tokenizer
from experiments.experts.quickstart.training import ModelSize, Stream
from experiments.experts.training import loop
from experiments.experts.training.loop import Schedule
from experiments.runs.cache import digest_of, made_once
from experiments.runs.files import read_lines, write_lines
from experiments.runs.processes import torch_threads
from experiments.runs.progress import ProgressBar
from merging.checkpoints.checkpoint import quiet_transformers

log = logging.getLogger(__name__)

_BASE = Schedule(steps=400, learning_rate=4e-3, final=0.3)


@dataclass(frozen=True, kw_only=True)
class Training(Schedule):
    """How one expert is made from the base: on which domain, and how long and fast."""

    domain: str


@dataclass(frozen=True)
class QuickstartSettings:
    """What is trained, and on how much text it is judged.

    The base stops while it still learns fast, so that every expert also learns what all domains
    share: their average is then better than the base everywhere.

    Args:
        experts: name -> training from the base; at least one for each of `DOMAINS`.
        base: training on all domains in equal shares.
    """

    experts: Mapping[str, Training]
    size: ModelSize = field(default_factory=ModelSize)
    base: Schedule = _BASE
    held_out: HeldOut = field(default_factory=HeldOut)

    def __post_init__(self) -> None:
        trained = {expert.domain for expert in self.experts.values()}
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
    settings: QuickstartSettings,
    *,
    seed: int = 0,
    threads: int | None = None,
    progress: bool = True,
) -> PoolFolder:
    """Returns a base, experts for all of `DOMAINS` and held-out data, trained on first use.

    Training runs on the CPU. A finished folder carries a digest of all settings, the versions it
    depends on and this code in its name; see `made_once`. ValueError: this machine has too little
    text.

    Args:
        seed: of the weights, the splits and the order of the text.
        threads: of the training; None: as many as torch has now.
    """
    texts = prepare_texts(cache_dir, settings.held_out, seed=seed)
    folder = texts.with_name(f"quickstart-{digest_of([settings, seed], _code())}")
    finished = PoolFolder(folder, tuple(settings.experts), texts)

    def make(draft: Path) -> None:
        log.info("preparing the quickstart in %s", folder)
        with torch_threads(threads):
            _train_all(PoolFolder(draft, finished.names, texts), settings, seed, progress)

    made_once(folder, make)
    return finished


def prepare_texts(cache_dir: Path, held_out: HeldOut, *, seed: int = 0) -> Path:
    """Returns the folder of all text, cut on first use: what is trained on, items, lm-eval tasks.

    As `prepare`, whose other settings do not touch it.
    """
    name = f"quickstart_text-{digest_of([held_out, seed], _code())}"
    folder = cache_dir.expanduser().resolve() / name
    return made_once(folder, lambda draft: _write_texts(draft, folder, held_out, seed))


def _code() -> list[Path]:
    """Returns the source files that decide what is trained and asked."""
    return [*sorted(Path(__file__).parent.glob("*.py")), Path(str(loop.__file__))]


def _write_texts(draft: Path, folder: Path, held_out: HeldOut, seed: int) -> None:
    """Writes documents and items, and lm-eval tasks that read them in `folder`, their place."""
    counts = {split: size.documents for split, size in held_out.sizes().items()}
    domains = {
        domain: corpus.split_documents(documents, domain=domain, seed=seed, held_out=counts)
        for domain, documents in corpus.read_domains().items()
    }
    now, then = PoolFolder(draft, ()), PoolFolder(folder, ())
    now.data.mkdir()
    now.tasks.mkdir()
    for name, domain in domains.items():
        lines = [{"name": one.name, "text": one.text} for one in domain.train]
        write_lines(now.held_out(name, "train"), lines)
    tasks.write_texts(domains, held_out, now.data, seed)
    tasks.write_choices(domains, held_out, now.data, seed)
    tasks.write_tasks(now.tasks, then.data, EVALUATION_SPLITS)


def _train_all(pool: PoolFolder, settings: QuickstartSettings, seed: int, progress: bool) -> None:
    """Trains and saves the base, then each expert from the base's weights."""
    size = settings.size
    streams = {name: _stream(pool.held_out(name, "train"), size.context) for name in DOMAINS}
    model = training.new_model(size, seed=seed)
    schedules = [settings.base, *settings.experts.values()]
    windows = sum(schedule.steps * schedule.batch for schedule in schedules)
    with ProgressBar(windows, "quickstart", "window", shown=progress, leave=True) as bar:

        def train(label: str, of: Sequence[str], schedule: Schedule, out: Path) -> None:
            bar.describe(f"quickstart, once: training {label}")
            training.train(
                model,
                {name: streams[name] for name in of},
                schedule,
                seed=seed,
                label=label,
                on_step=lambda loss: bar.update(schedule.batch, f"loss {loss:.2f}"),
            )
            with quiet_transformers():  # one bar per file, across the bar of the training
                model.save_pretrained(out)
            byte_tokenizer(size.context).save_pretrained(out)

        train("base", list(streams), settings.base, pool.base)
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for name, expert in settings.experts.items():
            model.load_state_dict(start)
            train(name, [expert.domain], expert, pool.experts[name])


def _stream(path: Path, window: int) -> Stream:
    documents = [Document(line["name"], line["text"]) for line in read_lines(path)]
    return Stream.of(documents, window=window)
