"""Do these experts fit this base? Answered from configurations and headers, before any work."""

import logging
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from merging.checkpoints.architecture import POOLER
from merging.checkpoints.checkpoint import Checkpoint, same_bytes
from merging.checkpoints.inputs import differences
from merging.checkpoints.naming import listing
from merging.checkpoints.outlines import MEANINGS, SIZES
from merging.weights import CheckpointError, Weights

logger = logging.getLogger(__name__)


def check_expert_names(names: Sequence[str]) -> None:
    """Raises CheckpointError where there are no experts or a name cannot name a directory."""
    if not names:
        raise CheckpointError("the pool has no experts; name at least one under experts")
    for name in names:
        if not name or name.startswith(".") or "/" in name or "\\" in name:
            raise CheckpointError(
                f"expert name {name!r} cannot be used in paths and reports; "
                "leave out slashes and a leading dot"
            )


def check_known(chosen: Sequence[str], known: Sequence[str]) -> None:
    """Raises CheckpointError unless `chosen` are experts of the pool, each at most once."""
    if not chosen:
        raise CheckpointError("no experts are selected; select at least one")
    unknown = [name for name in chosen if name not in known]
    if unknown:
        raise CheckpointError(
            f"no expert is named {unknown[0]!r}; the pool has {', '.join(known)}"
        )
    name, count = Counter(chosen).most_common(1)[0]
    if count > 1:
        raise CheckpointError(f"expert {name!r} is named {count} times; name each expert once")


def check_same_kind(names: Sequence[str], heads: Sequence[str]) -> None:
    """Raises CheckpointError where classifiers and other models are mixed in one pool."""
    others = [name for name in names if name not in heads]
    if heads and others:
        raise CheckpointError(
            f"expert {heads[0]!r} is a classifier and expert {others[0]!r} is none; "
            "merge one kind at a time"
        )


def check_config(base: Checkpoint, name: str, expert: Checkpoint) -> None:
    """Raises CheckpointError where architecture, layers, vocabulary or sizes differ."""
    who = f"expert {name!r} ({expert.source})"
    described, wanted = expert.described, base.described
    if described.model_type != wanted.model_type:
        raise CheckpointError(
            f"{who} is of architecture {described.model_type!r}, the base {base.source} of "
            f"{wanted.model_type!r}; all experts must be fine-tuned from one base"
        )
    for field in (*SIZES, *MEANINGS):
        own, of_base = described.entries[field], wanted.entries[field]
        if own != of_base and field in SIZES:
            rules = ", or vocabulary=union or base" if field == "vocab_size" else ""
            raise CheckpointError(
                f"{who} has {own} {SIZES[field]} ({field}), the base {base.source} has "
                f"{of_base}; use experts fine-tuned from this base{rules}"
            )
        if own != of_base:
            logger.warning(
                "%s has %s=%s, the merged model keeps the base's %s", who, field, own, of_base
            )


def warn_of_inputs(base: Checkpoint, name: str, source: str, path: Path, *, moved: bool) -> None:
    """Warns where an expert reads other tokens or images than the base, whose files are kept.

    Args:
        moved: the expert's tokens are moved to common ids, which are not compared.
    """
    try:
        found = list(differences(base.path, path, base.inputs if moved else None))
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        found = [f"files of its tokenizer in an unknown form ({error!r})"]
    if found:
        logger.warning(
            "expert %r (%s) has %s; tokenizer, template and preprocessing of the merged model are "
            "the base's: use experts that were trained with these",
            name,
            source,
            "; ".join(found),
        )


def check_tensors(base: Checkpoint, name: str, expert: Checkpoint) -> None:
    """Compares names and shapes; a classifier is compared without its head.

    Raises:
        CheckpointError: a tensor that one of them lacks, or of another shape; names it.
    """
    who = f"expert {name!r} ({expert.source})"
    prefix = expert.prefix if expert.is_classifier else ""
    if expert.is_classifier and not prefix:
        raise CheckpointError(
            f"{who}: {expert.kind} does not tell its encoder from its head "
            "(base_model_prefix), so the head cannot stay with its task"
        )
    own = {key.removeprefix(prefix): key for key in expert if key.startswith(prefix)}
    missing = [key for key in base if key not in own]
    extra = [key for key in own if key not in base]
    if prefix and not (_has_pooler(base) and _has_pooler(own)):
        missing = [key for key in missing if not key.startswith(POOLER)]
        extra = [key for key in extra if not key.startswith(POOLER)]
    for key in [key for key in extra if key in base.aliases]:
        if not same_bytes(expert[own[key]], expert[own[base.aliases[key]]]):
            raise CheckpointError(
                f"{who} unties {key} from {base.aliases[key]}, which are one tensor in the base "
                f"{base.source}; use experts fine-tuned from this base"
            )
        extra.remove(key)
    if missing:
        raise CheckpointError(
            f"{who} lacks {len(missing)} tensors of the base {base.source}: {listing(missing)}; "
            "use experts fine-tuned from this base"
        )
    if extra:
        raise CheckpointError(
            f"{who} has {len(extra)} tensors that the base {base.source} lacks: {listing(extra)}; "
            "use experts fine-tuned from this base"
        )
    for key in base:
        if key in own and expert.shape(own[key]) != base.shape(key):
            raise CheckpointError(
                f"{who}: {key} has shape {tuple(expert.shape(own[key]))}, the base {base.source} "
                f"has {tuple(base.shape(key))}; use experts fine-tuned from this base"
            )


def check_poolers(base: Checkpoint, encoders: Mapping[str, Weights]) -> None:
    """Raises CheckpointError where the base's pooler could be merged for some experts only."""
    without = [name for name, encoder in encoders.items() if not _has_pooler(encoder)]
    if _has_pooler(base) and without and len(without) < len(encoders):
        raise CheckpointError(
            f"expert {without[0]!r} has no pooler, other experts and the base {base.source} have; "
            "merge experts of one class at a time"
        )


def _has_pooler(names: Iterable[str]) -> bool:
    return any(name.startswith(POOLER) for name in names)
