"""Accuracy of choosing the likeliest of several answers, from a local file."""

import string
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Loglikelihood, Response, totals_of
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import (
    check_fits,
    encode_apart,
    encode_pair,
    language_tokenizer,
    prefix_token,
)
from evaluators.tasks.splits import ItemDraw
from merging.arrays import Vector


@dataclass(frozen=True, eq=False)
class ChoiceLengths:
    """The right answer's index, and the lengths of every answer, ``(answers,)``."""

    label: int
    characters: Vector
    bytes: Vector

    @classmethod
    def of(cls, choices: Sequence[str], label: int) -> "ChoiceLengths":
        """Returns what the answers of one question are compared by."""
        return cls(
            label,
            np.array([len(choice) for choice in choices], float),
            np.array([len(choice.encode()) for choice in choices], float),
        )


class _Question(NamedTuple):
    line: Line
    question: str
    choices: list[str]
    label: int


class Choices:
    """What evaluators that compare the answers to a question have in common."""

    metrics: Mapping[str, Direction] = dict.fromkeys(("acc", "acc_norm", "acc_bytes"), "maximize")
    subset = on_subset
    items: ItemSet[ChoiceLengths]

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the three accuracies in [0, 1]; see `MultipleChoice`."""
        totals, right = totals_of(responses), []
        for item, span in zip(self.items, self.items.spans, strict=True):
            log_probs, answers = totals[span], item.target
            ranked = (log_probs, log_probs / answers.characters, log_probs / answers.bytes)
            right.append([float(np.argmax(values) == answers.label) for values in ranked])
        cases = np.array(right, dtype=np.float64).T
        return {
            metric: Score(float(values.mean()), values)
            for metric, values in zip(self.metrics, cases, strict=True)
        }


class MultipleChoice(Choices):
    """Which answer does the model find likeliest after the question?

    acc compares log-likelihoods, acc_norm log-likelihoods per character of the answer, acc_bytes
    per byte, as lm-eval names them. Cases are 1 for a right item and 0 for a wrong one.

    Args:
        data: JSON-lines, CSV or Parquet file, one item in each line; CSV's choices as JSON.
        label_field: where a line holds the right answer: its index, from 0; or its text; or A, B,
            ... for the first, the second, ... where no choice reads so. A number in a CSV file
            that could be either is refused.
        delimiter: text between question and answer.
    """

    hub_task = "multiple-choice"

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        question_field: str = "question",
        choices_field: str = "choices",
        label_field: str = "label",
        delimiter: str = " ",
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        tokenizer = language_tokenizer(
            model, f"multiple choice on {path.name}", encoder_decoder=True
        )
        ask = encode_apart if model.encoder_decoder else _ask
        taken = take_items(
            [_read(line, question_field, choices_field, label_field) for line in read_lines(path)],
            take,
            path,
            key=lambda one: (digest(one.question, one.choices), one.label),
        )
        items = []
        for line, question, choices, label in taken.values:
            requests = tuple(ask(tokenizer, question, delimiter + choice) for choice in choices)
            check_fits(requests, model.max_length, str(line))
            lengths = ChoiceLengths.of(choices, label)
            items.append(TaskItem(digest(question, choices), requests, lengths))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)


def _ask(tokenizer: Any, question: str, answer: str) -> Loglikelihood:
    if question.strip():
        return encode_pair(tokenizer, question, answer)
    tokens = tokenizer.encode(question + answer, add_special_tokens=False)
    return Loglikelihood((prefix_token(tokenizer),), tuple(tokens))


def _read(line: Line, question: str, choices: str, label: str) -> _Question:
    answers = choices_of(line, choices)
    return _Question(line, line.field(question, str), answers, label_of(line, label, answers))


def choices_of(line: Line, field: str) -> list[str]:
    """Returns the answers that a field lists; raises ValueError for fewer than two texts."""
    choices = line.unfolded(field, (list, str))
    if not _are_choices(choices):
        raise ValueError(f"{line}: field {field!r} must be a list of at least two texts")
    return list(choices)


def _are_choices(value: Any) -> bool:
    several = isinstance(value, list) and len(value) >= 2
    return several and all(isinstance(text, str) and text for text in value)


def label_of(line: Line, field: str, choices: Sequence[str]) -> int:
    """Returns the right answer's index; see `MultipleChoice`."""
    label: int | str = line.field(field, (int, str))
    if isinstance(label, int) and line.path.suffix == ".csv" and str(label) in choices:
        if 0 <= label < len(choices) and choices[label] != str(label):
            raise ValueError(
                f"{line}: {field} {label} is an index into its choices, and one of them: write a "
                "letter (A for the first)"
            )
        label = str(label)
    if isinstance(label, str):
        letters = string.ascii_uppercase[: len(choices)]
        known = list(choices) if label in choices else list(letters)
        label = known.index(label) if label in known else -1
    if not 0 <= label < len(choices):
        raise ValueError(
            f"{line}: {field} {line.fields[field]!r} is no index into its {len(choices)} choices, "
            "and none of them"
        )
    return label
