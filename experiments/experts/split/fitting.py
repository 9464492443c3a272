"""Noise for the vectors of one bottom: the distances that it is measured by, and token budgets."""

from collections.abc import Collection, Sequence

import torch
from torch import Tensor

from experiments.experts.split.customer import EncodedSentence
from experiments.experts.split.directions import Directions, DirectionSettings
from experiments.experts.split.halves import Bottom
from experiments.experts.split.privatization import Privatization, PrivatizationSettings
from merging.seeding import generator
from search.privacy.private_noise import SecretNoise

_TEXTS = 64
_TOKENS = 32


def fit(
    settings: PrivatizationSettings,
    bottom: Bottom,
    examples: Sequence[EncodedSentence],
    *,
    classes: int,
    model: str,
    noise: SecretNoise,
    everywhere: Collection[int] = (),
    public: Sequence[EncodedSentence] | None = None,
    directions: Directions | None = None,
) -> Privatization:
    """Returns what noises the examples of a customer.

    Args:
        examples: all that are sent with a label; read for token budgets alone.
        model: identity of the whole model, in words.
        everywhere: tokens that every text has, which tell of no class.
        public: of texts that anyone may know, to measure states on; None: random tokens.
        directions: in which states are sent, see `fit_directions`; None: all.
    """
    contributing = None
    if settings.contributing is not None:
        contributing = settings.contributing.fitted(
            [_without(example.tokens, everywhere) for example in examples],
            [example.label or 0 for example in examples],
            vocabulary=bottom.vocabulary,
            classes=classes,
            noise=noise,
        )
    if settings.where == "embedding":
        return settings.fitted(
            bottom.table(),
            measured_on=f"all {bottom.vocabulary} word embeddings",
            space=f"word embeddings of {model}",
            noise=noise,
            contributing=contributing,
        )
    kind = f"{_TEXTS} texts of random tokens" if public is None else f"{len(public)} public texts"
    texts = _texts(bottom, public)
    return settings.fitted(
        torch.cat([_states(bottom, text) for text in texts]),
        torch.cat([torch.tensor(text) for text in texts]),
        measured_on=f"states of {kind}",
        space=f"states behind block {bottom.blocks} of {model}",
        noise=noise,
        contributing=contributing,
        directions=directions,
    )


def fit_directions(
    settings: DirectionSettings,
    bottom: Bottom,
    examples: Sequence[EncodedSentence],
    *,
    classes: int,
    public: Sequence[EncodedSentence] | None = None,
) -> Directions:
    """Returns the directions that tell of the classes of a customer's examples; as `fit`."""
    measured = torch.cat([_states(bottom, text) for text in _texts(bottom, public)])
    states = [_states(bottom, example.tokens) for example in examples]
    labels = [example.label or 0 for example in examples]
    reader = settings.reader(states, labels, classes=classes, public=measured)
    return reader.directions(measured)


def _texts(bottom: Bottom, public: Sequence[EncodedSentence] | None) -> Sequence[tuple[int, ...]]:
    return _random_texts(bottom.vocabulary) if public is None else [e.tokens for e in public]


def _without(tokens: Sequence[int], everywhere: Collection[int]) -> Tensor:
    return torch.tensor([token for token in tokens if token not in everywhere], dtype=torch.int64)


def _states(bottom: Bottom, tokens: Sequence[int]) -> Tensor:
    rows = torch.tensor([tokens])
    return bottom.states(rows, torch.ones_like(rows))[0]


def _random_texts(vocabulary: int) -> list[tuple[int, ...]]:
    drawn = torch.randint(vocabulary, (_TEXTS, _TOKENS), generator=generator("random texts"))
    return [tuple(text) for text in drawn.tolist()]
