"""RESULTS.md of dedup: compression, accuracy and epsilon, ours beside the paper's."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from experiments.papers.dedup import published
from experiments.papers.dedup.cells import DedupSetting, Way
from experiments.papers.dedup.jobs import DedupJob
from experiments.reports.table import duration
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table

Found: TypeAlias = Mapping[DedupJob, Mapping[str, Any]]

_AIM = 35
_NAMES = {
    "dred": "DRED",
    "drd": "DRD",
    "greedy": "greedy-{n}",
    "dred-fair": "DRED, fair",
    "dred-svt": "DRED, sound SVT",
    "dred-published": "DRED, published SVT (not private)",
}


@dataclass(frozen=True)
class PageFacts:
    """What a reader must know of how the numbers came about.

    Args:
        seconds: of all starts of the command together.
        remarks: on how the settings were chosen.
    """

    command: str
    seconds: float
    workers: int
    setting: DedupSetting
    fast: bool
    remarks: Sequence[str]


@dataclass(frozen=True)
class DedupRow:
    """Figures of one target deduplicated in one way."""

    pool: str
    cluster: str
    target: str
    way: str
    figures: Mapping[str, Any]

    @property
    def times(self) -> float:
        """How many times smaller its own new bytes are than the target's."""
        return 1 / float(self.figures["ratio"])

    @property
    def drop(self) -> float:
        """Of accuracy on the validation items."""
        return float(self.figures["before"] - self.figures["after"])


