"""One cell of the experiment: an expert of one base, seed, form and regime, and its scores."""

import dataclasses
import json
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.evaluator import Evaluator, ModelInfo
from evaluators.memorization.canary_auc import CanaryAuc
from evaluators.memorization.exposure import Exposure
from evaluators.memorization.membership import Membership
from evaluators.panel import Panel
from experiments.experts.training.expert import TRAINING_FILE, DataSet, train_expert
from experiments.experts.training.language_model import Lora
from experiments.experts.training.nf4 import write_rounded
from experiments.experts.training.regime import Regime
from experiments.papers.csirt.bands import BandQuestions
from experiments.papers.csirt.bases import Base, csirt_digest
from experiments.papers.csirt.corpus import Corpus, CorpusSize, Form, make_corpus
from experiments.papers.csirt.files import DataFiles, write_files
from experiments.papers.csirt.pseudonymised import pseudonymised, pseudonyms_of
from experiments.papers.csirt.records import text_of
from experiments.runs.cache import made_once
from experiments.runs.files import read_json
from merging.checkpoints.experts import ExpertPool
from merging.files import write_text

BASE = "base"
"""In the place of a regime: the base itself, which has seen none of the training records."""


@dataclass(frozen=True)
class CsirtCell:
    """One model that is scored; its regime is a name, or `BASE`."""

    base: str
    seed: int
    form: Form
    regime: str

    @property
    def name(self) -> str:
        """A name for files."""
        return f"{self.base}-s{self.seed}-{self.form}-{self.regime}"


@dataclass(frozen=True)
class CsirtSetting:
    """What all cells have in common.

    Args:
        nf4: names of the regimes whose base is rounded to NF4 first.
        lora: train adapters; None: all parameters.
        max_length: most tokens of a training record.
        batch_tokens: most padded tokens of one forward pass when scoring.
    """

    bases: Mapping[str, Base]
    data: CorpusSize
    regimes: Mapping[str, Regime]
    nf4: Collection[str]
    lora: Lora | None
    max_length: int
    cache: Path
    device: str = "cpu"
    batch_tokens: int = 8192

    def base(self, name: str) -> str:
        """Returns the base's directory or id; made on the first call."""
        return self.bases[name].directory(self.cache, self.data)

    def start(self, cell: CsirtCell) -> str:
        """Returns what a cell's training starts from: its base, or a copy rounded to NF4."""
        base = self.base(cell.base)
        if cell.regime not in self.nf4:
            return base
        digest = csirt_digest(self.bases[cell.base].identity(self.data))
        folder = self.cache / "csirt" / f"nf4-{digest}"
        return str(made_once(folder, partial(write_rounded, base)))

    def files(self, seed: int, form: Form) -> DataFiles:
        """Returns the files of a seed's data; written on the first call."""
        digest = csirt_digest([self.data, seed, form])
        folder = self.cache / "csirt" / f"data-s{seed}-{form}-{digest}"

        def make(draft: Path) -> None:
            write_files(draft, make_corpus(self.data, seed), seed, form)

        return DataFiles(made_once(folder, make))

    def identity(self, cell: CsirtCell) -> str:
        """Returns 16 hexadecimal digits of all that a cell's model and scores depend on."""
        return csirt_digest(
            [
                self.bases[cell.base].identity(self.data),
                self.data,
                self.regimes.get(cell.regime),
                cell.regime in self.nf4,
                self.lora,
                self.max_length,
                cell,
            ]
        )

    def expert(self, cell: CsirtCell) -> Path:
        """Returns the directory of a cell's expert, whether it is there or not."""
        return self.cache / "csirt" / f"{cell.name}-{self.identity(cell)}"


