"""Membership by a likelihood ratio against models that were not trained on a text (LiRA)."""

from collections.abc import Sequence

import numpy as np

from merging.arrays import Matrix, Vector

_PARTS = 4
_RIDGE = 1e-6


def likelihood_ratio(texts: Sequence[Vector], references: Sequence[Matrix]) -> Vector:
    """Returns ``(texts,)`` how many deviations each is likelier than without training on it.

    One text gives several signals, which are correlated: the sums ``s`` of log-probabilities of
    up to four equal parts, each over the square root of its tokens. Reference models give their
    mean ``mu`` and covariance ``C`` without training on the text. The logarithm of the ratio of
    ``N(mu + d v, C)`` to ``N(mu, C)``, in which each token gained alike, ``v`` being the roots of
    the parts' tokens, grows with ``z = v' C^-1 (s - mu) / sqrt(v' C^-1 v)`` for any gain d > 0.
    z is standard normal where the model is one more reference and mu and C are known (with few
    references it varies more); parts that vary together count as little as they say.

    A covariance of a few models is no estimate: that of a text, of ``R - 1`` degrees of freedom,
    is shrunk to the mean over texts, which weighs as one of ``parts + 1``.

    Args:
        texts: ``(tokens,)`` log-probabilities of each.
        references: ``(R, tokens)`` those of two or more reference models for each.

    Source: Carlini et al. 2022, Membership inference attacks from first principles, arXiv
        2112.03570, the offline attack, one-sided, as models that were trained on the text are
        not at hand, with its multivariate Gaussian over queries. Ours are the parts as queries,
        log-probabilities where a classifier has logits, the direction v, and the shrinkage.
    """
    parts = min(_PARTS, *map(len, texts))
    signals = np.array([_signals(text, parts) for text in texts])
    others = np.array([_signals(text, parts) for text in references])  # (texts, R, parts)
    means, models = others.mean(axis=1), others.shape[1]
    spread = others - means[:, None]
    own = np.einsum("irp,irq->ipq", spread, spread) / (models - 1)
    pooled = own.mean(axis=0)
    weight = (parts + 1) / (parts + models)  # (p + 1) / (p + 1 + R - 1)
    ridge = _RIDGE * (np.trace(pooled) / parts or 1.0) * np.eye(parts)
    shrunk = weight * pooled + (1 - weight) * own + ridge  # C
    roots = np.array([np.sqrt(_lengths(text, parts)) for text in texts])  # v
    solved = np.linalg.solve(shrunk, roots[:, :, None])[:, :, 0]  # C^-1 v
    gains = (solved * (signals - means)).sum(axis=1)
    return np.asarray(gains / np.sqrt((solved * roots).sum(axis=1)))


def _signals(values: Matrix, parts: int) -> Matrix:
    """Returns ``(..., parts)`` sums of ``(..., tokens)``, each over the root of its tokens."""
    pieces = np.array_split(values, parts, axis=-1)
    sums = np.stack([piece.sum(axis=-1) for piece in pieces], axis=-1)
    return np.asarray(sums / np.sqrt(_lengths(values, parts)))


def _lengths(values: Matrix, parts: int) -> Vector:
    return np.array([piece.shape[-1] for piece in np.array_split(values, parts, axis=-1)], float)
