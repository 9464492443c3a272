"""From run directories to a comparison."""

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import replace
from itertools import combinations
from pathlib import Path

import numpy as np

from evaluators.split import Split
from experiments.compare.comparability import check_comparable
from experiments.compare.comparison import ComparedPair, Comparison
from experiments.compare.groups import Group, Run, find_runs, fitness_on, group_runs, read_run
from experiments.compare.rows import (
    Reference,
    group_row,
    group_sample,
    reference_sample,
    references,
)
from experiments.compare.significance import GroupSample, difference, holm
from merging.seeding import stable_seed

Samples = Mapping[str, GroupSample | None]
"""Of groups by label, best first; None where a run has no held-out fitness."""

_UNEQUAL = 0.02  # budgets that differ by less are called equal


def compare(
    runs: Sequence[Path], *, against: str | None = None, target: float | None = None
) -> Comparison:
    """Returns the comparison of all finished runs at or below some directories.

    Args:
        runs: run directories, directories that hold them, or patterns.
        against: what every group is tested against: words that a group's label contains, several
            alternatives separated by ``|``; of several groups the one with the best mean held-out
            fitness, which favours what is compared with. ``static``, ``expert`` or ``base`` alone:
            the best model of that kind. None: all pairs of groups are tested.
        target: search fitness whose reaching is timed; None: that of the best static merge.

    Raises:
        ValueError: no finished run, runs that were measured differently, a damaged file, or
            nothing that `against` names; says which.
    """
    paths = find_runs(runs)
    read = {path: read_run(path) for path in paths}
    finished = [run for run in read.values() if run is not None]
    if not finished:
        raise ValueError(
            f"none of {len(paths)} runs has finished, for example {paths[0]}: start the command "
            "of a run again to continue it"
        )
    check_comparable(finished)
    groups, repeats = group_runs(finished)
    held_out = any(fitness_on(run.winner, "report") is not None for run in finished)
    split: Split = "report" if held_out else "search"
    groups.sort(key=lambda group: -_mean(group, split))
    aim, aim_name = _target(finished, target)
    baselines = references(finished, split)
    samples = {group.label: group_sample(group) for group in groups}
    opponent, choice = (None, []) if against is None else _opponent(against, samples, baselines)
    tests = _paired_tests(samples, opponent) if held_out else ()
    test_notes = _test_notes(groups, tests, held_out=held_out)
    return Comparison(
        groups=tuple(group_row(group, aim) for group in groups),
        references=tuple(baseline.row for baseline in baselines.values()),
        tasks=tuple(finished[0].tasks),
        tests=tests,
        against=None if opponent is None else opponent[0],
        target=aim,
        target_name=aim_name,
        held_out=held_out,
        notes=(
            *repeats,
            *choice,
            *_metric_notes(finished[0]),
            *_budget_notes(groups),
            *test_notes,
        ),
        unfinished=tuple(path for path, run in read.items() if run is None),
    )


def _mean(group: Group, split: Split) -> float:
    known = [f for run in group.runs if (f := fitness_on(run.winner, split)) is not None]
    return float(np.mean(known)) if known else -math.inf


def _target(runs: Sequence[Run], target: float | None) -> tuple[float | None, str]:
    """Returns the target and its name: the best static merge that any run has scored."""
    if target is not None:
        return target, "as given"
    statics = [
        (fitness, model.name)
        for run in runs
        for model in run.models
        if model.kind == "static" and (fitness := fitness_on(model, "search")) is not None
    ]
    if not statics:
        return None, "the runs have no static merge"
    fitness, name = max(statics)
    return fitness, f"that of the best static merge, {name}"


