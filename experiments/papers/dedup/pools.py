"""Experts of one task, trained with privacy on parts of its data that share no record."""

import hashlib
import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn

from experiments.experts.training import train
from experiments.experts.training.expert import DataSet, train_and_write
from experiments.experts.training.regime import Regime, TrainingPrivacy
from experiments.experts.training.train import RecordLosses, train_on_losses
from experiments.runs.cache import digest_of, made_once
from merging.privacy.ledger import Ledger

SPLITS = ("public", "validation", "test")
"""What saliency reads; what decides which blocks may go; what only the page shows."""


@dataclass(frozen=True)
class PrivateExpert:
    """An expert of a part of the data, trained at an epsilon."""

    part: str
    epsilon: float


@dataclass(frozen=True)
class DedupCluster:
    """Targets that take blocks of one base."""

    base: str
    targets: Sequence[str]


@dataclass(frozen=True)
class PrivateTraining:
    """DP-SGD of all experts of a pool, see `Regime`.

    Args:
        updates: of every expert.
        rank: train so many columns of a factor of every matrix, see `fixed_factors`; None: all.
    """

    lot: int
    updates: int
    learning_rate: float
    delta: float = 1e-5
    clip: float = 1.0
    physical: int | None = None
    rank: int | None = None

    def regime(self, records: int, epsilon: float) -> Regime:
        """Returns the regime of one expert."""
        return Regime(
            self.lot,
            epochs=self.updates * self.lot / records,
            learning_rate=self.learning_rate,
            final=0.1,
            warmup=0.05,
            sampling="poisson",
            privacy=TrainingPrivacy(self.delta, epsilon, clip=self.clip),
            physical=self.physical,
        )


@dataclass(frozen=True)
class Lesson:
    """A model about to be trained on a part.

    Args:
        losses_of: of the part's records, by number.
        write: the trained model into a directory.
    """

    model: nn.Module
    losses_of: RecordLosses
    write: Callable[[Path], None]


@dataclass(frozen=True, kw_only=True)
class DedupPool(ABC):
    """A public start, private experts of it, and held-out items; made once, kept in a cache.

    Args:
        title: for the page.
        parts: name to number of records; no two parts share one.
        experts: name to expert.
        clusters: who takes blocks of whom.
        block_size: elements of a block.
        ways: how the clusters' targets are deduplicated, see `Way.of`.
        tables: ``selection``, ``dial``: what else is measured of it.
        tolerance: of accuracy on the validation items.
        seed: of the parts, of heads and of the order of the public items.
    """

    title: str
    parts: Mapping[str, int]
    experts: Mapping[str, PrivateExpert]
    clusters: Mapping[str, DedupCluster]
    training: PrivateTraining
    block_size: int
    ways: Sequence[str]
    tables: Sequence[str] = ()
    tolerance: float = 0.015
    validation: int
    test: int
    public: int
    seed: int = 0

    def check(self) -> None:  # noqa: B027
        """Raises ValueError where data is missing, before long work."""

    @property
    @abstractmethod
    def content(self) -> Any:
        """What the data is, for the identity."""

    @property
    @abstractmethod
    def modules(self) -> tuple[ModuleType, ...]:
        """What else makes its experts."""

    @abstractmethod
    def write_items(self, split: str, folder: Path) -> None:
        """Writes the file of one of `SPLITS`."""

    @abstractmethod
    def items(self, folder: Path, split: str) -> str:
        """Returns the file of one of `SPLITS`."""

    @abstractmethod
    def write_start(self, out: Path) -> None:
        """Trains and writes the public model that all experts start from."""

    @abstractmethod
    def lesson(self, start: Path, name: str) -> Lesson:
        """Returns what an expert is made of."""

    def ranges(self) -> dict[str, range]:
        """Returns where every part and split lies in the drawn order of the items."""
        sizes = {s: getattr(self, s) for s in SPLITS} | dict(self.parts)
        ends, found = 0, {}
        for name, size in sizes.items():
            found[name] = range(ends, ends + size)
            ends += size
        return found

    def identity(self, *more: Any) -> str:
        """Returns 16 hexadecimal digits of all that the data and the public start depend on."""
        sizes = [self.parts, self.public, self.validation, self.test, self.seed]
        modules = inspect.getmodule(type(self)), train, *self.modules
        code = [Path(__file__), *(Path(str(vars(module)["__file__"])) for module in modules)]
        return digest_of([self.content, sizes, more], code)

    def data_name(self, part: str) -> str:
        """Returns the name of a part, or of the validation items, in privacy records."""
        return f"dedup-{part}-{self.identity()}"

    def folder(self, cache: Path) -> Path:
        """Returns the folder of data and start; made on the first call."""

        def make(draft: Path) -> None:
            for split in SPLITS:
                self.write_items(split, draft)
            self.write_start(draft / "start")

        return made_once(cache / "dedup" / f"pool-{self.identity()}", make)

    def expert(self, cache: Path, name: str) -> Path:
        """Returns the directory of an expert; trained on the first call."""
        spec = self.experts[name]
        start = self.folder(cache) / "start"
        private = self.identity(asdict(self.training), asdict(spec), name)

        def make(draft: Path) -> None:
            records = len(self.ranges()[spec.part])
            regime = self.training.regime(records, spec.epsilon)
            lesson = self.lesson(start, name)
            others = {*self.parts, "validation"} - {spec.part}
            data = DataSet(
                self.data_name(spec.part),
                [""] * records,
                disjoint_from=[self.data_name(other) for other in sorted(others)],
            )
            train_and_write(
                lambda: train_on_losses(
                    lesson.model, lesson.losses_of, records, regime, seed=self.seed, label=name
                ),
                lesson.write,
                Ledger.of_base(start, "the public start"),
                data,
                regime,
                draft / "model",
                label=name,
                facts={"records": records, "start": start.parent.name},
            )

        return made_once(cache / "dedup" / f"expert-{name}-{private}", make) / "model"


def drawn_order(count: int, seed: int) -> list[int]:
    """Returns a permutation of so many items."""
    draw = torch.Generator().manual_seed(seed)
    return torch.randperm(count, generator=draw).tolist()


def digest_of_file(path: Path) -> str:
    """Returns the SHA-256 of a file."""
    return hashlib.sha256(path.read_bytes()).hexdigest()
