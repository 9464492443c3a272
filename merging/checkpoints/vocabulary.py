"""One vocabulary for base and experts whose tokens or ids differ: rows are moved by token.

``union``: all tokens. The base's keep their ids; those that only experts have follow, in the order
of the experts and of their ids. ``base``: the base's tokens; others are left out by name.

A row belongs to a token. A model that has the token brings its own row; one that lacks it takes
the base's, so that it changes nothing there. Of a token that the base lacks, the base's row is
that of the one expert that has it, or the mean over those that have it. Rows without a token
(padding) stay the base's. A token is a model's where its id is below the model's ``vocab_size``;
under ``union`` one that only the base's tokenizer has keeps its id.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from merging.checkpoints import naming
from merging.checkpoints.architecture import architecture_of
from merging.checkpoints.inputs import tokens_in
from merging.checkpoints.token_files import (
    completed,
    tokenizer_json,
    tokenizers_sha256,
    united,
    write_tokenizer,
)
from merging.checkpoints.weight_files import WeightFiles
from merging.weights import CheckpointError

if TYPE_CHECKING:
    from transformers import PreTrainedConfig, PreTrainedModel

logger = logging.getLogger(__name__)

RULES = ("refuse", "union", "base")


class TokenOwner(NamedTuple):
    """One model as its user named it, where it lies, and what its config.json says."""

    source: str
    path: Path
    config: PreTrainedConfig
    architecture: type[PreTrainedModel]

    @classmethod
    def of(
        cls, source: str, path: Path, config: PreTrainedConfig, *, encoder: bool = False
    ) -> TokenOwner:
        """Returns a model with the class that it is opened as."""
        return cls(source, path, config, architecture_of(path, config, encoder=encoder))

    @property
    def size(self) -> int | None:
        """Rows of tokens; None where the configuration names none."""
        return getattr(self.config.get_text_config(), "vocab_size", None)

    def check_size(self) -> None:
        """Raises CheckpointError where its configuration has no vocabulary of its own."""
        if self.size is None or self.config.get_text_config() is not self.config:
            raise CheckpointError(
                f"{self.source}: the configuration of model_type {self.config.model_type!r} has "
                "no vocab_size of its own, so its vocabulary cannot be changed; use experts with "
                "the base's tokens"
            )


@dataclass(frozen=True)
class Vocabulary:
    """The tokens that base and whole experts are brought to.

    Args:
        rule: ``union`` or ``base``.
        sha256: of the files that ids, rows and tokenizer follow from.
        base: how the base's rows are moved; None: they stay as they are.
        experts: the same for each expert by name.
    """

    rule: str
    sha256: str
    base: Rows | None
    experts: Mapping[str, Rows | None]

    @classmethod
    def over(cls, rule: str, base: TokenOwner, experts: Mapping[str, TokenOwner]) -> Vocabulary:
        """Returns the common vocabulary of a base and its whole experts; reads no weights.

        Raises:
            CheckpointError: an unknown rule; a tokenizer that lacks or cannot be united; a model
                whose class or configuration does not tell which rows are its tokens'.
        """
        if rule not in RULES:
            raise CheckpointError(f"vocabulary={rule} is unknown: expected {', '.join(RULES)}")
        contents = {name: tokenizer_json(member.path) for name, member in experts.items()}
        own = tokenizer_json(base.path)
        sizes = {member.size for member in (base, *experts.values())}
        if own is None and (any(contents.values()) or len(sizes) > 1):
            raise CheckpointError(
                f"base {base.source} brings no tokenizer that can be read, so vocabulary={rule} "
                "has no tokens to go by; put the tokenizer's files into its directory"
            )
        own = own or {}
        ids = tokens_in(own)
        paths = [member.path for member in experts.values()]
        sha256 = tokenizers_sha256(rule, [base.path, *paths])
        alike = len(sizes) == 1 and all(
            c is None or tokens_in(c) == ids for c in contents.values()
        )
        if alike and not (rule == "union" and completed(base.path, paths, ids, base.size)):
            return cls(rule, sha256, None, dict.fromkeys(experts))
        for member in (base, *experts.values()):
            member.check_size()
        owned = {token: i for token, i in ids.items() if i < base.config.vocab_size}
        rows = {
            name: _rows_of(member, contents[name], base, ids) for name, member in experts.items()
        }
        new = [token for held in rows.values() for token in held if token not in owned]
        new = list(dict.fromkeys(new)) if rule == "union" else []
        first = max(ids.values(), default=-1) + 1
        added = [token for token in new if token not in ids]  # others have an id, and no row
        common = ids if rule == "union" else owned
        common = common | {token: first + i for i, token in enumerate(added)}
        size = max([base.config.vocab_size, *(common[token] + 1 for token in new)])
        inputs = None
        if rule == "union" and (new or completed(base.path, paths, common, size)):
            others = [content for content in contents.values() if content is not None]
            content = united(own, others, common)
            inputs = write_tokenizer(base.path, paths, content, sha256, common, size)
        _tell(rule, rows, owned)
        return _moved(rule, sha256, base, experts, rows, common, new, size, inputs)


def _rows_of(
    member: TokenOwner, content: Mapping[str, Any] | None, base: TokenOwner, ids: Mapping[str, int]
) -> dict[str, int]:
    """Returns token to row of one expert, in the order of its rows."""
    size = member.config.vocab_size
    if content is None and size != base.config.vocab_size:
        raise CheckpointError(
            f"expert {member.source} has {size} rows of tokens, the base {base.source} has "
            f"{base.config.vocab_size}, and it brings no tokenizer that says which they are; put "
            "the tokenizer's files into its directory"
        )
    own = ids if content is None else tokens_in(content)
    return {token: own[token] for token in sorted(own, key=own.__getitem__) if own[token] < size}


def _tell(rule: str, rows: Mapping[str, Mapping[str, int]], ids: Mapping[str, int]) -> None:
    fate = {"union": "which join it", "base": "which are left out"}[rule]
    for name, held in rows.items():
        if new := [repr(token) for token in held if token not in ids]:
            told = "expert %r has %d tokens that the base lacks, %s (%s)"
            logger.warning(told, name, len(new), fate, naming.listing(new))


def _moved(
    rule: str,
    sha256: str,
    base: TokenOwner,
    experts: Mapping[str, TokenOwner],
    rows: Mapping[str, Mapping[str, int]],
    common: Mapping[str, int],
    new: Sequence[str],
    size: int,
    inputs: Path | None,
) -> Vocabulary:
    lacked = set(new)
    own = {t: i for t, i in common.items() if t not in lacked and i < base.config.vocab_size}
    floor = Rows.of(size, own, common, inputs)
    stored = floor.over(WeightFiles.find(base.path), base.architecture, base.config)
    moved: dict[str, Rows | None] = {}
    holders = []
    for name, member in experts.items():
        each = moved[name] = Rows.of(size, rows[name], common, inputs)
        each.rest = stored.rows_first
        raw = each.over(WeightFiles.find(member.path), member.architecture, member.config)
        holders.append((raw, [rows[name].get(token, -1) for token in new]))
    as_is = not new and size == base.config.vocab_size
    if not as_is:
        floor.rest = _Floor(stored, size, [common[token] for token in new], holders)
    for name, member in experts.items():
        if as_is and rows[name] == own and member.config.vocab_size == size:
            moved[name] = None
    return Vocabulary(rule, sha256, None if as_is and inputs is None else floor, moved)


@dataclass(eq=False)
class Rows:
    """How the rows of one model are moved to common ids.

    Args:
        size: rows of the common vocabulary.
        targets: ``(moved,)`` int64, common ids of the tokens that the model has.
        sources: ``(moved,)`` int64, its own ids of these.
        inputs: directory of the common tokenizer; None: the base's own.
        rest: common name of a tensor -> ``(size, ...)``, what the other rows hold; None: the
            model's own rows at their place.
    """

    size: int
    targets: Tensor
    sources: Tensor
    inputs: Path | None
    rest: Callable[[str], Tensor] | None = None

    @classmethod
    def of(
        cls,
        size: int,
        own: Mapping[str, int],
        common: Mapping[str, int],
        inputs: Path | None,
    ) -> Rows:
        """Returns the rows of a model, of which `own` has those with a token."""
        kept = [(common[token], row) for token, row in own.items() if token in common]
        targets, sources = torch.tensor(kept, dtype=torch.int64).reshape(-1, 2).T
        return cls(size, targets, sources, inputs)

    def resized(self, config: PreTrainedConfig) -> PreTrainedConfig:
        """Returns the configuration with the common number of tokens."""
        return _of_size(config, self.size)

    def over(
        self, stored: WeightFiles, architecture: type[PreTrainedModel], config: PreTrainedConfig
    ) -> RowFiles:
        """Returns the weights of a directory with their rows moved; `config` is the model's own.

        Raises CheckpointError where the class has no rows of tokens, or the file none of these.
        """
        return RowFiles(stored, self, architecture, config)


class RowFiles(WeightFiles):
    """Tensors by the names of the files, those with a row for each token moved to common ids."""

    def __init__(
        self,
        stored: WeightFiles,
        rows: Rows,
        architecture: type[PreTrainedModel],
        config: PreTrainedConfig,
    ) -> None:
        vars(self).update(vars(stored))
        self._rows = rows
        skeleton = naming.skeleton(architecture, config)
        dims = _dims(skeleton, architecture, config)
        renamed, _ = naming.renamed(skeleton, list(stored))
        self._dims = {file: dims[name] for file, name in renamed.items() if name in dims}
        inside = f"{architecture.base_model_prefix}."
        by_name = {name: file for file, name in renamed.items() if name in dims}
        for pair in naming.tied(skeleton).items():  # either name may be that of the file
            for name, other in (pair, pair[::-1]):
                if other in by_name:
                    by_name.setdefault(name, by_name[other])
        self._files = {name.removeprefix(inside): file for name, file in by_name.items()}
        self._common = {file: name for name, file in self._files.items()}
        missing = [name for name in dims if name not in by_name]
        wrong = [f for f, dim in self._dims.items() if stored.shape(f)[dim] != config.vocab_size]
        if missing or wrong or not dims:
            raise CheckpointError(
                f"{stored.files[0].parent}: {architecture.__name__} does not tell which rows are "
                f"those of its tokens ({naming.listing(missing + wrong)}); use experts with the "
                "base's tokens"
            )

    def shape(self, name: str) -> torch.Size:
        """Returns a tensor's shape without reading the tensor."""
        shape = list(super().shape(name))
        if name in self._dims:
            shape[self._dims[name]] = self._rows.size
        return torch.Size(shape)

    def own_rows(self, common: str) -> Tensor:
        """Returns a tensor as it is stored, by its common name, ``(own rows, ...)``."""
        file = self._files[common]
        return super()._tensor(file).movedim(self._dims[file], 0)

    def rows_first(self, common: str) -> Tensor:
        """Returns a tensor with its rows moved, by its common name, ``(size, ...)``."""
        if common not in self._files:
            raise CheckpointError(
                f"{self.files[0].parent} has no {common}, of which an expert has a row for each "
                "token; use experts fine-tuned from this base"
            )
        file = self._files[common]
        return self._tensor(file).movedim(self._dims[file], 0)

    def _tensor(self, name: str) -> Tensor:
        if name not in self._dims:
            return super()._tensor(name)
        rows, common = self._rows, self._common[name]
        own = self.own_rows(common)
        rest = own if rows.rest is None else rows.rest(common)
        moved = rest.to(torch.promote_types(rest.dtype, own.dtype), copy=True)
        moved[rows.targets] = own[rows.sources].to(moved.dtype)
        return moved.movedim(0, self._dims[name]).contiguous()


