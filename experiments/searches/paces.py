"""How long what a run does many times takes once: merges and answers, tried before it begins."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

import numpy as np
from omegaconf import DictConfig

from evaluators.engine.model import Model
from evaluators.evaluator import Evaluator
from evaluators.panel import Panel
from evaluators.split import Split
from experiments.runs.progress import ProgressBar
from experiments.scoring.population import PopulationPool, batch_size
from experiments.searches.references import static_of
from experiments.setup import in_hull
from experiments.setup.ingredients import Ingredients
from experiments.setup.initial import scored_plans
from experiments.setup.parts import SearchParts
from experiments.setup.problem import Problem
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeMethod
from merging.plan import Plan, uniform_plan
from merging.weights import Weights
from search.loop.evaluation import Batch, attempt

T = TypeVar("T")
_FEW_ITEMS = 8
_GAIN = 0.8  # more items are tried where each takes less than this share of before
_BATCH_S = 2.0  # of items: more are tried up to then, and candidates are tried together on so many
_LARGE = 0.1  # of all numbers: a tensor that is too large to be tried
_SHORT_S = 0.1  # what takes less is tried twice: a first time may warm up what others find warm


@dataclass(frozen=True)
class CandidatePace:
    """Seconds of a candidate: to merge and write it, and with its search items in a generation."""

    merge: float
    scored: float


@dataclass(frozen=True)
class Paces:
    """Seconds of what a run does many times.

    Args:
        models: base and experts, how many.
        write: one of these into the model.
        statics: merging and writing of every static merge that does not fail.
        starts: the same of every point that is scored to choose the start.
        search: of a candidate of the search.
        inside: of a candidate of the companion in the hull; None: there is none.
        ask: all items of a split.
    """

    models: int
    write: float
    statics: Sequence[float]
    starts: Sequence[float]
    search: CandidatePace
    inside: CandidatePace | None
    ask: Mapping[Split, float]

    @classmethod
    def take(
        cls, config: DictConfig, parts: SearchParts, ingredients: Ingredients, start: Plan | None
    ) -> "Paces":
        """Tries out what a run does; `start` is the plan that its space begins at."""
        model, pool, panels = ingredients.model, ingredients.held, ingredients.panels
        plans = _scored_starts(parts, pool)
        trials = 2 + len(panels) + len(parts.baselines) + len(plans)
        with ProgressBar(trials, "timing the steps of the run", "step") as bar:

            def timed(trial: Callable[..., T], *arguments: Any) -> T:
                done = trial(*arguments)
                bar.update()
                return done

            write = timed(_seconds, lambda: model.write(pool.base_weights()))
            ask = {split: timed(_panel_s, model, panel) for split, panel in panels.items()}
            merges = [timed(_static_s, ingredients, one) for one in parts.baselines.values()]
            once = pool.reading()
            starts = [timed(_merge_s, pool, partial(plan.weights, once)) for plan in plans]
            problem = Problem.open(config, pool, start, config.seed)
            candidate = partial(_candidate, config.together, ingredients)
            searched = (config.common_items or 1.0) * ask["search"]
            search, inside = timed(candidate, problem, searched), None
            if in_hull.has_companion(config, problem.space):
                inside = candidate(in_hull.open_companion(config, pool), ask["search"])
        return cls(
            models=1 + len(pool.expert_names),
            write=write,
            statics=[write + merge for merge in merges if merge is not None],
            starts=[write + merge for merge in starts if merge is not None],
            search=search,
            inside=inside,
            ask=ask,
        )


def _seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def _pace(work: Callable[[], object]) -> float:
    first = _seconds(work)
    return first if first > _SHORT_S else min(first, _seconds(work))


def _panel_s(model: Model, panel: Panel) -> float:
    return sum(_task_s(model, evaluator) for evaluator in panel.evaluators.values())


def _task_s(model: Model, evaluator: Evaluator) -> float:
    """Returns the seconds of all items, from evenly spread ones.

    They are as many as a batch needs to be full: more, until that makes each no faster and they
    take `_BATCH_S`: only a full batch shows the memory that it holds.
    Whole items are tried, as their requests share beginnings.
    """
    items, taken, before = evaluator.items, min(_FEW_ITEMS, len(evaluator.items)), np.inf
    while True:
        chosen = np.linspace(0, len(items) - 1, taken).astype(int).tolist()
        requests = list(items.subset(chosen).requests)  # of a tuple the engine keeps its plan
        seconds = _seconds(partial(model.run, requests))
        each = seconds / len(requests)
        if taken == len(items) or (each > _GAIN * before and seconds > _BATCH_S):
            return min(each, before) * len(items.requests)
        before = each
        taken = min(max(2 * taken, int(taken * _BATCH_S / max(seconds, 1e-9))), len(items))


def _static_s(ingredients: Ingredients, method: MergeMethod) -> float | None:
    pool = ingredients.held
    return _merge_s(pool, lambda: ingredients.saved(uniform_plan(method, Whole(), pool)))


def _merge_s(pool: ExpertPool, weights: Callable[[], Weights]) -> float | None:
    """Returns the seconds of a merge, from one tensor of every shape; None: it fails."""
    sizes = {name: pool.base.shape(name).numel() for name in pool.names}
    total = sum(sizes.values())
    alike = list({tuple(pool.base.shape(name)): name for name in pool.names}.values())
    tried = [name for name in alike if sizes[name] <= _LARGE * total] or alike
    seconds = 0.0
    with attempt() as merged:
        reads = [partial(weights().__getitem__, name) for name in tried]
        seconds = sum(map(_pace, reads))
    whole = seconds * total / sum(sizes[name] for name in tried)
    return None if merged.failure is not None else whole


def _scored_starts(parts: SearchParts, pool: ExpertPool) -> list[Plan]:
    """Returns the plans that the choice of a start scores, besides experts and static merges."""
    plans = scored_plans(parts.initial, pool)
    return [plan for plan in plans if static_of(plan, parts.baselines, pool) is None]


def _candidate(
    together: int | str | None, ingredients: Ingredients, problem: Problem, ask_s: float
) -> CandidatePace:
    """Returns the pace of the first generation's candidates, which a fresh strategy is asked for.

    Args:
        ask_s: seconds of a generation's items where each candidate is asked alone.
    """
    genomes = [candidate.genome for candidate in problem.strategy.ask()]
    genomes = genomes or [problem.space.first()]
    with attempt() as written:
        ingredients.model.write(problem.space.decode(genomes[-1]))
    size = batch_size(together, ingredients, problem.space)
    if size == 1:
        return CandidatePace(written.seconds, written.seconds + ask_s)
    share = min(1.0, _BATCH_S / max(ask_s, _BATCH_S))
    sample = ingredients.panels["search"].subset(share, seed=0)
    pool: PopulationPool = PopulationPool(ingredients, problem.space, lambda generation: sample)
    pool.submit(Batch(genomes[:size]))
    passes = max(0.0, _seconds(pool.next) - written.seconds) / share
    each = (written.seconds + passes) / len(genomes[:size])
    return CandidatePace(written.seconds, each)
