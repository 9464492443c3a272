"""A process that changes a zoo until it is killed, and writes down what it does."""

import os
from itertools import count
from multiprocessing.process import BaseProcess
from pathlib import Path

import numpy as np

from merging.zoo.store import Piece, Zoo
from tests.forking import FORKING

RECIPE = {"made": "of others", "what": "x" * 1000}


def start(zoo: Path, models: list[Path], log: Path, seed: int) -> BaseProcess:
    """Starts it; `log` gets a line before and one after every change."""
    process = FORKING.Process(target=_main, args=(zoo, models, log, seed), daemon=True)
    process.start()
    return process


def replay(log: Path) -> tuple[dict[str, str], dict[str, str]]:
    """Returns name -> content of all models before and after the last change of a log.

    They are one where that change was done. Contents: the plain model's directory; or "recipe".
    """
    before: dict[str, str] = {}
    after: dict[str, str] = {}
    for line in log.read_text().splitlines():
        match line.split():
            case ["add", name, content]:
                after = {**before, name: content}
            case ["remove", name]:
                after = {key: value for key, value in before.items() if key != name}
            case ["done"]:
                before = after
            case ["undone"]:  # by the test: the change before it was not made
                after = before
    return before, after


def _main(zoo: Path, models: list[Path], log: Path, seed: int) -> None:
    rng = np.random.default_rng(seed)
    store = Zoo.open(zoo, create=True)
    file = os.open(log, os.O_WRONLY | os.O_APPEND | os.O_CREAT)

    def say(line: str) -> None:
        os.write(file, f"{line}\n".encode())

    for number in count():
        _change(store, models, rng, f"m{seed}-{number}", say)
        say("done")


def _change(store: Zoo, models: list[Path], rng: np.random.Generator, name: str, say) -> None:  # type: ignore[no-untyped-def]
    present = [model.name for model in store.models() if model.name.startswith("m")]
    if len(present) > 4 or (present and rng.random() < 0.2):
        gone = str(rng.choice(present))
        say(f"remove {gone}")
        store.remove(gone)
        return
    kind = rng.choice(["add", "pieces", "recipe", "gc"])
    stored = [model.name for model in store.models() if model.kind == "stored"]
    if kind == "add" or (kind == "pieces" and not stored):
        content = models[rng.integers(len(models))]
        say(f"add {name} {content}")
        store.add(content, name)
    elif kind == "pieces":
        content = models[rng.integers(len(models))]
        say(f"add {name} {content}")
        _by_pieces(store, str(rng.choice(stored)), content, name)
    elif kind == "recipe":
        say(f"add {name} recipe")
        store.add_recipe(RECIPE, name, {"config.json": rng.bytes(30_000)})
    else:
        say("gc")
        store.gc()


def _by_pieces(store: Zoo, like: str, content: Path, name: str) -> None:
    """Adds the model of a directory as pieces of another's blocks where they are the same."""
    raw = np.frombuffer((content / "model.safetensors").read_bytes(), np.uint8)
    file = next(file for file in store.files(like) if file.entries)
    pieces: dict[str, list[Piece | np.ndarray]] = {}
    for tensor, entry in file.entries.items():
        new, at = raw[entry.begin : entry.end], 0
        pieces[tensor] = []
        for piece in store.pieces(like)[tensor]:
            old = np.empty(piece.length, np.uint8)
            store.read([piece], old)
            part = new[at : at + piece.length]
            pieces[tensor].append(piece if (old == part).all() else part)
            at += piece.length
    store.add_pieces(name, like, pieces, {"config.json": (content / "config.json").read_bytes()})
