"""The zoo: models stored once, found by name, opened without being unpacked."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np

from merging.zoo import access, index, keeping, views
from merging.zoo.access import locked
from merging.zoo.adding import Addition, NewFile, NewModel
from merging.zoo.blocks import Bytes, blocks_of
from merging.zoo.directories import add_directory
from merging.zoo.errors import ZooError, explained
from merging.zoo.layout import PIECES
from merging.zoo.piecing import New, Piece, SideFiles, of_pieces
from merging.zoo.weights import ZooFile, ZooWeights

RECIPE = "recipe.json"
SOURCE = "zoo:"
"""What begins the name of a stored model wherever a checkpoint's directory may stand."""


@dataclass(frozen=True)
class ZooModel:
    """What a zoo knows of a model without reading it.

    Args:
        kind: "stored", or "recipe": rebuilt when it is opened.
        sha256: identity of its weight files, as of any checkpoint's; of a recipe that of its text.
        bytes: of its plain files.
        own_bytes: stored bytes that only it needs: what removing it frees.
        base: the model that it was stored as difference to; None: none.
    """

    name: str
    kind: str
    sha256: str
    bytes: int
    own_bytes: int
    base: str | None


@dataclass(frozen=True)
class Added:
    """What adding a model did.

    Args:
        bytes: of its plain files.
        stored_bytes: newly written for it.
        left_out: files of its directory that were not taken.
    """

    name: str
    sha256: str
    bytes: int
    stored_bytes: int
    base: str | None
    left_out: tuple[str, ...] = ()


