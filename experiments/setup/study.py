"""A study: every object of a search, assembled and ready to be checked and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from evaluators.engine.engine import Engine
from evaluators.engine.model import Model
from evaluators.engine.resident import Resident
from evaluators.panel import Panel
from experiments.setup import assemble
from experiments.setup.assemble import Machine
from experiments.setup.dry_run import check_merges, check_panels, rehearse
from experiments.setup.execution import Execution, Local, WorkerSpec
from experiments.setup.initial import Initial, StartScores
from experiments.setup.racing_checks import check_cases
from experiments.setup.scorer import Scorer
from merging.checkpoints.experts import ExpertPool
from merging.method import MergeMethod
from merging.plan import Plan
from merging.saving.save import saved_bytes
from merging.saving.save_adapter import check_adapter
from merging.spaces.space import SearchSpace
from merging.stacks.layer_stack import layers_of
from search.strategy import Strategy


@dataclass(frozen=True)
class Study:
    """Experts, space, evaluators and the resident model of one configuration.

    Args:
        config: what it was assembled from.
        seed: of the run.
        machine: device and precision.
        pool: base and experts, on disk.
        held: the same pool, held on the device.
        engine: asks the resident model, the one on the device.
        model: scores candidates: the resident model, or one that is served.
        initial: chooses the point that the search starts from.
        space: genomes to weights, over the pool held on the device.
        search_on: ranks candidates.
        select_on: takes a second look at the best few; None: no second look.
        report_on: read once, after the search.
        objective: scores to fitness, not yet bound to base and experts.
        baselines: static merges by name.
        strategy: the search strategy, freshly seeded.
        save_model: whether the winner is written as a model.
        start: the plan that the search starts from; None: the space's own start.
        execution: where candidates are scored.
    """

    config: DictConfig
    seed: int
    machine: Machine
    pool: ExpertPool
    held: ExpertPool
    engine: Engine
    model: Model
    initial: Initial
    space: SearchSpace[Any]
    search_on: Panel
    select_on: Panel | None
    report_on: Panel | None
    objective: Any
    baselines: Mapping[str, MergeMethod]
    strategy: Strategy[Any]
    save_model: bool
    start: Plan | None
    execution: Execution

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.engine.resident.module.parameters())

    @property
    def model_bytes(self) -> int:
        """Size of the saved model; 0 where none is saved."""
        if not self.save_model:
            return 0
        layers = layers_of(self.space.decode(self.space.first()))
        return saved_bytes(self.pool, self.machine.save_dtype, layers=layers)

    def scorer(self, panel: Panel) -> Scorer:
        """Returns what scores weights on `panel`."""
        return Scorer(self.model, panel)

    def started(self, scouting: StartScores) -> Study:
        """Returns the study that starts from the point which `scouting` decides.

        Raises:
            ValueError: there is no such point.
        """
        start = self.initial.plan(self.held, scouting)
        space = assemble.open_space(self.config, self.held, start)
        strategy = assemble.open_strategy(self.config, space)
        return replace(self, space=space, strategy=strategy, start=start)

    def ingredients(self) -> dict[str, Any]:
        """Returns what tells the content of base, experts and start from any other."""
        pool, space = self.pool, self.space
        return {
            "base": pool.base.sha256,
            "experts": dict(zip(pool.expert_names, pool.identities, strict=True)),
            "start": space.plan(space.first()).describe(),
        }

    def order(self) -> WorkerSpec:
        """Returns what another process makes its study of: see `for_worker`."""
        config = self.config.copy()
        config.experts = assemble.named_sources(config)
        config.device = self.machine.device.type
        config.execution = {"_target_": "experiments.setup.execution.Local"}
        pool, start = self.pool, self.start
        return WorkerSpec(
            config=OmegaConf.to_yaml(config, resolve=True),
            start=None if start is None else start.describe(),
            base=pool.base.sha256,
            experts=dict(zip(pool.expert_names, pool.identities, strict=True)),
            directory=str(Path.cwd()),
            device=config.device,
            threads=torch.get_num_threads(),
        )

    @classmethod
    def open(cls, config: DictConfig) -> Study:
        """Returns the study that the configuration describes; `started` completes it.

        Until the experts have been scored, its space starts from where equal scores lead.

        The longer a step takes, the later it comes: options, headers of the checkpoints, one
        tensor, the base, the evaluators' data; then all weights are read, and last held.

        Raises:
            ValueError: an option, file or checkpoint cannot be used; names it.
        """
        rehearse(config)
        machine = assemble.open_machine(config)
        pool = assemble.open_pool(config)
        initial = assemble.open_initial(config)
        start = initial.plan(pool, _unread(pool))
        space = assemble.open_space(config, pool, start)
        assemble.open_strategy(config, space)
        first = space.decode(space.first())
        check_merges(first, pool)
        if config.adapter_rank is not None:
            check_adapter(pool, first)
        resident = Resident.from_pool(
            pool, device=machine.device, dtype=machine.dtype, layers=layers_of(first)
        )
        search_on = assemble.open_panel("search", config.search_on, resident)
        assert search_on is not None, "refused in the rehearsal"
        select_on = assemble.open_panel("selection", config.select_on, resident)
        report_on = assemble.open_panel("report", config.report_on, resident)
        objective = assemble.open_partial(config.objective)
        check_panels(search_on, select_on, report_on, objective)
        check_cases(config, search_on, objective, resident.info.classes)
        pool.check_finite()
        held = assemble.hold(config, pool, machine)
        space = assemble.open_space(config, held, start)
        engine = assemble.open_engine(config, resident)
        return cls(
            config=config,
            seed=config.seed,
            machine=machine,
            pool=pool,
            held=held,
            engine=engine,
            model=assemble.open_model(config, held, engine),
            initial=initial,
            space=space,
            search_on=search_on,
            select_on=select_on,
            report_on=report_on,
            objective=objective,
            baselines=assemble.open_baselines(config),
            strategy=assemble.open_strategy(config, space),
            save_model=config.save_model,
            start=start,
            execution=assemble.open_execution(config),
        )

    @classmethod
    def for_worker(cls, config: DictConfig, start: Plan | None) -> Study:
        """Returns the same study as far as candidates are scored, for another process.

        Everything was checked where the search was started. On a CPU all workers of a node share
        one copy of base and experts, the system's of their files.

        Args:
            config: of an `order`.
            start: the plan that it describes.

        Raises:
            ValueError: a file is missing here.
        """
        machine = assemble.open_machine(config)
        pool = assemble.open_pool(config)
        held = pool.resident(machine.device, shared=machine.device.type == "cpu")
        space = assemble.open_space(config, held, start)
        resident = Resident.from_pool(
            pool,
            device=machine.device,
            dtype=machine.dtype,
            layers=layers_of(space.decode(space.first())),
        )
        search_on = assemble.open_panel("search", config.search_on, resident)
        assert search_on is not None, "refused where the search was started"
        engine = assemble.open_engine(config, resident)
        return cls(
            config=config,
            seed=config.seed,
            machine=machine,
            pool=pool,
            held=held,
            engine=engine,
            model=assemble.open_model(config, held, engine),
            initial=assemble.open_initial(config),
            space=space,
            search_on=search_on,
            select_on=None,
            report_on=None,
            objective=None,
            baselines={},
            strategy=assemble.open_strategy(config, space),
            save_model=False,
            start=start,
            execution=Local(),
        )


def _unread(pool: ExpertPool) -> StartScores:
    """Returns what is known before anything has been scored: all are equal."""
    return StartScores(dict.fromkeys(pool.expert_names, 0.0), lambda name, plan: 0.0)