def page(found: Found, facts: PageFacts) -> str:
    """Returns the page."""
    sections = [
        "# Privacy- and accuracy-aware deduplication (dedup)",
        _facts(facts),
        _headline(found, facts),
        *(_pool(found, facts, name) for name in facts.setting.pools),
        _in_bytes(),
        _paper(found, facts),
        _selection(found, facts),
        _dial(found, facts),
        "Each target's accuracy and size: ![accuracy against compression](ratios.png)",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


def rows_of(found: Found) -> Iterator[DedupRow]:
    """Yields every target in every way."""
    for job, figures in found.items():
        if job.target is not None and job.kind != "baselines":
            yield DedupRow(job.pool, job.cluster, job.target, job.kind, figures)
        elif job.cluster and job.target is None and job.kind != "zoo":
            for target, each in figures["targets"].items():
                yield DedupRow(job.pool, job.cluster, target, job.kind, each)


def baselines_of(found: Found) -> dict[tuple[str, str, str], Mapping[str, Any]]:
    """Returns pool, cluster and target -> figures of the baselines."""
    return {
        (job.pool, job.cluster, job.target): figures
        for job, figures in found.items()
        if job.kind == "baselines" and job.target is not None
    }


def _facts(facts: PageFacts) -> str:
    trial = "**A trial (`fast=true`): too small to conclude anything.** " if facts.fast else ""
    pools = [
        f"- {name}: {pool.title} Validation on {pool.validation} items, tolerance "
        f"{100 * pool.tolerance:g} points; {pool.test} test items, which decide nothing; saliency "
        f"by gradients on {pool.public} public items; blocks of {pool.block_size} numbers"
        for name, pool in facts.setting.pools.items()
    ]
    return "\n".join(
        [
            f"{trial}Written by `{facts.command}`; do not edit by hand. Privacy and "
            "Accuracy-Aware AI/ML Model Deduplication, arXiv 2503.02862.",
            "",
            f"- machine: {machine()}; {facts.workers} processes of one thread",
            f"- time: {duration(facts.seconds)}, the experts' training included",
            *pools,
            "- C.R.: the target's own new numbers over all of its numbers, its base excluded, as "
            "in the paper; what is smaller than a block counts as new. times: its inverse",
            "- ε after: of target and base together where they share data (the smaller one of "
            "sum and RDP, at the sum of their δ; the sum in brackets), the larger one where they "
            "do not; with SVT the answers on the private validation items are in it",
            "- the validation items share no record with the training parts",
            *(f"- {remark}" for remark in facts.remarks),
        ]
    )


def _headline(found: Found, facts: PageFacts) -> str:
    """A verdict of targets that the paper's trivial baseline fails, and one of a stricter one."""
    return "\n\n".join(
        [
            _verdict(found, facts, ("base",), "for which its base cannot stand"),
            _verdict(
                found,
                facts,
                ("base", "leftovers"),
                "for which the base cannot stand even with the target's own small tensors, which "
                "the paper does not try",
            ),
        ]
    )


def _verdict(found: Found, facts: PageFacts, trivial: Sequence[str], which: str) -> str:
    """Returns the best that sound ways of ours did to a target that these baselines fail."""
    baselines = baselines_of(found)
    fits = []
    for row in rows_of(found):
        known = baselines[row.pool, row.cluster, row.target]
        least = known["before"] - facts.setting.pools[row.pool].tolerance - 1e-9
        fails = max(known[name] for name in trivial) < least
        if _ours(row.way) and fails and row.figures["after"] >= least:
            fits.append((row.times, row))
    if not fits:
        return f"**No target** {which}, stayed within its tolerance."
    times, row = max(fits, key=lambda fit: fit[0])
    figures, known = row.figures, baselines[row.pool, row.cluster, row.target]
    verdict = "**Reproduces**" if times >= _AIM else "**Does not reproduce**"
    return (
        f"{verdict} that a target {which}, shrinks {_AIM} times at no more than the tolerated "
        f"drop. {row.pool} {row.target} of the cluster {row.cluster}, {_way(row.way, facts)}: "
        f"{times:.1f} times, accuracy {figures['before']:.3f} to {figures['after']:.3f} (test "
        f"{figures['test_before']:.3f} to {figures['test_after']:.3f}), ε "
        f"{_up(known['epsilon']['epsilon'])} to {_price(figures['epsilon'])}. Its base has "
        f"{known['base']:.3f}, with the target's small tensors {known['leftovers']:.3f}."
    )


def _ours(way: str) -> bool:
    return not way.startswith("greedy") and Way.of(way).checks != "published"


def _pool(found: Found, facts: PageFacts, name: str) -> str:
    pool = facts.setting.pools[name]
    baselines = baselines_of(found)
    parts = [f"## {name}: {pool.title}"]
    for key, cluster in pool.clusters.items():
        shared = {pool.experts[t].part for t in cluster.targets} == {
            pool.experts[cluster.base].part
        }
        first = next(f for (p, c, _), f in baselines.items() if (p, c) == (name, key))
        parts.append(
            f"### {key}: base {cluster.base}, {'the same data' if shared else 'disjoint data'}\n\n"
            f"{first['blocks']} blocks; {100 * first['untouched']:.2f} % of the numbers are in "
            f"tensors too small to be cut. Base: accuracy {first['base']:.3f}, test "
            f"{first['base_test']:.3f}, ε {_up(first['base_epsilon']['epsilon'])}."
        )
        rows = [
            line for target in cluster.targets for line in _target(found, facts, name, key, target)
        ]
        head = ["target", "way", "C.R. %", "times", "accuracy", "drop", "test", "ε", "checks (no)"]
        parts.append(markdown_table(head, rows, "llr"))
        asked = [r for r in rows_of(found) if (r.pool, r.cluster) == (name, key)]
        if all(r.figures["noes"] == 0 for r in asked if r.way != "greedy"):
            parts.append(
                "No check said no: what DRED and DRD keep here is the last range, which they "
                "never ask about; greedy-N asks about all, in more checks."
            )
        parts += [
            _stored(figures)
            for job, figures in found.items()
            if (job.pool, job.cluster, job.kind) == (name, key, "zoo")
        ]
    return "\n\n".join(parts)


def _stored(figures: Mapping[str, Any]) -> str:
    targets = "; ".join(
        f"{target} {each['own_bytes'] / 1e6:.2f} of {each['bytes'] / 1e6:.2f} MB "
        f"({each['bytes'] / each['own_bytes']:.1f} times)"
        for target, each in figures["targets"].items()
    )
    return (
        f"By DRED in a zoo, own bytes on disk with records and small files: {targets}. Base and "
        f"targets together {figures['stored_bytes'] / 1e6:.2f} of {figures['bytes'] / 1e6:.2f} MB."
    )


def _target(
    found: Found, facts: PageFacts, name: str, cluster: str, target: str
) -> Iterator[list[str]]:
    trivial = baselines_of(found)[name, cluster, target]
    tolerance = facts.setting.pools[name].tolerance
    least = trivial["before"] - tolerance - 1e-9
    own = _up(trivial["epsilon"]["epsilon"])
    first = next(
        r for r in rows_of(found) if (r.pool, r.cluster, r.target) == (name, cluster, target)
    )
    after = _price(first.figures["epsilon"])

    def line(
        way: str, ratio: float, value: float, test: float, price: str, checks: str
    ) -> list[str]:
        mark = "" if value >= least else " ✗"
        drop = f"{100 * (trivial['before'] - value):+.1f}{mark}"
        return [
            target,
            way,
            f"{100 * ratio:.1f}",
            f"{1 / ratio:.1f}" if ratio else "all",
            f"{value:.3f}",
            drop,
            f"{test:.3f}",
            price,
            checks,
        ]

    yield line("as it is", 1.0, trivial["before"], trivial["test_before"], own, "")
    exact = trivial["exact"]
    yield line("equal blocks only", exact, trivial["before"], trivial["test_before"], own, "")
    base = _up(trivial["base_epsilon"]["epsilon"])
    yield line("serve the base", 0.0, trivial["base"], trivial["base_test"], base, "")
    leftovers = trivial["leftovers"], trivial["leftovers_test"]
    yield line("base, own small tensors", trivial["untouched"], *leftovers, after, "")
    for row in rows_of(found):
        if (row.pool, row.cluster, row.target) == (name, cluster, target):
            f = row.figures
            yield line(
                _way(row.way, facts),
                f["ratio"],
                f["after"],
                f["test_after"],
                _price(f["epsilon"]),
                f"{f['validations']} ({f['noes']})",
            )


def _way(way: str, facts: PageFacts) -> str:
    return _NAMES.get(way, way).format(n=facts.setting.greedy)


def _price(price: Mapping[str, float]) -> str:
    summed = f" ({_up(price['added'])})" if price["added"] > price["epsilon"] + 5e-3 else ""
    return f"{_up(price['epsilon'])}{summed}"


def _up(epsilon: float) -> str:
    """Returns an epsilon that promises no more; 1e-6 is what sums are off."""
    return f"{math.ceil(100 * epsilon - 1e-6) / 100:.2f}"


def _in_bytes() -> str:
    return (
        "✗: below the target's accuracy by more than the tolerance, on the validation items; "
        "answers of a sparse vector are noisy, so that some let this happen. How few bytes blocks "
        "take without loss, and how fast deduplicated models are served, is measured by "
        "benchmarks of their own (zoo_codec, zoo_serving): `experiments/benchmarks/RESULTS.md`."
    )


def _paper(found: Found, facts: PageFacts) -> str:
    ways = ("drd", "dred", "greedy")
    rows = []
    for name, pool in facts.setting.pools.items():
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
            title = f"{name} {key}, {pool.experts[cluster.base].epsilon:g} -> {targets}"
            rows.append([title, cells[0], cells[1], "", cells[2]])
    rows += [[f"*published*: {title}", *paper] for title, paper in published.RATIOS.items()]
    head = ["base -> targets, by ε", "DRD", "DRED", "Mistique-20", "Dedup-20 (greedy)"]
    return "## Beside the paper: C.R. in % of each target\n\n" + markdown_table(head, rows)


def _selection(found: Found, facts: PageFacts) -> str:
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


def _dial(found: Found, facts: PageFacts) -> str:
    parts = []
    for job, figures in found.items():
        if job.kind != "dial":
            continue
        rows = []
        for row in figures["rows"]:
            kinds = [row["selection"], row["combination"]]
            texts = [f"{k['test']:.3f} (ε {_up(k['epsilon'])}: {_mixture(k)})" for k in kinds]
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
