"""PEFT adapters as experts: the difference that each makes to its base's tensors.

Plain LoRA has an exact product; every other kind that peft can merge is merged by peft.
"""

from __future__ import annotations

import hashlib
import json
import logging
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.hashing import files_sha256
from merging.checkpoints.naming import listing
from merging.checkpoints.privacy_record import PrivacyRecord, read_record, weights_sha256
from merging.checkpoints.sources import resolve
from merging.checkpoints.weight_files import WeightFiles
from merging.rules.threads import one_thread
from merging.weights import CheckpointError
from merging.zoo.store import SOURCE

logger = logging.getLogger(__name__)

_FACTOR = re.compile(r"^(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(\.weight)?$")
_HARMLESS_INIT = (True, False, None, "gaussian", "orthogonal", "eva")
_BASE_INIT = ("pissa", "olora")  # took from the base what follows from the base alone
# Options of LoraConfig under which the difference is not B @ A * scale of single layers.
_BY_PEFT = (
    "use_dora",
    "lora_bias",
    "layer_replication",
    "target_parameters",
    "trainable_token_indices",
    "ensure_weight_tying",
    "alora_invocation_tokens",
    "use_qalora",
    "use_bdlora",
    "arrow_config",
    "kasa_config",
    "velora_config",
    "monteclora_config",
    "megatron_config",
)
# What an adapter's difference does not depend on: where its base lay, what wrote it.
_ELSEWHERE = (
    "auto_mapping",
    "base_model_name_or_path",
    "inference_mode",
    "peft_version",
    "revision",
    "task_type",
)


@dataclass(frozen=True, eq=False)
class Factors:
    """``scale * b @ a``, transposed where the layer stores its weight as (in, out).

    Attributes:
        a: ``(rank, in)``, dtype as stored.
        b: ``(out, rank)``.
    """

    a: Tensor
    b: Tensor
    scale: float
    transposed: bool

    @one_thread()
    def product(self) -> Tensor:
        """Returns the difference, ``(*shape of the weight)`` float64."""
        product = self.scale * (self.b.double() @ self.a.double())
        return product.T if self.transposed else product


@dataclass(frozen=True, eq=False)
class Adapter:
    """One adapter: low-rank factors, and full tensors where it has no factors.

    Full are modules that LoRA trained as a whole, and all that adapters of other kinds change.

    Attributes:
        source: as the user named it.
        sha256: identity of its weights and of the options that scale them.
        touched: names of the base's tensors that it changes.
    """

    source: str
    path: Path
    sha256: str
    touched: frozenset[str]
    _factors: Mapping[str, Factors]
    _copies: Mapping[str, Tensor]

    @classmethod
    def open(cls, source: str, path: Path, base: Checkpoint) -> Adapter:
        """Returns the adapter in `path`, checked against `base`; reads its factors.

        What is no plain LoRA is merged by peft into the base, loaded for it in float32; what that
        changes is kept. Plain LoRA follows peft's layout:
        ``base_model.model.<module>.lora_A.weight`` ``(rank, in)`` and
        ``lora_B.weight`` ``(out, rank)``; scale is alpha / rank, or alpha / sqrt(rank) (rsLoRA,
        Kalajdzievski 2023, arXiv 2312.03732).

        Raises:
            CheckpointError: a kind of adapter that cannot be merged, or one whose targets or
                shapes do not fit the base; names the option or tensor.
        """
        config = _read_config(path)
        _warn_of_other_base(source, config, base)
        files = WeightFiles.find(path, adapter=True)
        if not files:
            raise CheckpointError(f"{files.files[0]} holds no adapter weights")
        if _has_product(config):
            factors, copies = _sort(source, path, files, config, base)
        else:
            factors, copies = {}, _merged(source, path, files, base)
        touched = frozenset(factors) | frozenset(copies)
        return cls(source, path, _identity(files, config), touched, factors, copies)

    def fill(self, name: str, base: Tensor, out: Tensor) -> None:
        """Writes expert minus base into `out`; computed in float64, rounded once.

        Args:
            base: its value, float32.
            out: ``(*shape)`` float32, overwritten.
        """
        if name in self._copies and name in self._factors:
            copied = self._copies[name].double() - base.double()
            out.copy_(copied + self._factors[name].product())
        elif name in self._copies:
            out.copy_(self._copies[name]).sub_(base)
        elif name in self._factors:
            out.copy_(self._factors[name].product())
        else:
            out.zero_()

    def factors(self, name: str) -> Factors | None:
        """Returns the factors of a tensor of the base; None: the adapter has none for it."""
        return self._factors.get(name)

    def copy(self, name: str) -> Tensor | None:
        """Returns the full tensor that the adapter makes of the base's; None: none."""
        return self._copies.get(name)

    def tensor(self, name: str, base: Tensor) -> Tensor:
        """Returns the tensor of base and adapter together, dtype of `base`."""
        delta = torch.empty(base.shape, dtype=torch.float32, device=base.device)
        self.fill(name, base.float(), delta)
        return (base.float() + delta).to(base.dtype)

    def stored(self) -> Iterator[tuple[str, Tensor]]:
        """Yields every tensor that the adapter stores, under a name that says which."""
        for name, factors in self._factors.items():
            yield f"{name} (lora_A)", factors.a
            yield f"{name} (lora_B)", factors.b
        yield from self._copies.items()

    def privacy(self) -> PrivacyRecord | None:
        """Returns the record beside its weights; raises as `read_record` does."""
        return read_record(self.path)

    def to(self, device: torch.device) -> Adapter:
        """Returns the same adapter with its factors on `device`."""
        factors = {
            name: replace(pair, a=pair.a.to(device), b=pair.b.to(device))
            for name, pair in self._factors.items()
        }
        copies = {name: tensor.to(device) for name, tensor in self._copies.items()}
        return replace(self, _factors=factors, _copies=copies)


