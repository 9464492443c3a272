"""What transformers says of a checkpoint, remembered: its classes take seconds to import.

An answer follows from config.json, the headers of the weight files, the release of transformers
and the code that asks; it is taken again where all of them are the same, byte for byte.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from functools import cache
from importlib.metadata import distribution, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from merging.checkpoints import architecture
from merging.files import cache_dir, write_text
from merging.weight_names import is_adapter

if TYPE_CHECKING:
    from transformers import PreTrainedConfig

    from merging.checkpoints.weight_files import WeightFiles

logger = logging.getLogger(__name__)

# Fields that fix shapes, and how a message calls them; checked first, for a message that says why.
SIZES = {
    "num_hidden_layers": "layers",
    "vocab_size": "vocabulary entries",
    "hidden_size": "hidden units",
    "intermediate_size": "units in the MLP",
    "num_attention_heads": "attention heads",
    "num_key_value_heads": "key-value heads",
}
# Fields that change what the same weights compute: the merged model takes the base's.
MEANINGS = (
    "hidden_act",
    "max_position_embeddings",
    "rope_parameters",
    "sliding_window",
    "rms_norm_eps",
    "layer_norm_eps",
)


@dataclass(frozen=True)
class Described:
    """What is asked of a configuration before tensors are compared.

    Args:
        entries: of `SIZES` and `MEANINGS`, as JSON has them; None where there is none, or where
            each layer has one of its own.
        is_classifier: see `is_classifier_config`.
    """

    model_type: str
    entries: Mapping[str, Any]
    is_classifier: bool

    @classmethod
    def of(cls, config: PreTrainedConfig) -> Described:
        """Returns what a configuration says."""
        entries = {field: _entry(config, field) for field in (*SIZES, *MEANINGS)}
        as_json = json.loads(json.dumps(entries, default=str))
        return cls(config.model_type, as_json, architecture.is_classifier_config(config))

    @classmethod
    def read(cls, path: Path, *, trust_remote_code: bool = False) -> Described:
        """Returns what the configuration in `path` says; raises as `read_config`."""
        known = None if trust_remote_code else key(path)
        if (found := _recall(known)) is not None:
            return cls(**found)
        config = architecture.read_config(path, trust_remote_code=trust_remote_code)
        described = cls.of(config)
        if _own(type(config)):
            _remember(known, asdict(described))
        return described


@dataclass(frozen=True)
class Outline:
    """What a class says of the names in a file.

    Args:
        kind: the class's name.
        keys: module name -> name in the file, in the module's order; None where transformers
            converts tensors.
        unused: names in the file that the class is known not to read.
        absent: children of the module that the file has no tensors of.
        aliases: name left out because it is tied -> the name that is kept.
        prefix: where the model without its head sits in the names.
    """

    kind: str
    keys: dict[str, str] | None
    unused: tuple[str, ...]
    absent: tuple[str, ...]
    aliases: dict[str, str]
    prefix: str

    @classmethod
    def recall(cls, known: str | None) -> Outline | None:
        """Returns what was remembered under a `key`, if anything."""
        found = _recall(known)
        if found is None:
            return None
        return cls(**{**found, **{name: tuple(found[name]) for name in ("unused", "absent")}})

    def remember(self, known: str | None, kind: type) -> None:
        """Keeps the answer of a class under its `key`; of transformers' own classes alone."""
        if self.keys is not None and _own(kind):
            _remember(known, asdict(self))


def key(path: Path, stored: WeightFiles | None = None, *, encoder: bool = False) -> str | None:
    """Returns what an answer follows from, as a sha256; None where it follows from more.

    Args:
        path: directory of ``config.json``.
        stored: the tensors that a class is asked about; None: none, but the configuration alone.
        encoder: whether the class without a head is asked.
    """
    file = path / "config.json"
    if not file.is_file() or is_adapter(path) or _unreleased():
        return None
    told = file.read_bytes()
    if b"configuration_files" in told:  # names other files, of which one release reads each
        return None
    tensors = None
    if stored is not None:
        tensors = [(name, *stored.shape(name), str(stored.dtype(name))) for name in stored]
    asked = repr((_release(), encoder, tensors))
    return hashlib.sha256(asked.encode() + b"\n" + told).hexdigest()


@cache
def _release() -> tuple[str, ...]:
    """Returns what tells transformers' release and the code here that asks it."""
    here = Path(__file__).parent
    asking = [here / f"{name}.py" for name in ("architecture", "checkpoint", "naming", "outlines")]
    code = b"".join(file.read_bytes() for file in (*asking, here.parent / "grouping.py"))
    return version("transformers"), hashlib.sha256(code).hexdigest()


@cache
def _unreleased() -> bool:
    """Whether transformers' code may change under one version: installed from a copy of it."""
    return distribution("transformers").read_text("direct_url.json") is not None


def _own(kind: type) -> bool:
    return kind.__module__.startswith("transformers.")


def _entry(config: PreTrainedConfig, field: str) -> Any:
    """Returns an entry; None where there is none, or each layer has one of its own."""
    try:
        return getattr(config, field, None)
    except RuntimeError:  # of a layer: tensors are compared one by one later on
        return None


def _file(known: str) -> Path:
    return cache_dir() / "outlines" / known


def _recall(known: str | None) -> dict[str, Any] | None:
    """Returns an answer, None where there is none that is whole."""
    if known is None:
        return None
    try:
        digest, _, text = _file(known).read_text(encoding="utf-8").partition("\n")
    except (OSError, UnicodeDecodeError):
        return None
    answer: dict[str, Any] | None = json.loads(text) if digest == _digest(text) else None
    return answer


def _remember(known: str | None, answer: Mapping[str, Any]) -> None:
    """Writes an answer at once or not at all; a cache that cannot be written is no error."""
    if known is None:
        return
    text = json.dumps(answer)
    try:
        _file(known).parent.mkdir(parents=True, exist_ok=True)
        write_text(_file(known), f"{_digest(text)}\n{text}")
    except OSError as error:
        logger.debug("%s cannot be written: %s", _file(known), error)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
