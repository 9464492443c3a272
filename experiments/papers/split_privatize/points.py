"""One point of the front: a split, an amount of noise, what it costs and what attackers read."""

import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.experts.sentences.training import sentence_schedule
from experiments.experts.split.contributing_tokens import ContributingSettings
from experiments.experts.split.customer import EncodedSentence
from experiments.experts.split.directions import Directions, DirectionSettings, Reader
from experiments.experts.split.fitting import fit
from experiments.experts.split.halves import Bottom
from experiments.experts.split.in_process import answers, fine_tune
from experiments.experts.split.privatization import Privatization, PrivatizationSettings
from experiments.experts.split.states import StateFolder, States
from experiments.experts.split.vendor import Vendor, VendorSettings
from experiments.experts.training.language_model import Lora
from experiments.experts.training.loop import Schedule
from experiments.papers.split_privatize.attackers import Attackers, AttackSettings
from experiments.papers.split_privatize.texts import SplitData
from merging.checkpoints.checkpoint import Checkpoint
from merging.privacy.ledger import Ledger

NO_NOISE = "none"
_TOGETHER = 64


@dataclass(frozen=True)
class NoiseWay:
    """A way to noise states.

    Args:
        ratios: mean noise lengths d / eta of a token whose factor is 1, over the mean distance of
            neighbours.
        contributing: factors on eta; None: one eta for all.
        directions: what of a state is sent; None: all of it.
        seeds: at most how many of the experiment's seeds; None: all.
        depths: behind how many blocks; None: wherever the experiment splits.
    """

    ratios: Sequence[float]
    contributing: ContributingSettings | None = None
    directions: DirectionSettings | None = None
    seeds: int | None = None
    depths: Sequence[int] | None = None


@dataclass(frozen=True)
class FrontPoint:
    """One split with one amount of noise; of `NO_NOISE` the ratio is 0."""

    seed: int
    blocks: int
    way: str
    ratio: float

    @property
    def name(self) -> str:
        """For files."""
        return f"s{self.seed}-b{self.blocks}-{self.way}-{self.ratio:g}"


@dataclass(frozen=True)
class SplitTraining:
    """What the vendor trains, and how."""

    schedule: Schedule = field(default_factory=sentence_schedule)
    lora: Lora = field(default_factory=lambda: Lora(targets=()))


@dataclass(frozen=True)
class SplitSetting:
    """What all points have in common."""

    data: SplitData
    ways: Mapping[str, NoiseWay]
    training: SplitTraining
    attacks: AttackSettings

    @cached_property
    def base(self) -> Checkpoint:
        """The whole model."""
        return Checkpoint.open(self.data.source, encoder=True)


