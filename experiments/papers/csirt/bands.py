"""How well a model knows how severe a finding is: the paper's measure of utility."""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.intervals import share_interval
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Response, totals_of
from evaluators.tasks.classification import macro_f1
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.encoding import check_fits, encode_pair, language_tokenizer
from evaluators.tasks.splits import ItemDraw
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
        data: JSON-lines file with ``text`` (up to the score), ``behind`` and ``band`` (0 to 3).

    Source: arXiv 2606.28479, utility; one guess in four is right by chance.
    """

    metrics: Mapping[str, Direction] = {
        "macro_f1": "maximize",
        "accuracy": "maximize",
        "surprise": "minimize",
    }
    subset = on_subset

    def __init__(self, model: ModelInfo, *, data: str, take: str | ItemDraw | None = None) -> None:
        path = data_path(data, None)
        tokenizer = language_tokenizer(model, f"questions on {path.name}")
        read = [(_band(line), line.text("text"), line.text("behind")) for line in read_lines(path)]
        taken = take_items(read, take, path, key=lambda one: (digest(*one[1:]), one[0]))
        items = []
        for band, text, behind in taken.values:
            requests = (encode_pair(tokenizer, text, answer + behind) for answer in ANSWERS)
            items.append(TaskItem(digest(text, behind), tuple(requests), band))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)
        check_fits(self.items.requests, model.max_length, f"questions on {path.name}")

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the scores; cases of accuracy are 0 and 1, those of surprise bits."""
        totals = totals_of(responses).reshape(-1, len(ANSWERS))
        bands, answers = np.array(self.items.targets, np.int64), totals.argmax(axis=1)
        right = (answers == bands).astype(np.float64)
        log_share = totals - np.logaddexp.reduce(totals, axis=1, keepdims=True)
        bits = -log_share[np.arange(len(totals)), bands] / np.log(2)  # -log2 share of the right
        hits = share_interval(int(right.sum()), len(right))
        return {
            "macro_f1": Score(macro_f1(bands, answers, range(len(BANDS))), chance=0.25),
            "accuracy": Score(float(right.mean()), right, 0.25, hits),
            "surprise": Score(float(bits.mean()), bits, 2.0),
        }


def _band(line: Line) -> int:
    band: int = line.field("band", int)
    if not 0 <= band < len(BANDS):
        raise ValueError(f"{line}: band {band} is none of 0 to {len(BANDS) - 1}")
    return band