def _read_config(path: Path) -> dict[str, Any]:
    """Returns adapter_config.json, or refuses what follows from no file."""
    file = path / "adapter_config.json"
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
        kind = config.get("peft_type")
    except (ValueError, AttributeError) as error:
        raise CheckpointError(f"{file} is no valid JSON object ({error})") from error
    if not isinstance(kind, str):
        raise CheckpointError(f"{file}: peft_type {kind!r} names no kind of adapter")
    if kind == "LORA" and config.get("init_lora_weights") not in (*_HARMLESS_INIT, *_BASE_INIT):
        raise CheckpointError(
            f"{file}: init_lora_weights={config['init_lora_weights']!r} changed the base's own "
            "weights; save the adapter again with path_initial_model_for_weight_conversion"
        )
    if config.get("task_type") not in (None, "CAUSAL_LM", "FEATURE_EXTRACTION", "SEQ_2_SEQ_LM"):
        raise CheckpointError(
            f"{file}: task_type {config['task_type']!r} has a head of its own; fold it into its "
            "base with peft's merge_and_unload and use the saved checkpoint"
        )
    return dict(config)


def _has_product(config: Mapping[str, Any]) -> bool:
    """Whether the difference is B @ A * scale, layer by layer."""
    plain = config["peft_type"] == "LORA" and config.get("init_lora_weights") not in _BASE_INIT
    others = config.get("bias", "none") != "none" or any(config.get(key) for key in _BY_PEFT)
    return plain and not others


def _merged(source: str, path: Path, files: WeightFiles, base: Checkpoint) -> dict[str, Tensor]:
    from merging.checkpoints.peft_merge import merged_by_peft  # imports peft, which is slow

    return merged_by_peft(source, path, files, base)


def _warn_of_other_base(source: str, config: Mapping[str, Any], base: Checkpoint) -> None:
    """A name proves nothing (bases move), so it only warns; shapes and targets are errors."""
    named = config.get("base_model_name_or_path")
    if named and named not in (base.source, str(base.path)) and not _is_base(named, base):
        logger.warning("adapter %s was trained on %r, the base is %r", source, named, base.source)


def _is_base(named: str, base: Checkpoint) -> bool:
    """Whether what lies here under another name is the base; fetches nothing."""
    if not named.startswith(SOURCE) and not Path(named).expanduser().is_dir():
        return False
    try:
        place = resolve(named)
        return place.resolve() == base.path.resolve() or weights_sha256(place) == base.sha256
    except CheckpointError:
        return False


