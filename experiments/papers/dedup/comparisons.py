"""Tables of RESULTS.md that compare: with the paper, plans with each other, the privacy dial."""

from collections.abc import Mapping
from typing import Any

from experiments.papers.dedup import published
from experiments.papers.dedup.rows import Found, rounded_up, rows_of
from experiments.papers.dedup.ways import START, DedupSetting
from experiments.runs.markdown import markdown_table


def beside_the_paper(found: Found, setting: DedupSetting) -> str:
    """Returns every target's ratio beside the published ones."""
    ways = ("dred1", "drd", "dred", "greedy")
    rows = []
    for name, pool in setting.pools.items():
        for key, cluster in pool.clusters.items():
            targets = ", ".join(f"{pool.experts[t].epsilon:g}" for t in cluster.targets)
            cells = []
            for way in ways:
                ratios = {
                    r.target: f"{100 * r.figures['ratio']:.1f}"
                    for r in rows_of(found)
                    if (r.pool, r.cluster, r.way) == (name, key, way)
                }
                cells.append(" ".join(ratios.get(t, "-") for t in cluster.targets))
            base = "public" if cluster.base == START else f"{pool.experts[cluster.base].epsilon:g}"
            rows.append([f"{name} {key}, {base} -> {targets}", *cells[:-1], "", cells[-1]])
    rows += [[f"*published*: {title}", "", *paper] for title, paper in published.RATIOS.items()]
    head = [
        "base -> targets, by ε",
        "DRED, to single blocks",
        "DRD",
        "DRED",
        "Mistique-20",
        "Dedup-20 (greedy)",
    ]
    return "## Beside the paper: C.R. in % of each target\n\n" + markdown_table(head, rows)


def selections(found: Found) -> str:
    """Returns what plans of bases came to; empty where none was measured."""
    rows, details = list[list[str]](), list[list[str]]()
    for job, figures in found.items():
        if job.kind == "selection":
            plans = figures["plans"]
            pairs = [f"{100 * p['overall']:.1f} / {p['increase']:.2f}" for p in plans.values()]
            rows.append([f"{job.pool} ({len(figures['members'])})", *pairs])
            details += [
                [
                    job.pool,
                    plan,
                    ", ".join(f"{row['base']} -> {row['target']}" for row in each["rows"]),
                    f"{100 * each['drop']:+.1f}",
                    str(each["validations"]),
                ]
                for plan, each in plans.items()
            ]
    if not rows:
        return ""
    rows += [[f"*published*: {name}", *paper] for name, paper in published.SELECTION.items()]
    head = ["cluster (models)", "ours", "multi", "cross"]
    detail = ["pool", "plan", "who lends to whom", "largest drop on test items", "checks"]
    return (
        "## Who serves whom\n\nOverall C.R. in %, bases in full, and the sum of the targets' ε "
        "increases (plain sums, as the paper's; in a chain counting what those spent that took "
        "blocks before, which decides what must stay; the paper does not).\n\n"
        + markdown_table(head, rows)
        + "\n\n"
        + markdown_table(detail, details, "lllr")
    )


def dials(found: Found) -> str:
    """Returns what the privacy dial gives out; empty where it was not measured."""
    parts = []
    for job, figures in found.items():
        if job.kind != "dial":
            continue
        rows = []
        for row in figures["rows"]:
            kinds = [row["selection"], row["combination"]]
            texts = [_given_out(kind) for kind in kinds]
            gain = max(k["test"] for k in kinds) - row["single_test"]
            single = f"{row['single_test']:.3f} ({row['single']})"
            rows.append([f"{row['epsilon']:g}", single, *texts, f"{100 * gain:+.1f}"])
        head = ["ε*", "best single", "random selection", "linear combination", "gain, points"]
        gains = [
            max(row["selection"]["test"], row["combination"]["test"]) - row["single_test"]
            for row in figures["rows"]
        ]
        parts.append(
            f"{job.pool}: the better one of both ways is above the best single expert at "
            f"{sum(g > 0 for g in gains)} of {len(gains)} ε*, by {100 * max(gains):.1f} points at "
            f"most, and below it at {sum(g < 0 for g in gains)}.\n\n" + markdown_table(head, rows)
        )
    if not parts:
        return ""
    return (
        "## The privacy dial\n\nTest accuracy at ε*: the best single expert with ε ≤ ε* (chosen "
        "on these test items, which favours it), and what the dial gives out by the privacy "
        "records alone; a draw's accuracy is its mean.\n\n" + "\n\n".join(parts)
    )


def _given_out(kind: Mapping[str, Any]) -> str:
    return f"{kind['test']:.3f} (ε {rounded_up(kind['epsilon'])}: {_mixture(kind)})"


def _mixture(kind: Mapping[str, Any]) -> str:
    options = [
        " + ".join(f"{share:.2f} {name}" if share < 1 else name for name, share in option.items())
        for option in kind["options"]
    ]
    if len(options) == 1:
        return options[0]
    return " or ".join(
        f"{name} ({p:.2g})" for name, p in zip(options, kind["probabilities"], strict=True)
    )
