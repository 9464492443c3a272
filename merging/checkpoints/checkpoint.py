"""A Hugging Face checkpoint as a lazy mapping from the module's names to tensors."""

from __future__ import annotations

import logging
from collections.abc import Callable, Collection, Mapping
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from merging.checkpoints import naming, outlines
from merging.checkpoints.architecture import POOLER, architecture_of, read_config
from merging.checkpoints.hashing import files_sha256
from merging.checkpoints.outlines import Described, Outline
from merging.checkpoints.quiet import quiet_transformers as quiet_transformers
from merging.checkpoints.sources import resolve
from merging.checkpoints.vocabulary import Rows
from merging.checkpoints.weight_files import WeightFiles
from merging.weights import CheckpointError, LazyWeights

if TYPE_CHECKING:
    from transformers import GenerationConfig, PreTrainedConfig, PreTrainedModel

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
    What the class said of such a configuration and such names is remembered (`Outline`), so that
    it is imported where it is needed alone.

    Attributes:
        source: as the user named it.
        path: its directory on this machine.
        described: what is compared of its configuration.
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
        *,
        encoder: bool = False,
        trusted: bool = False,
        rows: Rows | None = None,
    ):
        self.source, self.path, self.rows = source, path, rows
        self.trusted, self._encoder = trusted, encoder
        self.described = Described.read(path, trust_remote_code=trusted)
        if rows is not None:
            self.described = Described.of(self.config)
        self.stored = self._files()
        self._weights: Mapping[str, Tensor] = self.stored
        alone = rows is None and not trusted
        key = outlines.key(path, self.stored, encoder=encoder) if alone else None
        outline = Outline.recall(key) or self._ask(key)
        self.kind, self.aliases, self.prefix = outline.kind, outline.aliases, outline.prefix
        self.file_names, self.unused = outline.keys, outline.unused
        self._absent = outline.absent
        self._keys = self.file_names or {name: name for name in self._weights}
        super().__init__(self._keys)

    def _ask(self, key: str | None) -> Outline:
        """Asks the class, and remembers what does not depend on the tensors' values."""
        names = naming.match(self.skeleton, self.stored)
        unused = naming.unused(self.skeleton, self.stored) if names is None else names.unused
        keys, absent = (None, ()) if names is None else self._settle(names)
        if keys is None:
            logger.info("%s: transformers converts its tensors, so all are loaded", self.source)
            self._weights = self._load_all(unused)
        self._check_skeleton(keys)
        prefix: str = self.skeleton.base_model_prefix
        outline = Outline(
            kind=self.architecture.__name__,
            keys=keys,
            unused=tuple(unused),
            absent=absent,
            aliases=naming.tied(self.skeleton),
            prefix=f"{prefix}." if prefix and hasattr(self.skeleton, prefix) else "",
        )
        if names is not None and not names.twins:
            outline.remember(key, self.architecture)
        return outline

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
        return cls(source, path, encoder=encoder, trusted=trust_remote_code, rows=rows)

    @cached_property
    def _own_config(self) -> PreTrainedConfig:
        return read_config(self.path, trust_remote_code=self.trusted)

    @cached_property
    def config(self) -> PreTrainedConfig:
        """Its configuration, for as many tokens as it has rows."""
        return self._own_config if self.rows is None else self.rows.resized(self._own_config)

    @cached_property
    def architecture(self) -> type[PreTrainedModel]:
        """Its class."""
        return architecture_of(self.path, self._own_config, encoder=self._encoder)

    @cached_property
    def skeleton(self) -> PreTrainedModel:
        """Its class without data, on the meta device."""
        return naming.skeleton(self.architecture, self.config)

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
    def in_files(self) -> bool:
        """Whether tensors are read from files at every access: not decoded, not converted."""
        return self.file_names is not None and not self.stored.in_zoo

    @property
    def inputs(self) -> Path:
        """The directory of its tokenizer and generation settings."""
        moved = None if self.rows is None else self.rows.inputs
        return self.path if moved is None else moved

    @property
    def changed(self) -> dict[str, Any]:
        """Entries of the configuration that are not those of its file."""
        if self.rows is None or self.config.vocab_size == self._own_config.vocab_size:
            return {}
        return {"vocab_size": self.config.vocab_size}

    @property
    def files(self) -> tuple[Path, ...]:
        """The weight files."""
        return self.stored.files

    @property
    def is_classifier(self) -> bool:
        """Whether it carries a classification head of its own."""
        return not self._encoder and self.described.is_classifier

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading it."""
        return self._held(name, self.file_names)[0]

    def dtype(self, name: str) -> torch.dtype:
        """Returns a tensor's dtype in the file without reading it."""
        return self._held(name, self.file_names)[1]

    def _held(self, name: str, keys: Mapping[str, str] | None) -> tuple[torch.Size, torch.dtype]:
        if keys is None:
            return self._weights[name].shape, self._weights[name].dtype
        return self.stored.shape(keys[name]), self.stored.dtype(keys[name])

    def _tensor(self, name: str) -> Tensor:
        return self._weights[self._keys[name]]

    def module(self, *, dtype: torch.dtype, device: torch.device) -> nn.Module:
        """Returns a new module with these weights, in evaluation mode, without gradients."""
        module, _ = self._load(dtype, self.unused)
        for child in self._absent:
            setattr(module, child, None)
        return module.to(device).eval().requires_grad_(False)

    def tokenizer(self) -> Any | None:
        """Returns the tokenizer; None where the checkpoint brings none."""
        if not any((self.inputs / name).is_file() for name in _TOKENIZER_FILES):
            return None
        import transformers

        return transformers.AutoTokenizer.from_pretrained(self.inputs)

    def image_processor(self) -> Any | None:
        """Returns the image processor; None where the checkpoint brings none."""
        files = ("preprocessor_config.json", "processor_config.json")
        if not any((self.path / name).is_file() for name in files):
            return None
        import transformers

        processors: Any = transformers.AutoImageProcessor
        try:
            return processors.from_pretrained(self.path)
        except (OSError, ValueError):  # that of sounds, or a tokenizer's alone
            return None

    def _settle(self, names: naming.Naming) -> tuple[dict[str, str], tuple[str, ...]]:
        """Returns module name -> file name and absent children; refuses by name what is wrong."""
        missing, extra, absent = names.missing, names.extra, set[str]()
        if self._encoder:
            inside = f"{self.architecture.base_model_prefix}."
            if any(name.startswith(inside) for name in self.stored):
                extra = [name for name in extra if name.startswith(inside)]
            if not any(name.startswith(POOLER) for name in names.keys):
                absent = {POOLER[:-1] for name in missing if name.startswith(POOLER)}
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
        ordered = {name: keys[name] for name in self.skeleton.state_dict() if name in keys}
        return ordered, tuple(absent)

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

    def _check_skeleton(self, keys: Mapping[str, str] | None) -> None:
        """Compares shapes and kinds with what the configuration builds."""
        state = self.skeleton.state_dict()
        for name in keys or self._weights:
            shape, dtype = self._held(name, keys)
            wanted = state[name].shape
            if shape != wanted:
                raise CheckpointError(
                    f"{self.source}: {name} has shape {tuple(shape)}, its config.json asks for "
                    f"{tuple(wanted)}; they do not belong together"
                )
            if state[name].is_floating_point() and not dtype.is_floating_point:
                raise CheckpointError(
                    f"{self.source}: {name} is stored as {dtype}, so it seems "
                    "quantised; use the checkpoint in full precision"
                )

    def _load_all(self, unused: Collection[str]) -> dict[str, Tensor]:
        dtype = self.config.dtype
        if not isinstance(dtype, torch.dtype):
            dtype = self.stored.dtype(next(iter(self.stored)))
        try:
            module, report = self._load(dtype, unused)
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

    def _load(
        self, dtype: torch.dtype, unused: Collection[str]
    ) -> tuple[nn.Module, dict[str, Any]]:
        """Loads the tensors of `stored` through the class.

        By name and value, not by path: transformers would choose among the files by itself, and
        attach an adapter that lies beside them. Opened anew: the module's parameters lie in the
        file's pages where dtypes agree, and what is written there must not be read as the base's.
        """
        files = self._files()
        state = {name: files[name] for name in files if name not in unused}
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
            generation_config=_generation_config(architecture, path),
            output_loading_info=True,
        )
    module, report = loaded
    return module, report


def _generation_config(architecture: type[PreTrainedModel], path: Path) -> GenerationConfig:
    """Returns the settings beside a model, as transformers finds them: BART's in config.json."""
    kind = architecture.generation_config_class
    try:
        return kind.from_pretrained(path)
    except OSError:
        return kind.from_pretrained(path, config_file_name="config.json", _from_model_config=True)


def same_bytes(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors agree in shape, dtype and every bit."""
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    return torch.equal(
        a.contiguous().flatten().view(torch.uint8), b.contiguous().flatten().view(torch.uint8)
    )