def trained(setting: CsirtSetting, cell: CsirtCell) -> Path:
    """Returns the directory of a cell's expert; trained on the first call."""

    def make(draft: Path) -> None:
        data = _training_data(make_corpus(setting.data, cell.seed), setting, cell)
        train_expert(
            setting.start(cell),
            data,
            setting.regimes[cell.regime],
            draft,
            label=cell.regime,
            seed=cell.seed,
            lora=setting.lora,
            device=setting.device,
        )

    return made_once(setting.expert(cell), make)


def _training_data(corpus: Corpus, setting: CsirtSetting, cell: CsirtCell) -> DataSet:
    records = list(corpus.training)
    if cell.form == "pseudonymised":
        pseudonyms = pseudonyms_of(cell.seed)
        records = [pseudonymised(record, pseudonyms) for record in records]
    return DataSet(
        identity=f"csirt-s{cell.seed}-{csirt_digest(setting.data)}",
        texts=[text_of(record) for record in records],
        group_size=setting.data.clones,
        max_length=setting.max_length,
    )


def is_finished(setting: CsirtSetting, cell: CsirtCell, out: Path) -> bool:
    """Returns whether `out` holds the scores of this very cell, not of other settings or code."""
    file = out / f"{cell.name}.json"
    return file.exists() and read_json(file).get("identity") == setting.identity(cell)


def run_cell(setting: CsirtSetting, cell: CsirtCell, out: Path) -> None:
    """Trains and scores one model and writes ``CELL.json`` into `out`, unless it is there."""
    if is_finished(setting, cell, out):
        return
    began = time.monotonic()
    start = setting.start(cell)
    expert = None if cell.regime == BASE else trained(setting, cell)
    trained_s = time.monotonic() - began
    scores = _scores(setting, start, expert, setting.files(cell.seed, cell.form))
    content = {
        **dataclasses.asdict(cell),
        "identity": setting.identity(cell),
        "training": None if expert is None else read_json(expert / TRAINING_FILE),
        "training_s": round(trained_s, 2),
        "scoring_s": round(time.monotonic() - began - trained_s, 2),
        "scores": scores,
    }
    write_text(out / f"{cell.name}.json", json.dumps(content, indent=1) + "\n")


def _scores(
    setting: CsirtSetting, base: str, expert: Path | None, files: DataFiles
) -> dict[str, dict[str, Any]]:
    """Returns ``task/metric`` to its value, chance and cases.

    An adapter is asked on the base that it was trained on, rounded or not.
    """
    pool = ExpertPool.open(base, {"expert": str(expert or base)})
    resident = Resident.from_pool(pool, device=setting.device, dtype=torch.float32)
    if expert is not None:
        resident.write(pool.resident(torch.device(setting.device)).expert_weights("expert"))
    panel = Panel("report", evaluators_of(resident.info, files))
    scores = panel.evaluate(Engine(resident, batch_tokens=setting.batch_tokens))
    return {
        name: {
            "value": score.value,
            "chance": score.chance,
            "cases": None if score.cases is None else [round(x, 6) for x in score.cases.tolist()],
        }
        for name, score in scores.items()
    }


def evaluators_of(info: ModelInfo, files: DataFiles) -> dict[str, Evaluator]:
    """Returns what every model is asked; the second attack only where there are slugs."""
    evaluators: dict[str, Evaluator] = {
        "values": Exposure(info, data=str(files.canaries)),
        "tokens": CanaryAuc(info, data=str(files.canaries)),
        "members": Membership(info, data=str(files.members)),
        "bands": BandQuestions(info, data=str(files.questions("report"))),
    }
    if files.slugs.exists():
        evaluators["slugs"] = Exposure(info, data=str(files.slugs))
    return evaluators


def planned(
    seeds: Sequence[int], bases: Sequence[str], forms: Mapping[Form, Sequence[str]]
) -> list[CsirtCell]:
    """Returns all cells, seed after seed, so that a part of them can be compared."""
    return [
        CsirtCell(base, seed, form, regime)
        for seed in seeds
        for base in bases
        for form, regimes in forms.items()
        for regime in (BASE, *regimes)
    ]
