"""A merged model on disk: loads with ``from_pretrained``, and appears whole or not at all."""

from __future__ import annotations

import fcntl
import glob
import logging
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import torch
from safetensors import SafetensorError

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.expert import CheckpointExpert
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.naming import listing
from merging.checkpoints.privacy_record import write_record
from merging.checkpoints.token_files import copy_tokenizer
from merging.files import apply_umask
from merging.privacy.ledger import Ledger
from merging.saving.configuration import write_config
from merging.saving.shards import MergedWeights, TypedWeights, write_weights
from merging.saving.side_files import copy_side_files
from merging.stacks.depth import Restacked
from merging.stacks.layer_stack import StackedWeights
from merging.stacks.layers import LayerMap
from merging.weights import CheckpointError, Weights

logger = logging.getLogger(__name__)

SHARD_BYTES = 5 * 10**9


def save_model(
    pool: ExpertPool,
    weights: Weights,
    out: Path,
    *,
    dtype: torch.dtype | None = None,
    card: str | None = None,
    ledger: Ledger | None = None,
    shard_bytes: int = SHARD_BYTES,
    beside: Callable[[Path], object] = lambda model: None,
) -> None:
    """Writes the merged model: weights in safetensors, README.md, and what lies beside the base's.

    What `weights` does not hold keeps the base's value; so do tensors in the base's file that its
    class does not use. Classifiers: `out` is the merged encoder
    (AutoModel), ``out/heads/<expert>`` the whole classifier of each expert around it.

    Args:
        weights: every tensor of ``pool.names``; computed one at a time as they are written. A
            stack of another depth than the base's: those of its own layers instead.
        out: directory to create; its parents are created too.
        dtype: of every float tensor; None: each as in the base.
        card: text of README.md; None: a short one that names base and experts.
        ledger: what its private data cost, for ``privacy.json``; None: what every expert's has.
        beside: writes what else belongs into the directory, which appears with it.
        shard_bytes: largest size of a weight file; a tensor alone may be larger.

    Raises:
        CheckpointError: `out` exists; it cannot be written; `weights`
            lacks a tensor, has an unknown one or one of another shape.
    """
    _check_target(out)
    ledger = Ledger.of_experts(pool, pool.expert_names) if ledger is None else ledger
    like = _like(pool, weights)
    _check_names(pool, weights, like)
    _tell_unused(pool, like)
    with staged(out) as draft:
        _write(like, MergedWeights(like, weights, ""), draft, dtype, shard_bytes)
        (draft / "README.md").write_text(card or _card(pool), encoding="utf-8")
        for name in pool.heads:
            expert = pool.experts[name]
            assert isinstance(expert, CheckpointExpert)
            classifier = expert.checkpoint
            head = draft / "heads" / name
            head.mkdir(parents=True)
            merged = MergedWeights(classifier, weights, classifier.prefix)
            _write(classifier, merged, head, dtype, shard_bytes)
            own = Ledger.of_experts(pool, [name])
            write_ledger(head, ledger.joined(ledger.beyond(own)))
        write_ledger(draft, ledger)
        beside(draft)


def write_ledger(directory: Path, ledger: Ledger) -> None:
    """Writes ``privacy.json`` beside the weights in `directory`, unrecorded experts and all."""
    write_record(directory, ledger.record(), words=ledger.sentences())


def carry_record(source: Path, copy: Path) -> None:
    """Writes what a copy of a model inherits, however its weights were rounded; if anything.

    Raises PrivacyRecordError: the record in `source` is broken.
    """
    ledger = Ledger.of_base(source, "the model it was copied from")
    if ledger.spends or ledger.unrecorded:
        write_ledger(copy, ledger)


def saved_bytes(
    pool: ExpertPool, dtype: torch.dtype | None, *, weights: Weights | None = None
) -> int:
    """Returns the size of the weights that `save_model` writes, every head's encoder included.

    None: the dtype of each tensor, and the layers, of the base.
    """
    like = _like(pool, weights)
    encoder = TypedWeights(like, like, dtype)
    return sum(map(encoder.nbytes, encoder)) * (1 + len(pool.heads))


