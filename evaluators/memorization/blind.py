"""A membership attack that never sees a model: can members be told from others by texts alone?"""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from evaluators.memorization.intervals import auc_interval
from merging.arrays import Flags, Vector

_FOLDS = 5
_LENGTH = 4.0  # finds shifts of words and of lengths alike, where both are standardised


def blind_scores(texts: Sequence[Sequence[int]], members: Flags) -> Vector:
    """Returns ``(texts,)`` scores, higher for a likelier member, from the words and the lengths.

    Cross-validated: a text is judged by counts of the other folds. The score adds naive Bayes'
    log-ratio per token and, `_LENGTH` times, Fisher's discriminant of the log of the length. Where
    their area beats chance, members differ from others before any model is asked. An area below
    chance says nothing: variants of a member among the others make it look like another.

    Args:
        texts: the tokens of each, at least one.
        members: ``(texts,)``. A side of a single text leaves nothing to learn from: all are 0.

    Source: the baseline that Das, Zhang and Tramer 2024, Blind baselines beat membership
        inference attacks for foundation models, arXiv 2406.16201, ask for; this classifier is
        ours, in closed form.
    """
    lengths = np.array([len(text) for text in texts])
    owner = np.repeat(np.arange(len(texts)), lengths)
    words = np.unique(np.concatenate([np.asarray(text) for text in texts]), return_inverse=True)[1]
    size = _standardised(np.log(lengths))
    by_word, by_length = np.zeros(len(texts)), np.zeros(len(texts))
    for held in _folds(members):
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


def _folds(members: Flags) -> npt.NDArray[np.bool_]:
    """Returns ``(folds, texts)``, which are held out; both sides are dealt out in turn."""
    places = np.where(members, np.cumsum(members), np.cumsum(~members)) - 1
    count = min(_FOLDS, int(members.sum()), int((~members).sum()))
    return np.asarray(places % count == np.arange(count)[:, None])


def _log_shares(some: npt.NDArray[np.intp], words: npt.NDArray[np.intp]) -> Vector:
    counts = np.bincount(some, minlength=int(words.max()) + 1) + 1.0  # Laplace: n_t + 1
    return np.asarray(np.log(counts / counts.sum()))


def _standardised(values: Vector) -> Vector:
    return np.asarray((values - values.mean()) / (values.std() or 1.0))
