"""The experiment csirt_memorization: experts of all regimes, their attacks, and their merges."""

from __future__ import annotations

import logging
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from experiments.experts.training.language_model import Lora
from experiments.experts.training.regime import Regime
from experiments.papers.csirt.bases import Base
from experiments.papers.csirt.cells import BASE, CsirtCell, CsirtSetting, is_finished, planned
from experiments.papers.csirt.corpus import FORMS, CorpusSize, Form
from experiments.papers.csirt.jobs import run_cells
from experiments.papers.csirt.merges import Merging
from experiments.papers.csirt.page import PageNumbers, page
from experiments.papers.csirt.scores import CellScores
from experiments.runs.errors import UserError
from experiments.suites.workers import run_all
from merging.files import write_text

log = logging.getLogger(__name__)

_NEEDED = ("V0", "V0fs", "V1", "V2")
_SMALL = ("seeds", "bases", "data", "forms", "merging")


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

    def __init__(
        self,
        *,
        bases: Mapping[str, Base | None],
        seeds: Sequence[int],
        data: CorpusSize,
        regimes: Mapping[str, Regime],
        forms: Mapping[Form, Sequence[str]],
        nf4: Sequence[str],
        lora: Lora | None,
        max_length: int,
        merging: Merging | None,
        fast: bool,
        small: Mapping[str, Any],
        cache: str,
        workers: int,
        device: str,
        batch_tokens: int,
        remarks: Sequence[str],
        results: str | None,
    ) -> None:
        unknown = sorted(set(small) - set(_SMALL))
        if unknown:
            raise ValueError(
                f"procedure.small.{unknown[0]} is unknown: expected {', '.join(_SMALL)}"
            )
        chosen = dict(small) if fast else {}
        named: Mapping[str, Base | None] = chosen.get("bases", bases)
        chosen_bases = {name: base for name, base in named.items() if base is not None}
        self._fast, self._results, self._workers = fast, results, workers
        self._remarks = remarks
        self._merging: Merging | None = chosen.get("merging", merging)
        self._seeds: Sequence[int] = chosen.get("seeds", seeds)
        self._forms: Mapping[Form, Sequence[str]] = chosen.get("forms", forms)
        _check(self._forms, regimes, nf4)
        self._setting = CsirtSetting(
            bases=chosen_bases,
            data=chosen.get("data", data),
            regimes=regimes,
            nf4=frozenset(nf4),
            lora=lora,
            max_length=max_length,
            cache=Path(cache).expanduser().absolute(),
            device="cpu" if device == "auto" else device,
            batch_tokens=batch_tokens,
        )
        self._cells: list[CsirtCell] = planned(self._seeds, list(chosen_bases), self._forms)

    def plan(self, out: Path) -> str:
        """Returns what would be done."""
        done = sum(is_finished(self._setting, cell, out / "cells") for cell in self._cells)
        experts = sum(cell.regime != BASE for cell in self._cells)
        merges = 0
        if self._merging is not None:
            merges = self._merging.count(self._seeds)
        return (
            f"bases        {', '.join(self._setting.bases)}\n"
            f"cells        {len(self._cells)}, {experts} of them experts to be trained; "
            f"{done} finished\n"
            f"merges       {merges} searches"
        )

    def run(self, out: Path, command: str, *, plain: bool) -> None:
        """Runs what is left and writes ``RESULTS.md``."""
        began = time.monotonic()
        run_cells(self._setting, self._cells, self._workers, out / "cells")
        merges, failures = [], {}
        if self._merging is not None:
            merges = self._merging.runs(self._setting, self._seeds, out / "merges")
            log.info("%d merges", len(merges))
            failures = run_all(merges, self._workers, None)
        facts = PageNumbers(
            command=command,
            seconds=_total_s(out / "seconds.txt", time.monotonic() - began),
            workers=self._workers,
            setting=self._setting,
            fast=self._fast,
            limits={} if self._merging is None else self._merging.limits,
            remarks=self._remarks,
        )
        done = [run for run in merges if run.directory not in failures]
        text = page(CellScores(self._cells, out / "cells"), done, facts)
        pages = [out / "RESULTS.md"]
        if self._results is not None and plain:
            pages.append(Path(self._results))
        for path in pages:
            path.parent.mkdir(parents=True, exist_ok=True)
            write_text(path, text)
        print(text)
        print("\n".join(f"results   {path}" for path in pages))
        if failures:
            directory, reason = next(iter(failures.items()))
            raise UserError(
                f"{len(failures)} of {len(merges)} merges failed; {directory}: {reason}"
            )


def _check(
    forms: Mapping[Form, Sequence[str]], regimes: Mapping[str, Regime], nf4: Sequence[str]
) -> None:
    unknown = [form for form in forms if form not in FORMS]
    if unknown:
        raise ValueError(f"procedure.forms: {unknown[0]!r} is none of {', '.join(FORMS)}")
    named = {f"procedure.forms.{form}": names for form, names in forms.items()} | {
        "procedure.nf4": nf4
    }
    for option, names in named.items():
        for name in names:
            if name not in regimes:
                raise ValueError(
                    f"{option} names the regime {name!r}, there are only {', '.join(regimes)}"
                )
    lacking = [name for name in _NEEDED if name not in forms.get("raw", ())]
    if lacking:
        raise ValueError(f"procedure.forms.raw lacks {lacking[0]}, which the page's sums need")


def _total_s(file: Path, seconds: float) -> float:
    """Returns the seconds of all starts of the command together."""
    before = float(file.read_text(encoding="utf-8")) if file.exists() else 0.0
    write_text(file, f"{before + seconds:.1f}\n")
    return before + seconds
