"""Scores weights on a panel: the step from a merge to numbers."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from evaluators.engine.model import Model
from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from merging.weights import Weights


@dataclass(frozen=True)
class Scorer:
    """Writes weights into the one model and asks it what a panel wants to know."""

    model: Model
    panel: Panel

    def __call__(self, weights: Weights) -> dict[str, Score]:
        """Returns ``task/metric`` to score.

        Raises:
            EvaluationError: the model could not be scored; says why.
            MergeError: the weights could not be computed.
        """
        try:
            self.model.write(weights)
        except torch.OutOfMemoryError as error:
            raise EvaluationError(
                f"out of memory while merging: {str(error).splitlines()[0]}"
            ) from error
        return self.panel.evaluate(self.model)
