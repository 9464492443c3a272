"""What goes into a zoo comes out of it: bytes, tensors, identities; what is removed is freed."""

import os
import shutil
import tempfile
import tracemalloc
from pathlib import Path
from unittest import mock

import numpy as np
import pytest
import torch
import transformers
from hypothesis import given, settings
from hypothesis import strategies as st

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.hashing import files_sha256
from merging.checkpoints.sources import resolve
from merging.checkpoints.weight_files import WeightFiles
from merging.privacy.ledger import Ledger
from merging.weights import CheckpointError
from merging.zoo import index, layout
from merging.zoo.blocks import blocks_of, forget
from merging.zoo.errors import ZooError
from merging.zoo.store import Piece, Zoo
from merging.zoo.weights import ZooFile
from tests.merging.zoo.models import (
    BITS,
    Raw,
    bf16_model,
    contents,
    near,
    random_tensor,
    safetensors_bytes,
    write_model,
)


@pytest.fixture
def zoo(tmp_path: Path) -> Zoo:
    return Zoo.open(tmp_path / "zoo", create=True)


BLOCK = 2**14  # bytes, in place of 4 MiB


def shapes(bits: int) -> st.SearchStrategy[tuple[int, ...]]:
    """Shapes of whole bytes: none, scalar, empty, odd, and more than one block."""
    sizes = st.integers(0, 40)
    odd = st.lists(sizes, max_size=3).map(tuple)
    large = st.integers(0, 9).map(lambda more: (8 * BLOCK // bits + 8 * more,))
    grouped = st.integers(1, 300).map(lambda n: (n, 8))
    return (odd | large | grouped).filter(lambda shape: np.prod(shape) * bits % 8 == 0)


@st.composite
def tensors(draw: st.DrawFn) -> dict[str, Raw]:
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    dtypes = draw(st.lists(st.sampled_from(sorted(BITS)), max_size=6))
    return {
        f"t{i}": random_tensor(rng, dtype, draw(shapes(BITS[dtype])))
        for i, dtype in enumerate(dtypes)
    }


@settings(max_examples=15, deadline=None)
@given(
    tensors(),
    st.none() | st.dictionaries(st.text(max_size=3), st.text(max_size=3), max_size=2),
    st.integers(0, 9),
    st.integers(1, 3),
)
def test_every_file_comes_back_byte_for_byte(
    base: dict[str, Raw], metadata: dict[str, str] | None, padding: int, shards: int
) -> None:
    rng = np.random.default_rng(0)
    models = {"base": base, "near": {name: near(rng, raw) for name, raw in base.items()}}
    sizes = {"BLOCK": BLOCK, "_SMALL": 2**8, "_SHARED": 2**10}
    with tempfile.TemporaryDirectory() as place, mock.patch.multiple(layout, **sizes):
        folder = Path(place)
        zoo = Zoo.open(folder / "zoo", create=True)
        for model, named in models.items():
            parts = [dict(list(named.items())[i::shards]) for i in range(shards)]
            files = {
                f"model-{i}.safetensors": safetensors_bytes(part, metadata, padding)
                for i, part in enumerate(parts)
                if part
            }
            if len(files) < 2:
                files = {"model.safetensors": safetensors_bytes(named, metadata, padding)}
            write_model(folder / model, files, {"sub/a.txt": b"", "sub/b.bin": rng.bytes(99)})
            (folder / model / "empty").mkdir()
            zoo.add(folder / model, model)
            zoo.export(model, folder / f"{model} again")
            assert contents(folder / f"{model} again") == contents(folder / model)
            weights = zoo.weights(model)
            assert set(weights) == set(named)
            for tensor, (dtype, shape, raw) in named.items():
                if dtype in layout.DTYPES:
                    read = weights[tensor]
                    assert (tuple(read.shape), read.dtype) == (shape, layout.DTYPES[dtype])
                    assert read.reshape(-1).view(torch.uint8).numpy().tobytes() == raw
        assert zoo.check() == []


class TestAView:
    def test_is_the_model_it_stands_for(self, zoo: Zoo, tmp_path: Path) -> None:
        plain = bf16_model(tmp_path / "base")
        added = zoo.add(plain, "base")
        view = resolve(f"zoo:{zoo.directory}/base")
        read, wanted = WeightFiles.find(view), WeightFiles.find(plain)
        assert list(read) == list(wanted)
        for name in wanted:
            assert torch.equal(read[name].view(torch.int16), wanted[name].view(torch.int16))
            assert read.shape(name) == wanted.shape(name)
        assert files_sha256(read.files) == files_sha256(wanted.files) == added.sha256

    def test_is_made_again_after_the_zoo_was_moved_or_it_was_damaged(
        self, zoo: Zoo, tmp_path: Path
    ) -> None:
        plain = bf16_model(tmp_path / "base")
        zoo.add(plain, "base")
        zoo.view("base")
        (tmp_path / "elsewhere").mkdir()
        moved = shutil.move(zoo.directory, tmp_path / "elsewhere" / "moved")
        view = resolve(f"zoo:{moved}/base")
        assert torch.equal(WeightFiles.find(view)["w0"], WeightFiles.find(plain)["w0"])
        (view / "config.json").unlink()
        assert (resolve(f"zoo:{moved}/base") / "config.json").read_bytes() == b"{}"

    def test_follows_the_name(self, zoo: Zoo, tmp_path: Path) -> None:
        first = zoo.add(bf16_model(tmp_path / "a", 1), "it")
        zoo.view("it")
        zoo.remove("it")
        second = zoo.add(bf16_model(tmp_path / "b", 2), "it")
        assert first.sha256 != second.sha256
        assert files_sha256(WeightFiles.find(zoo.view("it")).files) == second.sha256


def test_near_models_take_less_and_the_nearest_base_is_found(zoo: Zoo, tmp_path: Path) -> None:
    one, two = bf16_model(tmp_path / "one", 1), bf16_model(tmp_path / "two", 2)
    whole = [zoo.add(one, "one"), zoo.add(two, "two")]
    tuned = zoo.add(bf16_model(tmp_path / "tuned", 3, of=two), "tuned")
    again = zoo.add(bf16_model(tmp_path / "again", 4, of=tmp_path / "tuned"), "again")
    assert [model.base for model in (*whole, tuned, again)] == [None, None, "two", "two"]
    assert tuned.stored_bytes < 0.6 * whole[1].stored_bytes
    same = zoo.add(one, "same")
    assert (same.stored_bytes, same.base) == (0, None)  # a difference to nothing
    assert zoo.add(tmp_path / "tuned", "tuned-again").base == "two"
    zoo.remove("two")
    zoo.add(one, "two")  # the name of another
    assert {model.base for model in zoo.models()} == {None}


@pytest.mark.parametrize(("ours", "theirs"), [("", "bert."), ("bert.", ""), ("bert.", "bert.")])
def test_an_encoder_and_the_same_with_a_head_are_near(
    zoo: Zoo, tmp_path: Path, ours: str, theirs: str
) -> None:
    rng = np.random.default_rng(0)
    base = {f"layer.{i}": random_tensor(rng, "F32", (200, 200)) for i in range(3)}
    tuned = {f"{theirs}{name}": near(rng, raw) for name, raw in base.items()}
    tuned["classifier.weight"] = random_tensor(rng, "F32", (2, 200))
    named = {f"{ours}{name}": raw for name, raw in base.items()}
    for name, tensors in (("base", named), ("tuned", tuned)):
        files = {"model.safetensors": safetensors_bytes(tensors)}
        zoo.add(write_model(tmp_path / name, files), name)
    assert [model.base for model in zoo.models()] == [None, "base"]
    assert zoo.model("tuned").own_bytes < 0.7 * zoo.model("base").bytes
    zoo.export("tuned", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "tuned")


def test_adding_holds_a_few_blocks(zoo: Zoo, tmp_path: Path) -> None:
    """Whatever the model's size, and also where it is stored as difference."""
    rng = np.random.default_rng(0)
    base = {f"w{i}": random_tensor(rng, "BF16", (2**10, 2**9)) for i in range(16)}
    for name in ("base", "tuned"):
        write_model(tmp_path / name, {"model.safetensors": safetensors_bytes(base)})
        base = {tensor: near(rng, raw) for tensor, raw in base.items()}
    with mock.patch.multiple(layout, BLOCK=2**16):
        zoo.add(tmp_path / "base", "base")
        zoo.add(tmp_path / "tuned", "first")  # compiles
        zoo.remove("first")
        zoo.gc()
        forget()
        tracemalloc.start()
        zoo.add(tmp_path / "tuned", "tuned")
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
    assert zoo.model("tuned").base == "base"
    assert 4 * peak < zoo.model("tuned").bytes


def test_what_is_removed_is_freed_and_nothing_else(zoo: Zoo, tmp_path: Path) -> None:
    base = bf16_model(tmp_path / "base")
    tuned = bf16_model(tmp_path / "tuned", 1, of=base)
    zoo.add(base, "base")
    zoo.add(tuned, "tuned")
    before = zoo.gc()
    own = {model.name: model.own_bytes for model in zoo.models()}
    zoo.remove("base")
    assert (before, zoo.gc()) == (0, 0)  # tuned needs it
    zoo.export("tuned", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tuned)
    zoo.add(base, "base")
    zoo.remove("tuned")
    assert zoo.gc() >= own["tuned"] - 1000  # its config lies in the index
    zoo.remove("base")
    zoo.gc()
    assert list((zoo.directory / "packs").iterdir()) == []
    assert zoo.check() == []


def test_little_that_is_removed_is_freed_too(zoo: Zoo, tmp_path: Path) -> None:
    """Of packs that others need most of, and of the index; what is said is what is freed."""
    rng = np.random.default_rng(0)
    tensors = {f"w{i}": random_tensor(rng, "F32", (200, 200)) for i in range(10)}
    for name in ("a", "b"):
        write_model(tmp_path / name, {"model.safetensors": safetensors_bytes(tensors)})
        zoo.add(tmp_path / name, name)
        tensors["w0"] = random_tensor(rng, "F32", (200, 200))
    for i in range(12):
        zoo.add_recipe({"noise": rng.bytes(12000).hex()}, f"r{i}", {})
    (zoo.directory / "packs" / "stray").mkdir()

    def size() -> int:
        return sum(path.stat().st_size for path in zoo.directory.rglob("*") if path.is_file())

    before = size()
    for name in ("a", *(f"r{i}" for i in range(12))):
        zoo.remove(name)
    assert zoo.gc() == before - size() > 160000 + 12 * 12000
    zoo.export("b", tmp_path / "out")
    assert contents(tmp_path / "out") == contents(tmp_path / "b")


def test_linked_folders_are_taken_and_what_is_not_is_named(
    zoo: Zoo, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plain, pooling = bf16_model(tmp_path / "m"), tmp_path / "pooling"
    (pooling / "deep").mkdir(parents=True)
    (pooling / "deep" / "config.json").write_text("{}")
    (plain / "1_Pooling").symlink_to(pooling)
    (pooling / "deep" / "back").symlink_to(plain)
    (plain / ".hidden").write_text("")
    added = zoo.add(plain, "m")
    assert set(added.left_out) == {".hidden", "1_Pooling/deep/back/"}
    zoo.export("m", tmp_path / "out")
    assert (tmp_path / "out" / "1_Pooling" / "deep" / "config.json").read_text() == "{}"
    scan = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("deep"):
            raise PermissionError(13, "Permission denied", str(path))
        return scan(path)

    monkeypatch.setattr(os, "scandir", refusing)
    with pytest.raises(ZooError, match=r"1_Pooling/deep cannot be read \(Permission denied\)"):
        zoo.add(plain, "again")


def test_opening_reads_headers_and_a_tensor_its_own_blocks(zoo: Zoo, tmp_path: Path) -> None:
    base = bf16_model(tmp_path / "base")
    zoo.add(base, "base")
    zoo.add(bf16_model(tmp_path / "tuned", 1, of=base), "tuned")
    forget()
    opened = WeightFiles.find(zoo.view("tuned"))
    assert blocks_of(zoo.directory).read_bytes == 0  # its header lies in the index
    assert opened["w1"].shape == (400, 400)
    with index.reading(zoo.directory) as connection:
        rows = index.rows(connection, [piece.block for piece in zoo.pieces("tuned")["w1"]])
    assert [row.base is None for row in rows.values()] == [False, True]
    assert blocks_of(zoo.directory).read_bytes == sum(row.stored for row in rows.values())


class TestPieces:
    def test_make_a_model_of_stored_and_new_bytes(self, zoo: Zoo, tmp_path: Path) -> None:
        base = bf16_model(tmp_path / "base")
        zoo.add(base, "base")
        new = np.random.default_rng(5).integers(0, 256, 1000, np.uint8)
        (block, start, length), *_ = zoo.pieces("base")["w1"]
        given = [Piece(block, start + 10, length - 1000), new]
        added = zoo.add_pieces(
            "made", "base", {"w0": given}, lambda sha256: {"id": sha256.encode()}
        )
        read, old = zoo.weights("made"), zoo.weights("base")
        raw = old["w1"].reshape(-1).view(torch.uint8).numpy().tobytes()
        wanted = raw[10 : 10 + length - 1000] + new.tobytes()
        assert read["w0"].reshape(-1).view(torch.uint8).numpy().tobytes() == wanted
        assert all(
            torch.equal(read[n].view(torch.int16), old[n].view(torch.int16))
            for n in old
            if n != "w0"
        )
        assert added.stored_bytes < 2000
        view = zoo.view("made")
        assert (
            (view / "id").read_text() == added.sha256 == files_sha256(WeightFiles.find(view).files)
        )
        zoo.export("made", tmp_path / "out")
        assert files_sha256([tmp_path / "out" / "model.safetensors"]) == added.sha256
        out = np.empty(100, np.uint8)
        zoo.read([Piece(block, 4, 60), Piece(block, 0, 40)], out)
        assert out.tobytes() == raw[4:64] + raw[:40]

    @pytest.mark.parametrize(
        ("pieces", "message"),
        [
            ({"w0": [b"short"]}, "w0 has 320000 bytes in base, its pieces have 5"),
            ({"other": [b""]}, "base has no tensor other"),
            ({"w0": [Piece(999, 0, 320000)]}, "of block 999 are not stored"),
            ({"w0": [Piece(1, 0, 320000)]}, "of block 1 are not stored"),
        ],
    )
    def test_of_another_shape_are_refused(
        self, zoo: Zoo, tmp_path: Path, pieces: dict[str, list[Piece | bytes]], message: str
    ) -> None:
        zoo.add(bf16_model(tmp_path / "base"), "base")
        with pytest.raises(ZooError, match=message):
            zoo.add_pieces("made", "base", pieces, {})
        assert [model.name for model in zoo.models()] == ["base"]


def test_a_recipe_takes_its_bytes_and_is_rebuilt_into_its_view(zoo: Zoo, tmp_path: Path) -> None:
    recipe = {"base": "x" * 4000}
    added = zoo.add_recipe(recipe, "merge", {"config.json": b"{}"})
    assert added.stored_bytes < 500
    assert zoo.recipe("merge") == recipe
    with pytest.raises(ZooError, match=r"merge is a recipe .*zoo open merge --zoo .* --out DIR`"):
        zoo.view("merge")
    calls = []

    def rebuild(folder: Path) -> None:
        assert (folder / "config.json").read_bytes() == b"{}"
        calls.append((folder / "model.safetensors").write_bytes(b"1"))

    first, second = zoo.rebuilt("merge", rebuild), zoo.rebuilt("merge", rebuild)
    assert first == second == zoo.view("merge")
    assert calls == [1]


@pytest.mark.parametrize("beside", ["recipe.json", "model/training.json", None])
def test_what_was_made_here_is_not_taken_to_be_public(
    zoo: Zoo, tmp_path: Path, beside: str | None
) -> None:
    plain = bf16_model(tmp_path / "run" / "model")
    if beside is not None:
        (tmp_path / "run" / beside).write_text("{}")
    zoo.add(plain, "winner")
    stored, wanted = Ledger.of_base(zoo.view("winner")), Ledger.of_base(plain)
    assert (stored.notes, stored.unrecorded) == (wanted.notes, wanted.unrecorded)
    assert bool(stored.unrecorded) is (beside is not None)


def test_an_adapter_and_its_record_keep_their_identity(zoo: Zoo, tmp_path: Path) -> None:
    folder = tmp_path / "adapter"
    raw = safetensors_bytes({"a": random_tensor(np.random.default_rng(0), "F32", (3, 5))})
    write_model(folder, {"model.safetensors": raw}, {"adapter_config.json": b"{}"})
    os.rename(folder / "model.safetensors", folder / "adapter_model.safetensors")
    (folder / "config.json").unlink()
    added = zoo.add(folder, "adapter")
    read = WeightFiles.find(zoo.view("adapter"), adapter=True)
    assert (
        files_sha256(read.files)
        == added.sha256
        == files_sha256([folder / "adapter_model.safetensors"])
    )


def experts(folder: Path, values: list[float]) -> ExpertPool:
    """A base and experts of a tiny Llama, in a zoo; the first weights are `values`."""
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=16, hidden_size=8, intermediate_size=8, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=2, pad_token_id=0,
    )  # fmt: skip
    model = transformers.LlamaForCausalLM(config)
    zoo = Zoo.open(folder / "zoo", create=True)
    for i, value in enumerate([0.0, *values]):
        with torch.no_grad():
            model.lm_head.weight[0, 0] = value
        model.save_pretrained(folder / f"m{i}")
        zoo.add(folder / f"m{i}", f"m{i}")
    names = {f"m{i + 1}": f"zoo:{zoo.directory}/m{i + 1}" for i in range(len(values))}
    return ExpertPool.open(f"zoo:{zoo.directory}/m0", names)


def test_what_was_finite_when_added_is_not_read_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pool = experts(tmp_path, [1.0, float("nan"), float("inf")])
    with pytest.raises(CheckpointError, match=r"expert 'm2' .*tensor lm_head.weight holds 1 val"):
        pool.check_finite()
    with pytest.raises(CheckpointError, match=r"expert 'm3' .*tensor lm_head.weight holds 1 val"):
        pool.select(["m1", "m3"]).check_finite()
    monkeypatch.setattr(ZooFile, "get_tensor", lambda file, name: pytest.fail(name))
    pool.select(["m1"]).check_finite()


def test_shared_experts_in_a_zoo_are_held(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = experts(tmp_path, [1.0, 2.0]).resident(torch.device("cpu"), shared=True)
    monkeypatch.setattr(ZooFile, "get_tensor", lambda file, name: pytest.fail(name))
    assert held.deltas("lm_head.weight")[:, 0, 0].tolist() == [1.0, 2.0]
