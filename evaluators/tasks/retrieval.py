"""How well do sentence embeddings find the documents that answer a query?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.requests import Gallery, Match, Matched, Response
from evaluators.tasks.data import Line, data_path, digest, read_lines, take_items
from evaluators.tasks.splits import ItemDraw
from evaluators.tasks.text_inputs import SentenceInputs
from merging.arrays import Vector


class _Query(NamedTuple):
    line: Line
    text: str
    grades: dict[str, float]  # text of a document, or its id in the corpus, to its relevance


@dataclass(frozen=True)
class _Relevant:
    """Places of the relevant documents in the corpus, and their grades; the corpus' digest."""

    places: tuple[int, ...]
    grades: tuple[float, ...]
    corpus: str


class Retrieval:
    """Ranks all documents by their similarity to a query.

    ndcg is ``DCG / ideal DCG`` of the first `depth` documents, ``DCG = sum grade / log2(rank +
    1)``; recall is the share of the relevant documents that are among them. Cases are the
    queries' own. Equal similarities stand in the corpus' order. Texts are pooled and compared as
    the base's ``modules.json`` and ``config_sentence_transformers.json`` say, with its prompts
    for queries and documents.

    Args:
        data: JSON-lines, CSV or Parquet file, one query in each line.
        documents_field: where a line holds the relevant documents: a text, a list of texts, or
            texts with a grade above 0 each (CSV: as JSON); ids instead of texts where there is a
            `corpus`.
        corpus: file with the documents, ``id`` and ``text`` (and maybe ``title``, which comes
            first) in each line; None: all documents that any line of `data` names.
        depth: how many documents count.
    """

    metrics: Mapping[str, Direction] = dict.fromkeys(("ndcg", "recall"), "maximize")
    hub_task = "text-retrieval"
    subset = on_subset

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        query_field: str = "query",
        documents_field: str = "documents",
        corpus: str | None = None,
        depth: int = 10,
        take: str | ItemDraw | None = None,
    ) -> None:
        if depth < 1:
            raise ValueError(f"depth must be at least 1 document, got {depth}")
        path = data_path(data, split)
        inputs = SentenceInputs(model, f"retrieval on {path.name}")
        queries = [_read(line, query_field, documents_field) for line in read_lines(path)]
        documents = _documents(queries) if corpus is None else _corpus(corpus)
        place = {name: i for i, name in enumerate(documents)}
        roles = ("document", "passage", "corpus")  # as sentence-transformers looks for them
        gallery = Gallery(tuple(inputs.of(text, *roles) for text in documents.values()))
        whole, self._depth = digest(documents), depth
        taken = take_items(queries, take, path, key=lambda one: (digest(one.text), None))
        items = []
        for line, text, grades in taken.values:
            unknown = [name for name in grades if name not in place]
            if unknown:
                raise ValueError(f"{line}: document {unknown[0]!r} is not in the corpus {corpus}")
            places = tuple(place[name] for name in grades)
            request = Match(inputs.of(text, "query"), gallery, inputs.modules)
            target = _Relevant(places, tuple(grades.values()), whole)
            items.append(TaskItem(digest(text), (request,), target))
        self.items = ItemSet(taken.source, tuple(items), found=taken.found)

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns both scores in [0, 1]."""
        rows = []
        found = [r.similarities for r in responses if isinstance(r, Matched)]
        for relevant, similarities in zip(self.items.targets, found, strict=True):
            grades = np.zeros(len(similarities))
            grades[list(relevant.places)] = relevant.grades
            first = np.argsort(-similarities, kind="stable")[: self._depth]
            ideal = np.sort(grades)[::-1][: self._depth]
            share = float((grades[first] > 0).sum() / (grades > 0).sum())
            rows.append([_gain(grades[first]) / _gain(ideal), share])
        cases = np.array(rows).T
        return {
            metric: Score(float(own.mean()), own)
            for metric, own in zip(self.metrics, cases, strict=True)
        }


def _gain(grades: Vector) -> float:
    return float((grades / np.log2(np.arange(2, len(grades) + 2))).sum())


def _documents(queries: Sequence[_Query]) -> dict[str, str]:
    return {text: text for query in queries for text in query.grades}


def _corpus(corpus: str) -> dict[str, str]:
    documents: dict[str, str] = {}
    for line in read_lines(data_path(corpus, None)):
        name, title = str(line.field("id", (str, int))), line.fields.get("title")
        if name in documents:
            raise ValueError(f"{line}: there is a document {name!r} already: give it another id")
        documents[name] = f"{title} {line.text('text')}" if title else line.text("text")
    return documents


def _read(line: Line, query: str, documents: str) -> _Query:
    value: Any = line.unfolded(documents, (str, int, list, dict))
    if isinstance(value, dict):
        grades = {str(name): grade for name, grade in value.items()}
    else:
        grades = {str(name): 1.0 for name in (value if isinstance(value, list) else [value])}
    if not all(isinstance(grade, int | float) and grade >= 0 for grade in grades.values()):
        raise ValueError(f"{line}: the grades of {documents!r} must be numbers from 0")
    relevant = {name: float(grade) for name, grade in grades.items() if grade}
    if not relevant:
        raise ValueError(f"{line}: field {documents!r} names no relevant document")
    return _Query(line, line.text(query), relevant)
