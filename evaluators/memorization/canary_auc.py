"""Canary AUC: how well the loss of a value's own tokens tells planted values from others."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.memorization.canaries import chosen_canaries
from evaluators.memorization.candidate_losses import CandidateLosses
from evaluators.memorization.intervals import auc_interval, mean_interval
from evaluators.memorization.roc import auc
from evaluators.requests import Request, Response
from evaluators.tasks.encoding import language_tokenizer
from merging.arrays import Vector


class CanaryAuc:
    """Is the planted value likelier than one that was never trained on?

    auc: within each canary the share of variants with a larger loss (equal ones count half),
    which is the AUC of one planted value against its variants; the mean over canaries, whose
    cases these are. auc_pooled: one AUC of all planted values against all variants of all
    canaries, by loss per token, as values of different kinds have different lengths.
    auc_of_means: all planted values against each canary's mean over variants, by loss per token:
    the figure that the published tables hold, which rates as many variants as there are canaries
    and hides their spread. Chance is 0.5 in all three.

    Args:
        model: what the models to come have in common.
        data: file of canaries, see `evaluators.memorization.canaries`.
        split: replaces ``{split}`` in `data`.
        group: only canaries of this group; None: all.
        take: ``start:stop`` of these; None: all.
        references: variants of each canary that are drawn as its reference set; None: all.
        seed: of this draw.

    Source: Lukas et al. 2023, Analyzing leakage of personally identifiable information in
        language models, arXiv 2302.00539, for restricting the loss to a value's tokens.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        group: str | None = None,
        take: str | None = None,
        references: int | None = None,
        seed: int = 0,
    ) -> None:
        canaries, source = chosen_canaries(
            data, split=split, group=group, take=take, references=references, seed=seed
        )
        self._candidates = CandidateLosses(
            language_tokenizer(model, f"canary AUC on {data}"),
            canaries,
            score_on="value",
            max_length=model.max_length,
            source=source,
        )

    @property
    def metrics(self) -> Mapping[str, Direction]:
        """``auc`` first, then ``auc_pooled`` and ``auc_of_means``; all to be minimised."""
        return {"auc": "minimize", "auc_pooled": "minimize", "auc_of_means": "minimize"}

    @property
    def source(self) -> str:
        """The file's path and which of its canaries."""
        return self._candidates.source

    @property
    def items(self) -> Sequence[str]:
        """Digest of every canary's record and variants."""
        return self._candidates.items

    def requests(self) -> Sequence[Request]:
        """Returns one request for every candidate, canary after canary, the planted one first."""
        return self._candidates.requests

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the three areas, in [0, 1]; the pooled one has no interval of its own."""
        losses = self._candidates.losses(responses)
        each = np.array([auc(-row[:1], -row[1:]) for row in losses])
        scores = [-row / n for row, n in zip(losses, self._candidates.token_counts(), strict=True)]
        planted = np.array([row[0] for row in scores])
        means = np.array([row[1:].mean() for row in scores])
        of_means = auc(planted, means)
        return {
            "auc": Score(float(each.mean()), each, 0.5, mean_interval(each)),
            "auc_pooled": Score(auc(planted, _others(scores)), None, 0.5),
            "auc_of_means": Score(
                of_means, None, 0.5, auc_interval(of_means, len(planted), len(means))
            ),
        }

    def subset(self, items: Sequence[int]) -> CanaryAuc:
        """Returns the same on some of the canaries; see `Evaluator`."""
        part = copy.copy(self)
        part._candidates = self._candidates.subset(items)
        return part


def _others(scores: Sequence[Vector]) -> Vector:
    return np.concatenate([row[1:] for row in scores])
