"""Perplexity and bits per byte of local text."""

from __future__ import annotations

import copy
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.requests import Likelihood, Loglikelihood, Request, Response
from evaluators.tasks.data import data_path, digest, read_lines, read_text, take_range
from evaluators.tasks.encoding import language_tokenizer, prefix_token, rolling_windows
from evaluators.tasks.subset import checked_places, of_places


class Perplexity:
    """How well a language model predicts text; every token is scored exactly once.

    bits_per_byte = -sum ll / (ln 2 * bytes), the same unit for every tokenizer; its cases are
    the documents'. perplexity = exp(-sum ll / tokens), over all tokens, not a mean of documents.

    Args:
        model: what the models to come have in common.
        data: JSON-lines file, one document in each line; or a ``.txt`` file, one document.
        split: replaces ``{split}`` in `data`.
        field: where a line holds the document.
        take: ``start:stop`` of the documents; None: all.
        max_items: most documents, the first ones; None: all.
        window: tokens the model reads at once; None: as many as it can.
        context: tokens of left context that every window but the first has at least.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        field: str = "text",
        take: str | None = None,
        max_items: int | None = None,
        window: int | None = None,
        context: int = 1,
    ) -> None:
        path = data_path(data, split)
        width = model.max_length if window is None else window
        _check(path.name, width, context, max_items, model.max_length)
        tokenizer = language_tokenizer(model, f"perplexity on {path.name}")
        documents = _documents(path, field)
        chosen = take_range(take, len(documents), str(path))[:max_items]
        texts = [documents[i] for i in chosen]
        self._source = f"{path.resolve()}[{chosen.start}:{chosen.stop}]"
        self._items = tuple(digest(text) for text in texts)
        prefix = prefix_token(tokenizer)
        requests: list[Loglikelihood] = []
        self._windows: list[int] = []  # windows of each document
        for text in texts:
            tokens = tokenizer.encode(text, add_special_tokens=False)
            windows = rolling_windows(tokens, prefix=prefix, window=width, context=context)
            before = len(requests)
            requests.extend(windows)
            self._windows.append(len(requests) - before)
        self._requests = tuple(requests)
        self._bytes = np.array([len(text.encode()) for text in texts], dtype=np.float64)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """``bits_per_byte`` first, then ``perplexity``; both to be minimised."""
        return {"bits_per_byte": "minimize", "perplexity": "minimize"}

    @property
    def source(self) -> str:
        """The file's path and which of its documents."""
        return self._source

    @property
    def items(self) -> Sequence[str]:
        """Digest of every document's text."""
        return self._items

    def requests(self) -> Sequence[Request]:
        """Returns the documents' windows, in order."""
        return self._requests

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns bits per byte, with each document's as cases, and perplexity."""
        totals = [response.total for response in responses if isinstance(response, Likelihood)]
        ends = np.cumsum([0, *self._windows[:-1]])
        per_document = np.add.reduceat(np.array(totals, dtype=np.float64), ends)
        cases = -per_document / (math.log(2) * self._bytes)
        tokens = sum(len(request.continuation) for request in self._requests)
        with np.errstate(over="ignore"):  # infinity is refused where the scores are gathered
            perplexity = float(np.exp(-per_document.sum() / tokens))
        bits = float(-per_document.sum() / (math.log(2) * self._bytes.sum()))
        return {"bits_per_byte": Score(bits, cases), "perplexity": Score(perplexity)}

    def subset(self, items: Sequence[int]) -> Perplexity:
        """Returns the same on some of the documents; see `Evaluator`."""
        places = checked_places(items, len(self._items), self._source)
        part = copy.copy(self)
        part._items = tuple(self._items[place] for place in places)
        part._requests = of_places(self._requests, self._windows, places)
        part._windows = [self._windows[place] for place in places]
        part._bytes = self._bytes[places]
        return part


def _documents(path: Path, field: str) -> list[str]:
    if path.suffix == ".txt":
        return [read_text(path)]
    return [line.text(field) for line in read_lines(path)]


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
