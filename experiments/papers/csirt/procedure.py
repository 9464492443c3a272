"""The experiment csirt_memorization: experts of all regimes, their attacks, and their merges."""

import logging
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.experts.training.language_model import Lora
from experiments.experts.training.regime import Regime
from experiments.papers.csirt.bases import Base
from experiments.papers.csirt.cells import BASE, CsirtSetting, is_finished, planned
from experiments.papers.csirt.corpus import FORMS, CorpusSize, Form
from experiments.papers.csirt.jobs import run_cells
from experiments.papers.csirt.merges import Merging
from experiments.papers.csirt.page import PageNumbers, page
from experiments.papers.csirt.scores import CellScores
from experiments.suites.results import write_pages
from experiments.suites.workers import refuse_failures, run_all
from merging.files import write_text

log = logging.getLogger(__name__)

_NEEDED = ("V0", "V0fs", "V1", "V2")
_SMALL = ("seeds", "bases", "data", "forms", "merging")


@dataclass(kw_only=True)
class CsirtMemorization:
    """Reproduces arXiv 2606.28479 on synthetic vulnerability scans, and merges its experts.

    Args:
        bases: name to base; null: it is left out.
        regimes: name to regime; V0, V0fs, V1 and V2 as in the paper must be there.
        forms: form of the training records to the regimes that are trained on it.
        nf4: names of the regimes whose base is rounded to NF4 first.
        lora: train adapters; None: all parameters.
        max_length: most tokens of a training record.
        merging: which experts are merged, and how; None: none are.
        fast: take `small` instead, for a trial of minutes.
        small: what replaces seeds, bases, data, forms or merging where `fast`.
        cache: folder of bases, data and experts.
        device: where models are trained and scored.
        batch_tokens: most padded tokens of one forward pass when scoring.
        remarks: sentences for the page, on how the settings came about.
        results: page that the plain command writes beside its run; None: none.
    """

    bases: Mapping[str, Base | None]
    seeds: Sequence[int]
    data: CorpusSize
    regimes: Mapping[str, Regime]
    forms: Mapping[Form, Sequence[str]]
    nf4: Sequence[str]
    lora: Lora | None
    max_length: int
    merging: Merging | None
    fast: bool
    small: Mapping[str, Any]
    cache: str
    workers: int
    device: str
    batch_tokens: int
    remarks: Sequence[str]
    results: str | None

    def __post_init__(self) -> None:
        unknown = sorted(set(self.small) - set(_SMALL))
        if unknown:
            raise ValueError(
                f"procedure.small.{unknown[0]} is unknown: expected {', '.join(_SMALL)}"
            )
        if self.fast:
            for option, value in self.small.items():
                setattr(self, option, value)
        _check(self.forms, self.regimes, self.nf4)
        self._setting = CsirtSetting(
            bases={name: base for name, base in self.bases.items() if base is not None},
            data=self.data,
            regimes=self.regimes,
            nf4=frozenset(self.nf4),
            lora=self.lora,
            max_length=self.max_length,
            cache=Path(self.cache).expanduser().absolute(),
            device="cpu" if self.device == "auto" else self.device,
            batch_tokens=self.batch_tokens,
        )
        self._cells = planned(self.seeds, list(self._setting.bases), self.forms)

    def plan(self, out: Path) -> str:
        """Returns what would be done."""
        done = sum(is_finished(self._setting, cell, out / "cells") for cell in self._cells)
        experts = sum(cell.regime != BASE for cell in self._cells)
        merges = 0 if self.merging is None else self.merging.count(self.seeds)
        return (
            f"bases        {', '.join(self._setting.bases)}\n"
            f"cells        {len(self._cells)}, {experts} of them experts to be trained; "
            f"{done} finished\n"
            f"merges       {merges} searches"
        )

    def run(self, out: Path, command: str, *, plain: bool) -> None:
        """Runs what is left and writes ``RESULTS.md``."""
        began = time.monotonic()
        run_cells(self._setting, self._cells, self.workers, out / "cells")
        merges, failures = [], {}
        if self.merging is not None:
            merges = self.merging.runs(self._setting, self.seeds, out / "merges")
            log.info("%d merges", len(merges))
            failures = run_all(merges, self.workers, None)
        facts = PageNumbers(
            command=command,
            seconds=_total_s(out / "seconds.txt", time.monotonic() - began),
            workers=self.workers,
            setting=self._setting,
            fast=self.fast,
            limits={} if self.merging is None else self.merging.limits,
            remarks=self.remarks,
        )
        done = [run for run in merges if run.directory not in failures]
        text = page(CellScores(self._cells, out / "cells"), done, facts)
        pages = [out / "RESULTS.md"]
        if self.results is not None and plain:
            pages.append(Path(self.results))
        print(text)
        write_pages(pages, text)
        refuse_failures(failures, len(merges), "merges")


def _check(
    forms: Mapping[Form, Sequence[str]], regimes: Mapping[str, Regime], nf4: Sequence[str]
) -> None:
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise ValueError(f"procedure.forms: {unknown[0]!r} is none of {', '.join(FORMS)}")
    options = {"nf4": nf4, **{f"forms.{form}": names for form, names in forms.items()}}
    for option, names in options.items():
        for name in names:
            if name not in regimes:
                raise ValueError(
                    f"procedure.{option} names the regime {name!r}, there are only "
                    f"{', '.join(regimes)}"
                )
    lacking = [name for name in _NEEDED if name not in forms.get("raw", ())]
    if lacking:
        raise ValueError(f"procedure.forms.raw lacks {lacking[0]}, which the page's sums need")


def _total_s(file: Path, seconds: float) -> float:
    """Returns the seconds of all starts of the command together."""
    before = float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
    write_text(file, f"{before + seconds:.1f}\n")
    return before + seconds
