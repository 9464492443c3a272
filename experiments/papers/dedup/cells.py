"""One cell of the experiment: a target, a base, and one way to give up the target's blocks."""

import json
import secrets
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.engine import Engine
from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.split import Split
from evaluators.tasks.classification import Accuracy
from experiments.deduplication.loaded import HEAD, LoadedTarget
from experiments.deduplication.plan import deduplicate
from experiments.deduplication.saliency.gradient import GradientSaliency
from experiments.deduplication.validation import (
    ExactChecks,
    Floor,
    NoisyChecks,
    PrivateValidation,
)
from experiments.papers.dedup.published_svt import PublishedSvt
from experiments.papers.dedup.ways import DedupSetting, Way, directory_of
from merging.arrays import Vector
from merging.checkpoints.privacy_record import PrivacySpend
from merging.deduplication.blocking import ModelBlocks
from merging.deduplication.saliency import block_saliency
from merging.deduplication.substitution import Candidates, Substitution
from merging.files import write_text
from merging.privacy.deduplicated import deduplicated
from merging.privacy.ledger import Ledger
from search.privacy.private_noise import SecretNoise

TASK = "task"
_MAIN = f"{TASK}/accuracy"
_CLASSIFIER = "classifier."
_TIGHTER = 0.003
"""By how much the published code tightens the tolerance under its sparse vector."""


class Target:
    """A model of a pool in memory: whole again after every cell."""

    def __init__(self, setting: DedupSetting, pool: str, name: str) -> None:
        self.pool, self.name = setting.pools[pool], name
        self.directory = directory_of(setting, pool, name)
        folder = self.pool.folder(setting.cache)
        self._loaded = LoadedTarget.of(
            str(self.directory),
            device="cpu",
            dtype=torch.float32,
            engine=lambda resident: Engine(resident, batch_tokens=1024),
        )
        kinds: Mapping[str, Split] = {
            "validation": "selection",
            "test": "report",
            "public": "search",
        }
        self.panels = {
            split: Panel(
                kind,
                {
                    TASK: Accuracy(
                        self._loaded.resident.info, data=self.pool.items(folder, split), head=HEAD
                    )
                },
            )
            for split, kind in kinds.items()
        }
        whole = {name: tensor.clone() for name, tensor in self._loaded.state.items()}
        self.blocks = ModelBlocks(whole, self.pool.block_size)
        self.ledger = ledger_of(self.directory)
        self._now: Substitution | None = None

    @cached_property
    def saliency(self) -> Vector:
        """Of every block, by gradients on the public items."""
        kind = GradientSaliency()
        scores = kind.scores(self._loaded, self.panels["public"], lambda done: None)
        return block_saliency(self.blocks, scores, kind.norm)

    def score(self, split: str, substitution: Substitution) -> dict[str, Score]:
        """Returns the scores of the target as a substitution has it."""
        changed: Sequence[int] = range(len(self.blocks))
        if self._now is not None and self._now.candidates is substitution.candidates:
            changed = substitution.changed(self._now).tolist()
        substitution.write(self._loaded.state, changed)
        self._now = substitution
        return self.panels[split].evaluate(self._loaded.engine)

    def as_it_is(self, split: str) -> float:
        """Returns the share of right answers of the target as it lies in memory."""
        return self.panels[split].evaluate(self._loaded.engine)[_MAIN].value

    def accuracy_of(self, split: str, weights: Mapping[str, Tensor]) -> float:
        """Returns the share of right answers of other weights of the same tensors."""
        self._loaded.write(weights)
        self._now = None
        return self.as_it_is(split)

    def accuracy(self, split: str, substitution: Substitution) -> float:
        """Returns the share of right answers."""
        return self.score(split, substitution)[_MAIN].value


def ledger_of(directory: Path) -> Ledger:
    """Returns what a model cost."""
    return Ledger.of_base(directory, directory.parent.name)


@dataclass(frozen=True)
class Pair:
    """A target and the base whose blocks it may take."""

    target: Target
    candidates: Candidates
    base: Ledger

    @classmethod
    def of(cls, target: Target, base: Target) -> "Pair":
        """Returns the pair with its distances."""
        return cls(target, Candidates.of(target.blocks, [base.blocks]), base.ledger)

    @property
    def whole(self) -> Substitution:
        """The target as it is."""
        return Substitution.none(self.candidates)

    @property
    def given_up(self) -> Substitution:
        """Every block of the base in its own place; the target's small tensors and head kept."""
        pointers = self.whole.pointers.copy()
        places = enumerate(self.target.blocks.places)
        body = [i for i, place in places if not place.tensor.startswith(_CLASSIFIER)]
        pointers[body] = body  # numbers of the base's blocks are the first ones
        return replace(self.whole, pointers=pointers)

    def shared_exactly(self) -> float:
        """Returns the compression ratio when only equal blocks are shared."""
        own = self.candidates.own
        equal = self.candidates.distances == 0
        first = [not row[: own + i].any() for i, row in enumerate(equal)]
        target = self.target.blocks
        new = sum(first) * target.block_size + target.untouched
        return min(1.0, new / target.elements)


