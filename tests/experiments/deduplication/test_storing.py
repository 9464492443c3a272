"""What the zoo gives back is what the substitution says: shards, ties, dtypes, kills."""

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from experiments.deduplication.models import DedupModel
from experiments.deduplication.storing import check_name, cut, store
from merging.checkpoints.checkpoint import same_bytes
from merging.checkpoints.privacy_record import read_record
from merging.checkpoints.weight_files import WeightFiles
from merging.deduplication.substitution import Candidates, Substitution
from merging.privacy.ledger import Ledger
from merging.weight_names import made_here
from merging.zoo.errors import ZooError
from merging.zoo.piecing import Piece
from merging.zoo.store import Zoo
from tests import builders

MAKERS: dict[str, Callable[..., Path]] = {
    "tied, in shards": lambda path, **o: builders.qwen2(path, shards=True, **o),
    "bfloat16": lambda path, **o: builders.llama(path, dtype=torch.bfloat16, **o),
    "renamed": builders.gpt_neox,
    "images": builders.vit_classifier,
}


def opened(path: Path, size: int) -> DedupModel:
    return DedupModel.open(path.name, str(path), size)


def substituted(target: DedupModel, bases: list[DedupModel], seed: int) -> Substitution:
    candidates = Candidates.of(target.blocks, [base.blocks for base in bases])
    count = len(target.blocks)
    gone = np.random.default_rng(seed).choice(count, count * 2 // 3, replace=False)
    now = Substitution.none(candidates)
    for group in np.array_split(gone, 3):
        now = now.substitute(group.tolist())
    return now


@pytest.mark.parametrize("kind", MAKERS)
@pytest.mark.parametrize("size", [100, 512])
def test_a_stored_model_is_the_substituted_one_to_the_bit(
    kind: str, size: int, tmp_path: Path
) -> None:
    base = opened(MAKERS[kind](tmp_path / "base"), size)
    target = opened(MAKERS[kind](tmp_path / "target", like=tmp_path / "base", seed=1), size)
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    now = substituted(target, [base], size)
    store(zoo, "small", target, [base], now, Ledger(unrecorded=("all",)))
    zoo.export("small", tmp_path / "out")
    out, rebuilt = opened(tmp_path / "out", size), now.weights()
    assert list(out.checkpoint) == list(target.checkpoint)
    for name in target.checkpoint:
        assert same_bytes(out.checkpoint[name], rebuilt[name])
    assert set(WeightFiles.find(tmp_path / "out")) == set(WeightFiles.find(tmp_path / "target"))
    record = read_record(tmp_path / "out")
    assert record is not None
    assert record.unrecorded == ("all",)
    others = {"dedup.json", "privacy.json", "README.md"}
    others |= {path.name for path in (tmp_path / "target").iterdir()}
    assert {path.name for path in (tmp_path / "out").iterdir()} == others
    assert {model.name for model in zoo.models()} == {"base", "small"}
    zoo.gc()
    assert zoo.check() == []
    whole = zoo.add(tmp_path / "target", "whole", base="base")
    small = zoo.model("small").own_bytes
    kept = len(now.kept) * size * target.blocks.dtype.itemsize
    assert small < kept + target.blocks.untouched * 8 + 100_000 < whole.bytes + 200_000


def test_the_same_again_is_left_alone_and_another_of_the_name_refused(tmp_path: Path) -> None:
    base = opened(builders.llama(tmp_path / "base"), 256)
    target = opened(builders.llama(tmp_path / "target", like=tmp_path / "base", seed=1), 256)
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    now = substituted(target, [base], 0)
    for _ in range(2):
        zoo.add(tmp_path / "target", "small.whole")  # as a killed start leaves it
        check_name(zoo, "small", target, [base])
        store(zoo, "small", target, [base], now, Ledger())
        assert {model.name for model in zoo.models()} == {"base", "small"}
        check_name(zoo, "small", target, [base])
    with pytest.raises(ZooError, match=r"small is in the zoo .* already.*: choose another suffix"):
        store(zoo, "small", target, [base], substituted(target, [base], 1), Ledger())
    with pytest.raises(ZooError, match="or with another privacy record: choose another suffix"):
        store(zoo, "small", target, [base], now, Ledger(unrecorded=("base",)))
    with pytest.raises(ZooError, match=r"base is in the zoo .* already, made of other models"):
        check_name(zoo, "base", target, [base])
    for name, lender in {"small": target, "a/b": base}.items():
        with pytest.raises(ZooError, match=r"choose another suffix|cannot name a model"):
            check_name(zoo, name, target, [lender])


def test_blocks_and_files_are_those_of_the_models_meant_whatever_others_are_called(
    tmp_path: Path,
) -> None:
    """The zoo has another model called base, and one of the target's weights."""
    base, target = builders.llama(tmp_path / "base"), tmp_path / "target"
    builders.llama(target, like=base, seed=1)
    shutil.copytree(target, tmp_path / "alike")
    for name in ("README.md", "recipe.json", "training.json", "vocabulary.txt"):
        (target / name).write_text("the target's")
        (tmp_path / "alike" / name).write_text("another's")
    zoo, others = (Zoo.open(tmp_path / name, create=True) for name in ("zoo", "others"))
    zoo.add(builders.llama(tmp_path / "stranger", like=base, seed=2), "base")
    zoo.add(tmp_path / "alike", "alike")
    others.add(base, "base")
    models = DedupModel.open("base", f"zoo:{others.directory}/base", 256), opened(target, 256)
    now = substituted(models[1], [models[0]], 0)
    store(zoo, "small", models[1], [models[0]], now, Ledger(unrecorded=("base",)))
    zoo.export("small", tmp_path / "out")
    rebuilt, out = now.weights(), opened(tmp_path / "out", 256)
    assert all(same_bytes(out.checkpoint[name], rebuilt[name]) for name in rebuilt)
    assert {one.name for one in zoo.models()} == {"base", "base-2", "alike", "small"}
    assert (tmp_path / "out" / "vocabulary.txt").read_text() == "the target's"
    card = (tmp_path / "out" / "README.md").read_text()
    assert "target's" not in card
    assert "Not private" in card
    assert [path.name for path in made_here(tmp_path / "out")] == ["dedup.json"]


def test_bytes_of_pieces() -> None:
    raw = {7: bytes(range(10)), 9: bytes(range(100, 120))}
    pieces = [Piece(7, 2, 5), Piece(9, 0, 20), Piece(7, 0, 3)]
    whole = b"".join(raw[p.block][p.start : p.start + p.length] for p in pieces)
    for start in range(len(whole)):
        for length in range(len(whole) - start + 1):
            parts = cut(pieces, start, length)
            assert all(part.length for part in parts)
            found = b"".join(raw[p.block][p.start : p.start + p.length] for p in parts)
            assert found == whole[start : start + length]
