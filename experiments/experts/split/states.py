"""States of several examples together, and folders that keep them as they are sent."""

import json
import os
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from merging.files import write_text


@dataclass(frozen=True, eq=False)
class States:
    """What is sent of some examples.

    Args:
        rows: ``(tokens of all, d)`` float32, one example after the other, finite.
        lengths: ``(examples,)`` int64: tokens of each, at least 1.
        labels: ``(examples,)`` int64; None: they are asked for.

    Raises:
        ValueError: shapes, dtypes or values are others.
    """

    rows: Tensor
    lengths: Tensor
    labels: Tensor | None = None

    def __post_init__(self) -> None:
        rows, lengths = self.rows, self.lengths
        if rows.ndim != 2 or rows.dtype != torch.float32 or not bool(rows.isfinite().all()):
            raise ValueError("states must be finite float32 numbers of shape (tokens, width)")
        for name, whole in {"lengths": lengths, "labels": self.labels}.items():
            if whole is not None and (
                whole.shape != (len(lengths),) or whole.dtype != torch.int64
            ):
                raise ValueError(f"{name} must be int64 numbers, one for each example")
        if not len(lengths) or int(lengths.min()) < 1 or int(lengths.sum()) != len(rows):
            raise ValueError("lengths must be at least 1 each, and together the number of states")

    @classmethod
    def of(cls, states: Sequence[Tensor], labels: Sequence[int] | None) -> "States":
        """Returns the states of examples, ``(T, d)`` each."""
        lengths = torch.tensor([len(each) for each in states])
        return cls(
            torch.cat(list(states)), lengths, None if labels is None else torch.tensor(labels)
        )

    @classmethod
    def read(
        cls, tensors: Mapping[str, Tensor], *, width: int, classes: int | None = None
    ) -> "States":
        """Returns what `tensors` wrote; ValueError: they are others than expected.

        Args:
            classes: labels count from 0 to below it; None: there are no labels.
        """
        names = {"states", "lengths"} | ({"labels"} if classes is not None else set())
        if set(tensors) != names:
            raise ValueError(f"tensors {sorted(tensors)}: expected {sorted(names)}")
        read = cls(tensors["states"], tensors["lengths"], tensors.get("labels"))
        if read.rows.shape[1] != width:
            raise ValueError(f"states have width {read.rows.shape[1]}, the model has {width}")
        if read.labels is not None and not bool(
            ((read.labels >= 0) & (read.labels < (classes or 0))).all()
        ):
            raise ValueError(f"a label is none of {classes} classes")
        return read

    def tensors(self) -> dict[str, Tensor]:
        """Returns all as tensors by name: what a message and a file hold."""
        named = {"states": self.rows, "lengths": self.lengths}
        return named if self.labels is None else {**named, "labels": self.labels}

    def apart(self) -> list[Tensor]:
        """Returns ``(T, d)`` for each example."""
        return list(self.rows.split(self.lengths.tolist()))  # type: ignore[no-untyped-call]


class StateFolder:
    """States on disk, batch by batch as they are sent, so that a killed process goes on.

    Args:
        identity: JSON values that tell these states from others.

    Raises:
        ValueError: the folder holds other states.
    """

    def __init__(self, folder: Path, identity: Mapping[str, Any]) -> None:
        self._folder = folder
        file = folder / "identity.json"
        if file.is_file():
            before = json.loads(file.read_text(encoding="utf-8"))
            if changed := [key for key in identity if before.get(key) != identity[key]]:
                key = changed[0]
                raise ValueError(
                    f"{folder} holds states of another {key} ({before.get(key)!r:.80} there, "
                    f"{identity[key]!r:.80} now): name another folder"
                )
            return
        folder.mkdir(parents=True, exist_ok=True)
        write_text(file, json.dumps(dict(identity), indent=2) + "\n")

    def __len__(self) -> int:
        """How many examples there are."""
        return sum(count for _, count, _ in self._files())

    def append(self, states: States) -> None:
        """Writes the next examples, in one piece."""
        path = self._folder / f"{len(self):08d}-{len(states.lengths)}.safetensors"
        draft = path.with_suffix(".tmp")
        draft.write_bytes(safetensors.torch.save(states.tensors()))
        os.replace(draft, path)

    def batches(self, after: int = 0) -> Iterator[States]:
        """Yields what was appended, in order, but for the first `after` examples.

        Raises ValueError: no batch begins there, or one is damaged.
        """
        files = self._files()
        if after != len(self) and after not in [first for first, _, _ in files]:
            raise ValueError(f"{self._folder} has no batch that begins at example {after}")
        for first, _, path in files:
            if first >= after:
                try:
                    tensors = safetensors.torch.load_file(path)
                except SafetensorError as error:
                    raise ValueError(
                        f"{path} is damaged ({error}): put it back from a copy, or begin in a new "
                        "folder"
                    ) from error
                yield States(tensors["states"], tensors["lengths"], tensors.get("labels"))

    def _files(self) -> list[tuple[int, int, Path]]:
        """Returns first example, number of examples and path of each file, in order."""
        paths = sorted(self._folder.glob("*-*.safetensors"))
        return [(int(path.stem[:8]), int(path.stem[9:]), path) for path in paths]


def padded(states: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Returns ``(examples, longest, d)`` and its mask, int64, of ``(T, d)`` each; zeros right."""
    lengths = torch.tensor([len(each) for each in states])
    mask = (torch.arange(int(lengths.max())) < lengths[:, None]).long()
    return pad_sequence(list(states), batch_first=True), mask
