"""Attacks that never see a model: can what was trained on be told from the rest by texts alone?"""

import math
from collections.abc import Sequence
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from evaluators.evaluator import Score
from evaluators.intervals import auc_interval, mean_interval
from evaluators.memorization.roc import auc
from merging.arrays import Flags, Vector

Places: TypeAlias = npt.NDArray[np.intp]
_FOLDS = 5
_LENGTH = 4.0  # finds shifts of words and of lengths alike, where both are standardised


def blind_scores(
    texts: Sequence[Sequence[int]], members: Flags, groups: Places | None = None
) -> Vector:
    """Returns ``(texts,)`` scores, higher for a likelier member, from the words and the lengths.

    Cross-validated: a text is judged by counts of the other folds. The score adds naive Bayes'
    log-ratio per token and, `_LENGTH` times, Fisher's discriminant of the log of the length. Where
    their area beats chance, members differ from others before any model is asked. An area below
    chance says nothing: variants of a member among the others make it look like another.

    Args:
        texts: the tokens of each, at least one.
        members: ``(texts,)``. A side of a single text leaves nothing to learn from: all are 0.
        groups: ``(texts,)``, from 0: those of one are judged together, and lengths compare within
            it; None: all are one.

    Source: the baseline that Das, Zhang and Tramer 2024, Blind baselines beat membership
        inference attacks for foundation models, arXiv 2406.16201, ask for; this classifier is
        ours, in closed form.
    """
    lengths = np.array([len(text) for text in texts])
    owner = np.repeat(np.arange(len(texts)), lengths)
    words = np.unique(np.concatenate([np.asarray(text) for text in texts]), return_inverse=True)[1]
    size = _standardised(np.log(lengths) - _means(np.log(lengths), groups))
    by_word, by_length = np.zeros(len(texts)), np.zeros(len(texts))
    for held in _folds(members) if groups is None else _dealt(groups, int(groups.max()) + 1):
        inside, outside = members & ~held, ~members & ~held
        if not (inside.any() and outside.any()):
            continue
        ratio = _log_shares(words[inside[owner]], words) - _log_shares(
            words[outside[owner]], words
        )
        sums = np.bincount(owner, ratio[words])  # sum_t log p(t | member) / p(t | other)
        by_word[held] = (sums / lengths)[held]
        by_length[held] = (size[inside].mean() - size[outside].mean()) * size[held]
    return _standardised(by_word) + _LENGTH * by_length


def blind_interval(auc: float, members: int, others: int) -> tuple[float, float]:
    """Returns the interval of `blind_scores`' area: that of half as many texts.

    Cross-validation counts a pair of texts twice, as judge and judged: where they tell nothing
    and are many, the area varies twice as much as that of scores which owe nothing to the texts.
    """
    return auc_interval(auc, max(1, members // 2), max(1, others // 2))


def blind_ranking(canaries: Sequence[Sequence[Sequence[int]]]) -> Score:
    """Returns how well planted values are told from their variants without a model: an area.

    The share of variants that `blind_scores`, learnt from other canaries, puts below the planted
    value, the mean over canaries. The interval is that of half as many, as in `blind_interval`.

    Args:
        canaries: the tokens of each one's candidates, the planted value's first.
    """
    sizes = [len(candidates) for candidates in canaries]
    groups = np.repeat(np.arange(len(sizes)), sizes)
    starts = np.cumsum([0, *sizes[:-1]])
    planted = np.isin(np.arange(len(groups)), starts)
    scores = blind_scores([text for each in canaries for text in each], planted, groups)
    areas = np.array([auc(r[:1], r[1:]) for r in np.split(scores, starts[1:])])
    area, interval = float(areas.mean()), mean_interval(areas, 0.0, 1.0)
    if interval is not None:
        low, high = (area + math.sqrt(2) * (end - area) for end in interval)
        interval = max(0.0, low), min(1.0, high)
    return Score(area, None, 0.5, interval)


def _means(values: Vector, groups: Places | None) -> Vector:
    """Returns ``(texts,)`` the mean of each one's group."""
    if groups is None:
        return np.full(len(values), values.mean())
    return np.asarray((np.bincount(groups, values) / np.bincount(groups))[groups])


def _folds(members: Flags) -> npt.NDArray[np.bool_]:
    """Returns ``(folds, texts)``, which are held out; both sides are dealt out in turn."""
    places = np.where(members, np.cumsum(members), np.cumsum(~members)) - 1
    return _dealt(places, min(int(members.sum()), int((~members).sum())))


def _dealt(places: Places, most: int) -> npt.NDArray[np.bool_]:
    count = min(_FOLDS, most)
    return np.asarray(places % count == np.arange(count)[:, None])


def _log_shares(some: npt.NDArray[np.intp], words: npt.NDArray[np.intp]) -> Vector:
    counts = np.bincount(some, minlength=int(words.max()) + 1) + 1.0  # Laplace: n_t + 1
    return np.asarray(np.log(counts / counts.sum()))


def _standardised(values: Vector) -> Vector:
    return np.asarray((values - values.mean()) / (values.std() or 1.0))
