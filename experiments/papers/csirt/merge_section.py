"""The page's section on merges: skill against exposure, with and without a limit."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from evaluators.memorization.exposure import chance_exposure
from experiments.contests.plan import Entry
from experiments.papers.csirt.merges import SkillMemoryPoint, points_of
from experiments.runs.markdown import markdown_table
from merging.arrays import Vector

EVOLVED = "evolved"
FREE, LIMITED = "unconstrained", "constrained"
_HALF, _LOSS = 0.5, 0.02


def merge_section(entries: Sequence[Entry], variants: int) -> str:
    """Returns the section; all figures are of items that no search has read.

    Args:
        entries: finished searches.
        variants: of each canary.
    """
    chance = chance_exposure(1 + variants)
    found: dict[
        str, dict[str, SkillMemoryPoint]
    ] = {}  # model -> cell: all arms have the same ingredients
    pairs: dict[str, dict[str, SkillMemoryPoint]] = {}
    for entry in entries:
        for name, point in points_of(entry.run).items():
            shown = f"merge, {entry.arm}" if name == EVOLVED else name
            found.setdefault(shown, {}).setdefault(entry.world, point)
            if name == EVOLVED:
                pairs.setdefault(entry.world, {})[entry.arm] = point
    rows = [_row(name, list(points.values()), chance) for name, points in found.items()]
    head = ["model", "macro-F1", "exposure, bits", "above chance"]
    verdict = _verdict(pairs, found, chance)
    runs = len({entry.world for entry in entries})
    return (
        "## Merges: skill against memory\n\n"
        f"Experts of {runs} cells, merged by evolution: one unbounded weight per expert, fitness "
        "the macro-F1 of the search items; with a limit, exposure of half of the canaries may lie "
        f"above chance by a share of the worst expert's ({_shares(entries)}). Reported: other "
        "records and the other half of "
        f"the canaries, mean ± standard deviation over seeds; chance {chance:.2f} bits.\n\n"
        + markdown_table(head, rows)
        + f"\n\n{_front(found)}\n\n{verdict}"
    )


def _shares(entries: Sequence[Entry]) -> str:
    """Returns every arm's share, as its options have it."""
    found = {
        entry.arm: share[1]
        for entry in entries
        if (share := re.search(r"share: *([0-9.]+)", " ".join(entry.options)))
    }
    return ", ".join(f"{arm}: {share}" for arm, share in found.items())


def _front(found: Mapping[str, Mapping[str, SkillMemoryPoint]]) -> str:
    """Returns a sentence with the models that no other beats in both, from the most skilled."""
    means = {name: _mean(points.values()) for name, points in found.items()}
    best = sorted(
        (
            name
            for name, point in means.items()
            if not any(_beats(o, point) for o in means.values())
        ),
        key=lambda name: -means[name].skill,
    )
    shown = (f"{name} ({means[name].skill:.3f}, {means[name].memory:.2f} bits)" for name in best)
    return f"Front, of means: {'; '.join(shown)}."


def _mean(points: Iterable[SkillMemoryPoint]) -> SkillMemoryPoint:
    each = list(points)
    return SkillMemoryPoint(
        float(np.mean([point.skill for point in each])),
        float(np.mean([point.memory for point in each])),
    )


def _beats(one: SkillMemoryPoint, other: SkillMemoryPoint) -> bool:
    better = one.skill >= other.skill and one.memory <= other.memory
    return better and one != other


def _row(name: str, points: Sequence[SkillMemoryPoint], chance: float) -> list[str]:
    skills = np.array([point.skill for point in points])
    memories = np.array([point.memory for point in points])
    above = f"{memories.mean() - chance:+.2f}"
    return [name, _spread(skills, 3), _spread(memories, 2), above]


def _verdict(
    pairs: Mapping[str, Mapping[str, SkillMemoryPoint]],
    found: Mapping[str, Mapping[str, SkillMemoryPoint]],
    chance: float,
) -> str:
    both = [each for each in pairs.values() if {FREE, LIMITED} <= set(each)]
    if not both:
        return ""
    free = [each[FREE] for each in both]
    limited = [each[LIMITED] for each in both]
    above = float(np.mean([point.memory for point in free])) - chance
    left = float(np.mean([point.memory for point in limited])) - chance
    skill = float(np.mean([point.skill for point in free]))
    kept = float(np.mean([point.skill for point in limited]))
    loss = 1 - kept / skill
    reached = left <= _HALF * above and loss <= _LOSS
    share = "nothing to halve" if above <= 0 else f"{100 * left / above:.0f} %"
    return (
        f"**{'Reached' if reached else 'Not reached'}**: at most half of the unconstrained "
        f"merge's exposure above chance at no more than 2 % lower skill. The limit leaves {share} "
        f"of {above:.2f} bits above chance; macro-F1 {skill:.3f} without it, {kept:.3f} with it "
        f"({100 * -loss:+.1f} %)." + ("" if reached else _reason(found, chance))
    )


def _reason(found: Mapping[str, Mapping[str, SkillMemoryPoint]], chance: float) -> str:
    """Returns what the ingredients offer: skill, and what comes with it."""
    means = {
        name: _mean(points.values())
        for name, points in found.items()
        if all(point.kind == "expert" for point in points.values())
    }
    shown = ", ".join(
        f"{name} {point.skill:.3f} at {point.memory - chance:+.2f} bits"
        for name, point in means.items()
    )
    return f" What the experts bring to these records, skill and bits above chance: {shown}."


def _spread(values: Vector, digits: int) -> str:
    mean = f"{values.mean():.{digits}f}"
    return mean if len(values) < 2 else f"{mean} ± {values.std(ddof=1):.{digits}f}"
