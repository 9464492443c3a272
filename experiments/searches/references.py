"""The models that a search is measured against: base, experts and static merges."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path

from tqdm import tqdm

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from evaluators.tasks.data import digest
from experiments.runs.item_scores import SPLITS, append_item_scores, drop_unentered
from experiments.runs.model_scores import Kind, ModelScores
from experiments.setup.study import Study
from merging.grouping import Whole
from merging.method import MergeError, MergeMethod
from merging.plan import uniform_plan
from merging.weights import Weights
from search.loop import jsonl

log = logging.getLogger(__name__)
_KINDS: tuple[Kind, ...] = ("base", "expert", "static")


class References:
    """Scores of all models but the candidates, kept in an append-only ``references.jsonl``.

    Their per-item scores on selection and held-out items lie beside it (`item_scores`).

    Args:
        study: the experts, the static merges and the engine.
        path: the file; what an earlier start has written there is not scored again.
    """

    def __init__(self, study: Study, path: Path) -> None:
        self._study, self._path = study, path
        known = map(ModelScores.from_json, jsonl.read(path))
        self._known = {(scores.kind, scores.name, scores.split): scores for scores in known}
        drop_unentered(path.parent, range(len(self._known)))

    def score(self, panel: Panel, *, kinds: Sequence[Kind] = _KINDS) -> dict[str, ModelScores]:
        """Returns label to scores: base first, then experts, then static merges.

        A model whose name is taken by another kind is labelled ``name (kind)``.

        Raises:
            EvaluationError: the base itself cannot be scored, so that nothing can.
        """
        models = [entry for entry in self._models() if entry[1] in kinds]
        rivals: dict[str, ModelScores] = {}
        for name, kind, weights in tqdm(
            models, desc=f"references, {panel.split}", leave=False, disable=None
        ):
            rival = self.score_one(name, kind, panel, weights)
            if kind == "base" and rival.failure is not None:
                raise EvaluationError(f"the base cannot be scored: {rival.failure}")
            rivals[name if name not in rivals else f"{name} ({kind})"] = rival
        return rivals

    def score_one(
        self, name: str, kind: Kind, panel: Panel, weights: Callable[[], Weights]
    ) -> ModelScores:
        """Returns one model's scores on a panel, computed at most once per run."""
        key = (kind, name, panel.split)
        if key not in self._known:
            try:
                scored = self._study.scorer(panel)(weights())
                rival = ModelScores.of(name, kind, panel.split, scored)
                self._keep_items(rival, panel, scored)
            except (EvaluationError, MergeError) as error:
                log.info("%s %s has no score: %s", kind, name, error)
                rival = ModelScores(name, kind, panel.split, {}, str(error))
            jsonl.append(self._path, {"id": len(self._known), **rival.to_json()})
            self._known[key] = rival
        return self._known[key]

    def _keep_items(self, rival: ModelScores, panel: Panel, scored: Mapping[str, Score]) -> None:
        """Writes per-item scores before the model's own line, so that a line has its items."""
        if panel.split in SPLITS:
            append_item_scores(
                self._path.parent,
                panel.split,
                len(self._known),
                name=rival.name,
                kind=rival.kind,
                items={
                    task: digest(*each.items.digests) for task, each in panel.evaluators.items()
                },
                cases={key: score.cases for key, score in scored.items()},
            )

    def _models(self) -> list[tuple[str, Kind, Callable[[], Weights]]]:
        study, pool = self._study, self._study.held
        models: list[tuple[str, Kind, Callable[[], Weights]]] = [("base", "base", self._base)]
        for expert in pool.expert_names:
            models.append((expert, "expert", partial(pool.expert_weights, expert)))
        for name, method in study.baselines.items():
            models.append((name, "static", partial(self._static, method)))
        return models

    def _base(self) -> Weights:
        pool = self._study.held
        return {name: pool.base_tensor(name) for name in pool.names}

    def _static(self, method: MergeMethod) -> Weights:
        """Returns a static merge as it would be saved."""
        study = self._study
        plan = uniform_plan(method, Whole(), study.held)
        return plan.weights(study.held, dtype=study.machine.save_dtype)
