"""How well a head over tokens does on the merged encoder: words with a label each."""

import re
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.intervals import mean_interval
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Classified, Classify, Response
from evaluators.tasks.classification import data_of_head
from evaluators.tasks.corpus_scores import ratio_score
from evaluators.tasks.data import Line, digest, read_lines, take_items
from evaluators.tasks.encoding import encoder_inputs
from evaluators.tasks.splits import ItemDraw
from merging.arrays import Matrix

_SCHEME = re.compile(r"O|[BIES]-.+")
_LEFT_OUT = -100  # the label of words that do not count, as is customary

Tags = npt.NDArray[np.int64]


class _Sentence(NamedTuple):
    line: Line
    words: list[str]
    labels: list[int]


class TokenClassification:
    """How often does an expert's head over tokens give a word its label?

    The first token of a word answers for it. accuracy is the share of labelled words that are
    right; the cases are each item's right words over the mean labelled words of all items, so
    that long ones count for more. macro_f1 is the mean over the classes that occur, as label or
    as answer, of 2 TP / (2 TP + FP + FN). entity_f1, where the head's classes read B-X, I-X and O
    (or E-X and S-X too), is the F1 of whole entities of all classes together, by their class and
    both ends, as conlleval counts them. Cases and intervals of both: see `ratio_score`.

    Args:
        data: JSON-lines, CSV or Parquet file, one sentence in each line.
        head: the expert whose head answers.
        words_field: where a line holds its words, a list of texts (CSV: as JSON).
        labels_field: where it holds a label for each: the class's index or its name in the head's
            configuration; -100 for words that do not count.
    """

    hub_task = "token-classification"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        head: str,
        split: str | None = None,
        words_field: str = "tokens",
        labels_field: str = "tags",
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_of_head(model, data, split, head, "tokens", "token classification")
        self._classes = model.classes[head]
        self.metrics: Mapping[str, Direction] = dict.fromkeys(
            ("accuracy", "macro_f1", *(["entity_f1"] if _names_entities(self._classes) else [])),
            "maximize",
        )
        taken = take_items(
            [_read(line, words_field, labels_field, self._classes) for line in read_lines(path)],
            take,
            path,
            key=lambda one: (digest(one.words), None),
        )
        items = [_item(sentence, head, model) for sentence in taken.values]
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)
        # of all sentences, also on a subset
        self._mean_words = float(np.mean([len(item.target) for item in items]))

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the scores, all in [0, 1]."""
        answers = [r.logits.argmax(axis=-1) for r in responses if isinstance(r, Classified)]
        pairs = [
            (np.array(labels), own)
            for labels, own in zip(self.items.targets, answers, strict=True)
        ]
        right = np.array([float((labels == own).sum()) for labels, own in pairs])
        words, cases = sum(len(labels) for labels, _ in pairs), right / self._mean_words
        scores = {
            "accuracy": Score(
                float(right.sum() / words), cases, interval=mean_interval(cases, 0.0, 1.0)
            ),
            "macro_f1": ratio_score(*_confusions(pairs, len(self._classes))),
        }
        if "entity_f1" in self.metrics:
            scores["entity_f1"] = ratio_score(*_matches(pairs, self._classes))
        return scores


def entities(tags: Sequence[str]) -> set[tuple[str, int, int]]:
    """Returns class, start and end of the entities that tags of a sentence name.

    As conlleval reads them: an I- that continues nothing of its class begins an entity.

    Example:
        >>> sorted(entities(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
        [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found: set[tuple[str, int, int]] = set()
    start, kind = -1, ""
    for place, tag in enumerate([*tags, "O"]):
        prefix, _, name = tag.partition("-")
        goes_on = start >= 0 and prefix in ("I", "E") and name == kind
        if start >= 0 and not goes_on:
            found.add((kind, start, place))
            start = -1
        if prefix != "O" and not goes_on:
            start, kind = place, name
        if prefix in ("E", "S"):
            found.add((kind, start, place + 1))
            start = -1
    return found


def _names_entities(classes: Sequence[str]) -> bool:
    return all(_SCHEME.fullmatch(name) for name in classes) and any(
        name != "O" for name in classes
    )


def _confusions(pairs: Sequence[tuple[Tags, Tags]], classes: int) -> tuple[Matrix, Matrix]:
    """Returns 2 TP and 2 TP + FP + FN of every item and class."""
    hits = [np.bincount(labels[labels == own], minlength=classes) for labels, own in pairs]
    both = [
        np.bincount(labels, minlength=classes) + np.bincount(own, minlength=classes)
        for labels, own in pairs
    ]
    return 2 * np.array(hits, dtype=np.float64), np.array(both, dtype=np.float64)


def _matches(pairs: Sequence[tuple[Tags, Tags]], classes: Sequence[str]) -> tuple[Matrix, Matrix]:
    """Returns 2 TP and 2 TP + FP + FN of every item, over entities."""
    named = [[entities([classes[i] for i in tags]) for tags in pair] for pair in pairs]
    hits = [[2.0 * len(wanted & found)] for wanted, found in named]
    return np.array(hits), np.array([[float(len(w) + len(f))] for w, f in named])


def _read(line: Line, words: str, labels: str, classes: Sequence[str]) -> _Sentence:
    texts, tags = _listed(line, words), _listed(line, labels)
    if not texts or not all(isinstance(text, str) for text in texts):
        raise ValueError(f"{line}: field {words!r} must be a list of texts")
    if len(texts) != len(tags):
        raise ValueError(f"{line}: {len(texts)} {words} have {len(tags)} {labels}: give one each")
    numbers = [_label(line, tag, classes) for tag in tags]
    if all(number == _LEFT_OUT for number in numbers):
        raise ValueError(f"{line}: no word has a label that counts: remove the line")
    return _Sentence(line, texts, numbers)


def _listed(line: Line, field: str) -> list[Any]:
    values = line.unfolded(field, (list, str))
    if not isinstance(values, list):
        raise ValueError(f"{line}: field {field!r} must be a list")
    return values


def _label(line: Line, tag: Any, classes: Sequence[str]) -> int:
    number = classes.index(tag) if tag in classes else tag
    if isinstance(number, int) and (0 <= number < len(classes) or number == _LEFT_OUT):
        return number
    raise ValueError(f"{line}: label {tag!r} is none of the head's: {', '.join(classes)}")


def _apart(words: Sequence[str], tokenizer: Any) -> list[str]:
    """Returns words as they stand in a text: some tokenizers would run them together."""
    pair = tokenizer(["a", "b"], is_split_into_words=True, add_special_tokens=False)["input_ids"]
    glued = str(tokenizer.decode(pair)).strip() == "ab"  # byte-level, without prefix space
    return [f" {word}" if glued and word else word for word in words]


def _item(sentence: _Sentence, head: str, model: ModelInfo) -> TaskItem[tuple[int, ...]]:
    line, words, labels = sentence
    encoded = model.tokenizer(_apart(words, model.tokenizer), is_split_into_words=True)
    length = len(encoded["input_ids"])
    if length > model.max_length:
        raise ValueError(
            f"{line}: the sentence has {length} tokens, the model takes {model.max_length}: "
            "split it"
        )
    first: dict[int, int] = {}  # word -> its first token
    for place, word in enumerate(encoded.word_ids()):
        if word is not None:
            first.setdefault(word, place)
    counted = [word for word, label in enumerate(labels) if label != _LEFT_OUT]
    for word in counted:
        if word not in first:
            raise ValueError(
                f"{line}: the tokenizer leaves no token of word {words[word]!r}: label it -100"
            )
    positions = tuple(first[word] for word in counted)
    request = Classify(head, encoder_inputs(encoded), positions)
    return TaskItem(digest(words), (request,), tuple(labels[word] for word in counted))
