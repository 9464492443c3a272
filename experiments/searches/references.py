"""The models that a search is measured against: base, experts and static merges."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any, Literal

from tqdm import tqdm

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from evaluators.tasks.data import digest
from experiments.runs.item_scores import SPLITS, append_item_scores, drop_unentered
from experiments.setup.study import Study
from merging.grouping import Whole
from merging.method import MergeError, MergeMethod
from merging.plan import uniform_plan
from merging.weights import Weights
from search.loop import jsonl

log = logging.getLogger(__name__)
Kind = Literal["base", "expert", "static", "start", "in_hull", "evolved"]
_KINDS: tuple[Kind, ...] = ("base", "expert", "static")


@dataclass(frozen=True)
class ModelScores:
    """What one model scored on one split.

    Args:
        name: of the model; a static merge has its method's name.
        kind: what it is.
        split: ``search``, ``selection`` or ``report``.
        scores: ``task/metric`` to value; empty where it could not be scored.
        failure: why it could not be scored.
        chances: what chance gives, for the scores that state it.
        intervals: ends of the 95 % interval, for the scores that state it.
    """

    name: str
    kind: Kind
    split: str
    scores: Mapping[str, float]
    failure: str | None = None
    chances: Mapping[str, float] = field(default_factory=dict)
    intervals: Mapping[str, Sequence[float]] = field(default_factory=dict)

    @property
    def evidence(self) -> dict[str, Any]:
        """Chances and intervals as JSON; nothing where no score states any."""
        found = {"chances": dict(self.chances), "intervals": dict(self.intervals)}
        return {name: each for name, each in found.items() if each}

    def to_json(self) -> dict[str, Any]:
        """Returns the line of ``references.jsonl``, but for its number."""
        own = {k: v for k, v in asdict(self).items() if k not in ("chances", "intervals")}
        return own | self.evidence


class References:
    """Scores of all models but the candidates, kept in an append-only ``references.jsonl``.

    Their per-item scores on selection and held-out items lie beside it (`item_scores`).

    Args:
        study: the experts, the static merges and the engine.
        path: the file; what an earlier start has written there is not scored again.
    """

    def __init__(self, study: Study, path: Path) -> None:
        self._study, self._path = study, path
        self._known = {
            (rival.kind, rival.name, rival.split): rival for rival in map(_rival, jsonl.read(path))
        }
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
                scores = {label: float(score.value) for label, score in scored.items()}
                rival = ModelScores(name, kind, panel.split, scores, **stated(scored))
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
                items={task: digest(*each.items) for task, each in panel.evaluators.items()},
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


def stated(scores: Mapping[str, Score]) -> dict[str, Any]:
    """Returns the ``chances`` and ``intervals`` that scores state, by ``task/metric``."""
    return {
        "chances": {k: float(s.chance) for k, s in scores.items() if s.chance is not None},
        "intervals": {k: list(s.interval) for k, s in scores.items() if s.interval is not None},
    }


def _rival(line: dict[str, Any]) -> ModelScores:
    return ModelScores(**{key: value for key, value in line.items() if key != "id"})
