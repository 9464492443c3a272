"""Trains the quickstart's base and experts once and keeps them in a cache."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.quickstart import corpus, tasks, training
from experiments.experts.quickstart.corpus import DOMAINS, EVALUATION_SPLITS, Domain
from experiments.experts.quickstart.tasks import HeldOut
from experiments.experts.quickstart.tokenizer import byte_tokenizer
from experiments.experts.quickstart.training import ModelSize, Stream
from experiments.experts.training import loop
from experiments.experts.training.loop import Schedule
from experiments.runs.cache import digest_of, made_once
from experiments.runs.processes import torch_threads
from experiments.runs.progress import ProgressBar
from merging.checkpoints.checkpoint import quiet_transformers

log = logging.getLogger(__name__)

_BASE = Schedule(steps=400, learning_rate=4e-3, final=0.3)


@dataclass(frozen=True)
class Training:
    """How one expert is made from the base: on which domain, and how long and fast."""

    domain: str
    schedule: Schedule


def _pool() -> dict[str, Training]:
    """Returns the quickstart's experts: of unequal strength, and two of them for one domain."""
    return {
        "code": Training("code", Schedule(steps=200, learning_rate=3e-4, final=0.05)),
        "prose": Training("prose", Schedule(steps=250, learning_rate=1e-3, final=0.05)),
        "headers": Training("headers", Schedule(steps=250, learning_rate=1e-3, final=0.05)),
        "headers_hot": Training("headers", Schedule(steps=250, learning_rate=2e-3, final=0.05)),
    }


@dataclass(frozen=True)
class QuickstartSettings:
    """What is trained, and on how much text it is judged.

    The base stops while it still learns fast, so that every expert also learns what all domains
    share: their average is then better than the base everywhere. The experts are trained at
    unequal rates and one domain has two, as in pools found in practice, so that equal weights
    are not the best ones.

    Args:
        base: training on all domains in equal shares.
        experts: name -> training from the base; at least one for each of `DOMAINS`.
    """

    size: ModelSize = field(default_factory=ModelSize)
    base: Schedule = _BASE
    experts: Mapping[str, Training] = field(default_factory=_pool)
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
    *,
    seed: int = 0,
    threads: int | None = None,
    settings: QuickstartSettings | None = None,
    progress: bool = True,
) -> PoolFolder:
    """Returns a base, experts for all of `DOMAINS` and held-out data, trained on first use.

    Training runs on the CPU. A finished folder carries a digest of all settings, the versions it
    depends on and this code in its name; see `made_once`. ValueError: this machine has too little
    text.

    Args:
        seed: of the weights, the splits and the order of the text.
        threads: of the training; None: as many as torch has now.
        settings: what is trained; None: the quickstart's own.
    """
    chosen = settings or QuickstartSettings()
    name = f"quickstart-{digest_of([chosen, seed], _code())}"
    folder = cache_dir.expanduser().resolve() / name
    finished = PoolFolder(folder, tuple(chosen.experts))

    def make(draft: Path) -> None:
        log.info("preparing the quickstart in %s", folder)
        pool = PoolFolder(draft, finished.names)
        domains = _read(chosen.held_out, seed)
        _write_data(pool, finished.data, domains, chosen.held_out, seed)
        with torch_threads(threads):
            _train_all(pool, domains, chosen, seed, progress)

    made_once(folder, make)
    return finished


def _code() -> list[Path]:
    """Returns the source files that decide what is trained and asked."""
    return [*sorted(Path(__file__).parent.glob("*.py")), Path(str(loop.__file__))]


def _read(held_out: HeldOut, seed: int) -> dict[str, Domain]:
    counts = {split: size.documents for split, size in held_out.sizes().items()}
    return {
        domain: corpus.split_documents(documents, domain=domain, seed=seed, held_out=counts)
        for domain, documents in corpus.read_domains().items()
    }


def _write_data(
    draft: PoolFolder, data: Path, domains: Mapping[str, Domain], held_out: HeldOut, seed: int
) -> None:
    """Writes held-out items, and lm-eval tasks that read them from `data`, where they will lie."""
    draft.data.mkdir()
    draft.tasks.mkdir()
    tasks.write_texts(domains, held_out, draft.data, seed)
    tasks.write_choices(domains, held_out, draft.data, seed)
    tasks.write_tasks(draft.tasks, data, EVALUATION_SPLITS)


def _train_all(
    pool: PoolFolder,
    domains: Mapping[str, Domain],
    settings: QuickstartSettings,
    seed: int,
    progress: bool,
) -> None:
    """Trains and saves the base, then each expert from the base's weights."""
    size = settings.size
    streams = {
        name: Stream.of(domain.train, window=size.context) for name, domain in domains.items()
    }
    model = training.new_model(size, seed=seed)
    schedules = [settings.base, *(expert.schedule for expert in settings.experts.values())]
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
            train(name, [expert.domain], expert.schedule, pool.experts[name])
