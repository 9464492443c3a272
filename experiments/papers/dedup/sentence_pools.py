"""The pool of sentences: a pretrained encoder, a public start, private experts."""

import random
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
from torch import nn
from transformers import AutoModelForSequenceClassification

from experiments.experts.sentences import sentences, training
from experiments.experts.sentences.prepare import packaged_encoder
from experiments.experts.sentences.sentences import Sentence
from experiments.experts.sentences.training import (
    encode,
    new_classifier,
    sentence_losses,
    sentence_schedule,
    train,
)
from experiments.experts.training import fixed_factors
from experiments.experts.training.fixed_factors import factor, merge_factors
from experiments.experts.training.loop import Schedule
from experiments.papers.dedup.pools import DedupPool, Lesson, digest_of_file
from experiments.runs.files import write_lines
from merging.checkpoints.checkpoint import Checkpoint, quiet_transformers

_SPARED = ("classifier", "bert.embeddings.token_type_embeddings")


@dataclass(frozen=True, kw_only=True)
class SentencePool(DedupPool):
    """Experts for the sentences of one folder; all of its files are pooled and drawn anew.

    Args:
        data: directory of `task`, as `evomerge search experiment=sentences` takes it.
        task: folder name.
        base: directory or id of a BERT encoder; None: the packaged one.
        start: training of the encoder with a new head on the public sentences.
        cut: most tokens of a training sentence.
        decay: a layer learns so many times as fast as the one above it.
    """

    data: str | None
    task: str
    base: str | None = None
    start: Schedule = field(default_factory=sentence_schedule)
    cut: int = 24
    decay: float = 1.0

    def check(self) -> None:
        """See `DedupPool`."""
        needed, count = max(r.stop for r in self.ranges().values()), len(self._sentences)
        if needed > count:
            raise ValueError(f"the parts need {needed} sentences, {self.task} has {count}")
        self._encoder()

    @property
    def content(self) -> Any:
        """See `DedupPool`."""
        files = [digest_of_file(path) for path in self._files]
        start, encoder = str(self.start), Checkpoint.open(self._encoder(), encoder=True).sha256
        return [files, encoder, start, self.cut, self.decay]

    @property
    def modules(self) -> tuple[ModuleType, ...]:
        """See `DedupPool`."""
        return sentences, training, fixed_factors

    def write_items(self, split: str, folder: Path) -> None:
        """See `DedupPool`."""
        write_lines(folder / f"{split}.jsonl", map(asdict, self._chosen(split)))

    def items(self, folder: Path, split: str) -> str:
        """See `DedupPool`."""
        return str(folder / f"{split}.jsonl")

    def write_start(self, out: Path) -> None:
        """See `DedupPool`."""
        tokenizer = self._tokenizer()
        classes = 1 + max(each.label for each in self._sentences)
        with quiet_transformers():
            model: Any = new_classifier(
                Path(self._encoder()), classes, seed=self.seed, label="public"
            )
        train(model, tokenizer, self._chosen("public"), self.start, seed=self.seed, label="public")
        self._save(model, out)

    def lesson(self, start: Path, name: str) -> Lesson:
        """See `DedupPool`."""
        with quiet_transformers():
            model: Any = AutoModelForSequenceClassification.from_pretrained(
                start, dtype=torch.float32
            )
        for module in model.modules():
            if isinstance(module, nn.Dropout):
                module.p = 0.0
        for parameter in model.parameters():
            parameter.requires_grad_(parameter.dim() >= 2)
        assert self.training.rank is not None
        layers = model.config.num_hidden_layers

        def scale_of(name: str) -> float:
            inside = re.search(r"\.layer\.(\d+)\.", name)
            below = layers + 1 if ".embeddings." in name else 0
            if inside is not None:
                below = layers - int(inside[1])
            return float(self.decay**below)

        factor(model, self.training.rank, seed=self.seed, spare=_SPARED, scale_of=scale_of)
        chosen = self._chosen(self.experts[name].part)
        tokenizer = self._tokenizer()
        encoded = [
            {key: values[: self.cut] for key, values in each.items()}
            for each in encode(model, tokenizer, chosen)
        ]
        labels = [each.label for each in chosen]
        of = sentence_losses(tokenizer, encoded, labels, positions=True)

        def write(out: Path) -> None:
            merge_factors(model)
            self._save(model, out)

        return Lesson(model, of, write)

    @cached_property
    def _files(self) -> list[Path]:
        return sorted(sentences.task_files(self.data, [self.task])[self.task].values())

    @cached_property
    def _sentences(self) -> list[Sentence]:
        """All of them, each text once, in the order of the seed."""
        found = {s.text: s for path in self._files for s in sentences.read_sentences(path)}
        drawn = list(found.values())
        random.Random(self.seed).shuffle(drawn)
        return drawn

    def _chosen(self, part: str) -> Sequence[Sentence]:
        places = self.ranges()[part]
        return self._sentences[places.start : places.stop]

    def _encoder(self) -> str:
        return str(packaged_encoder()) if self.base is None else self.base

    def _tokenizer(self) -> Any:
        return Checkpoint.open(self._encoder(), encoder=True).tokenizer()

    def _save(self, model: Any, out: Path) -> None:
        with quiet_transformers():
            model.save_pretrained(out)
        self._tokenizer().save_pretrained(out)