@dataclass(frozen=True, eq=False)
class _Floor:
    """The base's rows, and behind or in its padding those of the tokens that it lacks.

    Args:
        new: common ids of these tokens.
        holders: an expert's weights, and its row of every new token; -1: it has none.
    """

    base: RowFiles
    size: int
    new: Sequence[int]
    holders: Sequence[tuple[RowFiles, Sequence[int]]]

    def __call__(self, common: str) -> Tensor:
        own = self.base.own_rows(common)
        rows = own.new_zeros((self.size, *own.shape[1:]))
        rows[: len(own)] = own
        total = torch.zeros((len(self.new), *own.shape[1:]))
        counts = torch.zeros((len(self.new), *[1] * (own.dim() - 1)))
        for files, held in self.holders:
            has = torch.tensor(held) >= 0
            if has.any():
                total[has] += files.own_rows(common)[torch.tensor(held)[has]].float()
                counts[has] += 1
        rows[torch.tensor(self.new)] = (total / counts).to(rows.dtype)
        return rows


def _of_size(config: PreTrainedConfig, size: int) -> PreTrainedConfig:
    resized = copy.deepcopy(config)
    resized.vocab_size = size
    return resized


def _dims(
    skeleton: PreTrainedModel, architecture: type[PreTrainedModel], config: PreTrainedConfig
) -> dict[str, int]:
    """Returns tensor to the axis of its rows: that which grows with the vocabulary."""
    larger = naming.skeleton(architecture, _of_size(config, config.vocab_size + 1)).state_dict()
    dims = {}
    for name, tensor in skeleton.state_dict().items():
        for dim, (length, longer) in enumerate(zip(tensor.shape, larger[name].shape, strict=True)):
            if length != longer:
                dims[name] = dim
    return dims
