"""What runs in a worker's process: ingredients of its own, made from the run's configuration."""

import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.runs.errors import UserError, explained
from experiments.scoring.asking import Answer, LocalAsker, Question
from experiments.scoring.choose import local_asker, local_evaluation
from experiments.setup.common_items import CommonItems
from experiments.setup.execution import WorkerSpec
from experiments.setup.ingredients import Ingredients, open_for_worker
from merging.plans import plan_from_description
from merging.spaces.space import SearchSpace
from search.loop.evaluation import Batch, Evaluated
from search.loop.pool import Pool, run_all


class Worker:
    """Scores genomes; holds the resident model of its process."""

    def __init__(self) -> None:
        self._space: SearchSpace[Any] | None = None
        self._pool: Pool[Batch[Any], Sequence[Evaluated]] | None = None
        self._asker: LocalAsker | None = None
        self._encoded: Any = None
        self._genome: Any = None

    def prepare(self, spec: WorkerSpec) -> dict[str, Any]:
        """Makes the ingredients of `spec`, in place of earlier ones.

        Returns:
            ``host`` and ``pid`` of this process, and ``refused``: why it cannot, None: it can.
        """
        self._space = self._pool = self._asker = self._encoded = None
        state: dict[str, Any] = {"host": platform.node(), "pid": os.getpid(), "refused": None}
        try:
            with explained():
                config = _config(spec)
                ingredients, space = _opened(spec, config)
        except UserError as error:
            return {**state, "refused": str(error)}
        common = CommonItems.open(config, ingredients.panels["search"])
        self._pool = local_evaluation(ingredients, space, common, config.together).pool
        self._asker = local_asker(ingredients, space)
        self._space = space
        return state

    def score(self, genomes: Sequence[Any], generation: int) -> Sequence[Evaluated]:
        """Returns what every genome of a batch gave.

        Args:
            generation: its number from 0; read where every generation has items of its own.
        """
        assert self._space is not None
        assert self._pool is not None
        assert self._asker is not None
        self._asker.drop()  # other weights come into the model
        batch = Batch([self._space.from_json(genome) for genome in genomes], generation)
        return run_all(self._pool, [batch])[0]

    def ask(self, genome: Any, requests: tuple[int, ...]) -> Answer:
        """Returns what a candidate answers; its weights are not written again if they are there.

        Args:
            requests: which of the panel's requests, ascending.
        """
        assert self._space is not None
        assert self._asker is not None
        if genome != self._encoded:
            self._encoded, self._genome = genome, self._space.from_json(genome)
        return run_all(self._asker, [Question(self._genome, requests)])[0]


def _config(spec: WorkerSpec) -> DictConfig:
    """Returns the configuration of `spec`, whose relative paths and threads hold from now on."""
    if Path(spec.directory).is_dir():
        os.chdir(spec.directory)  # relative paths in the configuration; this process is ours
    torch.set_num_threads(spec.threads)
    config = OmegaConf.create(spec.config)
    assert isinstance(config, DictConfig)
    return config


def _opened(spec: WorkerSpec, config: DictConfig) -> tuple[Ingredients, SearchSpace[Any]]:
    """Returns what scores; raises ValueError where it would not be that of the main process."""
    if spec.device == "cuda" and not torch.cuda.is_available():
        raise ValueError(
            "no CUDA device is visible, but the main process computes on one: set "
            "execution.gpus_per_worker=1 (0.5 for two workers on one device), or device=cpu"
        )
    start = None if spec.start is None else plan_from_description(spec.start)
    ingredients, space = open_for_worker(config, start)
    expected = {"the base": spec.base, **spec.experts, **_named(spec.items)}
    items = _named(ingredients.panels["search"].contents)
    found = {"the base": ingredients.pool.base.sha256, **ingredients.identities(), **items}
    for name, content in found.items():
        if expected.get(name) != content:
            raise ValueError(
                f"{name} has other content than where the search was started: give every node "
                "the same files"
            )
    return ingredients, space


def _named(items: Mapping[str, str]) -> dict[str, str]:
    return {f"task {task!r} (its search items)": digest for task, digest in items.items()}
