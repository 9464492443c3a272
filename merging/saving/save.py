"""A merged model on disk: loads with ``from_pretrained``, and appears whole or not at all."""

from __future__ import annotations

import copy
import json
import os
import shutil
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.expert import CheckpointExpert
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.naming import listing
from merging.checkpoints.privacy_record import write_record
from merging.files import apply_umask
from merging.privacy.ledger import Ledger
from merging.stacks.depth import Restacked
from merging.stacks.layer_stack import layers_of
from merging.weights import CheckpointError, LazyWeights, Weights

SHARD_BYTES = 5 * 10**9

_COPIED = (
    "generation_config.json",
    "tokenizer*",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.*",
    "merges.txt",
    "*.model",
    "*.tiktoken",
    "chat_template*",
    "additional_chat_templates",
    "preprocessor_config.json",
    "processor_config.json",
    "*.py",
)


def save_model(
    pool: ExpertPool,
    weights: Weights,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
    ledger: Ledger | None = None,
    overwrite: bool = False,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Writes the merged model: configuration, tokenizer, weights in safetensors, README.md.

    What `weights` does not hold keeps the base's value. Classifiers: `out` is the merged encoder
    (AutoModel), ``out/heads/<expert>`` the whole classifier of each expert around it.

    Args:
        weights: every tensor of ``pool.names``; computed one at a time as they are written. A
            stack of another depth than the base's: those of its own layers instead.
        out: directory to create; its parents are created too.
        dtype: of every float tensor; None: each as in the base.
        card: text of README.md; None: a short one that names base and experts.
        ledger: what its private data cost, for ``privacy.json``; None, or none of the experts
            has a record: no such file.
        overwrite: replace `out` where it holds a model.
        shard_bytes: largest size of a weight file; the most that is held in memory.

    Raises:
        CheckpointError: `out` exists and is not to be replaced; it cannot be written; `weights`
            lacks a tensor, has an unknown one or one of another shape.
    """
    _check_target(out, overwrite)
    like = _like(pool, layers_of(weights))
    _check_names(pool, weights, like)
    with staged(out, overwrite) as draft:
        _write(like, _Merged(like, weights, ""), draft, dtype, shard_bytes)
        (draft / "README.md").write_text(card or _card(pool), encoding="utf-8")
        for name in pool.heads:
            expert = pool.experts[name]
            assert isinstance(expert, CheckpointExpert)
            classifier = expert.checkpoint
            head = draft / "heads" / name
            head.mkdir(parents=True)
            merged = _Merged(classifier, weights, classifier.prefix)
            _write(classifier, merged, head, dtype, shard_bytes)
            write_ledger(head, ledger)
        write_ledger(draft, ledger)


def write_ledger(directory: Path, ledger: Ledger | None) -> None:
    """Writes ``privacy.json`` beside the weights in `directory`, where there is a record."""
    if ledger is not None and ledger.recorded:
        write_record(directory, ledger.record(), words=ledger.sentences())


def saved_bytes(pool: ExpertPool, dtype: torch.dtype | None, *, layers: int | None = None) -> int:
    """Returns the size of the weights that `save_model` writes, every head's encoder included.

    None: the dtype of each tensor, and as many layers, as in the base.
    """
    like = _like(pool, layers)
    encoder = sum(like.shape(name).numel() * (dtype or like.dtype(name)).itemsize for name in like)
    return encoder * (1 + len(pool.heads))


def _like(pool: ExpertPool, layers: int | None) -> Checkpoint | Restacked:
    """Returns the base, or what it would be with as many layers as a stack has."""
    if layers is None or layers == getattr(pool.base.config, "num_hidden_layers", None):
        return pool.base
    return Restacked(pool.base, layers)


def _write(
    like: Checkpoint | Restacked,
    weights: Weights,
    directory: Path,
    dtype: torch.dtype | None,
    limit: int,
) -> None:
    """Writes `weights` as a checkpoint of the kind of `like`."""
    for pattern in _COPIED:
        for path in sorted(like.path.glob(pattern)):
            copy_path = shutil.copytree if path.is_dir() else shutil.copyfile
            copy_path(path, directory / path.name)
    tensors = _Typed(like, weights, dtype)
    if like.file_names is None:
        module = like.module(dtype=tensors.main_dtype(), device=torch.device("cpu"))
        state = module.state_dict()
        for name, tensor in tensors.items():
            state[name].copy_(tensor)
        module.save_pretrained(directory, max_shard_size=limit)  # type: ignore[operator]
        return
    config = copy.deepcopy(like.config)
    config.architectures = [like.architecture.__name__]
    config.dtype = tensors.main_dtype()
    config.save_pretrained(directory)
    _write_shards(tensors, like.file_names, directory, limit)


def _write_shards(weights: _Typed, names: Mapping[str, str], directory: Path, limit: int) -> None:
    """Writes tensors under the names of the base's own files; holds one shard at a time."""
    shards: list[list[str]] = [[]]
    size = 0
    for name in weights:
        if shards[-1] and size + weights.nbytes(name) > limit:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += weights.nbytes(name)
    index: dict[str, str] = {}
    for i, shard in enumerate(shards):
        file = "model.safetensors"
        if len(shards) > 1:
            file = f"model-{i + 1:05d}-of-{len(shards):05d}.safetensors"
        tensors = _apart({names[name]: weights[name] for name in shard})
        save_file(tensors, directory / file, metadata={"format": "pt"})
        index.update(dict.fromkeys(tensors, file))
    if len(shards) > 1:
        total = sum(weights.nbytes(name) for name in weights)
        content = {"metadata": {"total_size": total}, "weight_map": index}
        text = json.dumps(content, indent=2, sort_keys=True) + "\n"
        (directory / "model.safetensors.index.json").write_text(text, encoding="utf-8")


def _apart(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    """Returns the tensors, copied where two share memory: a stack may repeat a layer."""
    seen: set[int] = set()
    for name, tensor in tensors.items():
        if tensor.data_ptr() in seen:
            tensors[name] = tensor.clone()
        seen.add(tensor.data_ptr())
    return tensors


class _Merged(LazyWeights):
    """A checkpoint with merged tensors in place of its own; `prefix` leads to where they sit."""

    def __init__(self, own: Checkpoint | Restacked, merged: Weights, prefix: str) -> None:
        super().__init__(own)
        self._own, self._merged = own, merged
        self._merged_names = {prefix + name: name for name in merged}

    def _tensor(self, name: str) -> Tensor:
        if name not in self._merged_names:
            return self._own[name]
        tensor = self._merged[self._merged_names[name]]
        if tensor.shape != self._own.shape(name):
            raise CheckpointError(
                f"merged tensor {name} has shape {tuple(tensor.shape)}, "
                f"{self._own.source} has {tuple(self._own.shape(name))}"
            )
        return tensor


class _Typed(LazyWeights):
    """Tensors as they will lie in the file: dtype settled, on the CPU, contiguous."""

    def __init__(
        self, like: Checkpoint | Restacked, weights: Weights, dtype: torch.dtype | None
    ) -> None:
        super().__init__(weights)
        self._like, self._weights, self._dtype = like, weights, dtype

    def dtype(self, name: str) -> torch.dtype:
        stored = self._like.dtype(name)
        return self._dtype if self._dtype is not None and stored.is_floating_point else stored

    def nbytes(self, name: str) -> int:
        return self._like.shape(name).numel() * self.dtype(name).itemsize

    def main_dtype(self) -> torch.dtype:
        """Returns the float dtype that most values have, which the configuration names."""
        counts: dict[torch.dtype, int] = {}
        for name in self:
            if self.dtype(name).is_floating_point:
                counts[self.dtype(name)] = counts.get(self.dtype(name), 0) + self.nbytes(name)
        return max(counts, key=lambda dtype: (counts[dtype], str(dtype)))

    def _tensor(self, name: str) -> Tensor:
        tensor = self._weights[name].detach()
        return tensor.to(device="cpu", dtype=self.dtype(name)).contiguous()


def _check_names(pool: ExpertPool, weights: Weights, like: Checkpoint | Restacked) -> None:
    given = set(weights)  # asking a lazy mapping whether it has a name would compute the tensor
    needed = like.needed(pool.names) if isinstance(like, Restacked) else pool.names
    missing = [name for name in needed if name not in given]
    if missing:
        raise CheckpointError(
            f"the merged weights lack {len(missing)} tensors: {listing(missing)}; "
            "give every tensor of pool.names"
        )
    unknown = [name for name in weights if name not in like]
    if unknown:
        raise CheckpointError(
            f"the merged weights hold {len(unknown)} tensors that the base {pool.base.source} "
            f"lacks: {listing(unknown)}"
        )


def _check_target(out: Path, overwrite: bool) -> None:
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise _unwritable(out, error) from error
    if not overwrite:
        raise CheckpointError(f"{out} exists; choose another directory, or allow to overwrite it")
    if not (out / "config.json").is_file():
        raise CheckpointError(
            f"{out} exists and holds no model, so it is not replaced; choose another directory"
        )


@contextmanager
def staged(out: Path, overwrite: bool = False) -> Iterator[Path]:
    """Yields a directory beside `out` that becomes `out` at the end, or vanishes on any error."""
    out = out.absolute()
    draft: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        yield draft
        apply_umask(draft)
        if overwrite and out.exists():
            old = draft.with_suffix(".old")
            os.replace(out, old)
            os.replace(draft, out)
            shutil.rmtree(old)
        else:
            if out.exists():
                out.rmdir()
            os.replace(draft, out)
    except (OSError, SafetensorError) as error:
        raise _unwritable(out, error) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


def _unwritable(out: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"cannot write the model to {out} ({reason}); free space there or choose another directory"
    )


def _card(pool: ExpertPool) -> str:
    head = "---\nlibrary_name: transformers\ntags:\n- merge\n---\n# Merged model\n\n"
    return f"{head}{ingredients(pool)}\n"


def ingredients(pool: ExpertPool) -> str:
    """Returns base and experts as Markdown."""
    experts = "\n".join(f"- {name}: `{source}`" for name, source in pool.sources.items())
    return f"Base: `{pool.base.source}`\n\nExperts:\n{experts}"
