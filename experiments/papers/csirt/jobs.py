"""Cells in processes of their own, a few at a time, with a word on how long the rest will take."""

import logging
import time
from collections.abc import Sequence
from concurrent.futures import as_completed
from pathlib import Path

from experiments.papers.csirt.cells import BASE, CsirtCell, CsirtSetting, is_finished, run_cell
from experiments.reports.table import duration
from experiments.runs.processes import process_pool

log = logging.getLogger(__name__)

_PRIVATE = 2.0  # a private presentation takes as long as so many plain ones
_SCORED = 0.4  # and a record that is scored as long as this many that are trained on


def run_cells(setting: CsirtSetting, cells: Sequence[CsirtCell], workers: int, out: Path) -> None:
    """Runs what is left of the cells; each leaves a file in `out`."""
    left = [cell for cell in cells if not is_finished(setting, cell, out)]
    log.info("%d cells, %d of them are finished", len(cells), len(cells) - len(left))
    if not left:
        return
    out.mkdir(parents=True, exist_ok=True)
    total = sum(work(setting, cell) for cell in left)
    began, done = time.monotonic(), 0.0
    with process_pool(workers, threads=1) as pool:
        for base in pool.map(setting.base, sorted({cell.base for cell in left})):
            log.info("base %s", base)
        futures = {pool.submit(run_cell, setting, cell, out): cell for cell in left}
        began = time.monotonic()
        try:
            for number, future in enumerate(as_completed(futures), start=1):
                future.result()
                done += work(setting, futures[future])
                seconds = (time.monotonic() - began) / done * (total - done)
                log.info(
                    "%d/%d cells, %s, about %s left",
                    number,
                    len(left),
                    futures[future].name,
                    duration(seconds),
                )
        finally:  # where one failed, or Ctrl-C: what waits is not begun
            pool.shutdown(wait=False, cancel_futures=True)


def work(setting: CsirtSetting, cell: CsirtCell) -> float:
    """Returns how much a cell has to do, in records trained on."""
    data = setting.data
    canaries = 10 * data.canaries
    forms = 2 if cell.form == "pseudonymised" else 1
    scored = forms * canaries * (1 + data.variants) * 1.5 + 4 * data.held_out
    if cell.regime == BASE:
        return _SCORED * scored
    regime = setting.regimes[cell.regime]
    shown = regime.updates(data.records + canaries * data.clones) * regime.lot
    return _SCORED * scored + shown * (1.0 if regime.privacy is None else _PRIVATE)