def _tell_unused(pool: ExpertPool, like: Checkpoint | Restacked) -> None:
    """Says what becomes of tensors that no merge can read through the class."""
    base, full = pool.base, [e for e in pool.experts.values() if isinstance(e, CheckpointExpert)]
    lost = {base.source: set(base.unused) - set(like.unused)}
    lost |= {e.source: set(e.checkpoint.unused) - set(base.unused) for e in full}
    told = "%s holds %d tensors that %s does not use (%s): %s"
    kind = base.kind
    if names := like.unused:
        fate = "the merged model has the base's, unchanged"
        logger.warning(told, base.source, len(names), kind, listing(names), fate)
    for source, others in lost.items():
        if others:
            logger.warning(told, source, len(others), kind, listing(sorted(others)), "left out")


def _like(pool: ExpertPool, weights: Weights | None) -> Checkpoint | Restacked:
    """Returns the base, or what it would be with the layers of a stack."""
    if not isinstance(weights, StackedWeights):
        return pool.base
    kinds = LayerMap.of(pool.base).kinds
    same = tuple(kinds[origin] for origin in weights.origins) == kinds
    return pool.base if same else Restacked(pool.base, weights.origins)


def _write(
    like: Checkpoint | Restacked,
    weights: Weights,
    directory: Path,
    dtype: torch.dtype | None,
    limit: int,
) -> None:
    """Writes `weights` as a checkpoint of the kind of `like`."""
    tensors = TypedWeights(like, weights, dtype)
    write_weights(like, tensors, directory, limit)
    own, saved = TypedWeights(like, weights, None).main_dtype(), tensors.main_dtype()
    write_config(
        like.path,
        directory,
        architecture=like.kind,
        dtype=None if saved == own else saved,
        changed=like.changed,
        reader=lambda: type(like.config),
    )
    copy_side_files(like.path, directory, code=like.trusted)
    if like.inputs != like.path:
        copy_tokenizer(like.inputs, directory)


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


def _check_target(out: Path) -> None:
    try:
        if not out.exists() or (out.is_dir() and not any(out.iterdir())):
            return
    except OSError as error:
        raise _unwritable(out, error) from error
    raise CheckpointError(f"{out} exists; choose another directory")


@contextmanager
def staged(out: Path) -> Iterator[Path]:
    """Yields a directory beside `out` that becomes `out` at the end, or vanishes on any error.

    What a killed process has left of another start is removed.
    """
    out = out.absolute()
    draft: Path | None = None
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        for left in out.parent.glob(f".{glob.escape(out.name)}.*.part"):
            with _alone(left) as dead:
                if dead:
                    shutil.rmtree(left, ignore_errors=True)
        draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", suffix=".part", dir=out.parent))
        with _alone(draft):
            yield draft
            apply_umask(draft)
            if out.exists():
                out.rmdir()
            os.replace(draft, out)
    except (OSError, SafetensorError) as error:
        raise _unwritable(out, error) from error
    finally:
        if draft is not None:
            shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def _alone(directory: Path) -> Iterator[bool]:
    """Locks a directory against other processes; yields whether that could be done."""
    try:
        opened = os.open(directory, os.O_RDONLY)
    except OSError:  # gone meanwhile
        yield False
        return
    try:
        fcntl.flock(opened, fcntl.LOCK_EX | fcntl.LOCK_NB)
        alone = True
    except OSError:  # held, or the file system has no locks: then nobody tells who is alive
        alone = False
    try:
        yield alone
    finally:
        os.close(opened)


def _unwritable(out: Path, error: Exception) -> CheckpointError:
    reason = getattr(error, "strerror", None) or error
    return CheckpointError(
        f"cannot write the model to {out} ({reason}); free space there or choose another directory"
    )


def _card(pool: ExpertPool) -> str:
    head = "---\nlibrary_name: transformers\ntags:\n- merge\n---\n# Merged model\n\n"
    return f"{head}{ingredients(pool)}\n"


def ingredients(pool: ExpertPool) -> str:
    """Returns base and experts as Markdown; of folders their names, which tell no path."""
    experts = "\n".join(f"- {name}: `{_shown(s)}`" for name, s in pool.sources.items())
    return f"Base: `{_shown(pool.base.source)}`\n\nExperts:\n{experts}"


def _shown(source: str) -> str:
    return Path(source).resolve().name if Path(source).exists() else source
