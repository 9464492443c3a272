"""How well a model knows how severe a finding is: the paper's measure of utility."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.memorization.intervals import share_interval
from evaluators.requests import Likelihood, Request, Response
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_range
from evaluators.tasks.encoding import check_fits, encode_pair, language_tokenizer
from evaluators.tasks.subset import checked_places
from experiments.papers.csirt.catalogue import BANDS

ANSWERS = ("2.0", "5.5", "8.0", "9.5")
"""One CVSS score inside each band."""


class BandQuestions:
    """Which band does the model give to a record that is cut right behind its base score's key?

    The answers are one score of each band with the text that follows it in every record; the
    largest sum of log-probabilities wins. macro_f1 is the mean over bands of F1, 0 for a band
    that is neither there nor answered; accuracy the share of right answers; surprise the mean
    of ``-log2`` of the right answer's share of the probability of all four, in bits.

    Args:
        model: what the models to come have in common.
        data: JSON-lines file with ``text`` (up to the score), ``behind`` and ``band`` (0 to 3).
        take: ``start:stop`` of the items; None: all.

    Source: arXiv 2606.28479, utility; one guess in four is right by chance.
    """

    def __init__(self, model: ModelInfo, *, data: str, take: str | None = None) -> None:
        path = data_path(data, None)
        tokenizer = language_tokenizer(model, f"questions on {path.name}")
        lines = read_lines(path)
        chosen = take_range(take, len(lines), str(path))
        self._source = f"{path.resolve()}[{chosen.start}:{chosen.stop}]"
        lines = [lines[place] for place in chosen]
        self._bands = np.array([_band(line) for line in lines], dtype=np.int64)
        asked = [(line.text("text"), line.text("behind")) for line in lines]
        self._items = tuple(digest(*each) for each in asked)
        requests = [
            encode_pair(tokenizer, text, answer + behind)
            for text, behind in asked
            for answer in ANSWERS
        ]
        check_fits(requests, model.max_length, f"questions on {path.name}")
        self._requests: tuple[Request, ...] = tuple(requests)

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """``macro_f1`` first, then ``accuracy`` and ``surprise``."""
        return {"macro_f1": "maximize", "accuracy": "maximize", "surprise": "minimize"}

    @property
    def source(self) -> str:
        """The file's path and which of its items."""
        return self._source

    @property
    def items(self) -> Sequence[str]:
        """Digest of every record's text up to the score."""
        return self._items

    def requests(self) -> Sequence[Request]:
        """Returns one request for every answer, item after item."""
        return self._requests

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the scores; cases of accuracy are 0 and 1, those of surprise bits."""
        totals = np.array([each.total for each in responses if isinstance(each, Likelihood)])
        totals = totals.reshape(-1, len(ANSWERS))
        right = (totals.argmax(axis=1) == self._bands).astype(np.float64)
        log_share = totals - np.logaddexp.reduce(totals, axis=1, keepdims=True)
        bits = -log_share[np.arange(len(totals)), self._bands] / np.log(2)
        return {
            "macro_f1": Score(macro_f1(self._bands, totals.argmax(axis=1)), chance=0.25),
            "accuracy": Score(
                float(right.mean()), right, 0.25, share_interval(int(right.sum()), len(right))
            ),
            "surprise": Score(float(bits.mean()), bits, 2.0),
        }

    def subset(self, items: Sequence[int]) -> BandQuestions:
        """Returns the same on some of the records; see `Evaluator`."""
        places = checked_places(items, len(self._items), self._source)
        part = copy.copy(self)
        part._items = tuple(self._items[place] for place in places)
        part._bands = self._bands[places]
        part._requests = tuple(
            self._requests[place * len(ANSWERS) + answer]
            for place in places
            for answer in range(len(ANSWERS))
        )
        return part


def macro_f1(truth: npt.NDArray[np.int64], answers: npt.NDArray[np.int64]) -> float:
    """Returns the mean over bands of ``2 hits / (asked + answered)``.

    Example:
        >>> macro_f1(np.array([0, 1, 2, 3]), np.array([0, 0, 2, 3]))
        0.6666666666666666
    """
    scores = []
    for band in range(len(BANDS)):
        hits = float(((truth == band) & (answers == band)).sum())
        both = float((truth == band).sum() + (answers == band).sum())
        scores.append(2 * hits / both if both else 0.0)
    return float(np.mean(scores))


def _band(line: Line) -> int:
    band: int = line.field("band", int)
    if not 0 <= band < len(BANDS):
        raise ValueError(f"{line}: band {band} is none of 0 to {len(BANDS) - 1}")
    return band
