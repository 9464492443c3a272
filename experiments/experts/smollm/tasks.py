"""Tasks of a language model over local files: what is learnt, and what lm-eval asks.

Sentences become questions whose answers are one word each; grade-school maths, code and prose are
texts, judged in bits per byte.
"""

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from evaluators.tasks.data import read_lines
from experiments.experts.quickstart.corpus import chunks, read_domains, split_documents
from experiments.experts.sentences.sentences import (
    EVALUATION_SPLITS,
    SentenceTask,
    read_tasks,
    task_files,
)
from experiments.runs.files import write_lines
from merging.seeding import stable_seed

MATHS = "maths"
TEXTS = ("code", "prose")  # of the quickstart's corpus

_CALCULATION = re.compile(r"<<.*?>>")  # a calculator's, which reads as noise
_ANSWERS = {
    "sst2": ("Review: {}\nSentiment:", {0: "bad", 1: "good"}),
    "subj": ("Sentence: {}\nIt is:", {0: "opinion", 1: "fact"}),  # of a review, of a plot
    "trec": (
        "Question: {}\nIt asks for a:",
        {
            **{0: "description", 1: "thing", 2: "abbreviation"},
            **{3: "person", 4: "place", 5: "number"},
        },
    ),
    "banking77": (
        "Customer: {}\nTopic:",
        {
            **{1: "activate", 2: "age", 9: "cancel", 12: "delivery", 22: "pin", 25: "country"},
            **{33: "exchange", 43: "phone", 52: "refund", 55: "account"},
        },
    ),
}
"""Task -> what a sentence is put into, and the word of each class; other classes are left out."""

CHOICES = tuple(_ANSWERS)
TASKS = (*CHOICES, MATHS, *TEXTS)


@dataclass(frozen=True)
class PromptedAnswer:
    """What a training shows: the answer alone is learnt; without a prompt, all of it."""

    prompt: str
    answer: str


@dataclass(frozen=True)
class LanguageTask:
    """One task's examples to learn, and the lines of its held-out items.

    The keys of `held_out` are `EVALUATION_SPLITS`; no text is in two parts.
    """

    name: str
    train: tuple[PromptedAnswer, ...]
    held_out: Mapping[str, Sequence[Mapping[str, Any]]]


@dataclass(frozen=True)
class Cut:
    """How long texts may be and how many are held out.

    Args:
        sentence: most characters of a sentence; longer ones are left out.
        problem: most characters of a problem of grade-school maths with its worked answer.
        chunk: characters of a piece of code or prose.
        texts: held-out texts of each split, where the source does not say it.
        documents: held-out documents of each split that pieces are cut from.
    """

    sentence: int = 90
    problem: int = 280
    chunk: int = 160
    texts: int = 100
    documents: int = 40


def source_files(sentences: str | None, maths: str | None) -> dict[str, dict[str, Path]]:
    """Returns task -> part -> file of what is read; ValueError where one is missing."""
    files = task_files(sentences, CHOICES)
    if maths is None:
        raise ValueError(
            "grade-school maths is not given: set EVOMERGE_GSM8K or experts.maths to a directory "
            'with train.jsonl and test.jsonl of lines {"question": "...", "answer": "..."}; '
            "it can be had from the public repository openai/grade-school-math"
        )
    own = {part: Path(maths).expanduser() / f"{part}.jsonl" for part in ("train", "test")}
    for path in own.values():
        if not path.is_file():
            raise ValueError(f"task {MATHS!r}: {path} does not exist; see experts.maths")
    return {**files, MATHS: own}


def read_all(files: Mapping[str, Mapping[str, Path]], cut: Cut, seed: int) -> list[LanguageTask]:
    """Returns all of `TASKS`; ValueError: a line cannot be read, or too little is left."""
    sentences = read_tasks({name: files[name] for name in CHOICES}, seed=seed)
    tasks = [_choices(task, cut) for task in sentences]
    return [*tasks, _maths(files[MATHS], cut, seed), *_texts(cut, seed)]


