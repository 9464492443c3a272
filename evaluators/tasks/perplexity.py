"""Perplexity and bits per byte of local text."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Response, totals_of
from evaluators.tasks.data import data_path, digest, read_lines, read_text, take_items
from evaluators.tasks.encoding import (
    encode_text,
    language_tokenizer,
    prefix_token,
    rolling_windows,
)
from evaluators.tasks.splits import ItemDraw


@dataclass(frozen=True)
class _Length:
    bytes: int
    tokens: int


class Perplexity:
    """How well a language model predicts text; every token is scored exactly once.

    bits_per_byte = -sum ll / (ln 2 * bytes), the same unit for every tokenizer; the cases are
    each document's bits over the mean bytes of all documents, so that long ones count for more.
    perplexity = exp(-sum ll / tokens), over all tokens, not a mean of documents.

    Args:
        data: JSON-lines, CSV or Parquet file, one document in each line; or a ``.txt`` file, one
            document.
        max_items: most documents, the first ones; None: all.
        window: tokens the model reads at once; None: as many as it can.
        context: tokens of left context that every window but the first has at least.
    """

    metrics: Mapping[str, Direction] = {"bits_per_byte": "minimize", "perplexity": "minimize"}
    hub_task = "text-generation"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        field: str = "text",
        take: str | ItemDraw | None = None,
        max_items: int | None = None,
        window: int | None = None,
        context: int = 1,
    ) -> None:
        path = data_path(data, split)
        width = model.max_length if window is None else window
        _check(path.name, width, context, max_items, model.max_length)
        tokenizer = language_tokenizer(model, f"perplexity on {path.name}")
        taken = take_items(
            _documents(path, field), take, path, max_items, key=lambda one: (digest(one[1]), None)
        )
        prefix = prefix_token(tokenizer)
        items = []
        for place, text in taken.values:
            tokens = encode_text(tokenizer, text, place)
            windows = rolling_windows(tokens, prefix=prefix, window=width, context=context)
            length = _Length(len(text.encode()), len(tokens))
            items.append(TaskItem(digest(text), tuple(windows), length))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)
        # of all documents, also on a subset
        self._mean_bytes = float(np.mean([item.target.bytes for item in items]))

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns bits per byte, with each document's part as cases, and perplexity."""
        starts = [span.start for span in self.items.spans]
        log_probs = np.add.reduceat(totals_of(responses), starts)  # (documents,)
        size = sum(length.bytes for length in self.items.targets)
        tokens = sum(length.tokens for length in self.items.targets)
        cases = -log_probs / (math.log(2) * self._mean_bytes)  # -ll / (ln 2 * mean bytes)
        bits = float(-log_probs.sum() / (math.log(2) * size))  # -sum ll / (ln 2 * bytes)
        with np.errstate(over="ignore"):  # infinity is refused where the scores are gathered
            perplexity = float(np.exp(-log_probs.sum() / tokens))  # exp(-sum ll / tokens)
        return {"bits_per_byte": Score(bits, cases), "perplexity": Score(perplexity)}


def _documents(path: Path, field: str) -> list[tuple[str, str]]:
    """Returns where each document stands, and its text."""
    if path.suffix == ".txt":
        return [(str(path), read_text(path))]
    return [(str(line), line.text(field)) for line in read_lines(path)]


def _check(name: str, window: int, context: int, max_items: int | None, longest: int) -> None:
    if not 2 <= window <= longest:
        raise ValueError(
            f"perplexity on {name}: window must be 2 to {longest} tokens, what the model takes, "
            f"got {window}"
        )
    if not 1 <= context < window:
        raise ValueError(
            f"perplexity on {name}: context must be 1 to {window - 1} tokens, got {context}"
        )
    if max_items is not None and max_items < 1:
        raise ValueError(f"perplexity on {name}: max_items must be at least 1, got {max_items}")
