"""RESULTS.md of split_privatize: the front, the verdicts, and what a merge keeps."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from experiments.papers.split_privatize.front import SEEING, Front, FrontRow, interval, spread
from experiments.papers.split_privatize.merges import KEPT, Kept
from experiments.papers.split_privatize.points import NO_NOISE, NoiseWay, SplitSetting
from experiments.reports.table import duration
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table

PAPERS_GAIN, PAPERS_LOSS = 0.62, 1.0


@dataclass(frozen=True)
class SplitFacts:
    """What a reader must know of how the numbers came about.

    Args:
        seconds: of all starts of the command together.
        privacy: what the ledger of a merge says, in words.
        remarks: on how the settings were chosen.
    """

    command: str
    seconds: float
    workers: int
    setting: SplitSetting
    fast: bool
    privacy: Sequence[str]
    remarks: Sequence[str]


def page(front: Front, kept: Sequence[Kept], facts: SplitFacts) -> str:
    """Returns the page."""
    sections = [
        "# Split-and-Privatize: experts from data that never leaves its owner (split_privatize)",
        _facts(front, facts),
        "## Verdicts\n\n" + "\n".join(f"- {line}" for line in verdicts(front, kept, facts)),
        "![accuracy against empirical privacy](front.png)",
        _front(front),
        _attackers(front),
        _merges(kept, facts),
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def verdicts(front: Front, kept: Sequence[Kept], facts: SplitFacts) -> list[str]:
    """Returns a sentence or two for each claim: the word first, then the numbers."""
    lines = [_point(front, facts)]
    contributing = [n for n, way in facts.setting.ways.items() if way.contributing is not None]
    uniform = next((n for n, w in facts.setting.ways.items() if w.contributing is None), None)
    lines += [_contributing(front, name, uniform) for name in contributing if uniform is not None]
    lines.append(_depth(front))
    return [*lines, _kept(kept)] if kept else lines


def _facts(front: Front, facts: SplitFacts) -> str:
    trial = "**A trial (`fast=true`): too small to conclude anything.** " if facts.fast else ""
    data, attacks, training = (
        facts.setting.data,
        facts.setting.attacks,
        facts.setting.training,
    )
    return "\n".join(
        [
            f"{trial}Written by `{facts.command}`; do not edit by hand. A Split-and-Privatize "
            "Framework for Large Language Model Fine-Tuning, arXiv 2312.15603.",
            "",
            f"- machine: {machine()}; {facts.workers} processes of one thread",
            f"- time: {duration(facts.seconds)}",
            f"- {data.customer} {data.task} sentences at the customer, {data.public} others that "
            f"attackers have, accuracy on {data.test} held-out ones, noised as they are asked; "
            f"{front.seeds} seeds, of who has which sentence, noise, head and adapter; rows "
            "without brackets have one",
            f"- LoRA of rank {training.lora.rank} and a new head behind the split: "
            f"{training.schedule.steps} steps of {training.schedule.batch}, rate "
            f"{training.schedule.learning_rate:g}",
            "- ratio: mean noise length d / η of a token of factor 1, over the mean distance of "
            "neighbouring states",
            *(f"- {name}: {_way(way)}" for name, way in facts.setting.ways.items()),
            "- privacy: 1 - the share of tokens of the customer's training sentences that the "
            f"strongest attacker recovers (of {attacks.texts}; who optimises an input, of "
            f"{attacks.matched}), on each seed; loss: points of accuracy below the unprotected "
            "split of the same depth. In brackets: Student's 95 % intervals over seeds",
            *(f"- {remark}" for remark in facts.remarks),
        ]
    )


def _way(way: NoiseWay) -> str:
    """Returns what a way does, in words."""
    told = "noise of one η on all of a state"
    if way.directions is not None:
        told = (
            f"noise of one η on a state's coordinates in {way.directions.count} directions; of "
            "all others the public mean is sent. The directions are those that a small classifier "
            "of the customer's reads, which it trained on its own clean states, without noise: η "
            "bounds nothing of what they tell of its training sentences"
        )
    if way.contributing is not None:
        told = told.replace("one η", "an η by token") + (
            f": factors of the authors' public code, at least {way.contributing.floor:g}, so that "
            f"most tokens have {1 / way.contributing.floor:g} times the noise of factor 1"
        )
    return told


def _point(front: Front, facts: SplitFacts) -> str:
    best, cheapest = front.most_private(PAPERS_LOSS), front.cheapest(PAPERS_GAIN)
    reached = best is not None and float(front.gain(best).mean()) >= PAPERS_GAIN
    claim = "privacy 0.62 above the unprotected split at no more than 1 point of accuracy"
    if best is not None and reached:
        told = f"**Reached**: {claim}, against the strongest attacker. {_of(front, best)}"
        if cheapest is not None and cheapest is not best:
            told += f" As much privacy at the least loss: {_of(front, cheapest)}"
        return told + _own(best)
    parts = [f"**Not reached**: {claim}, against the strongest attacker."]
    if best is None:
        parts.append("Every noise costs more than a point.")
    else:
        parts.append(f"At most a point: {_of(front, best)}")
    if cheapest is None:
        parts.append("No noise that was tried gains as much privacy.")
    else:
        parts.append(f"As much privacy at the least loss: {_of(front, cheapest)}")
    against_papers = [
        row
        for row in front.noised
        if front.papers_gain(row).mean() >= PAPERS_GAIN and front.loss(row).mean() <= PAPERS_LOSS
    ]
    parts.append(
        "Against the paper's own attacker alone it is "
        + (
            f"reached: {_of(front, against_papers[0])}"
            if against_papers
            else "not reached either."
        )
    )
    ratios = sorted({row.ratio for row in front.noised})
    parts.append(
        f"Tried: {', '.join(facts.setting.ways)}, ratios {ratios[0]:g} to {ratios[-1]:g}, behind "
        f"{', '.join(str(b) for b in front.clean)} blocks."
    )
    return " ".join(parts)


def _own(row: FrontRow) -> str:
    if row.own is None:
        return ""
    return (
        " The customer's own classifier, whose directions these are, is right on "
        f"{spread(100 * row.own)} % of the test sentences, clean; the vendor on the noised ones "
        f"{spread(100 * (row.accuracy - row.own), sign=True)} points more."
    )


def _of(front: Front, row: FrontRow) -> str:
    return (
        f"{row.way} noise of ratio {row.ratio:g} behind {row.blocks} blocks: gain "
        f"{spread(front.gain(row), 2, sign=True)} (the paper's attacker "
        f"{spread(front.papers_gain(row), 2, sign=True)}), loss "
        f"{spread(front.loss(row), sign=True)} points; strongest: {row.strongest}."
    )


def _contributing(front: Front, name: str, uniform: str) -> str:
    points = front.advantage(name, uniform)
    if not len(points):
        return f"**Undecided**: {name} and {uniform} noise share no privacy to be compared at."
    ends = interval(points)
    word = "Undecided"
    if ends is not None and ends[0] > 0:
        word = "Reproduces"
    elif ends is not None and ends[1] < 0:
        word = "The opposite"
    return (
        f"**{word}**: at equal privacy {name} noise is more accurate than {uniform} by "
        f"{spread(points, 2, sign=True)} points, averaged over the privacies that both have."
    )


def _depth(front: Front) -> str:
    values = {blocks: float(row.privacy.mean()) for blocks, row in front.clean.items()}
    shown = ", ".join(f"{value:.2f} behind {blocks}" for blocks, value in values.items())
    rises = list(values.values()) == sorted(values.values())
    word = "Reproduces" if rises and len(values) > 1 else "Does not reproduce"
    return f"**{word}**: without noise privacy rises with the depth of the split: {shown} blocks."


def _kept(kept: Sequence[Kept]) -> str:
    scores = _shares(kept, [each.merged / each.expert for each in kept])
    gains = _shares(kept, [each.share for each in kept])
    by_score, by_gain = (
        min(float(values.mean()) for values in shares.values()) >= KEPT
        for shares in (scores, gains)
    )
    word = "Reached" if by_gain else "Reached by score, not by gain" if by_score else "Not reached"
    shown = (
        ", ".join(f"{task} {spread(100 * values)} %" for task, values in shares.items())
        for shares in (scores, gains)
    )
    return (
        f"**{word}**: the merge keeps at least {100 * KEPT:.0f} % of each expert on its task, "
        "held-out items, on average over seeds. Of its score: {}; of its gain over the base: {}."
    ).format(*shown)


def _shares(kept: Sequence[Kept], values: Sequence[float]) -> dict[str, Any]:
    tasks = dict.fromkeys(each.task for each in kept)
    return {
        task: np.array([v for k, v in zip(kept, values, strict=True) if k.task == task])
        for task in tasks
    }


def _front(front: Front) -> str:
    rows = []
    for row in front.rows:
        noised = row.way != NO_NOISE
        own = "" if row.own is None else f"{100 * row.own.mean():.1f}"
        rows.append(
            [
                str(row.blocks),
                row.way,
                f"{row.ratio:g}" if noised else "",
                spread(100 * row.accuracy),
                spread(front.loss(row), sign=True) if noised else "",
                spread(row.privacy, 2),
                spread(front.gain(row), 2, sign=True) if noised else "",
                spread(row.papers, 2),
                own,
            ]
        )
    head = [
        "blocks",
        "noise",
        "ratio",
        "accuracy %",
        "loss",
        "privacy",
        "gain",
        "paper's attacker",
        "customer alone %",
    ]
    return (
        "## Privacy against accuracy\n\ncustomer alone: accuracy of the small classifier whose "
        "directions are sent, on clean states; it never leaves the customer.\n\n"
        + markdown_table(head, rows, "llr")
    )


def _attackers(front: Front) -> str:
    names = [*SEEING, "blind", "trivial"]
    rows = [
        [
            str(row.blocks),
            f"{row.way} {row.ratio:g}" if row.way != NO_NOISE else row.way,
            *(f"{100 * row.success[n].mean():.1f}" if n in row.success else "" for n in names),
        ]
        for row in front.rows
    ]
    return (
        "## Attackers: tokens recovered, %\n\nnearest: the nearest token at that place, behind "
        "blocks the nearest public state; learned: a classifier trained on public states, clean "
        "or noised anew at every step; likeliest: the token whose public states make what was "
        "sent likeliest under the noise; noise-aware: without blocks the likeliest token under "
        "noise and token frequencies, else an input optimised from the learned tokens so that the "
        "bottom makes of it what was sent (BiSR's way, with the noise's density). All know each "
        "token's budget and the directions. blind sees lengths alone, trivial nothing. Where "
        "inputs are optimised fewer sentences are attacked.\n\n"
        + markdown_table(["blocks", "noise", *names], rows, "llr")
    )


def _merges(kept: Sequence[Kept], facts: SplitFacts) -> str:
    if not kept:
        return ""
    rows = [
        [
            str(each.seed),
            each.task,
            *(f"{value:.3f}" for value in (each.base, each.expert, each.merged)),
            f"{100 * each.share:.1f}",
            f"{100 * each.merged / each.expert:.1f}",
        ]
        for each in kept
    ]
    head = ["seed", "task", "base", "expert", "merge", "% of the gain", "% of the score"]
    task = facts.setting.data.task
    said = "\n".join(f"> {line}" for line in facts.privacy)
    return (
        f"## Merged with ordinary experts\n\nThe expert of {task} has seen noised states alone "
        "(secret noise, so that these figures differ a little from run to run). The ordinary ones "
        "have kept the customer's blocks as the base has them, too, so that its states mean the "
        "same to all. Searched on search items; accuracies of clean held-out sentences with each "
        "expert's own head; base: the unmerged encoder under that head.\n\n"
        f"{markdown_table(head, rows, 'llr')}\n\nThe merge's ledger says:\n\n{said}"
    )