def _choices(task: SentenceTask, cut: Cut) -> LanguageTask:
    template, answers = _ANSWERS[task.name]
    places = {label: place for place, label in enumerate(answers)}
    words = [f" {word}" for word in answers.values()]

    def items(sentences: Iterable[Any]) -> list[dict[str, Any]]:
        return [
            {
                "context": template.format(each.text),
                "choices": words,
                "label": places[each.label],
            }
            for each in sentences
            if each.label in places and len(each.text) <= cut.sentence
        ]

    train = [PromptedAnswer(item["context"], words[item["label"]]) for item in items(task.train)]
    held_out = {split: items(of) for split, of in task.held_out.items()}
    return LanguageTask(task.name, tuple(train), _checked(task.name, train, held_out))


def _maths(files: Mapping[str, Path], cut: Cut, seed: int) -> LanguageTask:
    """Returns problems with worked answers; `test` is reported, drawn ones of `train` searched."""
    train, test = (_problems(files[part], cut.problem) for part in ("train", "test"))
    known = set(test)
    drawn = sorted(
        (text for text in train if text not in known),
        key=lambda text: stable_seed(seed, MATHS, text),
    )
    parts = {
        "search": drawn[: cut.texts],
        "selection": drawn[cut.texts : 2 * cut.texts],
        "report": sorted(test, key=lambda text: stable_seed(seed, MATHS, text)),
    }
    return _text_task(MATHS, drawn[2 * cut.texts :], parts)


def _problems(path: Path, longest: int) -> list[str]:
    texts = [
        _CALCULATION.sub("", f"Question: {line.text('question')}\nAnswer: {line.text('answer')}")
        for line in read_lines(path)
    ]
    return list(dict.fromkeys(text for text in texts if len(text) <= longest))


def _texts(cut: Cut, seed: int) -> list[LanguageTask]:
    documents = read_domains()
    counts = dict.fromkeys(EVALUATION_SPLITS, cut.documents)
    tasks = []
    for name in TEXTS:
        domain = split_documents(documents[name], domain=name, seed=seed, held_out=counts)
        pieces = {
            split: chunks(of, count=cut.texts, size=cut.chunk, seed=stable_seed(seed, name, split))
            for split, of in domain.held_out.items()
        }
        train = chunks(domain.train, count=20 * cut.texts, size=cut.chunk, seed=seed)
        tasks.append(_text_task(name, train, pieces))
    return tasks


def _text_task(
    name: str, train: Iterable[str], held_out: Mapping[str, Sequence[str]]
) -> LanguageTask:
    examples = tuple(PromptedAnswer("", text) for text in train)
    items = {split: [{"text": text} for text in texts] for split, texts in held_out.items()}
    return LanguageTask(name, examples, _checked(name, examples, items))


def _checked(
    name: str, train: Sequence[PromptedAnswer], held_out: Mapping[str, list[dict[str, Any]]]
) -> Mapping[str, list[dict[str, Any]]]:
    for part, items in {"train": train, **held_out}.items():
        if len(items) < 2:
            raise ValueError(
                f"task {name!r} has {len(items)} short enough items in its part {part}, expected "
                "at least 2: give more texts"
            )
    return held_out


def write_task(task: LanguageTask, folder: Path, data: Path) -> None:
    """Writes ``smollm_<task>_<split>.yaml`` and their items beside them.

    `data` is where the folder will lie: lm-eval starts in the working directory.
    """
    for split, items in task.held_out.items():
        name = f"smollm_{task.name}_{split}"
        write_lines(folder / f"{name}.jsonl", items)
        content = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data / f"{name}.jsonl")}},
            "test_split": "test",
            "num_fewshot": 0,
            "metadata": {"version": 1.0},
            **(_CHOICE_TASK if task.name in CHOICES else _TEXT_TASK),
        }
        text = yaml.safe_dump(content, sort_keys=False)
        (folder / f"{name}.yaml").write_text(text, encoding="utf-8", newline="\n")


def _metric(name: str, *, higher: bool) -> list[dict[str, Any]]:
    return [{"metric": name, "higher_is_better": higher}]


_CHOICE_TASK = {
    "output_type": "multiple_choice",
    "doc_to_text": "context",
    "doc_to_choice": "choices",
    "doc_to_target": "label",
    "target_delimiter": "",
    "metric_list": _metric("acc", higher=True),
}
_TEXT_TASK = {
    "output_type": "loglikelihood_rolling",
    "doc_to_text": "",
    "doc_to_target": "{{text}}",
    "metric_list": _metric("bits_per_byte", higher=False),
}
