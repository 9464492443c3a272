"""No kill, no full disk and no damage loses what was committed, or passes unseen."""

import errno
import os
import shutil
import signal
import sqlite3
import subprocess
import time
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import pytest
import torch

from merging.zoo import adding, index
from merging.zoo.adding import Addition
from merging.zoo.blocks import forget
from merging.zoo.errors import ZooError
from merging.zoo.packs import PackWriter
from merging.zoo.store import Piece, Zoo
from tests.merging.zoo import writer
from tests.merging.zoo.models import bf16_model, contents


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Directories of a base, of three models near it, and of another."""
    folder = tmp_path_factory.mktemp("plain")
    base = bf16_model(folder / "base")
    near = [bf16_model(folder / f"near{i}", i + 1, of=base) for i in range(3)]
    return [base, *near, bf16_model(folder / "other", 9)]


def assert_holds(zoo: Zoo, wanted: dict[str, str], out: Path) -> None:
    """Every model is whole, and nothing else is there; orphans do not count."""
    assert {model.name for model in zoo.models()} == wanted.keys()
    assert zoo.check() == []
    for name, content in wanted.items():
        if content == "recipe":
            assert zoo.recipe(name) == writer.RECIPE
        else:
            zoo.export(name, out / name)
            assert contents(out / name) == contents(Path(content))
    shutil.rmtree(out, ignore_errors=True)


@pytest.mark.parametrize("kills", [5, pytest.param(100, marks=pytest.mark.slow)])
def test_kills_lose_nothing(kills: int, plain: list[Path], tmp_path: Path) -> None:
    rng = np.random.default_rng(kills)
    log, directory = tmp_path / "log", tmp_path / "zoo"
    log.touch()
    kinds = set()
    for seed in range(kills):
        process = writer.start(directory, plain, log, seed)
        lines = len(log.read_text().splitlines())
        while process.is_alive() and len(log.read_text().splitlines()) < lines + 3:
            time.sleep(0.001)
        time.sleep(rng.uniform(0, 0.15))
        os.kill(process.pid or 0, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        zoo = Zoo.open(directory)
        before, after = writer.replay(log)
        made = {model.name for model in zoo.models()} == after.keys()
        assert_holds(zoo, after if made else before, tmp_path / "out")
        last = log.read_text().splitlines()[-1]
        kinds.add(last.split()[0])
        with log.open("a") as file:
            file.write("done\n" if made else "undone\n")
    assert kills < 100 or {"add", "remove", "gc"} <= kinds
    zoo = Zoo.open(directory)
    for model in zoo.models():
        zoo.remove(model.name)
    zoo.gc()
    assert list((directory / "packs").iterdir()) == []


class TestDamage:
    @pytest.fixture
    def zoo(self, plain: list[Path], tmp_path: Path) -> Zoo:
        zoo = Zoo.open(tmp_path / "zoo", create=True)
        for path in plain:
            zoo.add(path, path.name)
        return zoo

    def pack_of(self, zoo: Zoo, name: str) -> index.Row:
        """The row of the block that is only in one model, or the base's."""
        block = zoo.pieces(name)["w1"][0].block
        with index.reading(zoo.directory) as connection:
            return index.rows(connection, [block])[block]

    @pytest.mark.parametrize(
        ("model", "hit"), [("near1", "near1"), ("base", "base, near0, near1, near2")]
    )
    def test_a_flipped_bit_is_found_and_named(self, zoo: Zoo, model: str, hit: str) -> None:
        row = self.pack_of(zoo, model)
        pack = zoo.directory / "packs" / str(row.pack)
        content = bytearray(pack.read_bytes())
        content[row.place + row.stored // 2] ^= 16
        pack.write_bytes(content)
        (problem,) = Zoo.open(zoo.directory).check()
        assert problem.startswith(f"{pack} is damaged: block {row.sha256.hex()[:16]} at byte ")
        assert f"of the models {hit};" in problem

    @pytest.mark.parametrize("model", ["near1", "base", "other"])
    def test_what_was_zeroed_is_never_read(self, zoo: Zoo, model: str, tmp_path: Path) -> None:
        """Not even where any bytes can be decoded, as in planes that are stored as they are."""
        row = self.pack_of(zoo, model)
        pack = zoo.directory / "packs" / str(row.pack)
        content = bytearray(pack.read_bytes())
        content[row.place + 100 : row.place + 140] = bytes(40)
        pack.write_bytes(content)
        forget()
        named = rf"{pack} is damaged: block {row.sha256.hex()[:16]} .* of the models .*{model}"
        piece = zoo.pieces(model)["w1"][0]
        part = Piece(piece.block, piece.start + 9, 5)  # of what is not damaged itself
        for read in (
            lambda: zoo.weights(model)["w1"],
            lambda: zoo.read([part], np.empty(5, np.uint8)),
            lambda: zoo.export(model, tmp_path / "out"),
        ):
            with pytest.raises(ZooError, match=named):
                read()
        assert [path.name for path in tmp_path.iterdir()] == ["zoo"]

    @pytest.mark.parametrize("model", ["near1", "base"])
    @pytest.mark.parametrize("gone", [True, False])
    def test_files_that_are_added_again_mend_what_is_damaged(
        self, zoo: Zoo, plain: list[Path], model: str, gone: bool, tmp_path: Path
    ) -> None:
        pack = zoo.directory / "packs" / str(self.pack_of(zoo, model).pack)
        forget()
        if gone:
            pack.unlink()
        else:
            pack.write_bytes(bytes(pack.stat().st_size))
        wanted = {path.name: str(path) for path in plain}
        new = bf16_model(tmp_path / "new", 7, of=plain[0])  # near what may be damaged
        zoo.add(new, "new")
        assert len(zoo.check()) == 1
        zoo.add(Path(wanted[model]), "again")
        wanted |= {"new": str(new), "again": wanted[model]}
        forget()
        assert_holds(zoo, wanted, tmp_path / "out")
        zoo.gc()
        assert_holds(zoo, wanted, tmp_path / "out")

    def test_a_flipped_bit_in_the_index_is_found(self, zoo: Zoo) -> None:
        zoo.add_recipe({"a": "b"}, "merge", {})
        with index.writing(zoo.directory) as connection:
            connection.execute("UPDATE blocks SET payload = ? WHERE payload IS NOT NULL", (b"x",))
        assert any("index.sqlite is damaged" in p and "merge" in p for p in zoo.check())

    def test_a_file_whose_pieces_are_others_is_not_exported(
        self, zoo: Zoo, tmp_path: Path
    ) -> None:
        with index.writing(zoo.directory) as connection:
            connection.execute(
                "UPDATE files SET pieces = (SELECT pieces FROM files f JOIN models ON model = id "
                "WHERE models.name = 'near0' AND f.name = files.name) "
                "WHERE model = (SELECT id FROM models WHERE name = 'near1')"
            )
        with pytest.raises(ZooError, match=r"does not hold model.safetensors as it was added"):
            zoo.export("near1", tmp_path / "out")

    @pytest.mark.parametrize("cut", [True, False])
    def test_a_pack_that_is_cut_off_or_gone(self, zoo: Zoo, cut: bool) -> None:
        row = self.pack_of(zoo, "near2")
        pack = zoo.directory / "packs" / str(row.pack)
        moved = shutil.copytree(zoo.directory, zoo.directory.with_name("copy"))
        pack = moved / "packs" / str(row.pack)
        if cut:
            os.truncate(pack, pack.stat().st_size // 2)
        else:
            pack.unlink()
        copy = Zoo.open(moved)
        said = "is damaged.* bring the file back" if cut else "is missing; bring it back"
        with pytest.raises(ZooError, match=f"{pack} {said} from a copy"):
            copy.weights("near2")["w1"]
        (problem,) = copy.check()
        assert "of the models near2;" in problem
        assert f"{pack} is {'damaged' if cut else 'missing'}: " in problem
        assert copy.weights("near1")["w1"].shape == (400, 400)

    @pytest.mark.parametrize("content", [b"", b"garbage" * 1000])
    def test_an_index_that_is_damaged(self, zoo: Zoo, content: bytes) -> None:
        (zoo.directory / "index.sqlite").write_bytes(content)
        with pytest.raises(ZooError, match=r"index.sqlite is damaged .*; bring it back from"):
            zoo.models()

    def test_another_version(self, zoo: Zoo, plain: list[Path]) -> None:
        (zoo.directory / "format").write_text("evomerge zoo 2\n")
        for create in (False, True):
            with pytest.raises(ZooError, match=r"of another version \('evomerge zoo 2', not"):
                Zoo.open(zoo.directory, create=create)


class TestWhatIsRefused:
    @pytest.fixture
    def zoo(self, plain: list[Path], tmp_path: Path) -> Zoo:
        zoo = Zoo.open(tmp_path / "zoo", create=True)
        zoo.add(plain[0], "base")
        return zoo

    @pytest.mark.parametrize("name", ["", "a/b", "..", ".a", "a b", "a\n", "x" * 300])
    def test_a_bad_name(self, zoo: Zoo, plain: list[Path], name: str) -> None:
        why = "cannot name a model; use up to 200 letters" if name else "needs a name; give one"
        with pytest.raises(ZooError, match=why):
            zoo.add(plain[1], name)

    @pytest.mark.parametrize(
        ("act", "message"),
        [
            (lambda z, p: z.add(p[1], "base"), "base is in the zoo .* already; choose another"),
            (lambda z, p: z.add(p[1], "x", base="y"), "no model 'y' is in the zoo .* has base;"),
            (lambda z, p: z.add(p[1].parent / "none", "x"), "none is no directory"),
            (
                lambda z, p: z.add(z.view("base"), "x"),
                "is a view of a zoo; `evomerge zoo open` the",
            ),
            (lambda z, p: z.remove("x"), "no model 'x'"),
            (lambda z, p: z.view("x"), "no model 'x'"),
            (lambda z, p: z.export("base", p[0]), "base exists; name a directory"),
            (lambda z, p: Zoo.open(p[0]), "is no zoo; name one that"),
            (lambda z, p: Zoo.open(p[0], create=True), "holds .*, so it becomes no zoo"),
            (lambda z, p: Zoo.of(f"zoo:{p[0]}/x"), "is no zoo; name one that"),
            (lambda z, p: z.recipe("base"), "base is stored .*, no recipe"),
        ],
    )
    def test_it_says_why(
        self, zoo: Zoo, plain: list[Path], act: Callable[[Zoo, list[Path]], None], message: str
    ) -> None:
        with pytest.raises(ZooError, match=message):
            act(zoo, plain)
        assert [model.name for model in zoo.models()] == ["base"]
        assert len(list((zoo.directory / "packs").iterdir())) == 1
        assert not (plain[0] / "lock").exists()

    def test_pickles_and_damaged_files(self, zoo: Zoo, plain: list[Path], tmp_path: Path) -> None:
        folder = tmp_path / "model"
        folder.mkdir()
        (folder / "config.json").write_text("{}")
        torch.save({"a": torch.zeros(2)}, folder / "pytorch_model.bin")
        with pytest.raises(ZooError, match=r"is a pickle, which .*; save the model with save_pre"):
            zoo.add(folder, "x")
        content = (plain[0] / "model.safetensors").read_bytes()
        (folder / "model.safetensors").write_bytes(content[:-5])
        with pytest.raises(ZooError, match=r"model.safetensors is damaged .*; download or copy"):
            zoo.add(folder, "x")

    def test_a_file_that_changes_while_it_is_read(
        self, zoo: Zoo, plain: list[Path], tmp_path: Path
    ) -> None:
        folder = shutil.copytree(plain[1], tmp_path / "model")
        with pytest.raises(ZooError, match="was changed while it was read; add it again"):
            zoo.add(folder, "x", on_bytes=lambda _: os.utime(folder / "model.safetensors"))
        zoo.add(folder, "x")

    @pytest.mark.parametrize("late", [True, False])
    def test_a_file_that_is_replaced_while_it_is_read(
        self, zoo: Zoo, tmp_path: Path, late: bool, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        """What is stored is one file or nothing: its hash, header and blocks are of one."""
        folder, other = bf16_model(tmp_path / "a", 5), bf16_model(tmp_path / "b", 6, size=401)
        place, name = (adding, "_digest") if late else (Addition, "file")
        real, calls = getattr(place, name), list[object]()

        def replaced(*arguments: object) -> object:
            calls.append(arguments)
            if len(calls) == 2:  # the first file is config.json
                os.replace(other / "model.safetensors", folder / "model.safetensors")
            return real(*arguments)

        content = (folder / "model.safetensors").read_bytes()
        monkeypatch.setattr(place, name, replaced)
        if late:
            assert zoo.add(folder, "x").sha256 == zoo.files("x")[1].sha256
            assert zoo.files("x")[1].sha256 == sha256(content).hexdigest()
        else:
            with pytest.raises(ZooError, match="was changed while it was read; add it again"):
                zoo.add(folder, "x")


class TestADiskThatIsFull:
    @pytest.mark.parametrize("call", ["write", "fsync", "commit"])
    def test_loses_nothing(
        self, call: str, plain: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        zoo = Zoo.open(tmp_path / "zoo", create=True)
        zoo.add(plain[0], "base")
        zoo.add(plain[4], "other")
        zoo.remove("other")
        wanted = {"base": str(plain[0])}

        def full(*arguments: object) -> None:
            if call == "commit":
                raise sqlite3.OperationalError("database or disk is full")
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        places = {"write": (PackWriter, "append"), "fsync": (os, "fsync")}
        with monkeypatch.context() as patch:
            patch.setattr(*places.get(call, (Addition, "commit")), full)
            with pytest.raises(ZooError, match="is full; nothing in it was lost: free space"):
                zoo.add(plain[1], "x")
        assert_holds(zoo, wanted, tmp_path / "out")
        zoo.add(plain[1], "x")
        assert_holds(zoo, wanted | {"x": str(plain[1])}, tmp_path / "out")

    @pytest.mark.slow
    def test_a_real_one(self, tmp_path: Path) -> None:
        disk = tmp_path / "disk"
        disk.mkdir()
        mount = ["mount", "-t", "tmpfs", "-o", "size=2M", "tmpfs", str(disk)]
        if subprocess.run(mount, capture_output=True, check=False).returncode:
            pytest.skip("may not mount a small disk")
        try:
            zoo, wanted, refused = Zoo.open(disk / "zoo", create=True), dict[str, str](), []
            for i in range(12):
                plain = bf16_model(tmp_path / f"m{i}", i, size=300 + 10 * i)
                try:
                    zoo.add(plain, plain.name)
                    wanted[plain.name] = str(plain)
                except ZooError as error:
                    refused.append(str(error))
                assert_holds(zoo, wanted, tmp_path / "out")
                if i % 6 == 5:
                    gone = next(iter(wanted))
                    wanted.pop(gone)
                    zoo.remove(gone)
                    zoo.gc()
            assert refused
            assert all("is full; nothing in it was lost" in sentence for sentence in refused)
        finally:
            subprocess.run(["umount", "-l", str(disk)], check=True)


def test_a_folder_that_only_reads(plain: list[Path], tmp_path: Path) -> None:
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    zoo.add(plain[0], "base")
    ours = tmp_path / "ours"
    ours.mkdir()
    mount = ["mount", "--bind", "-o", "ro", str(zoo.directory), str(ours)]
    if subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("may not mount a folder that only reads")
    try:
        reader = Zoo.open(ours)
        assert reader.view("base").is_relative_to(os.environ["EVOMERGE_CACHE"])
        assert_holds(reader, {"base": str(plain[0])}, tmp_path / "out")
        for act in (lambda: reader.add(plain[1], "x"), lambda: reader.remove("base"), reader.gc):
            with pytest.raises(ZooError, match=r"may not be written, so the zoo .* only reads"):
                act()
    finally:
        subprocess.run(["umount", "-l", str(ours)], check=True)


def test_readers_go_on_while_others_write(plain: list[Path], tmp_path: Path) -> None:
    """Whatever another process does, a model that stays is read whole."""
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    zoo.add(plain[1], "stays")
    wanted = (plain[1] / "model.safetensors").read_bytes()[-320000:]
    log = tmp_path / "log"
    process = writer.start(zoo.directory, plain, log, 3)
    try:
        while not log.exists() or log.read_text().count("done") < 4:
            assert "stays" in [model.name for model in zoo.models()]
            read = zoo.weights("stays")["w1"].reshape(-1).view(torch.uint8).numpy().tobytes()
            assert read == wanted
            assert process.is_alive()
    finally:
        process.kill()
        process.join()


class TestCollecting:
    def test_what_readers_hold_stays_readable(self, plain: list[Path], tmp_path: Path) -> None:
        zoo = Zoo.open(tmp_path / "zoo", create=True)
        for path in plain:
            zoo.add(path, path.name)
        held = zoo.weights("near0")
        wanted = {name: held[name].clone() for name in held}
        for name in ("base", "near1", "near2", "other"):
            zoo.remove(name)
        assert zoo.gc() > 0
        for name, tensor in wanted.items():
            assert torch.equal(held[name].view(torch.int16), tensor.view(torch.int16))

    def test_what_is_removed_says_so(self, plain: list[Path], tmp_path: Path) -> None:
        zoo = Zoo.open(tmp_path / "zoo", create=True)
        zoo.add(plain[0], "base")
        held = zoo.weights("base")
        zoo.remove("base")
        zoo.gc()
        with pytest.raises(ZooError, match=r"a model was removed from .* while it was read"):
            held["w1"]
