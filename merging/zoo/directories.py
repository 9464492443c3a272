"""A model's directory, file by file into a zoo."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from fnmatch import fnmatch
from pathlib import Path

from safetensors import SafetensorError, safe_open

from merging.files import joint_sha256
from merging.weight_names import OTHER_FORMS, find_weights, is_adapter, made_here
from merging.zoo import index, layout, relatives
from merging.zoo.adding import Addition, NewFile, NewModel, read_chunk
from merging.zoo.errors import ZooError
from merging.zoo.keeping import ModelEntry, find
from merging.zoo.layout import Entry
from merging.zoo.pointers import follow
from merging.zoo.relatives import Relative
from merging.zoo.weights import ZooFile

# Of training, and other forms of the weights: left out.
_FOLDERS = (".*", "checkpoint-*", "global_step*", "runs", "wandb", "__pycache__")
_FILES = (
    ".*",
    "*.safetensors",  # but those that are loaded
    *OTHER_FORMS,
    "events.out.*",
)


_TRIED = 32
"""Models, the last ones, of which the nearest is looked for."""


def add_directory(
    addition: Addition,
    zoo: Path,
    directory: Path,
    name: str,
    base: str | None,
    on_bytes: Callable[[int], None],
) -> tuple[NewModel, list[NewFile], list[str]]:
    """Stores the blocks of a directory's files; returns what is to be committed.

    Returns:
        Model, files, and the names of what was left out.

    Raises:
        CheckpointError: no weights, or files that cannot be read.
        ZooError: pickles; a base that is missing or has no tensor in common; a directory that is
            a view of a zoo.
    """
    weights = _weights(directory)
    taken, left_out = _sorted(directory, weights)
    headers = {
        path: _header(path, path in weights) for path in taken if path.suffix == ".safetensors"
    }
    tensors = {path: layout.entries(header) for path, header in headers.items() if header}
    signature = relatives.signature({k: e for path in weights for k, e in tensors[path].items()})
    near, relative = _relative(zoo, base, signature, weights[0], tensors)
    files = []
    for path, file in taken.items():
        own = tensors.get(path, {})
        header = headers.get(path, b"")
        related = None if relative is None or not own else Relative.of(relative, file, own)
        if path.is_dir():
            files.append(addition.small_file(file, b""))
            continue
        cut = layout.chunks(_size(path), len(header), own)
        files.append(addition.file(path, file, cut, header, related, on_bytes))
    digests = {file.name: file.sha256 for file in files if directory / file.name in weights}
    size = sum(file.size for file in files)
    if not addition.holds_differences(files):
        near = None
    return NewModel(name, "stored", joint_sha256(digests), size, near, signature), files, left_out


def plain_bytes(directory: Path) -> int:
    """Returns how many bytes of a directory's files `add` would take; raises as it does."""
    return sum(_size(path) for path in plain_files(directory).values() if not path.is_dir())


def plain_files(directory: Path) -> dict[str, Path]:
    """Returns the files, and empty folders, that `add` would take, by name; raises as it does."""
    taken, _ = _sorted(directory, _weights(directory))
    return {name: path for path, name in taken.items()}


def _weights(directory: Path) -> tuple[Path, ...]:
    if not directory.is_dir():
        raise ZooError(f"{directory} is no directory; name that of a checkpoint or an adapter")
    weights, _ = find_weights(directory, adapter=is_adapter(directory))
    if weights[0].suffix != ".safetensors":
        raise ZooError(
            f"{weights[0]} is a pickle, which a zoo does not store; save the model with "
            "save_pretrained, which writes safetensors"
        )
    return weights


def _sorted(directory: Path, weights: tuple[Path, ...]) -> tuple[dict[Path, str], list[str]]:
    """Returns the files to be stored, and folders that are empty, by path; and all others."""
    taken: dict[Path, str] = {}
    left_out: list[str] = []
    for path in _walk(directory, left_out):
        name = path.relative_to(directory).as_posix()
        top = path.parent == directory
        if path.is_dir():
            taken[path] = f"{name}/"
        elif path in weights or (path.is_file() and not (top and _matches(path, _FILES))):
            taken[path] = name
        else:
            left_out.append(name)
    taken |= {path: path.name for path in made_here(directory) if path.name not in taken.values()}
    return taken, left_out


def _walk(directory: Path, left_out: list[str]) -> Iterator[Path]:
    """Yields files, and folders that are empty, in the order of their names; follows links."""

    def refuse(error: OSError) -> None:
        raise ZooError(
            f"{error.filename} cannot be read ({error.strerror}); mend that, then add it again"
        )

    for folder, folders, files in os.walk(directory, onerror=refuse, followlinks=True):
        here = Path(folder)
        passed = [n for n in folders if _matches(Path(n), _FOLDERS) or _leads_back(here / n)]
        left_out += [(here / name).relative_to(directory).as_posix() + "/" for name in passed]
        folders[:] = sorted(set(folders) - set(passed))
        if not folders and not files and Path(folder) != directory:
            yield Path(folder)
        yield from (Path(folder, name) for name in sorted(files))


def _leads_back(folder: Path) -> bool:
    """Whether a link leads to a folder that it lies in, so that it would never end."""
    return folder.is_symlink() and any(folder.samefile(each) for each in folder.parents)


def _matches(path: Path, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def _size(path: Path) -> int:
    return path.stat().st_size


def _header(path: Path, needed: bool) -> bytes:
    """Returns a safetensors file's first bytes, up to its tensors.

    Empty: it is none, though it is called so, and `needed` is false.
    """
    if follow(path) is not None:
        raise ZooError(
            f"{path.parent} is a view of a zoo; `evomerge zoo open` the model, then add that"
        )
    try:
        with safe_open(str(path), framework="pt"):  # checks lengths and overlaps
            pass
        with path.open("rb") as file:
            start = file.read(8)
            return start + file.read(layout.header_bytes(start) - 8)
    except (SafetensorError, OSError) as error:
        if needed:
            raise ZooError(f"{path} is damaged ({error}); download or copy it again") from error
        return b""


def _relative(
    zoo: Path,
    base: str | None,
    signature: bytes,
    weights: Path,
    tensors: dict[Path, dict[str, Entry]],
) -> tuple[str | None, list[ZooFile] | None]:
    """Returns name and files of the model that this one is stored as difference to."""
    own = tensors[weights]
    if base is not None:
        files = ZooFile.open(zoo, _stored(zoo, base).id)
        if not any(Relative.of(files, path.name, each).tensors for path, each in tensors.items()):
            raise ZooError(
                f"{base} has no tensor of the name and dtype of one in {weights.parent}; name its "
                "base, or none"
            )
        return base, files
    opened = {row.name: _readable(zoo, row) for row in _candidates(zoo, signature)}
    related = [Relative.of(files, weights.name, own, name) for name, files in opened.items()]
    chunks = list(
        layout.chunks(_size(weights), 0 if not own else next(iter(own.values())).begin, own)
    )
    with weights.open("rb") as file:
        found = relatives.nearest(
            related, chunks, lambda chunk: read_chunk(weights, file.fileno(), chunk)
        )
    return (None, None) if found is None else (found.name, opened[found.name])


def _readable(zoo: Path, row: ModelEntry) -> list[ZooFile]:
    """Returns a model's files; none where they are damaged: it is no one's relative then."""
    try:
        return ZooFile.open(zoo, row.id)
    except ZooError:
        return []


def _stored(zoo: Path, base: str) -> ModelEntry:
    row = find(zoo, base)
    if row.kind != "stored":
        raise ZooError(
            f"{base} is a recipe, so nothing is stored as difference to it; name a stored model"
        )
    return row


def _candidates(zoo: Path, signature: bytes) -> list[ModelEntry]:
    """Returns models of the same tensors, or else of any; of those that share a base, the base."""
    query = (
        "SELECT id, name, kind, sha256 FROM models WHERE kind = 'stored' AND {} "
        "AND base IS NULL "
        f"ORDER BY id DESC LIMIT {_TRIED}"
    )
    with index.reading(zoo) as connection:
        alike = connection.execute(query.format("signature = ?"), (signature,)).fetchall()
        found = alike or connection.execute(query.format("TRUE")).fetchall()
    return [ModelEntry(*row) for row in found]
