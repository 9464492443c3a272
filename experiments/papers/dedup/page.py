"""RESULTS.md of dedup: compression, accuracy and epsilon, ours beside the paper's."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from experiments.papers.dedup.comparisons import beside_the_paper, dials, selections
from experiments.papers.dedup.pools import DedupCluster, DedupPool
from experiments.papers.dedup.rows import Found, baselines_of, price_text, rounded_up, rows_of
from experiments.papers.dedup.ways import START, DedupSetting, Way
from experiments.reports.table import duration
from experiments.runs.machine import machine
from experiments.runs.markdown import markdown_table

_AIM = 35
_NAMES = {
    "dred": "DRED",
    "dred1": "DRED, to single blocks",
    "drd": "DRD",
    "greedy": "greedy-{n}",
    "dred-fair": "DRED, fair",
    "dred-svt": "DRED, sound SVT",
    "dred1-svt": "DRED, to single blocks, sound SVT",
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


def page(found: Found, facts: PageFacts) -> str:
    """Returns the page."""
    sections = [
        "# Privacy- and accuracy-aware deduplication (dedup)",
        _facts(facts),
        _headline(found, facts),
        *(_pool(found, facts, name) for name in facts.setting.pools),
        _in_bytes(),
        beside_the_paper(found, facts.setting),
        selections(found),
        dials(found),
        "Each target's accuracy and size: ![accuracy against compression](ratios.png)",
    ]
    return "\n\n".join(section for section in sections if section) + "\n"


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
            "- base, own head, norms: the target's classifier and all tensors smaller than a "
            "block, everything else the base's",
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
                "for which the base cannot stand even with the target's own head and small "
                "tensors, which the paper does not try",
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
    tolerance = facts.setting.pools[row.pool].tolerance
    on_test = _on_test(figures, tolerance)
    verdict = "**Does not reproduce**"
    if times >= _AIM:
        verdict = "**Reproduces on the validation items alone**" if on_test else "**Reproduces**"
    return (
        f"{verdict} that a target {which}, shrinks {_AIM} times at no more than the tolerated "
        f"drop. {row.pool} {row.target} of the cluster {row.cluster}, {_way(row.way, facts)}: "
        f"{times:.1f} times, accuracy {figures['before']:.3f} to {figures['after']:.3f} (test "
        f"{figures['test_before']:.3f} to {figures['test_after']:.3f}), ε "
        f"{rounded_up(known['epsilon']['epsilon'])} to {price_text(figures['epsilon'])}. Its base "
        f"has {known['base']:.3f}, with the target's head and small tensors "
        f"{known['leftovers']:.3f}.{on_test}"
    )


def _on_test(figures: Mapping[str, Any], tolerance: float) -> str:
    """Says where a drop is larger on items that no check has seen than what checks tolerate."""
    drop = figures["test_before"] - figures["test_after"]
    if drop <= tolerance + 1e-9:
        return ""
    return (
        f" On the test items, of which no check knows, it loses {100 * drop:.1f} points, more "
        f"than is tolerated: {figures['validations']} checks on the same items have fitted them."
    )


def _ours(way: str) -> bool:
    return not way.startswith("greedy") and Way.of(way).checks != "published"


def _pool(found: Found, facts: PageFacts, name: str) -> str:
    pool = facts.setting.pools[name]
    baselines = baselines_of(found)
    parts = [f"## {name}: {pool.title}"]
    for key, cluster in pool.clusters.items():
        first = next(f for (p, c, _), f in baselines.items() if (p, c) == (name, key))
        parts.append(
            f"### {key}: base {cluster.base}, {_data(pool, cluster)}\n\n"
            f"{first['blocks']} blocks; {100 * first['untouched']:.2f} % of the numbers are in "
            f"tensors too small to be cut. Base: accuracy {first['base']:.3f}, test "
            f"{first['base_test']:.3f}, ε {rounded_up(first['base_epsilon']['epsilon'])}."
        )
        rows = [
            line for target in cluster.targets for line in _target(found, facts, name, key, target)
        ]
        head = ["target", "way", "C.R. %", "times", "accuracy", "drop", "test", "ε", "checks (no)"]
        parts.append(markdown_table(head, rows, "llr"))
        rows_here = [r for r in rows_of(found) if (r.pool, r.cluster) == (name, key)]
        noes = [r.figures["noes"] for r in rows_here if r.way in ("dred", "drd", "dred-svt")]
        if noes and not any(noes):
            parts.append(
                "No check of DRED and DRD said no: what they keep here is the last range, which "
                "they never ask about. To single blocks, DRED asks about all, as greedy-N does."
            )
        parts += [
            _stored(figures)
            for job, figures in found.items()
            if (job.pool, job.cluster, job.kind) == (name, key, "zoo")
        ]
    return "\n\n".join(parts)


def _data(pool: DedupPool, cluster: DedupCluster) -> str:
    if cluster.base == START:
        return "public data"
    base, *parts = (pool.experts[name].part for name in (cluster.base, *cluster.targets))
    return "the same data" if set(parts) == {base} else "disjoint data"


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
    own = rounded_up(trivial["epsilon"]["epsilon"])
    first = next(
        r for r in rows_of(found) if (r.pool, r.cluster, r.target) == (name, cluster, target)
    )
    after = price_text(first.figures["epsilon"])

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
    base = rounded_up(trivial["base_epsilon"]["epsilon"])
    yield line("serve the base", 0.0, trivial["base"], trivial["base_test"], base, "")
    leftovers = trivial["leftovers"], trivial["leftovers_test"]
    yield line("base, own head, norms", trivial["leftovers_ratio"], *leftovers, after, "")
    for row in rows_of(found):
        if (row.pool, row.cluster, row.target) == (name, cluster, target):
            f = row.figures
            yield line(
                _way(row.way, facts),
                f["ratio"],
                f["after"],
                f["test_after"],
                price_text(f["epsilon"]),
                f"{f['validations']} ({f['noes']})",
            )


def _way(way: str, facts: PageFacts) -> str:
    return _NAMES.get(way, way).format(n=facts.setting.greedy)


def _in_bytes() -> str:
    return (
        "✗: below the target's accuracy by more than the tolerance, on the validation items; "
        "answers of a sparse vector are noisy, so that some let this happen. How few bytes blocks "
        "take without loss, and how fast deduplicated models are served, is measured by "
        "benchmarks of their own (zoo_codec, zoo_serving): `experiments/benchmarks/RESULTS.md`."
    )
