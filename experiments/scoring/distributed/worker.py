"""What runs in a worker's process: a study of its own, made from the run's configuration."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig, OmegaConf

from evaluators.evaluator import Score
from experiments.runs.errors import UserError, explained
from experiments.scoring.choose import own_evaluation, own_opening
from experiments.setup.asking import Answer, RaceClient, RaceFactory
from experiments.setup.common_items import CommonItems
from experiments.setup.execution import WorkerSpec
from experiments.setup.study import Study
from merging.plans import plan_from_description
from search.loop.evaluation import Evaluated, Evaluation


class Worker:
    """Scores genomes; holds the resident model of its process."""

    def __init__(self) -> None:
        self._study: Study | None = None
        self._evaluation: Evaluation[Any] | None = None
        self._opening: RaceFactory | None = None
        self._asking: RaceClient | None = None
        self._genome: Any = None

    def prepare(self, order: WorkerSpec) -> dict[str, Any]:
        """Makes the study of `order`, in place of an earlier one.

        Returns:
            ``host`` and ``pid`` of this process, and ``refused``: why it cannot, None: it can.
        """
        self._study = self._evaluation = self._opening = self._asking = None
        found: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "refused": None}
        try:
            with explained():
                self._study = _study(order)
        except UserError as error:
            found["refused"] = str(error)
            return found
        common = CommonItems.open(self._study.config, self._study.search_on)
        self._evaluation = own_evaluation(self._study, common)
        self._opening = own_opening(self._study)
        return found

    def score(self, genomes: Sequence[Any], generation: int) -> list[dict[str, Any]]:
        """Returns what `as_evaluated` reads, for every genome.

        Args:
            genomes: as JSON values; a unit, scored together where the study does so.
            generation: its number from 0; read where every generation has items of its own.
        """
        assert self._study is not None
        assert self._evaluation is not None
        self._asking = None  # other weights come into the model
        own = [self._study.space.from_json(each) for each in genomes]
        return [_plain(each) for each in self._evaluation(own, generation, (), 0)]

    def ask(self, genome: Any, slots: tuple[int, ...]) -> Answer:
        """Returns what a candidate answers; its weights are not written again if they are there.

        Args:
            genome: as JSON values.
            slots: which of the panel's requests, ascending.
        """
        assert self._study is not None
        assert self._opening is not None
        if self._asking is None or genome != self._genome:
            self._asking = self._opening([self._study.space.from_json(genome)])
            self._genome = genome
        return self._asking([0], slots)[0]


def as_evaluated(values: Mapping[str, Any]) -> Evaluated:
    """Returns what a worker found, every number exactly."""
    scores = {
        name: Score(
            each["value"],
            None if each["cases"] is None else np.array(each["cases"], np.float64),
            each["chance"],
            None if each["interval"] is None else tuple(each["interval"]),
        )
        for name, each in values["scores"].items()
    }
    return Evaluated(scores, values["failure"], values["seconds"])


def _plain(evaluated: Evaluated) -> dict[str, Any]:
    assert evaluated.estimate is None, "workers score all items"
    scores = {
        name: {
            "value": float(score.value),
            "cases": None if score.cases is None else score.cases.tolist(),
            "chance": score.chance,
            "interval": score.interval,
        }
        for name, score in evaluated.scores.items()
    }
    return {"scores": scores, "failure": evaluated.failure, "seconds": evaluated.seconds}


def _study(order: WorkerSpec) -> Study:
    """Returns the study; raises ValueError where it would not be that of the main process."""
    if Path(order.directory).is_dir():
        os.chdir(order.directory)  # relative paths in the configuration; this process is ours
    torch.set_num_threads(order.threads)
    config = OmegaConf.create(order.config)
    assert isinstance(config, DictConfig)
    if order.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device is visible, but the main process computes on one: set "
            "execution.gpus_per_worker=1 (0.5 for two workers on one device), or device=cpu"
        )
    start = None if order.start is None else plan_from_description(order.start)
    study = Study.for_worker(config, start)
    found = dict(zip(study.pool.expert_names, study.pool.identities, strict=True))
    expected = {"the base": order.base, **order.experts}
    for name, sha256 in {"the base": study.pool.base.sha256, **found}.items():
        if expected.get(name) != sha256:
            raise ValueError(
                f"{name} has other content than where the search was started: give every node "
                "the same files"
            )
    return study
