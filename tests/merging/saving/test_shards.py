"""Weight files written tensor by tensor, and what a kill meanwhile leaves: nothing."""

from __future__ import annotations

import os
import signal
import weakref
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.saving import shards
from merging.saving.save import _write, save_model, staged
from merging.weights import CheckpointError, LazyWeights
from merging.zoo.layout import DTYPES
from tests import builders


class Typed(dict[str, torch.Tensor]):
    def dtype(self, name: str) -> torch.dtype:
        return self[name].dtype

    def shape(self, name: str) -> torch.Size:
        return self[name].shape

    def nbytes(self, name: str) -> int:
        return self[name].nbytes


def test_the_bytes_are_those_of_safetensors_for_every_dtype(tmp_path: Path) -> None:
    tensors = Typed()
    for dtype in DTYPES.values():
        values = torch.arange(-3, 3).to(dtype)
        tensors |= {f"b.{dtype}": values.view(2, 3), f"ä/{dtype}": values[:0].clone()}
        tensors[f"a.{dtype}"] = values[2].clone()
    written: Any = tensors
    shards._write_shard(written, {f"model.{n}": n for n in tensors}, tmp_path / "ours")
    whole = {f"model.{name}": tensor for name, tensor in tensors.items()}
    save_file(whole, tmp_path / "theirs", metadata={"format": "pt"})
    assert (tmp_path / "ours").read_bytes() == (tmp_path / "theirs").read_bytes()


class Counted(LazyWeights):
    """Copies of a checkpoint's tensors; knows how many of them were there at a time."""

    def __init__(self, own: Checkpoint) -> None:
        super().__init__(own)
        self._own = own
        self._read: weakref.WeakSet[torch.Tensor] = weakref.WeakSet()
        self.most = 0

    def _tensor(self, name: str) -> torch.Tensor:
        tensor = self._own[name].clone()
        self._read.add(tensor)
        self.most = max(self.most, len(self._read))
        return tensor


def test_a_file_of_many_tensors_needs_memory_for_few(tmp_path: Path) -> None:
    own = Checkpoint.open(str(builders.llama(tmp_path / "base")))
    weights = Counted(own)
    out = tmp_path / "out"
    out.mkdir()
    _write(own, weights, out, None, 10**9)
    assert set(load_file(out / "model.safetensors")) == set(own.stored)
    assert weights.most <= 2


def _dies_at(moment: int, base: Path, out: Path) -> None:
    """Saves a merge, and is killed as it reads the tensor of that number."""
    pool = ExpertPool.open(str(base), {"same": str(base)})

    class Fatal(Counted):
        def _tensor(self, name: str) -> torch.Tensor:
            if list(self).index(name) == moment:
                os.kill(os.getpid(), signal.SIGKILL)
            return super()._tensor(name)

    save_model(pool, Fatal(pool.base), out, shard_bytes=40_000)


def test_a_kill_leaves_no_output_and_the_same_again_finishes(tmp_path: Path) -> None:
    base, out = builders.llama(tmp_path / "base"), tmp_path / "models" / "out[1]"
    pool = ExpertPool.open(str(base), {"same": str(base)})
    for moment in (0, len(pool.names) // 2, len(pool.names) - 1):
        process = get_context("fork").Process(target=_dies_at, args=(moment, base, out))
        process.start()
        process.join()
        assert process.exitcode == -signal.SIGKILL
        assert not out.exists()
        assert len(list(out.parent.iterdir())) == 1, "of the last start alone"
    save_model(pool, pool.base_weights(), out, shard_bytes=40_000)
    assert list(out.parent.iterdir()) == [out]
    assert len(list(out.glob("*.safetensors"))) > 1


def test_who_is_at_work_keeps_the_draft(tmp_path: Path) -> None:
    def begin_again_meanwhile() -> None:
        with staged(tmp_path / "out") as first, staged(tmp_path / "out") as second:
            assert first.exists()
            second.joinpath("config.json").touch()

    with pytest.raises(CheckpointError, match="not empty"):
        begin_again_meanwhile()
    assert (tmp_path / "out" / "config.json").exists()