def _opponent(
    against: str, samples: Samples, baselines: Mapping[str, Reference]
) -> tuple[tuple[str, GroupSample | None], list[str]]:
    """Returns label and sample of what all are tested against, and a note on how it was chosen.

    Of several groups that are named the first, as `samples` come best first.
    """
    if against in baselines:
        return (baselines[against].row.label, reference_sample(baselines[against])), []
    named = {label for part in against.split("|") for label in _named(part.strip(), list(samples))}
    for label, sample in samples.items():
        if label in named:
            note = (
                f"{label} has the best mean held-out fitness of the {len(named)} groups that "
                f"{against!r} names; it is chosen for that, which favours it."
            )
            return (label, sample), [note] if len(named) > 1 else []
    raise ValueError(
        f"against={against!r} names no group: there are {', '.join(samples)}"
        + (f", and the best {' or '.join(baselines)}" if baselines else "")
    )


def _named(text: str, labels: Sequence[str]) -> list[str]:
    """Returns the label that is `text`, else those that hold all its words, else all its parts."""
    words = text.split()
    return (
        [label for label in labels if label == text]
        or [label for label in labels if words and all(word in label.split() for word in words)]
        or [label for label in labels if words and all(word in label for word in words)]
    )


def _paired_tests(
    samples: Samples, opponent: tuple[str, GroupSample | None] | None
) -> tuple[ComparedPair, ...]:
    """Returns the tests, the first of each pair the better one where all pairs are tested."""
    pairs = list(combinations(samples.items(), 2))
    if opponent is not None:
        pairs = [(entry, opponent) for entry in samples.items() if entry[0] != opponent[0]]
    tests = []
    for (first, sample), (second, other) in pairs:
        if sample is not None and other is not None:
            seed = stable_seed("compare", first, second)
            gap = difference(sample, other, seed=seed)
            tests.append(ComparedPair(first, second, gap, None))
    tested = [i for i, test in enumerate(tests) if test.difference.p is not None]
    for i, p in zip(tested, holm([tests[i].difference.p or 0.0 for i in tested]), strict=True):
        tests[i] = replace(tests[i], corrected=p)
    return tuple(tests)


def _metric_notes(run: Run) -> list[str]:
    """Returns what fitness and tests go by, where that is not what the tasks' columns show."""
    shown = {task.metric for task in run.tasks}
    judged = [term["key"] for term in run.summary.get("terms") or ()]
    other = [key for key in judged if key not in shown]
    if not other:
        return []
    return [f"Fitness and tests go by {', '.join(other)}, not by the main metrics of these tasks."]


def _budget_notes(groups: Sequence[Group]) -> list[str]:
    spent = {
        group.label: float(np.mean([run.summary["item_evaluations"] for run in group.runs]))
        for group in groups
    }
    usual = statistics.median_low(spent.values())
    other = [
        f"{label} {value:,.0f}"
        for label, value in spent.items()
        if abs(value - usual) > _UNEQUAL * usual
    ]
    if not other:
        return []
    return [
        f"Budgets are unequal: {_few(other)} item evaluations per run, where {usual:,.0f} are "
        "usual; a difference between such groups may be one of budget."
    ]


def _test_notes(
    groups: Sequence[Group], tests: Sequence[ComparedPair], *, held_out: bool
) -> list[str]:
    notes = []
    if not held_out:
        notes.append("There are no held-out scores, so that nothing is tested.")
    counts = sorted({len(group.runs) for group in groups})
    if len(counts) > 1:
        notes.append(f"Groups have from {counts[0]} to {counts[-1]} seeds.")
    failed = [
        run.path.name
        for group in groups
        for run in group.runs
        if held_out and fitness_on(run.winner, "report") is None
    ]
    if failed:
        notes.append(f"No held-out fitness, so that their groups are not tested: {_few(failed)}.")
    texts = {
        "items": "Tested over items alone, as a group has one seed; another seed may differ",
        "seeds": "Tested over seeds alone, as runs keep no per-item scores",
        "nothing": "Not tested, as there is one seed and runs keep no per-item scores",
    }
    for over, text in texts.items():
        pairs = [f"{t.first} - {t.second}" for t in tests if t.difference.over == over]
        if pairs:
            notes.append(f"{text}: {_few(pairs)}.")
    return notes


def _few(names: Sequence[str], most: int = 5) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