class SplitSide:
    """Both sides of one split and one seed: clean states are computed once for all its points."""

    def __init__(self, setting: SplitSetting, seed: int, blocks: int) -> None:
        self._setting, self._seed, self._blocks = setting, seed, blocks
        module: Any = setting.base.module(dtype=torch.float32, device=torch.device("cpu"))
        self.bottom = Bottom(module.requires_grad_(False), blocks)
        self.texts = setting.data.texts(setting.base, seed)

    def figures(self, point: FrontPoint) -> dict[str, Any]:
        """Returns accuracy on the test items and every attacker's success."""
        noise = None
        if point.way != NO_NOISE:
            noise = self._privatization(self._settings(point.way, point.ratio, "seed"))
        with tempfile.TemporaryDirectory() as folder:
            vendor, sent = self.trained(noise, Path(folder))
            asked = self._sent(noise, "test", Path(folder))
            accuracy = self._accuracy(answers(vendor, asked))
            attacked = [each for batch in sent.batches() for each in batch.apart()]
        found = {
            "accuracy": accuracy,
            "eta": None if noise is None else noise.eta,
            "unit": None if noise is None else noise.unit,
            "success": self._attackers.success(attacked[: self._setting.attacks.texts], noise),
        }
        if noise is not None and noise.directions is not None:
            settings = self._setting.ways[point.way].directions
            assert settings is not None
            reader, _ = self._fitted[settings]
            with torch.no_grad():
                found["own"] = self._accuracy(reader(self._states["test"]))
        return found

    def _accuracy(self, logits: Tensor) -> float:
        return float((logits.argmax(dim=1) == _labels(self.texts.test)).double().mean())

    def write_expert(self, way: str, ratio: float, out: Path) -> None:
        """Writes the expert that a vendor makes of states with secret noise, with its record."""
        with tempfile.TemporaryDirectory() as folder:
            noise = self._privatization(self._settings(way, ratio, "secret"), Path(folder))
            vendor, _ = self.trained(noise, Path(folder))
            name = f"{self._setting.data.task}, customer of seed {self._seed}"
            vendor.save(out, noise.charged(Ledger(), name))

    def trained(self, noise: Privatization | None, folder: Path) -> tuple[Vendor, StateFolder]:
        """Returns the vendor that has trained, and what it was sent."""
        setting = self._setting
        settings = VendorSettings(
            setting.training.schedule,
            setting.training.lora,
            seed=self._seed,
            checkpoint_steps=setting.training.schedule.steps,
        )
        given = setting.base, self._blocks, self.texts.classes, settings, folder / "vendor"
        vendor = Vendor(*given, identity={})
        sent = self._sent(noise, "customer", folder)
        fine_tune(vendor, sent)
        return vendor, sent

    def _sent(self, noise: Privatization | None, part: str, folder: Path) -> StateFolder:
        """Returns what leaves the customer, to the bit what `Customer.fill` writes."""
        examples: Sequence[EncodedSentence] = getattr(self.texts, part)
        told = part == "customer"
        rows = self._states[part]
        if noise is not None:
            rows = [
                noise.privatize(
                    state, torch.tensor(e.tokens), f"{part} {i}", e.label if told else None
                )
                for i, (state, e) in enumerate(zip(rows, examples, strict=True))
            ]
        sent = StateFolder(folder / part, {})
        for start in range(0, len(rows), _TOGETHER):
            some = slice(start, start + _TOGETHER)
            sent.append(States.of(rows[some], _labels(examples[some]).tolist() if told else None))
        return sent

    def _settings(self, way: str, ratio: float, randomness: Any) -> PrivatizationSettings:
        contributing = self._setting.ways[way].contributing
        return PrivatizationSettings(
            ratio,
            contributing=contributing,
            directions=self._setting.ways[way].directions,
            randomness=randomness,
            seed=self._seed,
        )

    def _privatization(
        self, settings: PrivatizationSettings, folder: Path = Path()
    ) -> Privatization:
        sha256 = self._setting.base.sha256
        belongs = [self._setting.data.task, sha256, str(self._blocks)]
        return fit(
            settings,
            self.bottom,
            self.texts.customer,
            classes=self.texts.classes,
            model=f"model {sha256[:12]}",
            noise=settings.noise(folder, belongs, begun=False),
            everywhere=self.texts.everywhere,
            public=self._measured,
            directions=None
            if settings.directions is None
            else self._fitted[settings.directions][1],
        )

    @property
    def _measured(self) -> list[EncodedSentence]:
        return self.texts.public[: self._setting.attacks.public_states]

    @cached_property
    def _fitted(self) -> dict[DirectionSettings, tuple[Reader, Directions]]:
        """The customer's own classifiers, and their directions; as `fit_directions` fits them."""
        public = torch.cat(self._clean(self._measured))
        labels = _labels(self.texts.customer).tolist()
        found: dict[DirectionSettings, tuple[Reader, Directions]] = {}
        for way in self._setting.ways.values():
            if way.directions is not None and way.directions not in found:
                given = self._states["customer"], labels
                reader = way.directions.reader(*given, classes=self.texts.classes, public=public)
                found[way.directions] = reader, reader.directions(public)
        return found

    @cached_property
    def _states(self) -> dict[str, list[Tensor]]:
        return {part: self._clean(getattr(self.texts, part)) for part in ("customer", "test")}

    @cached_property
    def _attackers(self) -> Attackers:
        settings, public = self._setting.attacks, self.texts.public
        return Attackers(
            self.bottom,
            settings,
            _tokens(self.texts.customer[: settings.texts]),
            _tokens(public),
            self._clean(public),
            self.texts.everywhere,
            self._seed,
        )

    def _clean(self, examples: Sequence[EncodedSentence]) -> list[Tensor]:
        """Returns ``(T, d)`` states of each; texts of one length run together."""
        lengths = torch.tensor([len(each.tokens) for each in examples])
        found: dict[int, Tensor] = {}
        for length in torch.unique(lengths):
            for some in torch.split((lengths == length).nonzero()[:, 0], _TOGETHER):
                rows = torch.tensor([examples[i].tokens for i in some.tolist()])
                states = self.bottom.states(rows, torch.ones_like(rows))
                found |= zip(some.tolist(), states, strict=True)
        return [found[i] for i in range(len(examples))]


def _tokens(examples: Iterable[EncodedSentence]) -> list[Tensor]:
    return [torch.tensor(each.tokens) for each in examples]


def _labels(examples: Iterable[EncodedSentence]) -> Tensor:
    return torch.tensor([each.label or 0 for each in examples])
