"""One module that is one model of a zoo after the other: the bits of a model loaded anew."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from evaluators.engine.served_set import ServedSet
from merging.checkpoints.checkpoint import Checkpoint
from merging.weights import CheckpointError
from merging.zoo.blocks import Bytes
from merging.zoo.errors import ZooError
from merging.zoo.index import Row
from merging.zoo.piecing import Piece
from merging.zoo.store import Zoo
from tests import builders

LIMITS = 0, 60_000, 2**30
MODELS = "base", "tuned", "moved", "own", "same"


@dataclass(frozen=True)
class Served:
    """Served sets of the same models under every limit, and the models as they are when loaded."""

    zoo: Zoo
    sets: Mapping[int, ServedSet]
    fresh: Mapping[str, Mapping[str, Tensor]]


def state(checkpoint: str | Path) -> dict[str, Tensor]:
    return loaded(Checkpoint.open(str(checkpoint)).module(dtype=torch.bfloat16, device=CPU))


def loaded(module: torch.nn.Module) -> dict[str, Tensor]:
    return {name: tensor.clone() for name, tensor in module.state_dict().items()}


CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def served(tmp_path_factory: pytest.TempPathFactory) -> Served:
    folder = tmp_path_factory.mktemp("served")
    zoo = Zoo.open(folder / "zoo", create=True)
    options = {"dtype": torch.bfloat16, "tie": True}
    zoo.add(builders.llama(folder / "base", **options), "base")
    zoo.add(builders.llama(folder / "tuned", seed=1, **options), "tuned", base="base")
    beside = {file.name: file.raw() for file in zoo.files("base") if not file.entries}
    rng, pieces = np.random.default_rng(0), zoo.pieces("base")
    one, other = "model.layers.0.mlp.up_proj.weight", "model.layers.1.mlp.up_proj.weight"
    size = sum(piece.length for piece in pieces[one])
    half = [Piece(block, start, size // 2) for block, start, _ in pieces[one][:1]]
    zoo.add_pieces("moved", "base", {one: pieces[other], other: [*half, *half]}, beside)
    values = rng.normal(0, 0.1, size // 4).astype(np.float32).view(np.uint16)[1::2]
    new = {other: [values.tobytes(), *half]}
    zoo.add_pieces("own", "base", new, beside)
    zoo.add_pieces("same", "base", {}, beside)
    fresh = {}
    for name in MODELS:
        zoo.export(name, folder / "plain" / name)
        fresh[name] = state(folder / "plain" / name)
    sets = {limit: ServedSet(zoo, MODELS, cache_bytes=limit) for limit in LIMITS}
    return Served(zoo, sets, fresh)


def assert_is(served_set: ServedSet, fresh: Mapping[str, Tensor]) -> None:
    now = served_set.resident.module.state_dict()
    assert now.keys() == fresh.keys()
    for name, tensor in fresh.items():
        assert torch.equal(now[name].view(torch.uint8), tensor.view(torch.uint8)), name


@settings(deadline=None, max_examples=30)
@given(
    limit=st.sampled_from(LIMITS),
    requests=st.lists(st.sampled_from(MODELS), min_size=1, max_size=6),
)
def test_any_order_of_requests_gives_what_loading_gives(
    served: Served, limit: int, requests: list[str]
) -> None:
    """Bit by bit, and no more blocks are held than may be."""
    served_set = served.sets[limit]
    for model in requests:
        served_set.serve(model)
        assert_is(served_set, served.fresh[model])
        assert served_set.serve(model) == 0
        held = sum(len(raw) for raw in served_set.differences.blocks._cache.values())
        assert held <= limit


def test_only_what_differs_is_written(served: Served) -> None:
    served_set = served.sets[2**30]
    served_set.serve("base")
    assert served_set.serve("same") == 0
    size = served.fresh["base"]["model.layers.0.mlp.up_proj.weight"].nbytes
    assert served_set.serve("moved") == 2 * size
    assert served_set.serve("own") == size + size // 2  # its second half is where it was


def test_a_block_that_cannot_be_read_leaves_no_mixture_behind(
    served: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was half written when the error came is written anew, all of it."""
    served_set = served.sets[2**30]
    served_set.serve("base")
    blocks, reads = served_set.differences.blocks, iter(range(9))
    read = blocks.raw

    def failing(block: int, rows: Mapping[int, Row]) -> Bytes:
        if next(reads) == 5:
            raise ZooError("the pack is damaged")
        return read(block, rows)

    with monkeypatch.context() as patch:
        patch.setattr(blocks, "raw", failing)
        with pytest.raises(CheckpointError, match="is damaged"):
            served_set.serve("tuned")
    served_set.serve("base")
    assert_is(served_set, served.fresh["base"])


def test_what_cannot_take_turns_is_refused(served: Served, tmp_path: Path) -> None:
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    half = torch.bfloat16
    zoo.add(builders.llama(tmp_path / "base", dtype=half), "base")
    zoo.add(builders.llama(tmp_path / "wide", dtype=half, intermediate_size=128), "wide")
    zoo.add(builders.llama(tmp_path / "eps", dtype=half, rms_norm_eps=1e-2), "eps")
    zoo.add(builders.llama(tmp_path / "float"), "float")
    for other in ("wide", "eps"):
        with pytest.raises(CheckpointError, match=f"{other} has another configuration"):
            ServedSet(zoo, ["base", other])
    with pytest.raises(CheckpointError, match="float"):
        ServedSet(zoo, ["base", "float"])
    with pytest.raises(CheckpointError, match="absent is not in the served set"):
        served.sets[0].serve("absent")
