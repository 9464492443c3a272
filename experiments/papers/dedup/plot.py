"""Accuracy against compression of every target, with its baselines."""

from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from experiments.papers.dedup.rows import Found, baselines_of, rows_of
from experiments.papers.dedup.ways import DedupSetting

_MARKS = {
    "dred": ("o", "DRED"),
    "drd": ("s", "DRD"),
    "greedy": ("^", "greedy-N"),
    "dred-svt": ("D", "DRED, sound SVT"),
    "dred-published": ("v", "DRED, published SVT"),
    "dred1": ("*", "DRED, to single blocks"),
    "dred1-svt": ("p", "DRED, to single blocks, SVT"),
    "dred-fair": ("P", "DRED, fair"),
}
_TICKS = (0.1, 0.3, 1, 3, 10, 30, 100)


def write_plot(found: Found, setting: DedupSetting, path: Path) -> None:
    """Writes the plot: one panel for every cluster, one colour for every target."""
    clusters = [(name, key) for name, pool in setting.pools.items() for key in pool.clusters]
    figure = Figure(figsize=(4.6 * len(clusters) + 1.8, 4.6), layout="constrained")
    panels = figure.subplots(1, len(clusters), squeeze=False)[0]
    for axes, (pool, key) in zip(panels, clusters, strict=True):
        _cluster(axes, found, setting, pool, key)
    first = panels[0]
    for mark, label in (*_MARKS.values(), ("x", "base, own head, norms")):
        first.scatter([], [], marker=mark, color="grey", label=label)
    first.plot([], [], color="grey", label="the target as it is")
    first.plot([], [], color="grey", linestyle=":", label="its tolerance; 35 times")
    first.plot([], [], color="black", linestyle="--", label="the base in its place")
    figure.legend(*first.get_legend_handles_labels(), loc="outside right center", fontsize=8)
    figure.savefig(path, dpi=100)


def _cluster(axes: Axes, found: Found, setting: DedupSetting, name: str, key: str) -> None:
    pool = setting.pools[name]
    cluster = pool.clusters[key]
    baselines = baselines_of(found)
    for number, target in enumerate(cluster.targets):
        trivial, colour = baselines[name, key, target], f"C{number}"
        axes.axhline(trivial["before"], color=colour, linewidth=0.9)
        axes.axhline(trivial["before"] - pool.tolerance, color=colour, linewidth=0.8, ls=":")
        axes.annotate(target, (105, trivial["before"]), color=colour, va="bottom", ha="right")
        small = 100 * trivial["leftovers_ratio"]
        axes.scatter(small, trivial["leftovers"], marker="x", color=colour, s=50)
        for row in rows_of(found):
            if (row.pool, row.cluster, row.target) == (name, key, target):
                place = 100 * row.figures["ratio"], row.figures["after"]
                mark = _MARKS[row.way][0]
                axes.scatter(*place, marker=mark, facecolors="none", edgecolors=colour, s=48)
    first = baselines[name, key, cluster.targets[0]]
    axes.axhline(first["base"], color="black", linewidth=1.2, ls="--")
    axes.axvline(100 / 35, color="grey", linewidth=0.8, ls=":")
    axes.set(
        xscale="log",
        xlim=(0.1, 110),
        xlabel="own new numbers, share of the target's",
        ylabel="accuracy on the validation items",
        title=f"{name} {key}: base {cluster.base}",
    )
    axes.set_xticks(_TICKS, [f"{tick:g} %" for tick in _TICKS])
    axes.xaxis.set_minor_locator(NullLocator())
