"""How well a head over spans finds answers to questions in a text, as SQuAD measures it."""

import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Classified, Classify, Response
from evaluators.tasks.classification import data_of_head
from evaluators.tasks.data import Line, digest, read_lines, take_items
from evaluators.tasks.encoding import encoder_inputs
from evaluators.tasks.splits import ItemDraw
from merging.arrays import Matrix

_ARTICLES = re.compile(r"\b(a|an|the)\b")
_PUNCTUATION = str.maketrans("", "", string.punctuation)


class _Question(NamedTuple):
    line: Line
    question: str
    context: str
    answers: tuple[str, ...]  # none: it has no answer


@dataclass(frozen=True)
class _Asked:
    """What a question's answers are read off with.

    Args:
        windows: for each window, the first and the last character of every token of the context;
            None for other tokens.
    """

    context: str
    answers: tuple[str, ...]
    windows: tuple[tuple[tuple[int, int] | None, ...], ...]


class QuestionAnswering:
    """Does an expert's head over spans find the answer in the text?

    Texts that are too long are read in windows that overlap; the answer is the span of any window
    with the largest start + end logit. Where an item of the file has no answer (as in SQuAD 2), a
    model may say so: it does where the first token as both start and end beats every span, in the
    window where it does so least. f1 is that of words and exact_match equality, both after
    SQuAD's normalisation and the best over the item's answers. Cases are the items' own.

    Args:
        data: JSON-lines, CSV or Parquet file, one question in each line.
        head: the expert whose head answers.
        answers_field: where a line holds the answers: a text, a list of texts, or as SQuAD has
            it a mapping with ``text`` (CSV: as JSON); an empty list: there is none.
        window: most tokens the model reads at once; None: 384, or as many as it can.
        stride: tokens by which windows overlap.
        max_answer_tokens: longest span.

    Source: Rajpurkar et al. 2016, https://arxiv.org/abs/1606.05250, and the script of SQuAD 2.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(("f1", "exact_match"), "maximize")
    hub_task = "question-answering"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        head: str,
        split: str | None = None,
        question_field: str = "question",
        context_field: str = "context",
        answers_field: str = "answers",
        window: int | None = None,
        stride: int = 128,
        max_answer_tokens: int = 30,
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_of_head(model, data, split, head, "spans", "question answering")
        width = min(384, model.max_length) if window is None else window
        if not 8 <= width <= model.max_length or not 0 <= stride < width or max_answer_tokens < 1:
            raise ValueError(
                f"question answering on {path.name}: window must be 8 to {model.max_length} "
                "tokens, what the model takes, stride less than it and max_answer_tokens at least "
                f"1, got {width}, {stride} and {max_answer_tokens}"
            )
        questions = [
            _read(line, question_field, context_field, answers_field) for line in read_lines(path)
        ]
        self._may_be_none = any(not one.answers for one in questions)
        self._longest = max_answer_tokens
        taken = take_items(
            questions, take, path, key=lambda one: (digest(one.question, one.context), None)
        )
        items = [_item(one, head, model, width, stride) for one in taken.values]
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns both scores in [0, 1]."""
        logits = [response.logits for response in responses if isinstance(response, Classified)]
        rows = []
        for item, part in zip(self.items, self.items.spans, strict=True):
            answer = self._answer(item.target, logits[part])
            wanted = item.target.answers or ("",)
            rows.append([max(each(answer, one) for one in wanted) for each in (word_f1, exact)])
        cases = np.array(rows).T
        return {
            metric: Score(float(own.mean()), own)
            for metric, own in zip(self.metrics, cases, strict=True)
        }

    def _answer(self, asked: _Asked, logits: Sequence[Matrix]) -> str:
        best, answer, nothing = -np.inf, "", np.inf
        for offsets, own in zip(asked.windows, logits, strict=True):
            nothing = min(nothing, float(own[0].sum()))
            score, first, last = best_span(
                own, [one is not None for one in offsets], self._longest
            )
            if score > best:
                (start, _), (_, end) = offsets[first] or (0, 0), offsets[last] or (0, 0)
                best, answer = score, asked.context[start:end]
        return "" if self._may_be_none and nothing > best else answer


def best_span(logits: Matrix, allowed: Sequence[bool], longest: int) -> tuple[float, int, int]:
    """Returns score, first and last token of the span with the largest start + end logit.

    Args:
        logits: ``(tokens, 2)`` start and end.
        allowed: tokens where spans may start and end.
        longest: most tokens of one.
    """
    start, end = np.where(np.array(allowed)[:, None], logits, -np.inf).T
    sums = start[:, None] + end
    sums[np.tril_indices(len(sums), -1)] = -np.inf  # it ends before it starts
    sums[np.triu_indices(len(sums), longest)] = -np.inf
    first, last = np.unravel_index(int(sums.argmax()), sums.shape)
    return float(sums[first, last]), int(first), int(last)


def normalised(text: str) -> list[str]:
    """Returns the words that SQuAD compares: lower case, no punctuation, no articles.

    Example:
        >>> normalised("The  Beyoncé-Knowles, a!")
        ['beyoncéknowles']
    """
    return _ARTICLES.sub(" ", text.lower().translate(_PUNCTUATION)).split()


def exact(answer: str, wanted: str) -> float:
    """Returns 1 for equal words, else 0."""
    return float(normalised(answer) == normalised(wanted))


def word_f1(answer: str, wanted: str) -> float:
    """Returns ``2 P R / (P + R)`` of the answer's words; of no words, whether both have none."""
    own, right = normalised(answer), normalised(wanted)
    if not own or not right:
        return float(own == right)
    hits = sum((Counter(own) & Counter(right)).values())
    return 2 * hits / (len(own) + len(right))  # P = hits / own, R = hits / right


def _read(line: Line, question: str, context: str, answers: str) -> _Question:
    return _Question(line, line.text(question), line.text(context), _answers(line, answers))


def _answers(line: Line, field: str) -> tuple[str, ...]:
    value: Any = line.unfolded(field, (list, dict, str))
    if isinstance(value, dict):
        value = value.get("text")
    value = [value] if isinstance(value, str | int | float) else value
    if not isinstance(value, list) or not all(isinstance(one, str | int | float) for one in value):
        raise ValueError(
            f"{line}: field {field!r} must be a text, a list of texts or SQuAD's form"
        )
    return tuple(str(one) for one in value)


def _item(
    asked: _Question, head: str, model: ModelInfo, window: int, stride: int
) -> TaskItem[_Asked]:
    own = len(model.tokenizer(asked.question, "")["input_ids"])
    if own + stride >= window:
        raise ValueError(
            f"{asked.line}: the question has {own} tokens, which leave no room for a context of "
            f"more than {stride} tokens: shorten it, or set stride or window"
        )
    encoded = model.tokenizer(
        asked.question,
        asked.context,
        truncation="only_second",
        max_length=window,
        stride=stride,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
    )
    requests, windows = [], []
    for i, offsets in enumerate(encoded["offset_mapping"]):
        inputs = encoder_inputs({kind: each[i] for kind, each in encoded.items()})
        requests.append(Classify(head, inputs, tuple(range(len(offsets)))))
        of_context = encoded.sequence_ids(i)
        windows.append(
            tuple(tuple(o) if s == 1 else None for o, s in zip(offsets, of_context, strict=True))
        )
    target = _Asked(asked.context, asked.answers, tuple(windows))
    return TaskItem(digest(asked.question, asked.context), tuple(requests), target)
