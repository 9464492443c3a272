"""Attribute inference by logistic regression on pooled states."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from scipy import optimize, special
from torch import Tensor

from merging.arrays import Matrix, Vector


@dataclass(frozen=True, eq=False)
class LogisticRegression:
    """Classifies texts by the mean of their states: ``argmax_c (x W + b)_c``, x standardised.

    Args:
        weight: ``(d, classes)``; `bias` ``(classes,)``.
        mean: ``(d,)`` of pooled states; `deviation` likewise.
    """

    weight: Matrix
    bias: Vector
    mean: Vector
    deviation: Vector

    @classmethod
    def fitted(
        cls, states: Sequence[Tensor], attributes: Sequence[int], *, penalty: float = 1.0
    ) -> "LogisticRegression":
        """Returns what minimises ``sum_i -ln p(y_i | x_i) + penalty |W|^2 / 2``.

        All texts at every step, so that it is the same whenever it is fitted.

        Args:
            states: ``(T, d)`` of each public text, as they are sent.
            attributes: of each, from 0.

        Raises:
            ValueError: there is not one attribute for each text, or no text.
        """
        if len(states) != len(attributes) or not states:
            raise ValueError(f"{len(states)} texts have {len(attributes)} attributes")
        pooled = _pooled(states)
        mean, deviation = pooled.mean(axis=0), np.maximum(pooled.std(axis=0), 1e-6)
        x = np.column_stack([(pooled - mean) / deviation, np.ones(len(pooled))])
        y = np.eye(max(attributes) + 1)[list(attributes)]
        decay = penalty * np.append(np.ones(x.shape[1] - 1), 0.0)[:, None]  # the bias is free

        def loss(flat: Vector) -> tuple[float, Vector]:
            w = flat.reshape(x.shape[1], y.shape[1])
            log_p = special.log_softmax(x @ w, axis=1)
            gradient = x.T @ (np.exp(log_p) - y) + decay * w  # X'(P - Y) + penalty W
            return float((decay * w**2).sum() / 2 - (y * log_p).sum()), gradient.ravel()

        found = optimize.minimize(
            loss, np.zeros(x.shape[1] * y.shape[1]), jac=True, method="L-BFGS-B"
        )
        w = found.x.reshape(x.shape[1], y.shape[1])
        return cls(w[:-1], w[-1], mean, deviation)

    def infer(self, states: Sequence[Tensor]) -> list[int]:
        """Returns the attribute of each text of ``(T, d)`` states."""
        x = (_pooled(states) - self.mean) / self.deviation
        return [int(c) for c in (x @ self.weight + self.bias).argmax(axis=1)]


def _pooled(states: Sequence[Tensor]) -> Matrix:
    """Returns ``(texts, d)`` means over tokens."""
    means = torch.stack([each.double().mean(dim=0) for each in states])
    return np.asarray(means.cpu().numpy())
