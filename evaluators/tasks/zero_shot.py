"""Which class's words lie nearest to an image, to a model of images and texts?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Gallery, Match, Matched, Response
from evaluators.tasks.classification import log_likelihoods
from evaluators.tasks.data import data_path, digest, take_items
from evaluators.tasks.images import Picture, pixel_inputs, read_pictures
from evaluators.tasks.splits import ItemDraw


@dataclass(frozen=True)
class _Label:
    """The right class, and a digest of the words of all classes."""

    index: int
    prompts: str


class ZeroShot:
    """How often do CLIP and its kind find an image nearest to the words of its class?

    The embedding of a class is the mean direction of its prompts', computed once per candidate.
    Cases are 1 for a right item and 0 for a wrong one. log_likelihood is the mean over items of
    log p(right class), in nats, with one case per item: p is the softmax of the model's own logits
    over the classes.

    Args:
        data: JSON-lines, CSV or Parquet file, one image in each line; or an ``.npz`` file with
            ``images`` ``(items, height, width, channels)`` uint8 and ``labels`` ``(items,)``,
            integers or texts.
        image_field: where a line holds an image's path, relative to the file.
        label_field: where it holds the class: its index, from 0, or its name.
        classes: the names of all classes; None: the labels of the file, which then are names.
        templates: prompts, with ``{}`` for a class's name.

    Source: Radford et al. 2021, https://arxiv.org/abs/2103.00020, section 3.1.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(("accuracy", "log_likelihood"), "maximize")
    hub_task = "zero-shot-image-classification"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        image_field: str = "image",
        label_field: str = "label",
        classes: Sequence[str] | None = None,
        templates: Sequence[str] = ("a photo of a {}.",),
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        task = f"zero-shot classification on {path.name}"
        if model.tokenizer is None:
            raise ValueError(f"{task} needs a tokenizer, and the base's directory has none")
        if not templates or not all("{}" in template for template in templates):
            raise ValueError(f"{task}: every template needs {{}} for the class, got {templates!r}")
        pictures = read_pictures(path, image_field, label_field)
        names = _names(pictures, task) if classes is None else list(classes)
        prompts = [template.replace("{}", name) for name in names for template in templates]
        gallery = Gallery(
            tuple(_text(prompt, model) for prompt in prompts),
            None if len(templates) == 1 else (len(templates),) * len(names),
        )
        taken = take_items(pictures, take, path, key=lambda one: (one.digest, one.label))
        whole = digest(prompts, len(templates))
        items = [
            TaskItem(
                one.digest,
                (Match(pixel_inputs(one, model.image_processor), gallery),),
                _Label(_index(one, names), whole),
            )
            for one in taken.values
        ]
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns accuracy in [0, 1], and the log-likelihood in nats, at most 0."""
        logits = [response.similarities for response in responses if isinstance(response, Matched)]
        labels = np.array([label.index for label in self.items.targets], dtype=np.int64)
        right = np.array(
            [float(np.argmax(row) == i) for row, i in zip(logits, labels, strict=True)]
        )
        likelihoods = log_likelihoods(logits, labels)
        return {
            "accuracy": Score(float(right.mean()), right),
            "log_likelihood": Score(float(likelihoods.mean()), likelihoods),
        }


def _names(pictures: Sequence[Picture], task: str) -> list[str]:
    labels = {picture.label for picture in pictures}
    if not all(isinstance(label, str) for label in labels) or len(labels) < 2:
        raise ValueError(f"{task} needs names of at least two classes: set classes")
    return sorted(map(str, labels))


def _index(picture: Picture, names: Sequence[str]) -> int:
    label = picture.label
    index = names.index(label) if isinstance(label, str) and label in names else label
    if not isinstance(index, int) or not 0 <= index < len(names):
        raise ValueError(f"{picture.place}: label {label!r} is none of the {len(names)} classes")
    return index


def _text(prompt: str, model: ModelInfo) -> dict[str, torch.Tensor]:
    """Returns a prompt as long as the model's texts: SigLIP reads the last token, padding too."""
    encoded = model.tokenizer(prompt, padding="max_length", max_length=model.max_length)
    if (length := len(encoded["input_ids"])) > model.max_length:
        raise ValueError(
            f"the prompt {prompt!r} of a class has {length} tokens, the model takes "
            f"{model.max_length}: shorten classes or templates"
        )
    names = [name for name in model.tokenizer.model_input_names if name in encoded]
    return {name: torch.tensor(encoded[name]) for name in names}
