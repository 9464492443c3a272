"""Models on their way into a zoo: directories, runs, recipes, a search's base and experts."""

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeAlias

from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError
from experiments.runs.progress import megabytes
from experiments.zoo.names import as_name, check_known, verb
from experiments.zoo.sizes import size_text
from merging.checkpoints.hashing import file_sha256
from merging.checkpoints.mechanisms import PrivacyRecordError
from merging.checkpoints.privacy_record import RECORD_FILE, read_record, weights_sha256
from merging.checkpoints.sources import resolve
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe
from merging.weight_names import MADE_HERE, made_here
from merging.zoo.directories import plain_bytes, plain_files
from merging.zoo.store import RECIPE, SOURCE, Added, Zoo, ZooModel, default_directory, recipe_text
from merging.zoo_recipes import ingredients_in, read_recipe, write_plain

_SNAPSHOT = re.compile(r"models--(?:.*--)?([^/]+)/snapshots/[0-9a-f]{40}$")


_Identity: TypeAlias = tuple[str, bytes | None, bool]
"""Weights, privacy.json, and whether evomerge made them."""


@dataclass(frozen=True)
class _Recipe:
    """A recipe to be added, and the files beside it.

    Attributes:
        places: ingredient to where it lies now, if not where the recipe says.
    """

    content: Mapping[str, Any]
    side: Mapping[str, bytes]
    places: Mapping[str, str]


_Given = Path | _Recipe
"""A checkpoint's directory, or a recipe."""


def add(
    sources: Sequence[str], directory: Path | None, *, name: str | None, base: str | None
) -> Iterator[str]:
    """Adds models to a zoo, which is made where there is none; yields a line for each.

    What is there already, of that name and content, is passed over: a second start goes on.

    Args:
        sources: directories and ids of checkpoints and adapters; runs and recipes.
        name: of the only source; None: each is called as its directory.
        base: model of the zoo that they are stored as differences to; None: found.

    Raises:
        UserError, ValueError: one of them cannot be added; before any is.
    """
    place = (directory or default_directory()).expanduser()
    given, names = {s: _checked(s, _given(s)) for s in sources}, _names(sources, name)
    there: set[str] = set()
    if (place / "format").exists():
        zoo = Zoo.open(place)
        check_known(zoo, [] if base is None else [base])
        there = _there(zoo, given, names)
    yield from (f"{names[source]}  is there already" for source in sources if source in there)
    todo = {source: one for source, one in given.items() if source not in there}
    size = sum(_bytes(source, one) for source, one in todo.items() if isinstance(one, Path))
    if not todo:
        return
    check_writable(place, "--zoo", size)
    zoo = Zoo.open(place, create=True)
    with megabytes(size, "adding") as (bar, on_bytes):
        for source, one in todo.items():
            bar.describe(f"adding {names[source]}")
            if isinstance(one, _Recipe):
                yield from _add_recipe(zoo, one, names[source])
            else:
                with plain(source, one) as files:
                    added = zoo.add(files, names[source], base=base, on_bytes=on_bytes)
                yield f"{names[source]}  {added_text(added)}"


def _names(sources: Sequence[str], name: str | None) -> dict[str, str]:
    if name is not None and len(sources) > 1:
        raise UserError(
            f"--name {name}: {len(sources)} models cannot have one name: add each alone"
        )
    names = {s: default_name(s) if name is None else name for s in sources}
    if len(set(names.values())) < len(names):
        twice = next(n for n in names.values() if list(names.values()).count(n) > 1)
        raise UserError(
            f"two of the models would be called {twice!r}: add one of them with --name"
        )
    return names


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


def _given(source: str) -> _Given:
    """Returns a checkpoint's directory, or the recipe that `source` means."""
    if source.startswith(SOURCE):
        return _of_zoo(*Zoo.of(source))
    path = Path(source).expanduser()
    file = path / "recipe.json" if is_run(path) else path
    if is_run(path) and not (path / "report.html").is_file():  # the last that a search writes
        raise UserError(f"{path} has no winner yet: let the search end, then add it")
    if not file.is_file():
        return resolve(source)
    if "experts" not in (content := _json(file)):
        raise UserError(
            f"{file} is no recipe: name a recipe.json, or a checkpoint's directory, as "
            f"{file.parent} may be"
        )
    Recipe.load(file)  # says what is wrong with it
    card = file.parent / "model" / "README.md"
    side = {card.name: card.read_bytes()} if card.is_file() else {}
    return _Recipe(content, side, {})


