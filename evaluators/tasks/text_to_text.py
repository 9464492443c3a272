"""How well does a model turn texts into others: translations, summaries, answers?"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Generate, Generated, Loglikelihood, Request, Response, totals_of
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import check_fits, warn_of_cuts
from evaluators.tasks.splits import ItemDraw
from merging.arrays import Vector


@dataclass(frozen=True)
class RightText:
    """The right answer of an item."""

    text: str

    @property
    def bytes(self) -> int:
        """Its length."""
        return len(self.text.encode())


class TextToText:
    """What an encoder-decoder (T5, BART, Marian) says of a text.

    bits_per_byte = -sum ll / (ln 2 * bytes) of the right answers with their end, the decoder
    reading the right tokens before each (teacher forcing); the cases are each item's bits over
    the mean bytes of all items. With `max_new_tokens` also exact_match, of the generated answer
    without white space at its ends, and chrf in [0, 1], the mean over items of sacrebleu's chrF2.

    Args:
        data: JSON-lines, CSV or Parquet file, one item in each line.
        prefix: text in front of every source, for example ``"summarize: "``.
        max_new_tokens: most tokens of a generated answer; None: none is generated.
        num_beams: 1: greedy. Whatever else the model's generation config says holds.
    """

    hub_task = "text2text-generation"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        source_field: str = "source",
        target_field: str = "target",
        prefix: str = "",
        max_new_tokens: int | None = None,
        num_beams: int = 1,
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        if not model.encoder_decoder:
            raise ValueError(f"text to text on {path.name} needs an encoder-decoder")
        if model.tokenizer is None:
            raise ValueError(f"text to text on {path.name} needs a tokenizer, the base has none")
        self.metrics: Mapping[str, Direction] = {"bits_per_byte": "minimize"}
        if max_new_tokens is not None:
            self.metrics = {**self.metrics, "exact_match": "maximize", "chrf": "maximize"}
        taken = take_items(
            [
                (line, line.text(source_field), line.text(target_field))
                for line in read_lines(path)
            ],
            take,
            path,
            key=lambda one: (digest(one[1], one[2]), None),
        )
        warn_of_cuts([(prefix + source,) for _, source, _ in taken.values], model, path)
        items = []
        for line, source, target in taken.values:
            requests = _ask(model, line, prefix + source, target, max_new_tokens, num_beams)
            items.append(TaskItem(digest(source, target), requests, RightText(target)))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)
        # of all items, also on a subset
        self._mean_bytes = float(np.mean([item.target.bytes for item in items]))

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns bits per byte, and exact match and chrF where answers are generated."""
        targets = self.items.targets
        scores = {"bits_per_byte": bits_per_byte(totals_of(responses), targets, self._mean_bytes)}
        if "chrf" in self.metrics:
            answers = [one for one in responses if isinstance(one, Generated)]
            cut_off = share_cut_off(answers)
            pairs = [
                (a.text.strip(), t.text.strip()) for a, t in zip(answers, targets, strict=True)
            ]
            for metric, each in (("exact_match", lambda a, t: float(a == t)), ("chrf", _chrf)):
                cases = np.array([each(*pair) for pair in pairs])
                scores[metric] = Score(float(cases.mean()), cases, cut_off=cut_off)
        return scores


def bits_per_byte(totals: Vector, targets: Sequence[RightText], mean_bytes: float) -> Score:
    """Returns ``-sum ll / (ln 2 * bytes)``, with each item's part as cases.

    Args:
        totals: ``(items,)`` log-likelihoods in nats.
        mean_bytes: of all items, so that an item's case is the same on a subset.
    """
    size = sum(target.bytes for target in targets)
    cases = -totals / (math.log(2) * mean_bytes)
    return Score(float(-totals.sum() / (math.log(2) * size)), cases)


def share_cut_off(answers: Sequence[Generated]) -> float:
    """Returns the share of the answers that ended at their most tokens."""
    return float(np.mean([bool(answer.cut_off) for answer in answers]))


def _chrf(answer: str, target: str) -> float:
    from sacrebleu.metrics.chrf import CHRF

    return float(CHRF().sentence_score(answer, [target]).score) / 100


def _ask(
    model: ModelInfo, line: Line, source: str, target: str, more: int | None, num_beams: int
) -> tuple[Request, ...]:
    tokenizer: Any = model.tokenizer
    read = tuple(tokenizer(source, truncation=True, max_length=model.max_length)["input_ids"])
    requests: list[Request] = [
        Loglikelihood(read, tuple(tokenizer(text_target=target)["input_ids"]))
    ]
    if more is not None:
        requests.append(Generate(read, more, options=(("num_beams", num_beams),)))
    check_fits(requests, model.max_length, str(line))
    return tuple(requests)
