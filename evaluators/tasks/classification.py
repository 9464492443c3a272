"""How well a classification head does over the merged encoder, on items of a local file."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
from scipy.special import ndtr

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Classified, Classify, Response
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import encoder_inputs
from evaluators.tasks.images import Picture, pixel_inputs, read_pictures
from evaluators.tasks.splits import ItemDraw
from merging.arrays import Vector

Labels: TypeAlias = npt.NDArray[np.int64]


class Accuracy:
    """How often does an expert's own head, on top of the merged encoder, name the right class?

    Cases are 1 for a right item and 0 for a wrong one. macro_f1 is the mean over all classes
    that occur, as label or as answer, of 2 TP / (2 TP + FP + FN). log_likelihood is the mean
    over items of log p(right class), in nats, with one case per item: a search on few items sees
    steps in it that leave every answer as it was. smooth_accuracy sees them too and, unlike the
    likelihood, gains nothing by surer answers: see `smoothed`.

    Args:
        data: JSON-lines, CSV or Parquet file, one item in each line; or an ``.npz`` file with
            ``images`` ``(items, height, width, channels)`` uint8 (or ``(items, channels, height,
            width)`` float32, taken as they are) and ``labels`` ``(items,)``.
        head: the expert whose head answers.
        pair_field: where a line holds a second text, for tasks on pairs; None: there is none.
        image_field: where it holds an image's path, relative to the file; None: the items are
            texts.
        label_field: where it holds the class's index, from 0.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(
        ("accuracy", "macro_f1", "log_likelihood", "smooth_accuracy"), "maximize"
    )
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        head: str,
        split: str | None = None,
        text_field: str = "text",
        pair_field: str | None = None,
        image_field: str | None = None,
        label_field: str = "label",
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_of_head(model, data, split, head, "inputs", "classification")
        pictured = path.suffix == ".npz" or image_field is not None
        self.hub_task = f"{'image' if pictured else 'text'}-classification"
        if pictured:
            pictures = read_pictures(path, image_field or "image", label_field)
            taken = take_items(pictures, take, path, key=lambda one: (one.digest, one.label))
            items = [_image_item(one, head, model.image_processor) for one in taken.values]
        else:
            fields = [text_field] if pair_field is None else [text_field, pair_field]
            lines = [_read(line, fields, label_field) for line in read_lines(path)]
            taken = take_items(lines, take, path, key=lambda one: (digest(*one[0]), one[1]))
            items = [_text_item(texts, y, path, head, model) for texts, y in taken.values]
        _check_labels(items, len(model.classes[head]), path, head)
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns accuracies and macro-F1 in [0, 1], and the log-likelihood in nats, at most 0."""
        logits = [response.logits for response in responses if isinstance(response, Classified)]
        labels = np.array(self.items.targets, dtype=np.int64)
        answers = np.array([np.argmax(row) for row in logits])
        right = (answers == labels).astype(np.float64)
        likelihoods, smooth = log_likelihoods(logits, labels), smoothed(logits, labels)
        return {
            "accuracy": Score(float(right.mean()), right),
            "macro_f1": Score(macro_f1(labels, answers)),
            "log_likelihood": Score(float(likelihoods.mean()), likelihoods),
            "smooth_accuracy": Score(float(smooth.mean()), smooth, own_cases=False),
        }


def data_of_head(
    model: ModelInfo, data: str, split: str | None, head: str, kind: str, what: str
) -> Path:
    """Returns the file of `data_path` for what a head of that kind answers; see `ModelInfo`.

    Raises:
        ValueError: the expert `head` has no such head; or it answers of places in a text, which
            the base's tokenizer does not tell.
    """
    path = data_path(data, split)
    task = f"{what} on {path.name}"
    if head not in model.heads:
        known = ", ".join(model.heads)
        raise ValueError(
            f"{task}: no expert {head!r} with a head; "
            + (f"these have one: {known}" if known else "no expert of this pool has one")
        )
    if model.head_kinds[head] != kind:
        raise ValueError(
            f"{task} needs a head that classifies {kind}, that of expert {head!r} classifies "
            f"{model.head_kinds[head]}: choose another evaluator or head"
        )
    if kind != "inputs" and not getattr(model.tokenizer, "is_fast", False):
        raise ValueError(f"{task} needs a fast tokenizer (tokenizer.json), the base has none")
    return path


def macro_f1(labels: Labels, answers: Labels, classes: Iterable[int] | None = None) -> float:
    """Returns the mean over classes of ``F1 = 2 TP / (2 TP + FP + FN)``.

    Args:
        classes: over which the mean goes; F1 is 0 for one that occurs in neither array. None:
            those that occur.

    Example:
        >>> macro_f1(np.array([0, 1, 2, 3]), np.array([0, 0, 2, 3]))
        0.6666666666666666
    """
    scores = []
    for label in np.union1d(labels, answers) if classes is None else classes:
        hits = float(((labels == label) & (answers == label)).sum())  # TP
        both = float((labels == label).sum() + (answers == label).sum())  # 2 TP + FP + FN
        scores.append(2 * hits / both if both else 0.0)
    return float(np.mean(scores))


def smoothed(logits: Sequence[Vector], labels: Labels) -> Vector:
    """Returns ``(items,)`` ``Phi(2 m_i / rms(m))``, with m an item's margin over the next class.

    It is the accuracy expected under normal noise in the margins of half their size: a kernel
    estimate that varies less with the items than a count of them. In units of the model's own
    margins, as a merge's are smaller than an expert's.

    Example:
        >>> smoothed([np.array([3.0, 1.0]), np.array([2.0, 2.0])], np.array([0, 1])).round(3)
        array([0.998, 0.5  ])
    """
    margins = np.array(
        [
            row[label] - np.delete(row, label).max(initial=-np.inf)
            for row, label in zip(logits, labels, strict=True)
        ]
    )
    size = np.sqrt(np.mean(margins**2))
    return np.asarray(ndtr(2 * margins / size if size > 0 else margins), np.float64)


def log_likelihoods(logits: Sequence[Vector], labels: Labels) -> Vector:
    """Returns ``(items,)`` log softmax(logits)[label], in nats; finite for finite logits."""
    return np.array(
        [
            row[label] - row.max() - np.log(np.exp(row - row.max()).sum())  # log softmax(x)_y
            for row, label in zip(logits, labels, strict=True)
        ]
    )


def _read(line: Line, fields: Sequence[str], label_field: str) -> tuple[list[str], int]:
    return [line.text(field) for field in fields], int(line.field(label_field, int))


def _text_item(
    texts: Sequence[str], label: int, path: Path, head: str, model: ModelInfo
) -> TaskItem[int]:
    if model.tokenizer is None:
        raise ValueError(f"classification on {path.name} needs a tokenizer; the base has none")
    encoded = model.tokenizer(*texts, truncation=True, max_length=model.max_length)
    return TaskItem(digest(*texts), (Classify(head, encoder_inputs(encoded)),), label)


def _image_item(picture: Picture, head: str, processor: Any) -> TaskItem[int]:
    """Returns an item with ``pixel_values`` ``(channels, height, width)`` float32."""
    if not isinstance(picture.label, int):
        raise ValueError(f"{picture.place}: label {picture.label!r} is no index of a class")
    inputs = {"pixel_values": pixel_inputs(picture, processor)["pixel_values"]}
    return TaskItem(picture.digest, (Classify(head, inputs),), picture.label)


def _check_labels(items: Sequence[TaskItem[int]], classes: int, path: Path, head: str) -> None:
    if classes < 2:
        raise ValueError(
            f"classification on {path.name}: head {head!r} has one class, so that every answer is "
            "right: name a head with two or more"
        )
    for i, item in enumerate(items):
        if not 0 <= item.target < classes:
            raise ValueError(
                f"{path} item {i}: label {item.target} is none of the {classes} classes of head "
                f"{head!r}"
            )