def _sort(
    source: str, path: Path, files: WeightFiles, config: Mapping[str, Any], base: Checkpoint
) -> tuple[dict[str, Factors], dict[str, Tensor]]:
    """Parts the adapter's tensors into factors and full tensors, by the base's names.

    peft is asked where it has other names than the base: those that transformers has changed.
    """
    sides: dict[str, dict[str, str]] = {}
    copies: dict[str, Tensor] = {}
    unknown: dict[str, None] = {}  # in order, each once
    for key in files:
        stripped = key.removeprefix("base_model.model.")
        factor = _FACTOR.match(stripped)
        name = f"{factor['module']}.weight" if factor else stripped.replace(".base_layer.", ".")
        name = _owned(source, name, base)
        if name not in base:
            unknown[name] = None
        elif factor:
            sides.setdefault(name, {})[factor["side"]] = key
        else:
            copies[name] = _checked_copy(source, name, files[key], base)
    if unknown:
        try:
            return {}, _merged(source, path, files, base)
        except CheckpointError as error:
            raise CheckpointError(
                f"adapter {source} targets {len(unknown)} tensors that the base {base.source} "
                f"lacks: {listing(list(unknown))}; it belongs to another base"
            ) from error
    factors = {
        name: _factors(source, name, keys, files, config, base) for name, keys in sides.items()
    }
    return factors, copies


def _owned(source: str, name: str, base: Checkpoint) -> str:
    """Refuses tied tensors: the adapter changes one use of it, a merge would change both."""
    if name in base.aliases or name in base.aliases.values():
        raise CheckpointError(
            f"adapter {source} changes {name}, which is tied in the base {base.source}; train it "
            "without that target, or untie the base"
        )
    return name


def _checked_copy(source: str, name: str, tensor: Tensor, base: Checkpoint) -> Tensor:
    if tensor.shape != base.shape(name):
        raise CheckpointError(
            f"adapter {source}: {name} has shape {tuple(tensor.shape)}, the base {base.source} "
            f"has {tuple(base.shape(name))}; it belongs to another base"
        )
    return tensor


def _factors(
    source: str,
    name: str,
    keys: Mapping[str, str],
    files: WeightFiles,
    config: Mapping[str, Any],
    base: Checkpoint,
) -> Factors:
    if set(keys) != {"A", "B"}:
        lacking = ({"A", "B"} - set(keys)).pop()
        raise CheckpointError(
            f"adapter {source}: lora_{lacking} of {name} is missing; save it again"
        )
    module = name.removesuffix(".weight")
    from transformers.pytorch_utils import Conv1D

    layer = base.skeleton.get_submodule(module)
    if not isinstance(layer, nn.Linear | Conv1D | nn.Embedding):
        raise CheckpointError(
            f"adapter {source}: {module} is a {type(layer).__name__}; only Linear, Conv1D and "
            "Embedding layers are supported; fold it in with peft's merge_and_unload"
        )
    a, b = files[keys["A"]], files[keys["B"]]
    rank = int(_setting(config, "rank_pattern", "r", module))
    alpha = float(_setting(config, "alpha_pattern", "lora_alpha", module))
    if a.dim() != 2 or b.dim() != 2 or a.shape[0] != rank or b.shape[1] != rank:
        raise CheckpointError(
            f"adapter {source}: factors of {name} have shapes {tuple(a.shape)} and "
            f"{tuple(b.shape)}, adapter_config.json says rank {rank}; save the adapter again"
        )
    # The layer's kind decides, as in peft, which corrects a wrong fan_in_fan_out.
    transposed = not isinstance(layer, nn.Linear)
    product = (b.shape[0], a.shape[1])
    shape = product[::-1] if transposed else product
    if torch.Size(shape) != base.shape(name):
        raise CheckpointError(
            f"adapter {source}: B @ A of {name} has shape {shape}, the base {base.source} has "
            f"{tuple(base.shape(name))}; it belongs to another base"
        )
    scale = alpha / (math.sqrt(rank) if config.get("use_rslora") else rank)
    return Factors(a, b, scale, transposed)


def _setting(config: Mapping[str, Any], pattern: str, default: str, module: str) -> Any:
    """Returns a layer's own rank or alpha: the first pattern that matches the end of its name."""
    for key, value in (config.get(pattern) or {}).items():
        if re.match(rf"(.*\.)?({key})$", module):
            return value
    return config[default]


def adapter_sha256(path: Path) -> str:
    """Returns the identity of the adapter in `path`, as `Adapter` has it; raises as `open`."""
    return _identity(WeightFiles.find(path, adapter=True), _read_config(path))


def _identity(files: WeightFiles, config: Mapping[str, Any]) -> str:
    """Returns the hash of weights and scaling options; where the base lay does not count."""
    options: Iterable[str] = ("r", "lora_alpha", "rank_pattern", "alpha_pattern", "use_rslora")
    if not _has_product(config):
        options = config.keys() - set(_ELSEWHERE)
    scaling = json.dumps({key: config.get(key) for key in options}, sort_keys=True)
    return hashlib.sha256(f"{files_sha256(files.files)} {scaling}".encode()).hexdigest()
