"""RESULTS.md of csirt_memorization: the paper's tables beside ours, and what reproduces."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.papers.csirt import published
from experiments.papers.csirt.cells import BASE, CsirtSetting
from experiments.papers.csirt.merge_section import merge_section
from experiments.papers.csirt.scores import EXPOSURE, F1, CellScores, spread_text
from experiments.papers.csirt.verdicts import verdicts
from experiments.reports.table import duration
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table
from experiments.suites.plan import PlannedRun
from merging.arrays import Vector

_ATTACKS = {  # metric to its name on the page
    "members/loss_auc": "record loss",
    "tokens/auc": "canary tokens",
    "tokens/auc_of_means": "canary tokens, means",
    "members/min_k_auc": "Min-K%",
    "members/min_k_plus_auc": "Min-K%++",
    "values/ranked_first": "ranked first",
}
_COMPARISONS = (
    ("V0fs", "V0"),
    ("V1", "V0"),
    ("VA", "V0"),
    ("VB", "V0"),
    ("V1", "V0fs"),
    ("V2", "V1"),
    ("V3", "V1"),
    ("V2-as-released", "V1"),
    ("V3-as-released", "V1"),
)


@dataclass(frozen=True)
class PageNumbers:
    """What a reader must know of how the numbers came about.

    Args:
        seconds: of all starts of the command together.
        fast: whether it was the small trial.
        limits: of the merges' exposure, see `Merging`.
        remarks: what else a reader must know, from the configuration.
    """

    command: str
    seconds: float
    workers: int
    setting: CsirtSetting
    fast: bool
    limits: Mapping[str, float | None] = field(default_factory=dict)
    remarks: Sequence[str] = ()


def page(scores: CellScores, merges: Sequence[PlannedRun], facts: PageNumbers) -> str:
    """Returns the page."""
    sections = [
        "# What fine-tuning remembers of vulnerability scans (csirt_memorization)",
        _facts(scores, facts),
        "## What reproduces, and what does not\n\n" + verdicts(scores),
        _exposures(scores, facts.setting),
        _recovered(scores),
        _stack(scores),
        _pairs(scores),
        _noise(scores, facts.setting),
        _pseudonyms(scores),
        _attacks(scores),
        _utility(scores),
    ]
    if merges:
        sections.append(merge_section(merges, facts.limits, facts.setting.data.variants))
    return "\n\n".join(section for section in sections if section) + "\n"


def _section(title: str, text: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    return f"## {title}\n\n{text}\n\n{markdown_table(head, rows)}"


def _facts(scores: CellScores, facts: PageNumbers) -> str:
    data = facts.setting.data
    trial = "**A trial (`fast=true`): too small to conclude anything.** " if facts.fast else ""
    return "\n".join(
        [
            f"{trial}Written by `{facts.command}`; do not edit by hand. Decomposing Memorization "
            "Reduction in Privacy-Preserving Fine-Tuning of SLMs for CSIRTs, arXiv 2606.28479, "
            "on synthetic records and models of this repository.",
            "",
            f"- machine: {machine()}; {facts.workers} processes of one thread",
            f"- time: {duration(facts.seconds)} for the command, "
            f"{duration(scores.seconds())} of one process for training and scoring",
            f"- seeds {', '.join(map(str, scores.seeds))}, of data, canaries and training; bases "
            f"{', '.join(scores.bases)}",
            f"- {data.records} organic records and {10 * data.canaries} canaries (ten formats, "
            f"class A and B) in {data.clones} clones each; {data.variants} unseen variants of "
            f"each; {data.held_out} held-out records",
            "- exposure: bits, from the rank of a record's total loss among its variants, ties "
            "at half a rank (the paper: mean loss per token, ties at rank 1). The paper's DP rows "
            "were trained with the clipping fault, so they stand beside ours as released too",
            *(f"- {remark}" for remark in facts.remarks),
        ]
    )


def _exposures(scores: CellScores, setting: CsirtSetting) -> str:
    rows = []
    for regime in scores.regimes("raw"):
        ours = [spread_text(scores.values(b, "raw", regime, EXPOSURE)) for b in scores.bases]
        title = f"{regime}: {published.REGIMES.get(regime, '')}"
        rows.append([title, *ours, *published.paper_row(regime)])
    chance = scores.chance(EXPOSURE) or math.nan
    rows.append(["chance", *[f"{chance:.2f}"] * len(scores.bases), *["1.40"] * 4])
    return _section(
        "Exposure by regime, raw records",
        f"Bits, mean over {10 * setting.data.canaries} canaries and ± standard deviation over "
        "seeds; right the paper's four models.",
        ["regime", *scores.bases, *published.EXPOSURE],
        rows,
    )


def _recovered(scores: CellScores) -> str:
    rows = []
    for regime in scores.regimes("raw"):
        if regime[:2] not in ("V1", "VA", "V2", "V3"):
            continue
        row = [f"V0 - {regime}"]
        for base in scores.bases:
            of_means, of_seeds = scores.recovered(base, regime)
            row.append(f"{of_means:.2f} ({_range(of_seeds)})")
        paper = [published.recovered(model, regime) for model in published.EXPOSURE]
        rows.append([*row, *[f"{x:.2f}" if x is not None else "" for x in paper]])
    return _section(
        "Recovered fraction",
        "(E[V0] - E[V0fs]) / denominator: what fewer updates alone explain of the drop. From the "
        "means over seeds, in brackets the least and largest of the seeds. The paper divides by "
        "V0 - V1; its fractions against VA are computed from its ablation.",
        ["denominator", *scores.bases, *published.EXPOSURE],
        rows,
    )


def _stack(scores: CellScores) -> str:
    """Which part of V1 lowers the exposure: its lots, its weights in 4 bits, or both."""
    if not (scores.has("raw", "VA") and scores.has("raw", "VB")):
        return ""
    rows = []
    for regime in ("VA", "VB", "V1"):
        ours = [f"{scores.difference(base, regime, 'V0'):+.2f}" for base in scores.bases]
        paper = [f"{row[regime]:+.2f}" for row in published.STACK.values()]
        rows.append([f"{regime} - V0: {published.REGIMES[regime]}", *ours, *paper])
    return _section(
        "What of V1 does it: lots or NF4",
        "NF4 here: the base's linear layers are rounded to 4 bits (blocks of 64) before training; "
        "all parameters are then trained, in the paper an adapter.",
        ["difference, bits", *scores.bases, *published.STACK],
        rows,
    )


def _pairs(scores: CellScores) -> str:
    shown = [pair for pair in _COMPARISONS if all(scores.has("raw", regime) for regime in pair)]
    rows = [
        [
            f"{first} - {second}",
            base,
            f"{test.difference:+.2f}",
            f"{test.delta:+.2f}",
            _p(test.p),
            _p(test.q),
            str(test.pairs),
        ]
        for (base, first, second), test in scores.paired(shown, scores.bases).items()
    ]
    return _section(
        "Differences",
        "Over canaries and seeds, paired: Wilcoxon's signed-rank test.",
        ["comparison", "base", "bits", "Cliff's delta", "p", "q (BH)", "pairs"],
        rows,
    )


def _noise(scores: CellScores, setting: CsirtSetting) -> str:
    clones, rows = setting.data.clones, []
    for name, regime in setting.regimes.items():
        if regime.privacy is None or not scores.has("raw", name):
            continue
        training = scores.training(scores.bases[0], scores.seeds[0], "raw", name)
        price = training["privacy"]
        noise, epsilon = price["noise_multiplier"], price["epsilon"]
        as_released = regime.privacy.clipping == "as_released"
        longest = training["longest_record_tokens"] if as_released else 1
        rows.append(
            [
                name,
                f"{noise:.3f}",
                f"{noise / longest:.5f}",
                "none" if epsilon is None else f"{epsilon:.2f}",
                "yes" if price["holds"] else "no",
                _group(price, clones) if price["holds"] else "",
                f"{regime.privacy.clip:g}",
                str(training["updates"]),
                str(training["empty_lots"]),
            ]
        )
    if not rows:
        return ""
    head = ["regime", "noise / C", "noise / real sensitivity", "epsilon stated", "holds"]
    return _section(
        "What the noise protects",
        "As released, one clip coefficient from the mean token loss multiplies a sum over T "
        "tokens: the sensitivity is T x C, T the longest record. A canary fills "
        f"{clones} records: what even a correct guarantee leaves of itself for so "
        "many at once is in the column of the group.",
        [*head, f"group of {clones}", "C", "updates", "empty lots"],
        rows,
    )


def _pseudonyms(scores: CellScores) -> str:
    if not scores.has("pseudonymised", "V0"):
        return ""
    rows = []
    for regime in scores.regimes("pseudonymised"):
        for base in scores.bases:
            raw = scores.mean(base, "raw", regime, EXPOSURE)
            values = scores.values(base, "pseudonymised", regime, EXPOSURE)
            floor = scores.mean(base, "pseudonymised", BASE, EXPOSURE)
            slugs = scores.values(base, "pseudonymised", regime, "slugs/exposure")
            rows.append(
                [
                    regime,
                    base,
                    f"{raw:.2f}",
                    spread_text(values),
                    "" if regime == BASE else f"{100 * (1 - values.mean() / raw):.0f} %",
                    f"{values.mean() - floor:+.2f}",
                    spread_text(slugs),
                    _classes(scores.cases(base, "pseudonymised", regime, "slugs/exposure")),
                ]
            )
    head = ["regime", "base", "raw records", "attack 1: values", "reduction", "beyond the base"]
    low, high = published.HMAC_REDUCTION
    return _section(
        "Pseudonyms (HMAC-SHA256), both attacks on all canaries",
        "Attack 1 asks a model that was trained on slugs for the original values, attack 2 for "
        f"the slugs. The paper: reduction {100 * low:.0f} to {100 * high:.0f} %, attack 1 "
        f"{_of(published.FIRST_ATTACK)} bits, attack 2 {_of(published.SECOND_ATTACK)} bits on the "
        "ten class A canaries alone.",
        [*head, "attack 2: slugs", "slugs of class A / B"],
        rows,
    )


def _attacks(scores: CellScores) -> str:
    rows = [
        [regime, base, *(spread_text(scores.values(base, "raw", regime, m)) for m in _ATTACKS)]
        for regime in scores.regimes("raw")
        for base in scores.bases
    ]
    return _section(
        "Four attacks, raw records",
        "AUC of planted against unseen values (chance 0.50); canary tokens, means: against each "
        "canary's mean over variants, as published (V0 "
        f"{_of(published.AUC_RAW)}, others {_of(published.AUC_OTHERS)}). Min-K%++ is the real "
        "one, with the vocabulary's mean and deviation. Ranked first: share of canaries (chance "
        "0.01).",
        ["regime", "base", *_ATTACKS.values()],
        rows,
    )


def _utility(scores: CellScores) -> str:
    rows = [
        [form, regime, *(spread_text(scores.values(b, form, regime, F1)) for b in scores.bases)]
        for form in dict.fromkeys(cell.form for cell in scores.cells)
        for regime in scores.regimes(form)
    ]
    return _section(
        "Utility: macro-F1 of the CVSS band",
        f"The paper: {_of(published.MACRO_F1)} for all 96 adapters, one in four by chance. Here "
        "the flaw's name stands in front of the score and the base has not seen these flaws, so "
        "that there is something to learn.",
        ["form", "regime", *scores.bases],
        rows,
    )


def _group(price: Mapping[str, Any], size: int) -> str:
    """Returns ``(size eps, delta sum_i e^(i eps))``, or that nothing is left of it."""
    epsilon = price["epsilon"]
    delta = price["delta"] * sum(math.exp(i * epsilon) for i in range(size))
    return f"({size * epsilon:.0f}, {delta:.1g})" if delta < 1 else "nothing"


def _classes(cases: Vector) -> str:
    """Returns the means of class A and B, which alternate in blocks of five kinds."""
    blocks = cases.reshape(-1, 2, 5)
    return f"{blocks[:, 0].mean():.2f} / {blocks[:, 1].mean():.2f}"


def _range(values: Vector) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.2f} to {finite.max():.2f}" if len(finite) else "no drop"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _of(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"
