"""A Hugging Face checkpoint as a lazy mapping from the module's names to tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor, nn
from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

from merging.checkpoints import naming
from merging.checkpoints.architecture import (
    POOLER,
    architecture_of,
    is_classifier_config,
    read_config,
)
from merging.checkpoints.hashing import files_sha256
from merging.checkpoints.quiet import quiet_transformers as quiet_transformers
from merging.checkpoints.sources import resolve
from merging.checkpoints.vocabulary import Rows
from merging.checkpoints.weight_files import WeightFiles
from merging.weights import CheckpointError, LazyWeights

logger = logging.getLogger(__name__)

_TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "vocab.txt",
    "vocab.json",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
)


class Checkpoint(LazyWeights):
    """Weights of one checkpoint by the names of its module's ``state_dict``; data read on access.

    Tied tensors appear once, under the first of their names; as in transformers, tensors are tied
    that the configuration ties and the file does not hold with different values. Tensors keep the
    dtype of the file.
    Where transformers renames tensors between file and module, names are the module's; where it
    converts them (Mixtral fuses its experts), the weights are loaded through the class and held.

    Attributes:
        source: as the user named it.
        path: its directory on this machine.
        skeleton: its class without data, on the meta device.
        stored: the tensors by the names of the files.
        file_names: module name -> name in the file, in the module's order; None where converted.
        unused: names in the file that the class is known not to read: heads of multi-token
            prediction, towers that another class has.
        trusted: whether code that the repository brings may run.
        rows: how its rows are moved to other tokens than its own; None: they are not.
    """

    def __init__(
        self,
        source: str,
        path: Path,
        config: PreTrainedConfig,
        architecture: type[PreTrainedModel],
        *,
        encoder: bool = False,
        trusted: bool = False,
        rows: Rows | None = None,
    ):
        self.source, self.path = source, path
        self.rows, self._own_config = rows, config
        self.config = config if rows is None else rows.resized(config)
        self.architecture = architecture
        self.skeleton = naming.skeleton(architecture, self.config)
        self.trusted = trusted
        self._encoder = encoder
        self.stored = self._files()
        self._absent: tuple[str, ...] = ()
        names = naming.match(self.skeleton, self.stored)
        self.unused = tuple(
            naming.unused(self.skeleton, self.stored) if names is None else names.unused
        )
        self.file_names = None if names is None else self._settle(names)
        self._weights: Mapping[str, Tensor] = self.stored
        if self.file_names is None:
            logger.info("%s: transformers converts its tensors, so all are loaded", source)
            self._weights = self._load_all()
        self._keys = self.file_names or {name: name for name in self._weights}
        super().__init__(self._keys)
        self._check_skeleton()

    @classmethod
    def open(
        cls,
        source: str,
        *,
        revision: str | None = None,
        trust_remote_code: bool = False,
        encoder: bool = False,
        rows: Rows | None = None,
    ) -> Checkpoint:
        """Returns the checkpoint; reads configuration and headers, no weights.

        Args:
            source: a local directory or a Hugging Face id.
            revision: branch, tag or commit of an id.
            trust_remote_code: whether code that the repository brings may run.
            encoder: only what transformers' AutoModel takes of it: the model without its head.
            rows: moves its rows to common tokens.

        Raises:
            CheckpointError: missing, damaged, quantised or of unknown kind; names file or tensor.
        """
        path = resolve(source, revision)
        config = read_config(path, trust_remote_code=trust_remote_code)
        architecture = architecture_of(path, config, encoder=encoder)
        return cls(
            source,
            path,
            config,
            architecture,
            encoder=encoder,
            trusted=trust_remote_code,
            rows=rows,
        )

    @cached_property
    def sha256(self) -> str:
        """Identity of the weight files by their bytes; see `files_sha256`."""
        return files_sha256(self.files)

    def hash(self, on_bytes: Callable[[int], object]) -> None:
        """Finds `sha256` out; `on_bytes` as for `files_sha256`, of `file_bytes` in all."""
        self.__dict__["sha256"] = files_sha256(self.files, on_bytes)

    @property
    def file_bytes(self) -> int:
        """The size of the weight files."""
        return sum(file.stat().st_size for file in self.files)

    @property
    def inputs(self) -> Path:
        """The directory of its tokenizer and generation settings."""
        moved = None if self.rows is None else self.rows.inputs
        return self.path if moved is None else moved

    @property
    def changed(self) -> dict[str, Any]:
        """Entries of the configuration that are not those of its file."""
        size = self.config.vocab_size if self.rows is not None else None
        same = self.rows is None or size == self._own_config.vocab_size
        return {} if same else {"vocab_size": size}

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return self.stored.files

    @cached_property
    def aliases(self) -> dict[str, str]:
        """Name left out because it is tied -> the name that is kept."""
        return naming.tied(self.skeleton)

    @property
    def is_classifier(self) -> bool:
        """Whether it carries a classification head of its own."""
        return not self._encoder and is_classifier_config(self.config)

    @property
    def prefix(self) -> str:
        """Where the model without its head sits in the names: ``bert.``; empty for an encoder."""
        prefix: str = self.skeleton.base_model_prefix
        return f"{prefix}." if prefix and hasattr(self.skeleton, prefix) else ""

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading it."""
        if self.file_names is None:
            return self._weights[name].shape
        return self.stored.shape(self._keys[name])

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype in the file without reading it."""
        if self.file_names is None:
            return self._weights[name].dtype
        return self.stored.dtype(self._keys[name])

    def _tensor(self, name: str) -> Tensor:
        return self._weights[self._keys[name]]

    def module(self, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Returns a new module with these weights, in evaluation mode, without gradients."""
        module, _ = self._load(dtype)
        for child in self._absent:
            setattr(module, child, None)
        return module.to(device).eval().requires_grad_(False)

    def tokenizer(self) -> Any | None:
        """Returns the tokenizer; None where the checkpoint brings none."""
        if not any((self.inputs / name).is_file() for name in _TOKENIZER_FILES):
            return None
        return transformers.AutoTokenizer.from_pretrained(self.inputs)

    def image_processor(self) -> Any | None:
        """Returns the image processor; None where the checkpoint brings none."""
        files = ("preprocessor_config.json", "processor_config.json")
        if not any((self.path / name).is_file() for name in files):
            return None
        processors: Any = transformers.AutoImageProcessor
        try:
            return processors.from_pretrained(self.path)
        except (OSError, ValueError):  # that of sounds, or a tokenizer's alone
            return None

    def _settle(self, names: naming.Naming) -> dict[str, str]:
        """Returns module name -> file name, or refuses by name what does not fit."""
        missing, extra = names.missing, names.extra
        if self._encoder:
            inside = f"{self.architecture.base_model_prefix}."
            if any(name.startswith(inside) for name in self.stored):
                extra = [name for name in extra if name.startswith(inside)]
            if not any(name.startswith(POOLER) for name in names.keys):
                self._absent = tuple({POOLER[:-1] for n in missing if n.startswith(POOLER)})
                missing = [name for name in missing if not name.startswith(POOLER)]
        self._refuse_names(missing, extra)
        own = {}
        for name, first, second in names.twins:
            if same_bytes(self.stored[first], self.stored[second]):
                continue
            if not naming.untie(self.skeleton, name):
                raise CheckpointError(
                    f"{self.source} holds {first} and {second} with different values, which are "
                    f"one tensor of {self.architecture.__name__} ({name}); "
                    "leave out the one that is not meant"
                )
            own[name] = second
        keys = names.keys | own
        return {name: keys[name] for name in self.skeleton.state_dict() if name in keys}

    def _refuse_names(self, missing: list[str], extra: list[str]) -> None:
        kind = self.architecture.__name__
        if missing:
            raise CheckpointError(
                f"{self.source} lacks {len(missing)} tensors that {kind} needs: "
                f"{naming.listing(missing)}; its config.json and weights do not belong together"
            )
        if extra:
            raise CheckpointError(
                f"{self.source} holds {len(extra)} tensors that {kind} does not know: "
                f"{naming.listing(extra)}; its config.json and weights do not belong together"
            )

    def _check_skeleton(self) -> None:
        """Compares shapes and kinds with what the configuration builds."""
        state = self.skeleton.state_dict()
        for name in self._keys:
            shape, wanted = self.shape(name), state[name].shape
            if shape != wanted:
                raise CheckpointError(
                    f"{self.source}: {name} has shape {tuple(shape)}, its config.json asks for "
                    f"{tuple(wanted)}; they do not belong together"
                )
            if state[name].is_floating_point() and not self.dtype(name).is_floating_point:
                raise CheckpointError(
                    f"{self.source}: {name} is stored as {self.dtype(name)}, so it seems "
                    "quantised; use the checkpoint in full precision"
                )

    def _load_all(self) -> dict[str, Tensor]:
        dtype = self.config.dtype
        if not isinstance(dtype, torch.dtype):
            dtype = self.stored.dtype(next(iter(self.stored)))
        try:
            module, report = self._load(dtype)
        except RuntimeError as error:
            if "report" not in str(error):  # that of shapes, which `load` keeps quiet
                raise
            raise CheckpointError(
                f"{self.source}: transformers cannot make a {self.architecture.__name__} of these "
                "tensors; its config.json and weights do not belong together"
            ) from error
        aliases = naming.tied(module)
        for alias in set(naming.tied(self.skeleton)) - set(aliases):
            naming.untie(self.skeleton, alias)
        missing = sorted(name for name in report["missing_keys"] if name not in aliases)
        mismatched = sorted(str(entry[0]) for entry in report["mismatched_keys"])
        self._refuse_names(missing + mismatched, sorted(report["unexpected_keys"]))
        return {n: t for n, t in module.state_dict().items() if n not in aliases}

    def _load(self, dtype: torch.dtype) -> tuple[nn.Module, dict[str, Any]]:
        """Loads the tensors of `stored` through the class.

        By name and value, not by path: transformers would choose among the files by itself, and
        attach an adapter that lies beside them. Opened anew: the module's parameters lie in the
        file's pages where dtypes agree, and what is written there must not be read as the base's.
        """
        files = self._files()
        state = {name: files[name] for name in files if name not in self.unused}
        return load(self.architecture, self.config, dtype, self.inputs, state)

    def _files(self) -> WeightFiles:
        stored = WeightFiles.find(self.path)
        if self.rows is None:
            return stored
        return self.rows.over(stored, self.architecture, self._own_config)


def load(
    architecture: Any,
    config: PreTrainedConfig,
    dtype: torch.dtype,
    path: Path,
    state: dict[str, Tensor],
) -> tuple[nn.Module, dict[str, Any]]:
    """Returns a new module, and transformers' report of what it found; says nothing itself.

    Quietly: names are compared before, and more refused than a report would. The global random
    state is left alone.

    Args:
        path: directory of its generation settings.
        state: its weights by the names that a file would have.
    """
    with torch.random.fork_rng(devices=[]), quiet_transformers():
        loaded = architecture.from_pretrained(
            None,
            config=config,
            state_dict=state,
            dtype=dtype,
            generation_config=_generation_config(path),
            output_loading_info=True,
        )
    module, report = loaded
    return module, report


def _generation_config(path: Path) -> GenerationConfig:
    """Returns the settings beside a model, as transformers finds them: BART's in config.json."""
    try:
        return GenerationConfig.from_pretrained(path)
    except OSError:
        return GenerationConfig.from_pretrained(
            path, config_file_name="config.json", _from_model_config=True
        )


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )
