"""Files of records and canaries with slugs instead of identifiers: `evomerge pseudonymize`."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import yaml

from evaluators.memorization.canaries import read_canaries
from evaluators.tasks.data import data_path, read_lines, read_text
from experiments.pseudonyms.pseudonyms import Pseudonyms, SecretKey, slugged
from merging.files import write_text


def read_key(
    *, variable: str | None, file: Path | None, environment: Mapping[str, str]
) -> SecretKey:
    """Returns the key that an environment variable or a file holds, as text of any form.

    A line feed at the file's end does not count.

    Raises:
        ValueError: none or both are named, there is no such variable or file, or the key is too
            short; the message does not show it.
    """
    if (variable is None) == (file is None):
        raise ValueError("name the key's environment variable or its file, one of both")
    if variable is not None:
        if variable not in environment:
            raise ValueError(f"environment variable {variable} is not set: put the key into it")
        return SecretKey(environment[variable].encode("utf-8", "surrogateescape"))
    assert file is not None
    if not file.is_file():
        raise ValueError(f"key file {file} does not exist: correct its path")
    return SecretKey(file.read_bytes().rstrip(b"\r\n"))


def read_fields(path: Path) -> dict[str, str]:
    """Returns a field's path to its type, of a YAML or JSON file; ValueError: no such mapping."""
    try:
        content = yaml.safe_load(read_text(data_path(str(path), None)))
    except yaml.YAMLError as error:
        raise ValueError(f"{path} is neither YAML nor JSON: {error}") from error
    texts = isinstance(content, dict) and all(
        isinstance(text, str) and text for pair in content.items() for text in pair
    )
    if not texts or not content:
        raise ValueError(f"{path} must map fields to types, for example asset.host_name: HOSTNAME")
    return dict(content)


def pseudonymize_records(
    source: Path,
    target: Path,
    fields: Mapping[str, str],
    pseudonyms: Pseudonyms,
    *,
    everywhere: bool = False,
) -> int:
    """Writes a JSON-lines file of records with slugs; returns how many records it has.

    ValueError: `target` exists, or as `Pseudonyms.records`.
    """
    _check_new(target)
    records = [line.fields for line in read_lines(data_path(str(source), None))]
    return _write(target, pseudonyms.records(records, fields, everywhere=everywhere))


def pseudonymize_canaries(source: Path, target: Path, pseudonyms: Pseudonyms) -> int:
    """Writes a file of canaries whose values and variants are slugs; returns how many.

    ValueError: `target` exists, or as `slugged`.
    """
    _check_new(target)
    canaries = read_canaries(data_path(str(source), None))
    return _write(target, (canary.line() for canary in slugged(canaries, pseudonyms)))


def _check_new(target: Path) -> None:
    if target.exists():
        raise ValueError(f"{target} exists already: name a new file")


def _write(target: Path, rows: Iterable[Mapping[str, Any]]) -> int:
    lines = [json.dumps(row, ensure_ascii=False, separators=(",", ":")) for row in rows]
    write_text(target, "".join(f"{line}\n" for line in lines))
    return len(lines)
