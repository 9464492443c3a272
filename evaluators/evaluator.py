"""The interface of an evaluator: states requests, scores responses, and never sees a model."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, Protocol, TypeAlias, runtime_checkable

from evaluators.items import ItemSet
from evaluators.requests import Response
from merging.arrays import Vector

Direction: TypeAlias = Literal["maximize", "minimize"]


@dataclass(frozen=True, eq=False)
class ModelInfo:
    """What an evaluator needs to know of the models to come, in order to prepare its requests.

    Args:
        tokenizer: the base's; None where it has none (an image classifier).
        image_processor: the base's; None where it has none.
        max_length: most tokens that one request may occupy.
        heads: names of the experts that carry a classification head; empty for language models.
        causal: True for a left-to-right language model.
        classes: names of each head's classes, in order.
        head_kinds: what each head classifies: inputs, tokens or spans.
        encoder_decoder: True for a model whose decoder writes of what its encoder reads.
        decoder_start: token that such a decoder begins with; None: its configuration names none.
        directory: of the base's files, which may say more; None: there is none.
    """

    tokenizer: Any
    image_processor: Any
    max_length: int
    heads: tuple[str, ...] = ()
    causal: bool = True
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    head_kinds: Mapping[str, str] = field(default_factory=dict)
    encoder_decoder: bool = False
    decoder_start: int | None = None
    directory: Path | None = None


@dataclass(frozen=True, eq=False)
class Score:
    """A number and its evidence.

    Args:
        value: in the metric's own units.
        cases: ``(items,)`` per-item scores in the metric's own units and direction, of the same
            length and order on every call. Their mean is `value` where the evaluator holds all
            its items; see `Evaluator.subset`. None where the metric is no mean over items.
        chance: what a model gets on average that has nothing to go by; None: not stated.
        interval: ends of the 95 % confidence interval of `value` over items; None: not stated.
        cut_off: share of the generated answers that ended at their most tokens, before an end
            token or stop text; None: none is generated, or what serves the model does not say.
        own_cases: whether a case follows from its own item alone; False where other items move it
            too, so that no clipping bounds what one item changes. Sizes of all items, such as
            their mean bytes, are none of theirs.
    """

    value: float
    cases: Vector | None = None
    chance: float | None = None
    interval: tuple[float, float] | None = None
    cut_off: float | None = None
    own_cases: bool = True


@runtime_checkable
class Evaluator(Protocol):
    """One task on one split of its data.

    Those that read a file take `data`, its path; `split`, which replaces ``{split}`` in it; and
    `take`, ``start:stop`` of its items (None: all).
    """

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """Name of every metric that `score` returns, first the main one, with its direction."""
        ...

    @property
    def items(self) -> ItemSet[Any]:
        """The items of the split, tokenised once."""
        ...

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns a score for every metric from the answers to the items' requests, in order."""
        ...

    def subset(self, indices: Sequence[int]) -> Evaluator:
        """Returns this evaluator on some of its items; see `ItemSet.subset`.

        Values are the metric's on these items alone. An item's case is the same as in the whole,
        so that the mean over random items estimates the whole's value without bias; where items
        weigh by their size (bits per byte) it is not the subset's own value. Cases that compare
        an item with the others are computed from these alone.
        """
        ...