class Zoo:
    """One zoo in one directory; any number of processes may read while one writes.

    Every change is one step: a process that is killed, or a disk that is full, leaves the zoo as
    it was. All methods raise ZooError.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory

    @classmethod
    def open(cls, directory: Path | None = None, *, create: bool = False) -> Zoo:
        """Returns the zoo in `directory`; None: $EVOMERGE_ZOO, or ~/.local/share/evomerge/zoo.

        Args:
            create: make an empty one where there is none.

        Raises:
            ZooError: there is none, or one of another version.
        """
        directory = (directory or default_directory()).expanduser().resolve()
        if create:
            access.create(directory)
        access.check_format(directory)
        return cls(directory)

    @classmethod
    def of(cls, source: str) -> tuple[Zoo, str]:
        """Returns the zoo and the model's name that ``zoo:NAME`` or ``zoo:DIR/NAME`` says."""
        directory, _, name = source.removeprefix(SOURCE).rpartition("/")
        return cls.open(Path(directory) if directory else None), name

    def add(
        self,
        directory: Path,
        name: str,
        *,
        base: str | None = None,
        on_bytes: Callable[[int], None] | None = None,
    ) -> Added:
        """Stores a directory's model: its safetensors files, and all that lies beside them.

        Args:
            base: name of the model that it is stored as difference to; None: the nearest of the
                same tensors, found by samples.
            on_bytes: told how many more bytes of the files are done.
        """
        with self._writing(name) as addition:
            model, files, left_out = add_directory(
                addition, self.directory, directory, name, base, on_bytes or (lambda count: None)
            )
            return self._commit(addition, model, files, left_out)

    def add_recipe(
        self, recipe_json: Mapping[str, Any], name: str, side_files: Mapping[str, bytes]
    ) -> Added:
        """Stores a model as what it is rebuilt from, and the files beside it."""
        raw = recipe_text(recipe_json)
        with self._writing(name) as addition:
            contents = {**side_files, RECIPE: raw}
            files = [addition.small_file(file, content) for file, content in contents.items()]
            size = sum(len(content) for content in contents.values())
            return self._commit(
                addition, NewModel(name, "recipe", sha256(raw).hexdigest(), size), files
            )

    def add_pieces(
        self,
        name: str,
        like: str,
        pieces: New,
        side_files: SideFiles,
    ) -> Added:
        """Stores a model whose tensors are made of pieces of stored blocks and of new bytes.

        Args:
            like: the stored model whose files, and whose other tensors, it takes.
            pieces: tensor -> its bytes, one after the other: where they are stored, or themselves.
            side_files: in the place of those of `like`.
        """
        with self._writing(name) as addition:
            model, files = of_pieces(
                addition, self.directory, self._row(like), name, pieces, side_files
            )
            return self._commit(addition, model, files)

    def models(self) -> list[ZooModel]:
        """Returns all models in the order of their names."""
        with index.reading(self.directory) as connection:
            own = dict(connection.execute(keeping.OWN_BYTES))
            found = connection.execute(
                "SELECT m.id, m.name, m.kind, m.sha256, m.bytes, b.name FROM models m "
                "LEFT JOIN models b ON b.id = m.base ORDER BY m.name"
            ).fetchall()
        return [
            ZooModel(name, kind, sha, size, own.get(number, 0), base)
            for number, name, kind, sha, size, base in found
        ]

    def model(self, name: str) -> ZooModel:
        """Returns one model."""
        self._row(name)
        return next(model for model in self.models() if model.name == name)

    def weights(self, name: str) -> ZooWeights:
        """Returns a stored model's tensors, under their names in its files, read on access."""
        return ZooWeights([file for file in self.files(name) if "/" not in file.name])

    def pieces(self, name: str) -> dict[str, tuple[Piece, ...]]:
        """Returns where the bytes of each tensor of a stored model lie."""
        weights = self.weights(name)
        return {
            tensor: tuple(Piece(*piece) for piece in weights.pieces(tensor).tolist())
            for tensor in weights
        }

    def read(self, pieces: Sequence[Piece], out: Bytes) -> None:
        """Writes the bytes of pieces, one after the other, into `out`, ``(their length,)``."""
        parts = np.array([tuple(piece) for piece in pieces], PIECES)
        with index.reading(self.directory) as connection:
            rows = index.rows(connection, parts["block"].tolist())
        if missing := [piece.block for piece in pieces if piece.block not in rows]:
            raise ZooError(f"the zoo {self.directory} has no block {missing[0]}; read pieces anew")
        blocks_of(self.directory).fill(parts, rows, out)

    def files(self, name: str) -> list[ZooFile]:
        """Returns all files of a model in the order of their names."""
        return ZooFile.open(self.directory, self._row(name).id)

    def recipe(self, name: str) -> dict[str, Any]:
        """Returns what `add_recipe` was given."""
        files = {file.name: file for file in self.files(name)}
        if self._row(name).kind != "recipe":
            raise ZooError(
                f"{name} is stored in the zoo {self.directory} itself, no recipe; open it"
            )
        content: dict[str, Any] = json.loads(files[RECIPE].raw())
        return content

    def view(self, name: str) -> Path:
        """Returns a directory that everything which takes a checkpoint's directory can take.

        Raises:
            ZooError: no such model; a recipe that was not rebuilt since it was added or its view
                was removed: `rebuilt` does that.
        """
        row = self._row(name)
        place = views.place_of(self.directory, name)
        if row.kind == "recipe" and not views.is_view(place, self._key(row)):
            raise ZooError(
                f"{name} is a recipe in the zoo {self.directory}, which nobody has rebuilt yet: "
                f"`evomerge zoo open {name} --zoo {self.directory} --out DIR`, and name DIR"
            )
        with explained(self.directory):
            files = partial(views.write, self.directory, row.id, self.files(name))
            return views.make(place, self._key(row), files)

    def rebuilt(self, name: str, rebuild: Callable[[Path], None]) -> Path:
        """Returns the view of a recipe, made where there is none.

        Args:
            rebuild: writes the model into a directory in which the recipe and all files beside
                it lie.
        """
        row = self._row(name)

        def fill(draft: Path) -> None:
            self.export_files(name, draft)
            rebuild(draft)

        return views.make(views.place_of(self.directory, name), self._key(row), fill)

    def export(self, name: str, out: Path) -> None:
        """Writes a model's files as they were added, byte for byte, into a new directory `out`."""
        if out.exists() and (not out.is_dir() or any(out.iterdir())):
            raise ZooError(f"{out} exists; name a directory that is empty or does not exist")
        with explained(out):
            place = out.resolve()
            draft = place.with_name(f".{place.name}.{uuid.uuid4().hex[:8]}.tmp")
            draft.mkdir(parents=True)
            try:
                self.export_files(name, draft)
                os.replace(draft, place)
            finally:
                shutil.rmtree(draft, ignore_errors=True)

    def export_files(self, name: str, out: Path) -> None:
        """Writes a model's files below an existing directory."""
        for file in self.files(name):
            file.write(out)

    def remove(self, name: str) -> None:
        """Forgets a model; what only it needed takes space until `gc`."""
        row = self._row(name)
        with locked(self.directory):
            keeping.remove(self.directory, row.id)
            views.discard(views.place_of(self.directory, name))

    def gc(self) -> int:
        """Frees what no model needs; returns how many bytes."""
        with locked(self.directory):
            freed = keeping.collect(self.directory)
            views.sweep(self.directory / "views", {model.name for model in self.models()})
            return freed

    def check(self, on_bytes: Callable[[int], None] | None = None) -> list[str]:
        """Reads every block; returns a sentence for each damage, with the models that it hits.

        Args:
            on_bytes: told how many more raw bytes are done.
        """
        return keeping.check(self.directory, on_bytes or (lambda count: None))

    def _row(self, name: str) -> keeping.ModelEntry:
        return keeping.find(self.directory, name)

    def _key(self, row: keeping.ModelEntry) -> str:
        return f"{row.id} {row.sha256}"

    @contextmanager
    def _writing(self, name: str) -> Iterator[Addition]:
        keeping.check_name(self.directory, name)
        with locked(self.directory):
            keeping.check_name(self.directory, name)
            with Addition(self.directory) as addition:
                yield addition

    def _commit(
        self,
        addition: Addition,
        model: NewModel,
        files: Sequence[NewFile],
        left_out: Sequence[str] = (),
    ) -> Added:
        addition.commit(model, files)
        shown = model.name, model.sha256, model.size, addition.stored, model.base
        return Added(*shown, tuple(left_out))


def recipe_text(recipe_json: Mapping[str, Any]) -> bytes:
    """Returns the file as which a recipe is stored."""
    return json.dumps(recipe_json, indent=1).encode()


def default_directory() -> Path:
    """Returns where the zoo lies that no one names."""
    named = os.environ.get("EVOMERGE_ZOO")
    return Path(named) if named else Path.home() / ".local" / "share" / "evomerge" / "zoo"
