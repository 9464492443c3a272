"""What runs in a worker's process: a study of its own, made from the run's configuration."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.runs.errors import UserError, explained
from experiments.scoring.asking import Answer, LocalAsker, Question
from experiments.scoring.choose import local_asker, local_evaluation
from experiments.setup.common_items import CommonItems
from experiments.setup.execution import WorkerSpec
from experiments.setup.study import Study
from merging.plans import plan_from_description
from search.loop.evaluation import Batch, Evaluated
from search.loop.pool import Pool, run_all


class Worker:
    """Scores genomes; holds the resident model of its process."""

    def __init__(self) -> None:
        self._study: Study | None = None
        self._pool: Pool[Batch[Any], Sequence[Evaluated]] | None = None
        self._asker: LocalAsker | None = None
        self._encoded: Any = None
        self._genome: Any = None

    def prepare(self, order: WorkerSpec) -> dict[str, Any]:
        """Makes the study of `order`, in place of an earlier one.

        Returns:
            ``host`` and ``pid`` of this process, and ``refused``: why it cannot, None: it can.
        """
        self._study = self._pool = self._asker = self._encoded = None
        state: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "refused": None}
        try:
            with explained():
                self._study = _study(order)
        except UserError as error:
            return {**state, "refused": str(error)}
        common = CommonItems.open(self._study.config, self._study.search_on)
        self._pool = local_evaluation(self._study, common).pool
        self._asker = local_asker(self._study)
        return state

    def score(self, genomes: Sequence[Any], generation: int) -> Sequence[Evaluated]:
        """Returns what every genome of a batch gave.

        Args:
            genomes: as JSON values.
            generation: its number from 0; read where every generation has items of its own.
        """
        assert self._study is not None
        assert self._pool is not None
        assert self._asker is not None
        self._asker.drop()  # other weights come into the model
        batch = Batch([self._study.space.from_json(genome) for genome in genomes], generation)
        return run_all(self._pool, [batch])[0]

    def ask(self, genome: Any, requests: tuple[int, ...]) -> Answer:
        """Returns what a candidate answers; its weights are not written again if they are there.

        Args:
            genome: as JSON values.
            requests: which of the panel's requests, ascending.
        """
        assert self._study is not None
        assert self._asker is not None
        if genome != self._encoded:
            self._encoded, self._genome = genome, self._study.space.from_json(genome)
        return run_all(self._asker, [Question(self._genome, requests)])[0]


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
