"""RESULTS.md of csirt_memorization: the paper's tables beside ours, and what reproduces."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from experiments.papers.csirt import published
from experiments.papers.csirt.cells import BASE, CsirtSetting
from experiments.papers.csirt.merge_section import merge_section
from experiments.papers.csirt.scores import CellScores
from experiments.papers.csirt.verdicts import verdicts
from experiments.reports.table import duration
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table
from experiments.suites.plan import PlannedRun
from merging.arrays import Vector

EXPOSURE = "values/exposure"
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
        seconds: of all its starts together.
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


def page(found: CellScores, merges: Sequence[PlannedRun], facts: PageNumbers) -> str:
    """Returns the page."""
    sections = [
        "# What fine-tuning remembers of vulnerability scans (csirt_memorization)",
        _facts(found, facts),
        "## What reproduces, and what does not\n\n" + verdicts(found),
        _exposures(found, facts.setting),
        _recovered(found),
        _stack(found),
        _pairs(found),
        _noise(found, facts.setting),
        _pseudonyms(found),
        _attacks(found),
        _utility(found),
    ]
    if merges:
        sections.append(merge_section(merges, facts.limits, facts.setting.data.variants))
    return "\n\n".join(section for section in sections if section) + "\n"


def _facts(found: CellScores, facts: PageNumbers) -> str:
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
            f"{duration(found.seconds())} of one process for training and scoring",
            f"- seeds {', '.join(map(str, found.seeds))}, of data, canaries and training; bases "
            f"{', '.join(found.bases)}",
            f"- {data.records} organic records and {10 * data.canaries} canaries (ten formats, "
            f"class A and B) in {data.clones} clones each; {data.variants} unseen variants of "
            f"each; {data.held_out} held-out records",
            "- exposure: bits, from the rank of a record's total loss among its variants, ties "
            "at half a rank (the paper: mean loss per token, ties at rank 1). The paper's DP rows "
            "were trained with the clipping fault, so they stand beside ours as released too",
            *(f"- {remark}" for remark in facts.remarks),
        ]
    )


def _exposures(found: CellScores, setting: CsirtSetting) -> str:
    chance = found.chance(EXPOSURE) or math.nan
    rows = []
    for regime in found.regimes("raw"):
        ours = [_spread(found.values(base, "raw", regime, EXPOSURE)) for base in found.bases]
        row = published.paper_row(regime)
        rows.append([f"{regime}: {published.REGIMES.get(regime, '')}", *ours, *row])
    rows.append(["chance", *[f"{chance:.2f}"] * len(found.bases), *["1.40"] * 4])
    head = ["regime", *found.bases, *published.EXPOSURE]
    return (
        "## Exposure by regime, raw records\n\n"
        f"Bits, mean over {10 * setting.data.canaries} canaries and ± standard deviation over "
        f"seeds; right the paper's four models.\n\n{markdown_table(head, rows)}"
    )


def _recovered(found: CellScores) -> str:
    rows = []
    for regime in [x for x in found.regimes("raw") if x[:2] in ("V1", "VA", "V2", "V3")]:
        row = [f"V0 - {regime}"]
        for base in found.bases:
            whole, each = found.recovered(base, regime)
            row.append(f"{whole:.2f} ({_range(each)})")
        paper = [published.recovered(model, regime) for model in published.EXPOSURE]
        rows.append([*row, *[f"{x:.2f}" if x is not None else "" for x in paper]])
    head = ["denominator", *found.bases, *published.EXPOSURE]
    return (
        "## Recovered fraction\n\n"
        "(E[V0] - E[V0fs]) / denominator: what fewer updates alone explain of the drop. From the "
        "means over seeds, in brackets the least and largest of the seeds. The paper divides by "
        "V0 - V1; its fractions against VA are computed from its ablation."
        f"\n\n{markdown_table(head, rows)}"
    )


def _stack(found: CellScores) -> str:
    """Which part of V1 lowers the exposure: its lots, its weights in 4 bits, or both."""
    parts = [name for name in ("VA", "VB", "V1") if found.has("raw", name)]
    if "VA" not in parts or "VB" not in parts:
        return ""
    rows = []
    for name in parts:
        ours = [
            found.values(base, "raw", name, EXPOSURE) - found.values(base, "raw", "V0", EXPOSURE)
            for base in found.bases
        ]
        paper = [f"{row[name]:+.2f}" for row in published.STACK.values()]
        told = f"{name} - V0: {published.REGIMES[name]}"
        rows.append([told, *[f"{each.mean():+.2f}" for each in ours], *paper])
    head = ["difference, bits", *found.bases, *published.STACK]
    return (
        "## What of V1 does it: lots or NF4\n\n"
        "NF4 here: the base's linear layers are rounded to 4 bits (blocks of 64) before training; "
        "all parameters are then trained, in the paper an adapter.\n\n"
        + markdown_table(head, rows)
    )


def _pairs(found: CellScores) -> str:
    wanted = [pair for pair in _COMPARISONS if all(found.has("raw", each) for each in pair)]
    paired = found.paired(wanted, found.bases)
    rows = [
        [
            f"{first} - {second}",
            base,
            f"{each.difference:+.2f}",
            f"{each.delta:+.2f}",
            _p(each.p),
            _p(each.q),
            str(each.pairs),
        ]
        for (base, first, second), each in paired.items()
    ]
    head = ["comparison", "base", "bits", "Cliff's delta", "p", "q (BH)", "pairs"]
    return (
        "## Differences\n\nOver canaries and seeds, paired: Wilcoxon's signed-rank test.\n\n"
        f"{markdown_table(head, rows)}"
    )


def _noise(found: CellScores, setting: CsirtSetting) -> str:
    rows = []
    for name, regime in setting.regimes.items():
        if regime.privacy is None or not found.has("raw", name):
            continue
        told = found.training(found.bases[0], found.seeds[0], "raw", name)
        price, clip = told["privacy"], regime.privacy.clip
        tokens = told["longest_record_tokens"]
        real = price["noise_multiplier"]
        if regime.privacy.clipping == "as_released":
            real /= tokens
        epsilon = price["epsilon"]
        group = setting.data.clones
        rows.append(
            [
                name,
                f"{price['noise_multiplier']:.3f}",
                f"{real:.5f}",
                "none" if epsilon is None else f"{epsilon:.2f}",
                "yes" if price["holds"] else "no",
                _group(price, group) if price["holds"] else "",
                f"{clip:g}",
                str(told["updates"]),
                str(told["empty_lots"]),
            ]
        )
    if not rows:
        return ""
    head = ["regime", "noise / C", "noise / real sensitivity", "epsilon stated", "holds"]
    head += [f"group of {setting.data.clones}", "C", "updates", "empty lots"]
    return (
        "## What the noise protects\n\n"
        "As released, one clip coefficient from the mean token loss multiplies a sum over T "
        "tokens: the sensitivity is T x C, T the longest record. A canary fills "
        f"{setting.data.clones} records: what even a correct guarantee leaves of itself for so "
        f"many at once is in the column of the group.\n\n{markdown_table(head, rows)}"
    )


def _pseudonyms(found: CellScores) -> str:
    if not found.has("pseudonymised", "V0"):
        return ""
    rows = []
    for regime in found.regimes("pseudonymised"):
        for base in found.bases:
            raw = found.mean(base, "raw", regime, EXPOSURE)
            first = found.values(base, "pseudonymised", regime, EXPOSURE)
            floor = found.mean(base, "pseudonymised", BASE, EXPOSURE)
            second = found.values(base, "pseudonymised", regime, "slugs/exposure")
            by_class = _classes(found.cases(base, "pseudonymised", regime, "slugs/exposure"))
            cut = "" if regime == BASE else f"{100 * (1 - first.mean() / raw):.0f} %"
            rows.append(
                [
                    regime,
                    base,
                    f"{raw:.2f}",
                    _spread(first),
                    cut,
                    f"{first.mean() - floor:+.2f}",
                    _spread(second),
                    by_class,
                ]
            )
    head = ["regime", "base", "raw records", "attack 1: values", "reduction", "beyond the base"]
    head += ["attack 2: slugs", "slugs of class A / B"]
    low, high = published.HMAC_REDUCTION
    return (
        "## Pseudonyms (HMAC-SHA256), both attacks on all canaries\n\n"
        "Attack 1 asks a model that was trained on slugs for the original values, attack 2 for "
        f"the slugs. The paper: reduction {100 * low:.0f} to {100 * high:.0f} %, attack 1 "
        f"{_of(published.FIRST_ATTACK)} bits, attack 2 {_of(published.SECOND_ATTACK)} bits on the "
        f"ten class A canaries alone.\n\n{markdown_table(head, rows)}"
    )


def _attacks(found: CellScores) -> str:
    metrics = {
        "record loss": "members/loss_auc",
        "canary tokens": "tokens/auc",
        "canary tokens, means": "tokens/auc_of_means",
        "Min-K%": "members/min_k_auc",
        "Min-K%++": "members/min_k_plus_auc",
        "ranked first": "values/ranked_first",
    }
    rows = []
    for regime in found.regimes("raw"):
        for base in found.bases:
            values = [
                _spread(found.values(base, "raw", regime, each)) for each in metrics.values()
            ]
            rows.append([regime, base, *values])
    return (
        "## Four attacks, raw records\n\n"
        "AUC of planted against unseen values (chance 0.50); canary tokens, means: against each "
        "canary's mean over variants, as published (V0 "
        f"{_of(published.AUC_RAW)}, others {_of(published.AUC_OTHERS)}). Min-K%++ is the real "
        "one, with the vocabulary's mean and deviation. Ranked first: share of canaries (chance "
        f"0.01).\n\n{markdown_table(['regime', 'base', *metrics], rows)}"
    )


def _utility(found: CellScores) -> str:
    rows = []
    for form in dict.fromkeys(cell.form for cell in found.cells):
        for regime in found.regimes(form):
            values = [
                _spread(found.values(base, form, regime, "bands/macro_f1")) for base in found.bases
            ]
            rows.append([form, regime, *values])
    return (
        "## Utility: macro-F1 of the CVSS band\n\n"
        f"The paper: {_of(published.MACRO_F1)} for all 96 adapters, one in four by chance. Here "
        "the flaw's name stands in front of the score and the base has not seen these flaws, so "
        "that there is something to learn.\n\n"
        + markdown_table(["form", "regime", *found.bases], rows)
    )


def _group(price: Mapping[str, Any], size: int) -> str:
    """Returns ``(size eps, delta sum_i e^(i eps))``, or that nothing is left of it."""
    epsilon = price["epsilon"]
    delta = price["delta"] * sum(math.exp(place * epsilon) for place in range(size))
    return f"({size * epsilon:.0f}, {delta:.1g})" if delta < 1 else "nothing"


def _classes(cases: Vector) -> str:
    """Returns the means of class A and B, which alternate in blocks of five kinds."""
    blocks = cases.reshape(-1, 2, 5)
    return f"{blocks[:, 0].mean():.2f} / {blocks[:, 1].mean():.2f}"


def _spread(values: Vector) -> str:
    if len(values) < 2:
        return f"{values.mean():.2f}"
    return f"{values.mean():.2f} ± {values.std(ddof=1):.2f}"


def _range(values: Vector) -> str:
    finite = values[np.isfinite(values)]
    return f"{finite.min():.2f} to {finite.max():.2f}" if len(finite) else "no drop"


def _p(value: float) -> str:
    return f"{value:.3f}" if value >= 0.001 else "<0.001"


def _of(ends: tuple[float, float]) -> str:
    return f"{ends[0]:g} to {ends[1]:g}"
