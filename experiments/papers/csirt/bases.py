"""The base models: a tiny one that is trained here, or any of the Hugging Face hub."""

from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import torch
from transformers import LlamaForCausalLM

from experiments.experts.quickstart.training import ModelSize, llama_config
from experiments.experts.training.records import encode
from experiments.experts.training.regime import Regime
from experiments.experts.training.train import train
from experiments.papers.csirt.corpus import CorpusSize, pretraining_records
from experiments.papers.csirt.pseudonymised import pseudonymised, pseudonyms_of
from experiments.papers.csirt.records import text_of
from experiments.papers.csirt.tokenizer import record_tokenizer
from experiments.runs.cache import digest_of, made_once
from merging.checkpoints.checkpoint import quiet_transformers
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
    """A causal language model by Hugging Face id or directory."""

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
        context: most tokens that the model reads.
        pseudonymised: share of them.
        lot: records of an update.
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
        return str(made_once(folder, partial(self._train, size)))

    def identity(self, size: CorpusSize) -> str:
        """Returns 16 hexadecimal digits of options, versions and code."""
        return csirt_digest([self, size.text_length, size.copies])

    def _train(self, size: CorpusSize, out: Path) -> None:
        tokenizer = record_tokenizer(self.context)
        records = pretraining_records(size, self.records)
        hidden = round(self.pseudonymised * len(records))
        others = pseudonyms_of("another organisation")
        texts = [text_of(pseudonymised(record, others)) for record in records[:hidden]]
        texts += [text_of(record) for record in records[hidden:]]
        regime = Regime(
            self.lot, self.epochs, self.learning_rate, warmup=0.05, final=0.05, weight_decay=0.1
        )
        model = self._untrained(len(tokenizer))
        train(model, encode(tokenizer, texts, self.context), regime, seed=self.seed, label="base")
        with quiet_transformers():
            model.save_pretrained(out)
            tokenizer.save_pretrained(out)

    def _untrained(self, vocabulary: int) -> LlamaForCausalLM:
        size = ModelSize(self.hidden, self.intermediate, self.layers, self.heads, self.context)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stable_seed(self.seed, "init", self.hidden, self.layers))
            return LlamaForCausalLM(llama_config(size, vocabulary))


def csirt_digest(content: Any) -> str:
    """Returns 16 hexadecimal digits that change with content, versions or what trains."""
    here = Path(__file__).parent
    own = ("bases", "catalogue", "corpus", "pseudonymised", "records", "tokenizer", "values")
    training = sorted((here.parents[1] / "experts" / "training").glob("*.py"))
    return digest_of(content, [*(here / f"{name}.py" for name in own), *training])
