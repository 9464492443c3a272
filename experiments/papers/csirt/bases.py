"""The base models: a tiny one that is trained here, or any of the Hugging Face hub."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import platform
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, Protocol

import torch
from filelock import FileLock
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.experts.quickstart.tokenizer import SPECIAL
from experiments.experts.training.records import encode
from experiments.experts.training.regime import Regime
from experiments.experts.training.train import train
from experiments.papers.csirt.corpus import CorpusSize, pretraining_records
from experiments.papers.csirt.pseudonymised import pseudonymised, pseudonyms_of
from experiments.papers.csirt.records import text_of
from experiments.papers.csirt.tokenizer import record_tokenizer
from merging.checkpoints.checkpoint import quiet_transformers
from merging.saving.save import staged
from merging.seeding import stable_seed


class Base(Protocol):
    """A model that experts are fine-tuned from."""

    def directory(self, cache: Path, size: CorpusSize) -> str:
        """Returns its directory or Hugging Face id; made on the first call."""
        ...

    def identity(self, size: CorpusSize) -> str:
        """Returns a text that changes with whatever the base depends on."""
        ...


@dataclass(frozen=True)
class HubBase:
    """A causal language model by Hugging Face id or directory.

    Args:
        name: id or directory.
    """

    name: str

    def directory(self, cache: Path, size: CorpusSize) -> str:
        """Returns the name."""
        return self.name

    def identity(self, size: CorpusSize) -> str:
        """Returns the name."""
        return self.name


@dataclass(frozen=True)
class TinyBase:
    """A small byte-level Llama, trained on records of other plugins and assets.

    All of these, or a share, are pseudonymised under a key of their own, as published scans would
    be: the format and the look of a slug are nothing new to an expert, raw identifiers are.

    Args:
        hidden: width of the residual stream.
        intermediate: width of the MLP.
        layers: blocks.
        heads: attention heads.
        context: most tokens that the model reads.
        records: of the training.
        pseudonymised: share of them.
        epochs: of the training.
        lot: records of an update.
        learning_rate: the highest.
        seed: of weights and order.
    """

    hidden: int
    intermediate: int
    layers: int = 2
    heads: int = 4
    context: int = 256
    records: int = 2000
    pseudonymised: float = 1.0
    epochs: float = 4.0
    lot: int = 16
    learning_rate: float = 3e-3
    seed: int = 0

    def directory(self, cache: Path, size: CorpusSize) -> str:
        """Returns the directory below `cache`; a second process waits for the first."""
        folder = cache / "csirt" / f"base-{self.hidden}-{self.identity(size)}"
        if not folder.is_dir():
            folder.parent.mkdir(parents=True, exist_ok=True)
            with FileLock(f"{folder}.lock"):
                if not folder.is_dir():
                    self._train(folder, size)
        return str(folder)

    def identity(self, size: CorpusSize) -> str:
        """Returns 16 hexadecimal digits of options, versions and code."""
        own = [dataclasses.asdict(self), size.text_length, size.copies]
        return digest_of(own)

    def _train(self, folder: Path, size: CorpusSize) -> None:
        tokenizer = record_tokenizer(self.context)
        records = pretraining_records(size, self.records)
        hidden = round(self.pseudonymised * len(records))
        others = pseudonyms_of("another organisation")
        texts = [text_of(pseudonymised(record, others)) for record in records[:hidden]]
        texts += [text_of(record) for record in records[hidden:]]
        regime = Regime(
            self.lot,
            epochs=self.epochs,
            learning_rate=self.learning_rate,
            warmup=0.05,
            final=0.05,
            weight_decay=0.1,
        )
        model = self._untrained(len(tokenizer))
        train(model, encode(tokenizer, texts, self.context), regime, seed=self.seed, label="base")
        with staged(folder) as draft, quiet_transformers():
            model.save_pretrained(draft)
            tokenizer.save_pretrained(draft)

    def _untrained(self, vocabulary: int) -> LlamaForCausalLM:
        pad, start, end = range(len(SPECIAL))
        config = LlamaConfig(
            vocab_size=vocabulary,
            hidden_size=self.hidden,
            intermediate_size=self.intermediate,
            num_hidden_layers=self.layers,
            num_attention_heads=self.heads,
            max_position_embeddings=self.context,
            pad_token_id=pad,
            bos_token_id=start,
            eos_token_id=end,
            tie_word_embeddings=False,
            dtype="float32",
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, "init", self.hidden, self.layers))
            return LlamaForCausalLM(config)


def digest_of(content: Any) -> str:
    """Returns 16 hexadecimal digits that change with content, versions or this code."""
    versions = {package: version(package) for package in ("torch", "transformers", "tokenizers")}
    text = json.dumps([content, versions, platform.python_version()], sort_keys=True, default=str)
    digest = hashlib.sha256(text.encode())
    for file in _code():
        digest.update(file.read_bytes())
    return digest.hexdigest()[:16]


def _code() -> Sequence[Path]:
    """Returns the files that decide what is trained."""
    here = Path(__file__).parent
    parts = here.parents[1] / "experts" / "training"
    own = ("bases", "catalogue", "corpus", "pseudonymised", "records", "tokenizer", "values")
    training = ("expert", "language_model", "nf4", "private", "records", "regime", "train")
    files = [here / f"{name}.py" for name in own]
    return [*files, *(parts / f"{name}.py" for name in training)]
