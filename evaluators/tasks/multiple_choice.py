"""Accuracy of choosing the likeliest of several answers, from a local file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Loglikelihood, Response, totals_of
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import check_fits, encode_pair, language_tokenizer, prefix_token
from merging.arrays import Vector


@dataclass(frozen=True, eq=False)
class _Answers:
    """The right answer's index, and the lengths of every answer, ``(answers,)``."""

    label: int
    characters: Vector
    bytes: Vector


class MultipleChoice:
    """Which answer does the model find likeliest after the question?

    acc compares log-likelihoods, acc_norm log-likelihoods per character of the answer, acc_bytes
    per byte, as lm-eval names them. Cases are 1 for a right item and 0 for a wrong one.

    Args:
        data: JSON-lines file, one item in each line.
        label_field: where a line holds the right answer's index, from 0.
        delimiter: text between question and answer.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(("acc", "acc_norm", "acc_bytes"), "maximize")
    subset = on_subset

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
        take: str | None = None,
    ) -> None:
        path = data_path(data, split)
        tokenizer = language_tokenizer(model, f"multiple choice on {path.name}")
        lines, source = take_items(read_lines(path), take, path)
        items = []
        for line in lines:
            question: str = line.field(question_field, str)
            choices = _choices(line, choices_field)
            label = _label(line, label_field, len(choices))
            answers = _Answers(
                label,
                np.array([len(choice) for choice in choices], float),
                np.array([len(choice.encode()) for choice in choices], float),
            )
            requests = tuple(_ask(tokenizer, question, delimiter + choice) for choice in choices)
            check_fits(requests, model.max_length, str(line))
            items.append(TaskItem(digest(question, choices), requests, answers))
        self.items = ItemSet(source, tuple(items))

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the three accuracies in [0, 1]."""
        totals = totals_of(responses)
        right = []
        for item, span in zip(self.items, self.items.spans, strict=True):
            log_probs, answers = totals[span], item.target
            ranked = (log_probs, log_probs / answers.characters, log_probs / answers.bytes)
            right.append([float(np.argmax(values) == answers.label) for values in ranked])
        cases = np.array(right, dtype=np.float64).T
        return {
            metric: Score(float(values.mean()), values)
            for metric, values in zip(self.metrics, cases, strict=True)
        }


def _ask(tokenizer: Any, question: str, answer: str) -> Loglikelihood:
    if question.strip():
        return encode_pair(tokenizer, question, answer)
    tokens = tokenizer.encode(question + answer, add_special_tokens=False)
    return Loglikelihood((prefix_token(tokenizer),), tuple(tokens))


def _choices(line: Line, field: str) -> list[str]:
    choices: list[str] = line.field(field, list)
    if len(choices) < 2 or not all(isinstance(text, str) and text for text in choices):
        raise ValueError(f"{line}: field {field!r} must be a list of at least two texts")
    return choices


def _label(line: Line, field: str, count: int) -> int:
    label: int = line.field(field, int)
    if not 0 <= label < count:
        raise ValueError(f"{line}: label {label} is no index into its {count} choices")
    return label