def run_way(
    pair: Pair,
    way: Way,
    setting: DedupSetting,
    *,
    fair: Score | None = None,
    keep: Sequence[int] = (),
    others: Sequence[Ledger] = (),
    published: PublishedSvt | None = None,
) -> tuple[Substitution, dict[str, Any]]:
    """Deduplicates a target; returns what became of it, in blocks and in figures.

    Args:
        fair: scores that it must reach as well, of the model that spent less.
        keep: blocks that stand in other models.
        others: of all that `fair` and `keep` follow from.
        published: the sparse vector that targets share, where the way is the published one.
    """
    target = pair.target
    began = time.monotonic()
    before = target.score("validation", pair.whole)[_MAIN]
    holds, spends = _checks(pair, way, setting, before, fair)
    if published is not None:
        published.start(before.value - target.pool.tolerance + _TIGHTER)
        holds = lambda scores: published.at_least(scores[_MAIN].value)  # noqa: E731

    def accepts(now: Substitution, proposed: Substitution) -> bool:
        return holds(target.score("validation", proposed))

    found, asked = deduplicate(
        pair.candidates, target.saliency, setting.schedule(way), accepts, keep=keep
    )
    return found, {
        "way": way.name,
        "ratio": found.ratio,
        "kept": len(found.kept),
        "validations": len(asked.answers),
        "noes": asked.answers.count(False),
        "before": before.value,
        "after": target.accuracy("validation", found),
        "test_before": target.accuracy("test", pair.whole),
        "test_after": target.accuracy("test", found),
        "epsilon": _price(deduplicated(target.ledger, [pair.base, *others], spends)),
        "seconds": time.monotonic() - began,
    }


def _checks(
    pair: Pair, way: Way, setting: DedupSetting, before: Score, fair: Score | None
) -> tuple[Callable[[Mapping[str, Score]], bool], list[PrivacySpend]]:
    """Returns what says whether scores are good enough, and what its answers cost."""
    target, pool = pair.target, pair.target.pool
    floors = [Floor({_MAIN: before}, pool.tolerance)]
    floors += [] if fair is None else [Floor({_MAIN: fair})]
    directions = target.panels["validation"].directions
    if way.checks != "svt":
        return ExactChecks(directions, floors).holds, []
    price = deduplicated(target.ledger, [pair.base]).everywhere
    assert price is not None
    privacy = PrivateValidation(
        pool.data_name("validation"),
        price.epsilon,
        disjoint_from=[pool.data_name(part) for part in pool.parts],
    )
    noise, name = SecretNoise(secrets.token_bytes(32)), target.name
    noisy = NoisyChecks(
        privacy, directions, floors, failures=setting.failures, noise=noise, name=name
    )
    return noisy.holds, [privacy.spend(name, "dedup")]


def _price(ledger: Ledger) -> dict[str, float]:
    """Returns the price that holds for every data set, and the plain sum beside it; 0: public."""
    guarantees = [g for g in ledger.guarantees.values() if g is not None]
    return {
        "epsilon": max((g.price.epsilon for g in guarantees), default=0.0),
        "delta": max((g.price.delta for g in guarantees), default=0.0),
        "added": max((g.added.epsilon for g in guarantees), default=0.0),
    }


def baselines(pair: Pair, base: Target) -> dict[str, Any]:
    """Returns what needs no checks: the base, with own head and norms, equal blocks."""
    target = pair.target
    return {
        "blocks": len(target.blocks),
        "untouched": target.blocks.untouched / target.blocks.elements,
        "exact": pair.shared_exactly(),
        "base": base.as_it_is("validation"),
        "base_test": base.as_it_is("test"),
        "leftovers_ratio": pair.given_up.ratio,
        "leftovers": target.accuracy("validation", pair.given_up),
        "leftovers_test": target.accuracy("test", pair.given_up),
        "before": target.accuracy("validation", pair.whole),
        "test_before": target.accuracy("test", pair.whole),
        "epsilon": _price(target.ledger),
        "base_epsilon": _price(pair.base),
    }


def write_cell(path: Path, identity: str, content: Mapping[str, Any]) -> None:
    """Writes the figures of a cell."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, json.dumps({"identity": identity, **content}, indent=1) + "\n")
