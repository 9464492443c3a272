"""The customer's expert merged with ordinary ones by evolution."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.sentences.prepare import SentenceSettings, prepare
from experiments.experts.training.loop import Schedule
from experiments.papers.split_privatize.jobs import identity
from experiments.papers.split_privatize.points import SplitSetting, SplitSide
from experiments.runs.cache import made_once
from experiments.runs.files import read_json
from experiments.runs.model_scores import models_of
from experiments.runs.processes import process_pool
from experiments.suites.plan import PlannedRun

KEPT = 0.95


@dataclass(frozen=True)
class SplitMerging:
    """How the customer's expert is made, and merged with ordinary ones.

    Args:
        blocks: of the customer's half, which the ordinary experts keep as the base has them, too;
            `way` and `ratio`: its noise, whose key is secret.
        schedule: of the ordinary experts.
        options: further ones of ``evomerge search experiment=sentences``.
    """

    blocks: int
    way: str
    ratio: float
    schedule: Schedule
    options: Sequence[str]

    def made(
        self, setting: SplitSetting, seeds: Sequence[int], cache: Path, workers: int, out: Path
    ) -> list[PlannedRun]:
        """Returns every search, after its experts have been trained."""
        ordinary = prepare(
            cache,
            base=setting.data.source,
            data=setting.data.data,
            settings=SentenceSettings(setting.data.tasks, self.schedule, frozen=self.blocks),
            threads=1,
        )
        with process_pool(workers, threads=1) as pool:
            futures = [pool.submit(self._expert, setting, seed, cache) for seed in seeds]
            experts = [future.result() for future in futures]
        return [
            PlannedRun(
                table="merge",
                setting=f"s{seed}",
                variant="evolved",
                seed=seed,
                options=(
                    "experiment=sentences",
                    *_sources(ordinary, setting, expert),
                    *self.options,
                ),
                directory=out / f"s{seed}",
            )
            for seed, expert in zip(seeds, experts, strict=True)
        ]

    def _expert(self, setting: SplitSetting, seed: int, cache: Path) -> Path:
        """Returns the directory of the customer's expert of a seed; trained on the first call."""
        way = replace(setting.ways[self.way], ratios=[self.ratio], seeds=None, depths=None)
        noise = way, setting.attacks.public_states
        name = f"expert-{identity(setting, self.blocks, noise, seed)}"

        def make(draft: Path) -> None:
            side = SplitSide(setting, seed, self.blocks)
            side.write_expert(self.way, self.ratio, draft / "model")

        return made_once(cache / "split_privatize" / name, make) / "model"


def _sources(ordinary: PoolFolder, setting: SplitSetting, expert: Path) -> Sequence[str]:
    folders = {**ordinary.experts, setting.data.task: expert}
    listed = ",".join(f"{name}:'{path}'" for name, path in folders.items())
    return "experts=local", f"experts.base='{ordinary.base}'", f"experts.experts={{{listed}}}"


@dataclass(frozen=True)
class Kept:
    """Accuracies on an expert's task, of items that no search has read."""

    seed: int
    task: str
    base: float
    expert: float
    merged: float

    @property
    def share(self) -> float:
        """Share of the expert's gain over the base: 1 like the expert, 0 like the base.

        NaN where the expert has gained nothing.
        """
        gain = self.expert - self.base
        return (self.merged - self.base) / gain if gain > 0 else math.nan


def kept_by(runs: Sequence[PlannedRun], tasks: Sequence[str]) -> list[Kept]:
    """Returns what every finished search's winner keeps of each task."""
    found = []
    for run in runs:
        models = models_of(read_json(run.directory / "summary.json"))
        for task in tasks:
            of = {m.kind if m.kind != "expert" else m.name: m for m in models}
            scores = [
                of[name].score("report", f"{task}/accuracy") for name in ("base", task, "evolved")
            ]
            if None not in scores:
                found.append(Kept(run.seed, task, *(float(s or 0) for s in scores)))
    return found
