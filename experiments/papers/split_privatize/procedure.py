"""The experiment split_privatize: the front of privacy and accuracy, and a merge."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.papers.split_privatize.attackers import AttackSettings
from experiments.papers.split_privatize.front import Front
from experiments.papers.split_privatize.jobs import (
    identities,
    planned,
    run_points,
    unfinished,
)
from experiments.papers.split_privatize.merges import Kept, SplitMerging, kept_by
from experiments.papers.split_privatize.page import SplitFacts, page
from experiments.papers.split_privatize.plot import write_plot
from experiments.papers.split_privatize.points import NoiseWay, SplitSetting, SplitTraining
from experiments.papers.split_privatize.texts import SplitData
from experiments.reports.privacy_section import privacy_words
from experiments.runs.files import read_json
from experiments.suites.plan import PlannedRun
from experiments.suites.results import write_pages
from experiments.suites.workers import refuse_failures, run_all
from merging.files import write_text

_SMALL = ("seeds", "depths", "ways", "data", "training", "attacks", "merging")


@dataclass(kw_only=True)
class SplitPrivatize:
    """Reproduces arXiv 2312.15603 on sentences, against attackers of today.

    Args:
        depths: blocks at the customer, to how many of the seeds are split there.
        ways: name to a way to noise.
        merging: how the customer's expert is merged; None: it is not.
        fast: take `small` instead, for a trial of a minute.
        small: what replaces options of these names where `fast`.
        cache: folder of experts.
        remarks: sentences for the page, on how the settings came about.
        results: page that the plain command writes beside its run; None: none.
    """

    data: SplitData
    seeds: Sequence[int]
    depths: Mapping[int, int]
    ways: Mapping[str, NoiseWay]
    training: SplitTraining
    attacks: AttackSettings
    merging: SplitMerging | None
    fast: bool
    small: Mapping[str, Any]
    cache: str
    workers: int
    remarks: Sequence[str]
    results: str | None

    def __post_init__(self) -> None:
        if unknown := sorted(set(self.small) - set(_SMALL)):
            raise ValueError(
                f"procedure.small.{unknown[0]} is unknown: expected {', '.join(_SMALL)}"
            )
        if self.fast:
            for option, value in self.small.items():
                setattr(self, option, value)
        if self.merging is not None and self.merging.way not in self.ways:
            raise ValueError(
                f"procedure.merging.way={self.merging.way!r}: expected {', '.join(self.ways)}"
            )
        self.data.sentences()
        self._setting = SplitSetting(self.data, self.ways, self.training, self.attacks)
        self._points = planned(self.seeds, self.depths, self.ways)
        stack = self._setting.base.config.get_text_config().num_hidden_layers
        if too_deep := [blocks for blocks in self.depths if not 0 <= blocks <= stack]:
            raise ValueError(
                f"procedure.depths names {too_deep[0]}, the base has {stack} blocks: give 0 to "
                f"{stack}"
            )

    def plan(self, out: Path) -> str:
        """Returns what would be done."""
        names = identities(self._setting, self._points)
        done = len(self._points) - len(unfinished(self._points, names, out / "points"))
        merges = 0 if self.merging is None else len(self.seeds)
        return (
            f"points       {len(self._points)}, each a training and its attacks; {done} finished\n"
            f"merges       {merges} searches"
        )

    def run(self, out: Path, command: str, *, plain: bool) -> None:
        """Runs what is left and writes ``RESULTS.md``, beside it the plot."""
        began = time.monotonic()
        found = run_points(self._setting, self._points, self.workers, out / "points")
        runs, failures = self._merged(out)
        facts = SplitFacts(
            command=command,
            seconds=_total_s(out / "seconds.txt", time.monotonic() - began),
            workers=self.workers,
            setting=self._setting,
            fast=self.fast,
            privacy=privacy_words(read_json(runs[0].directory / "recipe.json")) if runs else (),
            remarks=self.remarks,
        )
        front = Front(found)
        kept: list[Kept] = kept_by(runs, self.data.tasks)
        text = page(front, kept, facts)
        pages = [out / "RESULTS.md"]
        if self.results is not None and plain:
            pages.append(Path(self.results))
        print(text)
        write_pages(pages, text)
        for path in pages:
            write_plot(front, path.with_name("front.png"))
        refuse_failures(failures, len(self.seeds), "merges")

    def _merged(self, out: Path) -> tuple[list[PlannedRun], dict[Path, str]]:
        """Returns the searches that succeeded, and why others failed."""
        if self.merging is None:
            return [], {}
        cache = Path(self.cache).expanduser().absolute()
        runs = self.merging.made(self._setting, self.seeds, cache, self.workers, out / "merges")
        failures = run_all(runs, self.workers, None)
        return [run for run in runs if run.directory not in failures], failures


def _total_s(file: Path, seconds: float) -> float:
    """Returns the seconds of all starts of the command together."""
    before = float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
    write_text(file, f"{before + seconds:.1f}\n")
    return before + seconds