def _checked(source: str, given: _Given) -> _Given:
    """Returns what is to be added; raises PrivacyRecordError where its record is wrong."""
    if isinstance(given, Path):
        read_record(given)
    elif (privacy := given.content.get("privacy")) is not None:
        try:
            Ledger.from_description(privacy)
        except PrivacyRecordError as error:
            raise PrivacyRecordError(f"{source}: its ledger: {error}") from None
    return given


def _json(file: Path) -> Mapping[str, Any]:
    """Returns the object in a file; an empty one where there is none."""
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except ValueError:
        return {}
    return content if isinstance(content, dict) else {}


def _of_zoo(zoo: Zoo, name: str) -> _Given:
    check_known(zoo, [name])
    if zoo.model(name).kind != "recipe":
        return zoo.view(name)
    side = {file.name: file.raw() for file in zoo.files(name) if file.name != RECIPE}
    return _Recipe(zoo.recipe(name), side, ingredients_in(zoo, read_recipe(zoo, name)))


def _add_recipe(zoo: Zoo, recipe: _Recipe, name: str) -> Iterator[str]:
    added = zoo.add_recipe(recipe.content, name, recipe.side)
    yield f"{name}  a recipe in {size_text(added.stored_bytes)}"
    known = Recipe.from_json(recipe.content)
    there = ingredients_in(zoo, known)
    lacking = [role for role in known.ingredients if role not in there]
    if lacking:
        sources = {recipe.places.get(role, known.ingredients[role].source) for role in lacking}
        yield (
            f"note: of what {name} is made from the zoo lacks {', '.join(lacking)}, so that it "
            f"opens only while they are where they lay: {verb(zoo, 'add', *sorted(sources))}"
        )


def _there(zoo: Zoo, given: Mapping[str, _Given], names: Mapping[str, str]) -> set[str]:
    """Returns the sources that the zoo has; refuses those whose name another model has."""
    known = {model.name for model in zoo.models()}
    there = {source for source in given if names[source] in known}
    for source in there:
        name, one = names[source], given[source]
        if _contents(source, one) != {file.name: file.sha256 for file in zoo.files(name)}:
            raise UserError(
                f"the zoo {zoo.directory} has a model {name!r} already, of other content: choose "
                f"another name with --name, or remove it: {verb(zoo, 'remove', name)}"
            )
    return there


def _contents(source: str, one: _Given) -> dict[str, str]:
    """Returns file to sha256 of what would be added."""
    if isinstance(one, _Recipe):
        texts = {**one.side, RECIPE: recipe_text(one.content)}
        return {name: sha256(text).hexdigest() for name, text in texts.items()}
    if source.startswith(SOURCE):
        zoo, name = Zoo.of(source)
        return {file.name: file.sha256 for file in zoo.files(name)}
    return {
        name: sha256(b"").hexdigest() if path.is_dir() else file_sha256(path)
        for name, path in plain_files(one).items()
    }


def _bytes(source: str, directory: Path) -> int:
    """Returns how many bytes a zoo would take of a checkpoint; raises CheckpointError if none."""
    if source.startswith(SOURCE):
        zoo, name = Zoo.of(source)
        return zoo.model(name).bytes
    return plain_bytes(directory)


def absent(zoo: Zoo | None, directories: Mapping[str, Path]) -> dict[str, int]:
    """Returns the checkpoints that a zoo lacks, by weights and record, each once, and their bytes.

    Args:
        directories: source to where it lies.

    Raises:
        CheckpointError: one of them cannot be stored; says how to mend it.
        PrivacyRecordError: the record of one is edited, or of other weights.
    """
    stored = [] if zoo is None else [m for m in zoo.models() if m.kind != "recipe"]
    known: set[_Identity] = set()
    found = {}
    for source, directory in directories.items():
        read_record(directory)  # says what is wrong with it
        record, weights = directory / RECORD_FILE, weights_sha256(directory)
        raw = record.read_bytes() if record.is_file() else None
        if zoo is not None:
            known |= {_identity(zoo, model) for model in stored if model.sha256 == weights}
        if (identity := (weights, raw, bool(made_here(directory)))) not in known:
            known.add(identity)
            found[source] = _bytes(source, directory)
    return found


def _identity(zoo: Zoo, model: ZooModel) -> _Identity:
    files = {file.name: file for file in zoo.files(model.name)}
    record = files[RECORD_FILE].raw() if RECORD_FILE in files else None
    return model.sha256, record, not files.keys().isdisjoint(MADE_HERE)


def add_absent(zoo: Zoo, directories: Mapping[str, Path]) -> None:
    """Adds the checkpoints that a zoo lacks, under the names of their directories."""
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
