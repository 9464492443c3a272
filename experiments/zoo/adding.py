"""Models on their way into a zoo: directories, runs, recipes, a search's base and experts."""

import json
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError
from experiments.zoo.names import as_name
from experiments.zoo.progress import megabytes
from experiments.zoo.sizes import size_text
from merging.checkpoints.privacy_record import weights_sha256
from merging.checkpoints.sources import resolve
from merging.recipe import Recipe
from merging.zoo.directories import plain_bytes
from merging.zoo.store import SOURCE, Added, Zoo, default_directory
from merging.zoo_recipes import ingredients_in, write_plain

_SNAPSHOT = re.compile(r"models--(?:.*--)?([^/]+)/snapshots/[0-9a-f]{40}$")


@dataclass(frozen=True)
class _Recipe:
    """A recipe to be added, and the model card beside it."""

    content: Mapping[str, Any]
    card: Path


def add(
    sources: Sequence[str], directory: Path | None, *, name: str | None, base: str | None
) -> Iterator[str]:
    """Adds models to a zoo, which is made where there is none; yields a line for each.

    Args:
        sources: directories and ids of checkpoints and adapters; runs and recipes.
        name: of the only source; None: each is called as its directory.
        base: model of the zoo that they are stored as differences to; None: found.

    Raises:
        UserError, ValueError: one of them cannot be added; before any is.
    """
    if name is not None and len(sources) > 1:
        raise UserError(
            f"--name {name}: {len(sources)} models cannot have one name: add each alone"
        )
    place = default_directory() if directory is None else directory
    given = {source: _given(source) for source in sources}
    names = {source: name or default_name(source) for source in sources}
    if len(set(names.values())) < len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise UserError(
            f"two of the models would be called {twice!r}: add one of them with --name"
        )
    sizes = {s: _bytes(s, one) for s, one in given.items() if isinstance(one, Path)}
    if (place / "format").exists():
        _check_free(Zoo.open(place), names.values())
    check_writable(place, "--zoo", sum(sizes.values()))
    zoo = Zoo.open(place, create=True)
    with megabytes(sum(sizes.values()), "adding") as (bar, on_bytes):
        for source, one in given.items():
            bar.describe(f"adding {names[source]}")
            if isinstance(one, _Recipe):
                yield from _add_recipe(zoo, one, names[source])
            else:
                with plain(source, one) as files:
                    added = zoo.add(files, names[source], base=base, on_bytes=on_bytes)
                yield f"{names[source]}  {added_text(added)}"


def added_text(added: Added) -> str:
    """Returns what adding a model took."""
    near = f" beside {added.base}" if added.base else ""
    taken = f"{size_text(added.bytes)} in {size_text(added.stored_bytes)}{near}"
    if not added.left_out:
        return taken
    return f"{taken}; left out: {', '.join(added.left_out)}"


def default_name(source: str) -> str:
    """Returns what a model is called in a zoo unless somebody names it.

    Example:
        >>> [default_name(s) for s in ("pool/code/", "org/Some-7B", "zoo:code", "RUN/model")]
        ['code', 'Some-7B', 'code', 'RUN']
        >>> [default_name(s) for s in ("RUN/recipe.json", "in a folder/a b")]
        ['RUN-winner', 'a-b']
    """
    path = Path(source.removeprefix(SOURCE))
    if path.is_dir() and not source.startswith(SOURCE):
        path = path.resolve()
    if (found := _SNAPSHOT.search(str(path))) is not None:
        name = found[1]
    elif path.suffix == ".json":
        name = f"{path.absolute().parent.name}-winner"
    elif is_run(path):
        name = f"{path.name}-winner"
    else:
        name = path.absolute().parent.name if path.name == "model" else path.name
    return as_name(name)


def is_run(path: Path) -> bool:
    """Whether a directory is a search's."""
    return (path / "history.jsonl").is_file() and (path / "config.yaml").is_file()


def _given(source: str) -> Path | _Recipe:
    """Returns a checkpoint's directory, or the recipe that `source` means."""
    path = Path(source).expanduser()
    file = path / "recipe.json" if is_run(path) else path
    if is_run(path) and not (path / "report.html").is_file():  # the last that a search writes
        raise UserError(f"{path} has no winner yet: let the search end, then add it")
    if not file.is_file():
        return resolve(source)
    Recipe.load(file)  # says what is wrong with it
    return _Recipe(
        json.loads(file.read_text(encoding="utf-8")), file.parent / "model" / "README.md"
    )


def _add_recipe(zoo: Zoo, recipe: _Recipe, name: str) -> Iterator[str]:
    side = {recipe.card.name: recipe.card.read_bytes()} if recipe.card.is_file() else {}
    added = zoo.add_recipe(recipe.content, name, side)
    yield f"{name}  a recipe in {size_text(added.stored_bytes)}"
    known = Recipe.from_json(recipe.content)
    there = ingredients_in(zoo, known)
    for role, ingredient in known.ingredients.items():
        if role not in there:
            yield (
                f"note: its {role} is not in the zoo, so that it opens only while "
                f"{ingredient.source} is there: evomerge zoo add {ingredient.source}"
            )


def _check_free(zoo: Zoo, names: Collection[str]) -> None:
    taken = sorted({model.name for model in zoo.models()} & set(names))
    if taken:
        raise UserError(
            f"the zoo {zoo.directory} has a model {taken[0]!r} already: choose another name with "
            f"--name, or remove it: evomerge zoo remove {taken[0]}"
        )


def _bytes(source: str, directory: Path) -> int:
    """Returns how many bytes a zoo would take of a checkpoint; raises CheckpointError if none."""
    if source.startswith(SOURCE):
        zoo, name = Zoo.of(source)
        return zoo.model(name).bytes
    return plain_bytes(directory)


def absent(zoo: Zoo | None, directories: Mapping[str, Path]) -> dict[str, int]:
    """Returns the checkpoints whose content a zoo lacks, each once, and their bytes.

    Args:
        directories: source to where it lies.

    Raises:
        CheckpointError: one of them cannot be stored; says how to mend it.
    """
    known = set() if zoo is None else {model.sha256 for model in zoo.models()}
    found = {}
    for source, directory in directories.items():
        if (sha256 := weights_sha256(directory)) not in known:
            known.add(sha256)
            found[source] = _bytes(source, directory)
    return found


def add_absent(zoo: Zoo, directories: Mapping[str, Path]) -> None:
    """Adds the checkpoints whose content a zoo lacks, under the names of their directories."""
    missing = absent(zoo, directories)
    with megabytes(sum(missing.values()), "adding") as (bar, on_bytes):
        for source in missing:
            name = free_name(zoo, default_name(source))
            bar.describe(f"adding {name}")
            with plain(source, directories[source]) as files:
                zoo.add(files, name, on_bytes=on_bytes)


def free_name(zoo: Zoo, name: str) -> str:
    """Returns a name, with a number where another model has it."""
    taken, count, free = {model.name for model in zoo.models()}, 1, name
    while free in taken:
        count += 1
        free = f"{name}-{count}"
    return free


@contextmanager
def plain(source: str, directory: Path) -> Iterator[Path]:
    """Yields the files of a checkpoint, for the time being also of one in another zoo."""
    if not source.startswith(SOURCE):
        yield directory
        return
    zoo, name = Zoo.of(source)
    with TemporaryDirectory(prefix="evomerge-") as folder:
        files = Path(folder) / name
        write_plain(zoo, name, files)
        yield files
