"""Empirical privacy: one less an attacker's success, beside what needs no states at all.

Source: Split-and-Privatize, arXiv 2312.15603, names success of embedding inversion and attribute
inference; how it averages is not public. Here a text is an item.
"""

from collections.abc import Collection, Sequence

import numpy as np
from torch import Tensor

from evaluators.evaluator import Score
from evaluators.intervals import mean_interval
from evaluators.inversion.blind import Integers, View, likeliest
from merging.arrays import Flags, Vector


class Inversion:
    """How many tokens of each text does an attacker recover?

    The trivial attacker takes the most frequent token of public texts everywhere. The blind one
    sees how many tokens a text has: it takes what stands most often at that place of public texts,
    from the start, from the end, or among texts of that length. Where it beats the trivial one,
    public texts tell of private ones; `known` says whether they hold the same texts.

    Args:
        texts: ``(T,)`` token ids of each private text.
        public: the same of texts that attackers know, and were trained on.
        everywhere: tokens that every text has ([CLS], [SEP]): they are not scored.

    Raises:
        ValueError: there is no text on a side, or one has no token to score; says which.
    """

    def __init__(
        self,
        texts: Sequence[Tensor],
        *,
        public: Sequence[Tensor],
        everywhere: Collection[int] = (),
    ) -> None:
        self._texts = _Places.of("private", texts, everywhere)
        seen = _Places.of("public", public, everywhere)
        views: list[View] = list(zip(seen.keys, self._texts.keys, strict=True))
        self._trivial = self._cases(likeliest(seen.tokens, views[:1]))
        self._blind = self._cases(likeliest(seen.tokens, views))
        known = {tuple(text.tolist()) for text in public}
        self._known = np.array([tuple(text.tolist()) in known for text in texts], np.float64)

    def score(self, recovered: Sequence[Tensor]) -> dict[str, Score]:
        """Returns success, privacy = 1 - success, trivial_success, blind_success and known.

        A case of success is the share of a text's tokens that are recovered where they stand.
        Its chance is the trivial attacker's. known: the share of private texts that are public.

        Args:
            recovered: ``(T,)`` token ids of each text, in order.

        Raises:
            ValueError: numbers of texts or tokens are others.
        """
        found = _flat(recovered)
        if [len(text) for text in recovered] != self._texts.lengths.tolist():
            raise ValueError("recovered texts must have as many tokens as the private ones")
        cases = self._cases(found[self._texts.scored])
        return _beside(cases, self._trivial, self._blind) | {"known": _mean(self._known, 0.0)}

    def _cases(self, guessed: Integers) -> Vector:
        hits = guessed == self._texts.tokens
        return np.asarray(np.bincount(self._texts.owner, hits) / np.bincount(self._texts.owner))


class AttributeInference:
    """How often does an attacker name an attribute of a text, such as its writer's age?

    The trivial attacker takes the most frequent attribute of public texts, the blind one that of
    those with as many tokens.

    Args:
        attributes: of each private text, from 0.
        lengths: tokens of each.
        public: attributes and lengths of the texts that attackers know.

    Raises:
        ValueError: numbers of texts differ, or there are none.
    """

    def __init__(
        self,
        attributes: Sequence[int],
        lengths: Sequence[int],
        *,
        public: tuple[Sequence[int], Sequence[int]],
    ) -> None:
        for one, other in ((attributes, lengths), public):
            if len(one) != len(other) or not len(one):
                raise ValueError("attributes and lengths must be those of the same texts, >= 1")
        self._attributes = np.array(attributes)
        known, size = (np.array(each) for each in public)
        views: list[View] = [(0 * size, 0 * self._attributes), (size, np.array(lengths))]
        self._trivial, self._blind = (self._cases(likeliest(known, v)) for v in (views[:1], views))

    def score(self, inferred: Sequence[int]) -> dict[str, Score]:
        """Returns success (accuracy), privacy = 1 - success, trivial_success, blind_success.

        Raises:
            ValueError: there is not one attribute for each text.
        """
        if len(inferred) != len(self._attributes):
            raise ValueError(f"{len(self._attributes)} texts have {len(inferred)} attributes")
        return _beside(self._cases(np.array(inferred)), self._trivial, self._blind)

    def _cases(self, guessed: Integers) -> Vector:
        return np.asarray(guessed == self._attributes, np.float64)


class _Places:
    """Every token that is scored, of all texts one after the other, and where it stands."""

    def __init__(self, texts: Sequence[Tensor], everywhere: Collection[int]) -> None:
        self.lengths = np.array([len(text) for text in texts])
        tokens = _flat(texts)
        owner = np.repeat(np.arange(len(texts)), self.lengths)
        start = np.arange(len(tokens)) - np.repeat(
            np.cumsum(self.lengths) - self.lengths, self.lengths
        )
        length = self.lengths[owner]
        self.scored: Flags = ~np.isin(tokens, list(everywhere))
        self.tokens, self.owner = tokens[self.scored], owner[self.scored]
        most = 2**31  # so that a length and a place are one key
        views = (0 * start, start, length - start, length * most + start)
        self.keys = [view[self.scored] for view in views]

    @classmethod
    def of(cls, side: str, texts: Sequence[Tensor], everywhere: Collection[int]) -> "_Places":
        if not texts:
            raise ValueError(f"there are no {side} texts")
        places = cls(texts, everywhere)
        if empty := sorted({*range(len(texts))} - set(places.owner.tolist())):
            raise ValueError(f"{side} text {empty[0]} has no token to score: leave it out")
        return places


def _flat(texts: Sequence[Tensor]) -> Integers:
    return np.concatenate([text.cpu().numpy() for text in texts])


def _beside(cases: Vector, trivial: Vector, blind: Vector) -> dict[str, Score]:
    chance = float(trivial.mean())
    return {
        "success": _mean(cases, chance),
        "privacy": _mean(1 - cases, 1 - chance),
        "trivial_success": _mean(trivial, chance),
        "blind_success": _mean(blind, chance),
    }


def _mean(cases: Vector, chance: float) -> Score:
    return Score(float(cases.mean()), cases, chance, mean_interval(cases, 0.0, 1.0))
