"""Do similarities of sentence embeddings follow those that people gave?"""

from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Gallery, Match, Matched, Response
from evaluators.tasks.corpus_scores import rank_correlation
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.splits import ItemDraw
from evaluators.tasks.text_inputs import SentenceInputs


class SentenceSimilarity:
    """Spearman's rank correlation of the model's similarity of two texts with a given one.

    Texts are pooled and compared as the base's ``modules.json`` and
    ``config_sentence_transformers.json`` say. Cases and interval: see `rank_correlation`.

    Args:
        data: JSON-lines, CSV or Parquet file, one pair in each line.
        score_field: where a line holds their similarity, a number, higher for closer ones.
    """

    metrics: Mapping[str, Direction] = {"spearman": "maximize"}
    hub_task = "sentence-similarity"

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        first_field: str = "text1",
        second_field: str = "text2",
        score_field: str = "score",
        take: str | ItemDraw | None = None,
    ) -> None:
        path = data_path(data, split)
        inputs = SentenceInputs(model, f"sentence similarity on {path.name}")
        fields = (first_field, second_field)
        taken = take_items(
            [
                (*(line.text(field) for field in fields), _number(line, score_field))
                for line in read_lines(path)
            ],
            take,
            path,
            key=lambda one: (digest(one[0], one[1]), None),
        )
        items = [
            TaskItem(
                digest(first, second),
                (Match(inputs.of(first), Gallery((inputs.of(second),)), inputs.modules),),
                number,
            )
            for first, second, number in taken.values
        ]
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the correlation in [-1, 1]."""
        found = [r.similarities[0] for r in responses if isinstance(r, Matched)]
        return {"spearman": rank_correlation(np.array(found), np.array(self.items.targets))}

    def subset(self, indices: Sequence[int]) -> "SentenceSimilarity":
        """Returns the same on some of the pairs; raises ValueError for one, which has no rank."""
        if len(indices) == 1:
            raise ValueError(f"a correlation on {self.items.source} needs two items at least")
        return on_subset(self, indices)


def _number(line: Line, field: str) -> float:
    return float(line.field(field, (int, float)))
