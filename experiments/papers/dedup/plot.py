"""Accuracy against compression of every target, with its baselines."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from experiments.papers.dedup.cells import DedupSetting
from experiments.papers.dedup.page import Found, baselines_of, rows_of

_MARKS = {
    "dred": ("o", "DRED"),
    "drd": ("s", "DRD"),
    "greedy": ("^", "greedy-N"),
    "dred-svt": ("D", "DRED, sound SVT"),
    "dred-published": ("v", "DRED, published SVT"),
    "dred-fair": ("P", "DRED, fair"),
}


def write_plot(found: Found, setting: DedupSetting, path: Path) -> None:
    """Writes the plot: one panel for every cluster, one colour for every target."""
    clusters = [(name, key) for name, pool in setting.pools.items() for key in pool.clusters]
    figure = Figure(figsize=(5.2 * len(clusters), 4.4), layout="constrained")
    for number, (pool, key) in enumerate(clusters, start=1):
        axes = figure.add_subplot(1, len(clusters), number)
        _cluster(axes, found, setting, pool, key)
    figure.savefig(path, dpi=110)


def _cluster(axes: Axes, found: Found, setting: DedupSetting, name: str, key: str) -> None:
    pool = setting.pools[name]
    cluster = pool.clusters[key]
    baselines = baselines_of(found)
    for number, target in enumerate(cluster.targets):
        trivial, colour = baselines[name, key, target], f"C{number}"
        axes.axhline(trivial["before"], color=colour, linewidth=0.8)
        axes.axhline(trivial["before"] - pool.tolerance, color=colour, linewidth=0.8, ls=":")
        small = 100 * trivial["untouched"]
        axes.scatter(small, trivial["leftovers"], marker="x", color=colour, s=50)
        for row in rows_of(found):
            if (row.pool, row.cluster, row.target) == (name, key, target):
                mark = _MARKS[row.way][0]
                place = 100 * row.figures["ratio"], row.figures["after"]
                axes.scatter(*place, marker=mark, color=colour, s=42, alpha=0.75)
        axes.plot([], [], color=colour, label=target)
    first = baselines[name, key, cluster.targets[0]]
    axes.axhline(
        first["base"], color="black", linewidth=1.2, ls="--", label=f"base {cluster.base}"
    )
    axes.axvline(100 / 35, color="grey", linewidth=0.8, ls=":", label="35 times")
    axes.scatter([], [], marker="x", color="grey", label="base, own small tensors")
    for way in pool.ways:
        axes.scatter([], [], marker=_MARKS[way][0], color="grey", label=_MARKS[way][1])
    axes.set(
        xscale="log",
        xlabel="own new numbers, % of the target",
        ylabel="accuracy on the validation items",
        title=f"{name} {key}",
    )
    axes.legend(fontsize=7)
