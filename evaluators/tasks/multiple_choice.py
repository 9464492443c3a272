"""Accuracy of choosing the likeliest of several answers, from a local file."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.requests import Likelihood, Loglikelihood, Request, Response
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_range
from evaluators.tasks.encoding import check_fits, encode_pair, language_tokenizer, prefix_token
from evaluators.tasks.subset import checked_places, of_places


class MultipleChoice:
    """Which answer does the model find likeliest after the question?

    acc compares log-likelihoods, acc_norm log-likelihoods per byte of the answer. Cases are 1
    for a right item and 0 for a wrong one.

    Args:
        model: what the models to come have in common.
        data: JSON-lines file, one item in each line.
        split: replaces ``{split}`` in `data`.
        question_field: where a line holds the text in front of the answer.
        choices_field: where it holds the list of answers.
        label_field: where it holds the right answer's index, from 0.
        delimiter: text between question and answer.
        take: ``start:stop`` of the items; None: all.
    """

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
        lines = read_lines(path)
        chosen = take_range(take, len(lines), str(path))
        self._source = f"{path.resolve()}[{chosen.start}:{chosen.stop}]"
        items: list[str] = []
        requests: list[Loglikelihood] = []
        self._labels: list[int] = []
        self._sizes: list[npt.NDArray[np.float64]] = []  # bytes of every item's answers
        for line in (lines[i] for i in chosen):
            question: str = line.field(question_field, str)
            choices = _choices(line, choices_field)
            self._labels.append(_label(line, label_field, len(choices)))
            self._sizes.append(np.array([len(choice.encode()) for choice in choices], float))
            requests.extend(_ask(tokenizer, question, delimiter + choice) for choice in choices)
            items.append(digest(question, choices))
        check_fits(requests, model.max_length, f"multiple choice on {path.name}")
        self._items, self._requests = tuple(items), tuple(requests)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """``acc`` first, then ``acc_norm``; both to be maximised."""
        return {"acc": "maximize", "acc_norm": "maximize"}

    @property
    def source(self) -> str:
        """The file's path and which of its items."""
        return self._source

    @property
    def items(self) -> Sequence[str]:
        """Digest of every item's question and answers."""
        return self._items

    def requests(self) -> Sequence[Request]:
        """Returns one request for every answer, item after item."""
        return self._requests

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns both accuracies in [0, 1]."""
        totals = np.array(
            [response.total for response in responses if isinstance(response, Likelihood)]
        )
        ends = np.cumsum([len(sizes) for sizes in self._sizes])[:-1]
        right, right_norm = [], []
        for lls, sizes, label in zip(
            np.split(totals, ends), self._sizes, self._labels, strict=True
        ):
            right.append(float(np.argmax(lls) == label))
            right_norm.append(float(np.argmax(lls / sizes) == label))
        return {"acc": _mean(right), "acc_norm": _mean(right_norm)}

    def subset(self, items: Sequence[int]) -> MultipleChoice:
        """Returns the same on some of the items; see `Evaluator`."""
        places = checked_places(items, len(self._items), self._source)
        part = copy.copy(self)
        part._items = tuple(self._items[place] for place in places)
        part._requests = of_places(self._requests, [len(each) for each in self._sizes], places)
        part._labels = [self._labels[place] for place in places]
        part._sizes = [self._sizes[place] for place in places]
        return part


def _mean(cases: Sequence[float]) -> Score:
    values = np.array(cases, dtype=np.float64)
    return Score(float(values.mean()), values)


def _ask(tokenizer: Any, question: str, answer: str) -> Loglikelihood:
    if question.strip():
        return encode_pair(tokenizer, question, answer)
    tokens = tokenizer.encode(question + answer, add_special_tokens=False)
    return Loglikelihood((prefix_token(tokenizer),), tuple(tokens))


def _choices(line: Line, field: str) -> list[str]:
    choices: list[str] = line.field(field, list)
    if len(choices) < 2 or not all(isinstance(each, str) and each for each in choices):
        raise ValueError(f"{line}: field {field!r} must be a list of at least two texts")
    return choices


def _label(line: Line, field: str, count: int) -> int:
    label: int = line.field(field, int)
    if not 0 <= label < count:
        raise ValueError(f"{line}: label {label} is no index into its {count} choices")
    return label
