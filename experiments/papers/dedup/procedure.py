"""The experiment dedup: private experts, their deduplication, and what it costs."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.papers.dedup.jobs import file_of, is_finished, planned, run_jobs
from experiments.papers.dedup.page import PageFacts, page
from experiments.papers.dedup.plot import write_plot
from experiments.papers.dedup.pools import DedupPool
from experiments.papers.dedup.ways import DedupSetting
from experiments.runs.files import read_json
from experiments.suites.results import write_pages
from merging.files import write_text


@dataclass(kw_only=True)
class Deduplication:
    """Reproduces arXiv 2503.02862 on sentences and digits, with sound checks.

    Args:
        pools: name to experts, clusters and what is measured; null: it is left out.
        fast: take `small` instead, for a trial of less than a minute.
        small: what replaces `pools` where `fast`.
        failures: noes that a sparse vector may say.
        greedy: blocks of a group of greedy-N.
        min_length: ranges of blocks below are left alone.
        cache: folder of data and experts.
        remarks: sentences for the page, on how the settings came about.
        results: page that the plain command writes beside its run; None: none.
    """

    pools: Mapping[str, DedupPool | None]
    fast: bool
    small: Mapping[str, DedupPool]
    failures: int
    greedy: int
    min_length: int
    cache: str
    workers: int
    remarks: Sequence[str]
    results: str | None

    def __post_init__(self) -> None:
        given = self.small if self.fast else self.pools
        self._pools = {name: pool for name, pool in given.items() if pool is not None}
        for pool in self._pools.values():
            pool.check()

    def plan(self, out: Path) -> str:
        """Returns what would be done."""
        setting = self._setting(out)
        jobs = planned(setting)
        done = sum(is_finished(setting, job) for job in jobs)
        experts = sum(len(pool.experts) for pool in self._pools.values())
        return (
            f"pools        {', '.join(self._pools)}\n"
            f"experts      {experts}, trained once\n"
            f"jobs         {len(jobs)}, {done} finished"
        )

    def run(self, out: Path, command: str, *, plain: bool) -> None:
        """Runs what is left and writes ``RESULTS.md``, beside it the plot."""
        began = time.monotonic()
        setting = self._setting(out)
        jobs = planned(setting)
        run_jobs(setting, jobs, self.workers)
        seconds = _total_s(out / "seconds.txt", time.monotonic() - began)
        found = {job: read_json(file_of(setting, job)) for job in jobs}
        facts = PageFacts(command, seconds, self.workers, setting, self.fast, self.remarks)
        text = page(found, facts)
        pages = [out / "RESULTS.md"]
        if self.results is not None and plain:
            pages.append(Path(self.results))
        print(text)
        write_pages(pages, text)
        for path in pages:
            write_plot(found, setting, path.with_name("ratios.png"))

    def _setting(self, out: Path) -> DedupSetting:
        return DedupSetting(
            self._pools,
            Path(self.cache).expanduser().absolute(),
            out,
            self.failures,
            self.greedy,
            self.min_length,
        )


def _total_s(file: Path, seconds: float) -> float:
    """Returns the seconds of all starts of the command together."""
    before = float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
    write_text(file, f"{before + seconds:.1f}\n")
    return before + seconds
