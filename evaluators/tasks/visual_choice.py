"""Which answer to a question about an image does a vision-language model find likeliest?"""

from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from PIL import Image
from torch import Tensor
from transformers import AutoProcessor

from evaluators.evaluator import ModelInfo
from evaluators.items import ItemSet, TaskItem
from evaluators.requests import Loglikelihood, Media
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import check_fits, language_tokenizer
from evaluators.tasks.images import read_image
from evaluators.tasks.multiple_choice import ChoiceLengths, Choices, choices_of, label_of
from evaluators.tasks.splits import ItemDraw


class _Question(NamedTuple):
    line: Line
    image: npt.NDArray[np.uint8]
    question: str
    choices: list[str]
    label: int

    @property
    def digest(self) -> str:
        pixels = [list(self.image.shape), self.image.tobytes().hex()]
        return digest(pixels, self.question, self.choices)


class VisualChoice(Choices):
    """Multiple choice with an image, by a vision-language model (LLaVA, Qwen2-VL).

    Question and image go through the processor of the base's directory, in its chat template where
    it has one. acc compares log-likelihoods, acc_norm log-likelihoods per character of the answer,
    acc_bytes per byte. Cases are 1 for a right item and 0 for a wrong one.

    Args:
        data: JSON-lines, CSV or Parquet file, one item in each line; CSV's choices as JSON.
        image_field: where a line holds an image's path, relative to the file.
        label_field: where it holds the right answer; see `MultipleChoice`.
        template: the prompt where there is no chat template: ``{image}`` stands for the
            processor's token of an image, ``{question}`` for the question.
        delimiter: text between prompt and answer; None: nothing behind a chat template, else a
            space, as lm-eval has it.
    """

    hub_task = "visual-question-answering"

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        image_field: str = "image",
        question_field: str = "question",
        choices_field: str = "choices",
        label_field: str = "label",
        template: str = "{image}\n{question}",
        delimiter: str | None = None,
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        task = f"multiple choice with images on {path.name}"
        language_tokenizer(model, task)
        processor = _processor(model, task)
        if delimiter is None:
            delimiter = "" if _has_template(processor) else " "
        taken = take_items(
            [
                _read(line, image_field, question_field, choices_field, label_field)
                for line in read_lines(path)
            ],
            take,
            path,
            key=lambda one: (one.digest, one.label),
        )
        items = []
        for one in taken.values:
            prompt = _prompt(processor, one.question, template)
            requests = tuple(
                _ask(processor, one, prompt, delimiter + choice) for choice in one.choices
            )
            check_fits(requests, model.max_length, str(one.line))
            items.append(TaskItem(one.digest, requests, ChoiceLengths.of(one.choices, one.label)))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)


def _read(line: Line, image: str, question: str, choices: str, label: str) -> _Question:
    answers = choices_of(line, choices)
    pixels = read_image(line, image)
    return _Question(line, pixels, line.text(question), answers, label_of(line, label, answers))


def _processor(model: ModelInfo, task: str) -> Any:
    try:
        processor: Any = AutoProcessor.from_pretrained(model.directory)  # type: ignore[no-untyped-call]
    except (AttributeError, ImportError, OSError, TypeError, ValueError) as error:
        reason = (str(error) or type(error).__name__).strip().splitlines()[0]
        raise ValueError(f"{task}: the base's processor cannot be opened ({reason})") from error
    if not hasattr(processor, "image_processor") or not hasattr(processor, "image_token"):
        raise ValueError(
            f"{task} needs a vision-language model, whose processor takes texts and images; the "
            f"base's is a {type(processor).__name__}"
        )
    return processor


def _has_template(processor: Any) -> bool:
    return getattr(processor, "chat_template", None) is not None


def _prompt(processor: Any, question: str, template: str) -> str:
    if not _has_template(processor):
        return template.replace("{image}", processor.image_token).replace("{question}", question)
    content = [{"type": "image"}, {"type": "text", "text": question}]
    turns = [{"role": "user", "content": content}]
    return str(processor.apply_chat_template(turns, add_generation_prompt=True))


def _ask(processor: Any, asked: _Question, prompt: str, answer: str) -> Loglikelihood:
    """Both are tokenised together and cut at the length of the prompt alone, as without images."""
    bare = prompt.rstrip()
    start = len(_encoded(processor, asked, bare)["input_ids"][0])
    inputs = _encoded(processor, asked, prompt + answer)
    tokens = inputs.pop("input_ids")[0].tolist()
    inputs.pop("attention_mask", None)
    content = digest(asked.digest, prompt, answer)
    return Loglikelihood(tuple(tokens[:start]), tuple(tokens[start:]), Media(content, inputs))


def _encoded(processor: Any, asked: _Question, text: str) -> dict[str, Tensor]:
    images = [Image.fromarray(asked.image)]
    bos = processor.tokenizer.bos_token
    own = bos is not None and text.startswith(bos)  # a chat template may write it
    options = {"add_special_tokens": False} if own else {}
    encoded = processor(text=[text], images=images, return_tensors="pt", **options)
    return {name: value for name, value in encoded.items() if isinstance(value, Tensor)}
