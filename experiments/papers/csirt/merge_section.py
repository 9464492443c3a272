"""The page's section on merges: skill against exposure, with and without a limit."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeAlias

import numpy as np

from evaluators.memorization.exposure import chance_exposure
from experiments.papers.csirt.merges import SkillMemoryPoint, points_of
from experiments.papers.csirt.scores import spread_text
from experiments.runs.markdown import markdown_table
from experiments.suites.plan import PlannedRun

EVOLVED = "evolved"
FREE, LIMITED = "unconstrained", "constrained"
_HALF, _LOSS = 0.5, 0.02
Points: TypeAlias = dict[str, dict[str, SkillMemoryPoint]]
"""By model and setting, or by setting and variant."""


def merge_section(
    runs: Sequence[PlannedRun], limits: Mapping[str, float | None], variants: int
) -> str:
    """Returns the section; all figures are of items that no search has read."""
    chance = chance_exposure(1 + variants)
    points: Points = {}
    evolved: Points = {}
    for run in runs:
        for name, point in points_of(run.directory).items():
            shown = f"merge, {run.variant}" if name == EVOLVED else name
            # all variants of a setting have the same ingredients
            points.setdefault(shown, {}).setdefault(run.setting, point)
            if name == EVOLVED:
                evolved.setdefault(run.setting, {})[run.variant] = point
    rows = [_row(name, list(of.values()), chance) for name, of in points.items()]
    head = ["model", "macro-F1", "exposure, bits", "above chance"]
    shares = ", ".join(f"{name}: {limit}" for name, limit in limits.items() if limit is not None)
    return (
        "## Merges: skill against memory\n\n"
        f"Experts of {len({run.setting for run in runs})} cells, merged by evolution: one "
        "unbounded weight per expert, fitness "
        "the macro-F1 of the search items; with a limit, exposure of half of the canaries may lie "
        f"above chance by a share of the worst expert's ({shares}). Reported: other "
        "records and the other half of "
        f"the canaries, mean ± standard deviation over seeds; chance {chance:.2f} bits.\n\n"
        f"{markdown_table(head, rows)}\n\n{_front(points)}\n\n{_verdict(evolved, points, chance)}"
    )


def _front(points: Points) -> str:
    """Returns a sentence with the models that no other beats in both, from the most skilled."""
    means = {name: _mean(of.values()) for name, of in points.items()}
    best = [
        name
        for name, point in means.items()
        if not any(_beats(other, point) for other in means.values())
    ]
    best.sort(key=lambda name: -means[name].skill)
    shown = (f"{name} ({means[name].skill:.3f}, {means[name].memory:.2f} bits)" for name in best)
    return f"Front, of means: {'; '.join(shown)}."


def _mean(points: Iterable[SkillMemoryPoint]) -> SkillMemoryPoint:
    skills, memories = zip(*((point.skill, point.memory) for point in points), strict=True)
    return SkillMemoryPoint(float(np.mean(skills)), float(np.mean(memories)))


def _beats(one: SkillMemoryPoint, other: SkillMemoryPoint) -> bool:
    better = one.skill >= other.skill and one.memory <= other.memory
    return better and one != other


def _row(name: str, points: Sequence[SkillMemoryPoint], chance: float) -> list[str]:
    skills = np.array([point.skill for point in points])
    memories = np.array([point.memory for point in points])
    above = f"{memories.mean() - chance:+.2f}"
    return [name, spread_text(skills, 3), spread_text(memories, 2), above]


def _verdict(evolved: Points, points: Points, chance: float) -> str:
    both = [variants for variants in evolved.values() if {FREE, LIMITED} <= set(variants)]
    if not both:
        return ""
    free = _mean(variants[FREE] for variants in both)
    limited = _mean(variants[LIMITED] for variants in both)
    above, left = free.memory - chance, limited.memory - chance
    loss = 1 - limited.skill / free.skill
    reached = left <= _HALF * above and loss <= _LOSS
    share = "nothing to halve" if above <= 0 else f"{100 * left / above:.0f} %"
    return (
        f"**{'Reached' if reached else 'Not reached'}**: at most half of the unconstrained "
        f"merge's exposure above chance at no more than 2 % lower skill. The limit leaves {share} "
        f"of {above:.2f} bits above chance; macro-F1 {free.skill:.3f} without it, "
        f"{limited.skill:.3f} with it ({100 * -loss:+.1f} %)."
        + ("" if reached else _reason(points, chance))
    )


def _reason(points: Points, chance: float) -> str:
    """Returns what the ingredients offer: skill, and what comes with it."""
    means = {
        name: _mean(of.values())
        for name, of in points.items()
        if all(point.kind == "expert" for point in of.values())
    }
    shown = ", ".join(
        f"{name} {point.skill:.3f} at {point.memory - chance:+.2f} bits"
        for name, point in means.items()
    )
    return f" What the experts bring to these records, skill and bits above chance: {shown}."
