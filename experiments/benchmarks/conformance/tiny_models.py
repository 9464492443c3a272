"""A tiny base and two experts of any model type, built in code and saved as transformers saves."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
import transformers
from huggingface_hub.errors import StrictDataclassError
from safetensors import SafetensorError
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import PreTrainedConfig

from experiments.benchmarks.conformance.overrides import OVERRIDES
from experiments.benchmarks.conformance.sizes import VOCABULARY, tiny

EXPERTS = ("a", "b")
MOST_PARAMETERS = 16_000_000
_FIRST = (
    "CausalLM",
    "Seq2SeqLM",
    "SpeechSeq2Seq",
    "ImageTextToText",
    "MultimodalLM",
    "MaskedLM",
    "PreTraining",
)
"""What a model is opened as: the first of these tasks that its type has; AutoModel; any other."""


ERRORS = (
    *(ArithmeticError, AssertionError, AttributeError, ImportError, LookupError, OSError),
    *(RuntimeError, TypeError, ValueError, StrictDataclassError, SafetensorError),
)
"""What the code of some model raises where it does not work."""


class NotBuilt(Exception):  # noqa: N818
    """Why a type has no tiny model here."""


@dataclass(frozen=True)
class Saved:
    """A base and its experts on disk.

    Args:
        auto: transformers' class that opens them.
        folder: holds ``base`` and one directory for each of `EXPERTS`.
    """

    auto: Any
    folder: Path
    _loaded: dict[str, Any] = field(default_factory=dict, repr=False, compare=False)

    def path(self, name: str) -> str:
        """Returns the directory of one of them, as text."""
        return str(self.folder / name)

    def load(self, name: str) -> Any:
        """Returns a model in float32 as transformers loads it, once: it must not be changed."""
        if name not in self._loaded:
            path = self.path(name)
            self._loaded[name] = self.auto.from_pretrained(path, dtype=torch.float32).eval()
        return self._loaded[name]


def openers(config: PreTrainedConfig) -> Iterator[tuple[Any, Any]]:
    """Yields the Auto classes that open models of this type, each with the model's own class."""
    for auto in _autos():
        if auto is transformers.AutoModelForCausalLM and config.is_encoder_decoder:
            continue  # the decoder alone
        try:
            found = auto._model_mapping[type(config)]
        except (KeyError, AttributeError, ImportError, ValueError):
            continue
        yield from ((auto, kind) for kind in (found if isinstance(found, tuple) else (found,)))


def _autos() -> Iterator[Any]:
    yield from (getattr(transformers, f"AutoModelFor{task}") for task in _FIRST)
    yield transformers.AutoModel
    names = sorted(name for name in dir(transformers) if name.startswith("AutoModelFor"))
    yield from (
        auto
        for name in [*names, "AutoBackbone"]
        if getattr(auto := getattr(transformers, name), "_model_mapping", None) is not None
    )


def build(model_type: str, seed: int = 0) -> tuple[Any, Any]:
    """Returns what opens a type, its Auto class or its own, and a tiny model of it.

    Its weights are far from a fresh one's.

    Raises:
        NotBuilt: with the reason.
    """
    try:
        config = tiny(model_type, OVERRIDES.get(model_type, {}))
    except (NotBuilt, *ERRORS) as error:
        raise NotBuilt(reason(error)) from error
    why = NotBuilt("a part of other models: transformers has no class that opens it by itself")
    for auto, kind in openers(config):
        if auto is transformers.AutoModelForCausalLM and hasattr(config, "is_decoder"):
            config.is_decoder = True  # else BERT and its kin look both ways
        try:
            with torch.device("meta"):
                size = sum(p.numel() for p in kind(copy.deepcopy(config)).parameters())
            if size > MOST_PARAMETERS:
                raise NotBuilt(f"its smallest has {size / 1e6:.0f} million parameters here")
            torch.manual_seed(seed)
            model = kind(copy.deepcopy(config)).float().eval()
            break
        except (NotBuilt, *ERRORS) as error:  # composite types lend classes to their parts
            why = error if isinstance(error, NotBuilt) else NotBuilt(reason(error))
    else:
        raise why
    move(model, seed=seed, scale=0.15)
    if getattr(model, "generation_config", None) is not None:
        model.generation_config.update(eos_token_id=2, pad_token_id=0)
        if config.is_encoder_decoder and start_of(model) is None:
            model.generation_config.decoder_start_token_id = 0
    return (kind if auto is transformers.AutoBackbone else auto), model  # it opens no directories


def start_of(model: Any) -> int | None:
    """Returns the token that a decoder begins with, by either of its configurations."""
    own = getattr(model.config, "decoder_start_token_id", None)
    start: int | None = model.generation_config.decoder_start_token_id if own is None else own
    return start


def save(model_type: str, folder: Path) -> Saved:
    """Builds and saves a base and its experts."""
    auto, model = build(model_type)
    saved = Saved(auto, folder)
    tokenizer = word_tokenizer()
    try:
        model.save_pretrained(folder / "base")
        tokenizer.save_pretrained(folder / "base")
        start = {name: tensor.clone() for name, tensor in model.state_dict().items()}
        for seed, name in enumerate(EXPERTS, 1):
            model.load_state_dict(start)
            move(model, seed=seed, scale=0.05)
            model.save_pretrained(folder / name)
            tokenizer.save_pretrained(folder / name)
        saved.load("base")
    except (NotBuilt, *ERRORS) as error:
        raise NotBuilt(f"transformers cannot save and load it: {reason(error)}") from error
    return saved


@torch.no_grad()
def move(model: Any, *, seed: int, scale: float) -> None:
    """Adds normal noise to every parameter; buffers of the file, as variances, stay positive."""
    noise = torch.Generator().manual_seed(seed)
    for parameter in model.parameters():
        parameter += scale * torch.randn(parameter.shape, generator=noise)
    for layer in model.modules():
        if isinstance(layer, torch.nn.Embedding) and layer.padding_idx is not None:
            layer.weight[layer.padding_idx] = 0  # no training moves it, some loaders clear it
    stored = set(model.state_dict())
    for name, buffer in model.named_buffers():
        if name in stored and buffer.is_floating_point():
            buffer.nan_to_num_(posinf=8.0, neginf=-8.0)  # limits that calibration would set
            buffer *= 1 + scale * torch.rand(buffer.shape, generator=noise)


def word_tokenizer() -> Any:
    """Returns a tokenizer that spells every id in a way of its own."""
    raw = Tokenizer(models.WordLevel({f"w{i}": i for i in range(VOCABULARY)}, unk_token="w3"))
    raw.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    fast: Any = transformers.PreTrainedTokenizerFast
    return fast(tokenizer_object=raw, pad_token="w0", bos_token="w1", eos_token="w2")


def reason(error: BaseException) -> str:
    """Returns an error in one line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [""]
    text = lines[-1] if type(error).__name__.startswith("Strict") else lines[0]
    return f"{type(error).__name__}: {text}"[:200]


def tensors(model: Any) -> Mapping[str, Tensor]:
    """Returns the state dict and what is computed when a model is built."""
    return {**dict(model.named_buffers(remove_duplicate=False)), **model.state_dict()}
