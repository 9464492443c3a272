"""Statistics of experts' data on disk: a safetensors file per kind and expert, read by tensor."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, TypeAlias, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from merging.checkpoints.hashing import file_sha256
from merging.checkpoints.privacy_record import PrivacyRecord, PrivacySpend
from merging.files import apply_umask
from merging.method import MergeError

StatisticsKind: TypeAlias = Literal["gram", "fisher"]

_KEY = "evomerge"  # all metadata under one key: safetensors writes several in random order


class StatisticsError(MergeError):
    """Statistics that are missing or do not fit; names expert, file and the remedy."""


@dataclass(frozen=True)
class Origin:
    """What a statistics file was gathered from; equal origins, equal statistics.

    Args:
        kind: ``gram``: mean of ``x x^T`` over the inputs x of every linear layer; ``fisher``:
            mean of the squared gradients of the log-likelihood.
        expert: content sha256 of the expert.
        base: content sha256 of its base: an adapter means nothing without it.
        data: digest of the items as the model read them.
        dtype: of the model while they were gathered, for example ``float32``.
        seed: of the labels that were sampled; 0 for Gram matrices.
        tokens: their tokens together; 0 for images.
        transposed: parameters that are stored as (in, out).
        averaged: parameters without a Gram matrix: no weight of a linear layer.
        privacy: price of a release with noise, as `PrivacySpend.to_json` gives it; None: as they
            are, a function of the data without any guarantee. Of a release `data` is the name of
            the data set, and `tokens` is 0: both would tell of the items.
    """

    kind: StatisticsKind
    expert: str
    base: str
    data: str
    dtype: str
    seed: int
    items: int
    tokens: int
    transposed: tuple[str, ...] = ()
    averaged: tuple[str, ...] = ()
    privacy: Mapping[str, Any] | None = None

    def to_json(self) -> dict[str, Any]:
        """Returns the origin as JSON; the same as ever where nothing is guaranteed."""
        content = dataclasses.asdict(self)
        if self.privacy is None:
            del content["privacy"]
        return content


def path_of(directory: Path, kind: StatisticsKind, expert: str) -> Path:
    """Returns the file of an expert with content sha256 `expert`."""
    return directory / f"{kind}-{expert[:16]}.safetensors"


def write_statistics(directory: Path, origin: Origin, tensors: Mapping[str, Tensor]) -> Path:
    """Writes the file of one expert in one piece; equal content gives equal bytes.

    `tensors`: parameter name to Gram matrix ``(in, in)`` or Fisher ``(*shape)``, float32, CPU.
    Raises StatisticsError where the file cannot be written.
    """
    path = path_of(directory, origin.kind, origin.expert)
    draft = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    metadata = {_KEY: json.dumps(origin.to_json(), sort_keys=True)}
    try:
        save_file(dict(tensors), draft, metadata=metadata)
        apply_umask(draft)
        os.replace(draft, path)
    except (OSError, SafetensorError) as error:
        raise StatisticsError(
            f"{path} cannot be written ({error}): free space there or name another directory"
        ) from error
    finally:
        draft.unlink(missing_ok=True)
    return path


def read_origin(path: Path) -> Origin:
    """Returns what a file was gathered from; raises StatisticsError if it is damaged."""
    return _Opened(path).origin


def records_of(directory: Path) -> dict[str, tuple[str, PrivacyRecord | None]]:
    """Returns file name -> (sha256, what it cost) of all statistics; None: no release with noise.

    Raises:
        StatisticsError: a file is damaged.
        PrivacyRecordError: its record is.
    """
    records: dict[str, tuple[str, PrivacyRecord | None]] = {}
    paths = [path for kind in get_args(StatisticsKind) for path in directory.glob(f"{kind}-*")]
    for path in sorted(paths):
        privacy = read_origin(path).privacy
        record = None if privacy is None else PrivacyRecord((PrivacySpend.from_json(privacy),))
        records[path.name] = file_sha256(path), record
    return records


def digests_of(directory: Path, kind: StatisticsKind) -> dict[str, str]:
    """Returns name -> sha256 of the files of a kind; raises StatisticsError if there is none."""
    if not directory.is_dir():
        raise StatisticsError(
            f"statistics directory {directory} does not exist: {_remedy(directory, kind)}"
        )
    return {path.name: file_sha256(path) for path in sorted(directory.glob(f"{kind}-*"))}


class Statistics:
    """Statistics of one kind in a directory; a file is opened and checked at its first use.

    Args:
        directory: as `write_statistics` filled it.
        digests: file name to the sha256 that its content must have.
    """

    def __init__(self, directory: Path, kind: StatisticsKind, digests: Mapping[str, str]) -> None:
        self._directory, self._kind, self._digests = directory, kind, digests
        self._opened: dict[str, _Opened] = {}

    def origin(self, expert: str) -> Origin:
        """Returns what an expert's statistics were gathered from; raises as `read`."""
        return self._open(expert).origin

    def read(self, expert: str, name: str, shape: torch.Size) -> Tensor:
        """Returns the statistic of one parameter, float32 on the CPU.

        Raises:
            StatisticsError: the file is missing, corrupt, of other content than `digests` say, or
                of another expert; it lacks the tensor, or has it in another shape.
        """
        opened = self._open(expert)
        if name not in opened.names:
            raise StatisticsError(
                f"{opened.path} holds nothing for tensor {name!r} of expert {expert[:12]}, so it "
                f"was gathered with another pool: {self._again}"
            )
        tensor: Tensor = opened.file.get_tensor(name)
        if tensor.shape != shape:
            raise StatisticsError(
                f"{opened.path}: tensor {name!r} of expert {expert[:12]} has shape "
                f"{tuple(tensor.shape)}, expected {tuple(shape)}: {self._again}"
            )
        return tensor

    @property
    def _again(self) -> str:
        return _remedy(self._directory, self._kind)

    def _open(self, expert: str) -> _Opened:
        if expert not in self._opened:
            self._opened[expert] = self._checked(expert)
        return self._opened[expert]

    def _checked(self, expert: str) -> _Opened:
        path = path_of(self._directory, self._kind, expert)
        if not path.is_file():
            moved = "if it moved, name its directory in the recipe's method; else "
            raise StatisticsError(
                f"no statistics of expert {expert[:12]}: {path} does not exist: "
                f"{moved if path.name in self._digests else ''}{self._again}"
            )
        wanted, found = self._digests.get(path.name), file_sha256(path)
        if found != wanted:
            raise StatisticsError(
                f"{path} (expert {expert[:12]}) has content {found[:12]}, the merge was described "
                f"with {wanted[:12] if wanted else 'no such file'}: put the file of that content "
                f"there, or describe the merge anew once you {self._again}"
            )
        opened = _Opened(path)
        if (opened.origin.kind, opened.origin.expert) != (self._kind, expert):
            raise StatisticsError(
                f"{path} holds {opened.origin.kind} of expert {opened.origin.expert[:12]}, "
                f"expected {self._kind} of {expert[:12]}: {self._again}"
            )
        return opened


class _Opened:
    """A file whose header has been read."""

    def __init__(self, path: Path) -> None:
        self.path = path
        try:
            file: Any = safe_open(str(path), framework="pt")
            content: dict[str, Any] = json.loads((file.metadata() or {})[_KEY])
            for key in ("transposed", "averaged"):
                content[key] = tuple(content[key])
            self.origin = Origin(**content)
            self.names = frozenset(file.keys())
            self.file = file
        except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
            raise StatisticsError(
                f"{path} is no statistics file or is damaged ({error!r}): delete it and gather "
                "again with write_statistics"
            ) from error


def _remedy(directory: Path, kind: StatisticsKind) -> str:
    return f"gather {kind} of these experts into {directory} with write_statistics"
