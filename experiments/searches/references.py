"""The models that a search is measured against: base, experts and static merges."""

import logging
from collections.abc import Callable, Collection, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from evaluators.split import Split
from evaluators.tasks.data import digest
from experiments.runs.errors import UserError
from experiments.runs.item_scores import append_item_scores, drop_unentered
from experiments.runs.model_scores import Kind, ModelScores
from experiments.runs.progress import ProgressBar
from experiments.setup.ingredients import Ingredients
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeError, MergeMethod
from merging.plan import Plan, uniform_plan
from merging.weights import Weights
from search.loop import jsonl
from search.objective import Objective

log = logging.getLogger(__name__)
_KINDS: tuple[Kind, ...] = ("base", "expert", "static")
_UNREAD = "not scored: these items are private"


class References:
    """Scores of all models but the candidates, kept in an append-only ``references.jsonl``.

    Their per-item scores lie beside it (`item_scores`).

    Args:
        ingredients: the experts, and the model that scores.
        baselines: the static merges by name.
        run: directory of the search; what an earlier start has written there is not scored again.
        unread: splits whose items are private: nothing is asked, every model has a failure.
    """

    def __init__(
        self,
        ingredients: Ingredients,
        baselines: Mapping[str, MergeMethod],
        run: Path,
        *,
        unread: Collection[Split] = (),
    ) -> None:
        self.ingredients, self.baselines = ingredients, baselines
        self._unread = unread
        self._path = path = run / "references.jsonl"
        known = [ModelScores.from_json(line) for line in jsonl.read(path)]
        self._lines = len(known)
        self._known = {(m.kind, m.name, m.split): m for m in known if not _is_missed(m)}
        drop_unentered(path.parent, range(self._lines))

    def score(
        self,
        panel: Panel,
        *,
        kinds: Sequence[Kind] = _KINDS,
        statics: Collection[str] | None = None,
        winner: Plan | None = None,
    ) -> dict[str, ModelScores]:
        """Returns the scores on a panel by label: base, then experts, then static merges.

        A model whose name is taken by another kind is labelled ``name (kind)``.

        Args:
            statics: which static merges are asked; None: all.
            winner: of the search, as it is saved: last, as ``evolved``; None: it is not asked.

        Raises:
            EvaluationError: base or an expert cannot be scored on the search items, by which
                every candidate is judged.
            TransientFailure: nothing can be scored now; what was scored is kept.
        """
        models = [
            (name, kind, weights)
            for name, kind, weights in self._models()
            if kind in kinds and (kind != "static" or statics is None or name in statics)
        ]
        unread = panel.split in self._unread
        known = [unread or (kind, name, panel.split) in self._known for name, kind, _ in models]
        new = known.count(False) + (winner is not None)
        scores: dict[str, ModelScores] = {}
        with ProgressBar(new, f"references on {panel.split} items", "model") as progress:
            for (name, kind, weights), from_file in zip(models, known, strict=True):
                model = self.score_one(name, kind, panel, weights)
                scores[name if name not in scores else f"{name} ({kind})"] = model
                if not from_file:
                    progress.update()
            if winner is not None:
                scores["evolved"] = self._saved("evolved", "evolved", panel, winner)
                progress.update()
        return scores

    def bound(self, objective: Any) -> Objective:
        """Returns an objective in the run's units: what base and experts score on search items.

        Raises:
            EvaluationError: the base cannot be scored.
            UserError: a task has no span to normalise by.
        """
        panel = self.ingredients.panels["search"]
        models = self.score(panel, kinds=("base", "expert"))
        experts = {model.name: model.scores for model in models.values() if model.kind == "expert"}
        try:
            bound: Objective = objective.bind(
                panel.directions, panel.main, models["base"].scores, experts
            )
        except ValueError as error:
            raise UserError(f"search items: {error}") from error
        return bound

    def score_one(
        self, name: str, kind: Kind, panel: Panel, weights: Callable[[], Weights]
    ) -> ModelScores:
        """Returns one model's scores on a panel, computed at most once per run.

        Raises:
            EvaluationError: base or an expert cannot be scored on the search items. That is not
                kept: it is asked again at the next start.
            TransientFailure: nothing can be scored now; not kept either.
        """
        if panel.split in self._unread:
            return ModelScores(name, kind, panel.split, {}, _UNREAD)
        key = (kind, name, panel.split)
        if key not in self._known:
            try:
                scored = self.ingredients.scorer(panel)(weights())
                scores = ModelScores.of(name, kind, panel.split, scored)
                self._keep_items(scores, panel, scored)
            except (EvaluationError, MergeError) as error:
                log.debug("%s %s has no score: %s", kind, name, error)
                scores = ModelScores(name, kind, panel.split, {}, str(error))
                if _is_missed(scores):
                    raise _unscored(scores) from error
            jsonl.append(self._path, {"id": self._lines, **scores.to_json()})
            self._lines += 1
            self._known[key] = scores
        return self._known[key]

    def starts(self, plans: Sequence[Plan]) -> list[ModelScores]:
        """Returns what was scored on the search items to choose a start, failures left out.

        Args:
            plans: that the choice of the start scores: static merges among them, and others.
        """
        statics = {self.static_of(plan) for plan in plans}
        of_search = [m for m in self._known.values() if m.split == "search" and m.failure is None]
        return [
            m for m in of_search if m.kind == "start" or (m.kind == "static" and m.name in statics)
        ]

    def static_of(self, plan: Plan) -> str | None:
        """Returns which static merge `plan` is; None: none of them."""
        return static_of(plan, self.baselines, self.ingredients.held)

    def score_saved(self, name: str, kind: Kind, panel: Panel, plan: Plan) -> ModelScores:
        """Returns the scores of a plan's model as it would be saved."""
        with ProgressBar(1, f"{name} on {panel.split} items", "model") as progress:
            scores = self._saved(name, kind, panel, plan)
            progress.update()
        return scores

    def _saved(self, name: str, kind: Kind, panel: Panel, plan: Plan) -> ModelScores:
        return self.score_one(name, kind, panel, lambda: self.ingredients.saved(plan))

    def _keep_items(self, scores: ModelScores, panel: Panel, scored: Mapping[str, Score]) -> None:
        """Writes per-item scores before the model's own line, so that a line has its items."""
        items = {task: digest(*e.items.digests) for task, e in panel.evaluators.items()}
        append_item_scores(
            self._path.parent,
            panel.split,
            self._lines,
            name=scores.name,
            kind=scores.kind,
            items=items,
            cases={key: score.cases for key, score in scored.items()},
        )

    def _models(self) -> list[tuple[str, Kind, Callable[[], Weights]]]:
        pool = self.ingredients.held
        return [
            ("base", "base", pool.base_weights),
            *((name, "expert", partial(pool.expert_weights, name)) for name in pool.expert_names),
            *((n, "static", partial(self._static, m)) for n, m in self.baselines.items()),
        ]

    def _static(self, method: MergeMethod) -> Weights:
        """Returns a static merge as it would be saved."""
        return self.ingredients.saved(uniform_plan(method, Whole(), self.ingredients.held))


def static_of(plan: Plan, statics: Mapping[str, MergeMethod], pool: ExpertPool) -> str | None:
    """Returns which of the static merges of `pool` is `plan`; None: none of them."""
    merges = ((name, uniform_plan(method, Whole(), pool)) for name, method in statics.items())
    return next((name for name, merge in merges if merge == plan), None)


def _is_missed(model: ModelScores) -> bool:
    """Whether it is a failure of what the objective is made of."""
    return model.split == "search" and model.kind in ("base", "expert") and bool(model.failure)


def _unscored(model: ModelScores) -> EvaluationError:
    """Returns what says that there is no objective without this model."""
    if model.kind == "base":
        return EvaluationError(f"the base cannot be scored: {model.failure}")
    return EvaluationError(
        f"expert {model.name!r} cannot be scored on the search items: {model.failure}; leave "
        "it out of experts.experts, or take items that it can answer"
    )
