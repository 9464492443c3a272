"""Runs and reference models as rows of numbers, and as samples for the tests."""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from evaluators.split import Split
from experiments.compare.comparison import ComparisonRow, Reach, RunValues
from experiments.compare.groups import Group, Run, fitness_on, gains_of
from experiments.compare.significance import GroupSample
from experiments.runs.model_scores import ModelRow

EVOLVED = ("evolved", "evolved")
_REFERENCES = ("base", "expert", "static")


def group_row(group: Group, target: float | None) -> ComparisonRow:
    """Returns the row of a group; `target` is the search fitness whose reaching is timed."""
    runs, winners = group.runs, [run.winner for run in group.runs]
    return ComparisonRow(
        label=group.label,
        kind="evolved",
        options=group.options,
        seeds=group.seeds,
        runs=tuple(run.path for run in runs),
        search=_fitness(winners, "search"),
        selection=_fitness(winners, "selection"),
        report=_fitness(winners, "report"),
        scores=_task_scores(runs[0], winners),
        optimism=RunValues(tuple(run.summary.get("optimism") for run in runs)),
        item_evaluations=RunValues(tuple(run.summary["item_evaluations"] for run in runs)),
        reach=None if target is None else _reach(runs, target),
        curve=_curve(runs),
    )


@dataclass(frozen=True, eq=False)
class Reference:
    """The best model of a kind, and the runs that scored it, one for each seed."""

    row: ComparisonRow
    name: str
    runs: tuple[Run, ...]


def references(runs: Sequence[Run], split: Split) -> dict[str, Reference]:
    """Returns kind to the best model of it on the search items: base, expert, static merge.

    Of those that most runs have scored on `split`; where search items are private, it decides.
    """
    by_seed = {run.seed: run for run in reversed(runs)}
    ordered = [by_seed[seed] for seed in sorted(by_seed)]
    best = {}
    for kind in _REFERENCES:
        names = dict.fromkeys(m.name for run in ordered for m in run.models if m.kind == kind)
        found = [_reference(name, kind, ordered) for name in names]
        ranks = {reference: _rank(reference.row, split) for reference in found}
        if scored := [reference for reference in found if ranks[reference][0]]:
            best[kind] = max(scored, key=lambda reference: ranks[reference])
    return best


def _rank(row: ComparisonRow, split: Split) -> tuple[int, float, float]:
    shown = row.report if split == "report" else row.search
    means = [-math.inf if mean is None else mean for mean in (row.search.mean, shown.mean)]
    return len(shown.known), means[0], means[1]


def _model(run: Run, kind: str, name: str) -> ModelRow | None:
    return next((m for m in run.models if m.kind == kind and m.name == name), None)


def _reference(name: str, kind: str, runs: Sequence[Run]) -> Reference:
    scored = tuple(run for run in runs if _model(run, kind, name) is not None)
    models = [_model(run, kind, name) for run in scored]
    plain = name.removesuffix(f" ({kind})")
    empty = RunValues((None,) * len(scored))
    row = ComparisonRow(
        label=plain if kind == "base" else f"{kind} {plain}",
        kind=kind,
        options={},
        seeds=tuple(run.seed for run in scored),
        runs=tuple(run.path for run in scored),
        search=_fitness(models, "search"),
        selection=_fitness(models, "selection"),
        report=_fitness(models, "report"),
        scores=_task_scores(scored[0], models),
        optimism=empty,
        item_evaluations=empty,
    )
    return Reference(row, plain, scored)


def _fitness(models: Sequence[ModelRow | None], split: Split) -> RunValues:
    return RunValues(tuple(None if m is None else fitness_on(m, split) for m in models))


def _task_scores(run: Run, models: Sequence[ModelRow | None]) -> dict[str, RunValues]:
    return {
        task.metric: RunValues(
            tuple(None if m is None else m.score("report", task.metric) for m in models)
        )
        for task in run.tasks
    }


def _reach(runs: Sequence[Run], target: float) -> Reach:
    counts, times = [], []
    for run in runs:
        reaching = np.flatnonzero(run.best >= target)
        counts.append(float(reaching[0] + 1) if reaching.size else np.inf)
        times.append(float(run.seconds[reaching[0]]) if reaching.size else np.inf)
    evaluations, seconds = statistics.median(counts), float(np.median(times))
    return Reach(
        evaluations=evaluations if np.isfinite(evaluations) else None,
        seconds=seconds if np.isfinite(seconds) else None,
        reached=int(np.isfinite(counts).sum()),
        runs=len(runs),
    )


def _curve(runs: Sequence[Run]) -> tuple[list[float], list[float]]:
    """Returns mean and sd of the best so far; a run that has ended keeps what it found.

    It begins where every run has a first success.
    """
    longest = max(len(run.best) for run in runs)
    held = np.array([[*run.best, *[run.best[-1]] * (longest - len(run.best))] for run in runs])
    mean = held.mean(0)
    sd = held.std(0, ddof=1) if len(runs) > 1 else np.zeros(longest)
    return mean.tolist(), sd.tolist()


def group_sample(group: Group) -> GroupSample | None:
    """Returns a group for the tests; None where a run has no held-out fitness."""
    fitness = [fitness_on(run.winner, "report") for run in group.runs]
    return _sample(group.runs, EVOLVED, fitness)


def reference_sample(reference: Reference) -> GroupSample | None:
    """Returns a reference for the tests; of one that no seed has touched a single run."""
    kind, name = reference.row.kind, reference.name
    sample = _sample(reference.runs, (kind, name), reference.row.report.values)
    if sample is None or np.ptp(sample.fitness) > 0:
        return sample
    gains = None if sample.gains is None else tuple(of_task[:1] for of_task in sample.gains)
    return GroupSample((), sample.fitness[:1], gains, sample.weights)


def _sample(
    runs: Sequence[Run], model: tuple[str, str], fitness: Sequence[float | None]
) -> GroupSample | None:
    if any(value is None for value in fitness):
        return None
    per_run = [gains_of(run, model) for run in runs]
    known = [gains for gains in per_run if gains is not None]
    stacked = tuple(np.stack(task) for task in zip(*known, strict=True))
    return GroupSample(
        seeds=tuple(run.seed for run in runs),
        fitness=np.array(fitness, np.float64),
        gains=stacked if len(known) == len(per_run) else None,
        weights=tuple(term["weight"] for term in runs[0].summary.get("terms") or ()),
    )
