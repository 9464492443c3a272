"""A study: every object of a search, assembled and ready to be checked and run."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from omegaconf import DictConfig

from evaluators.engine import Engine
from evaluators.panel import Panel
from evaluators.resident import Resident
from experiments import assemble
from experiments.assemble import Machine
from experiments.rehearsal import check_merges, check_panels, rehearse
from experiments.scorer import Scorer
from merging.experts import ExpertPool
from merging.method import MergeMethod
from merging.save import saved_bytes
from merging.spaces.axes import start
from merging.spaces.space import VectorSpace
from search.strategy import Strategy


@dataclass(frozen=True)
class Study:
    """Experts, space, evaluators and the resident model of one configuration.

    Args:
        seed: of the run.
        machine: device and precision.
        pool: base and experts, on disk.
        held: the same pool, held on the device.
        resident: the one model, on the device.
        engine: asks the resident model.
        space: genomes to weights, over the pool held on the device.
        search_on: ranks candidates.
        select_on: takes a second look at the best few; None: no second look.
        report_on: read once, after the search.
        objective: scores to fitness, not yet bound to base and experts.
        baselines: static merges by name.
        strategy: the search strategy, freshly seeded.
        save_model: whether the winner is written as a model.
    """

    seed: int
    machine: Machine
    pool: ExpertPool
    held: ExpertPool
    resident: Resident
    engine: Engine
    space: VectorSpace
    search_on: Panel
    select_on: Panel | None
    report_on: Panel | None
    objective: Any
    baselines: Mapping[str, MergeMethod]
    strategy: Strategy[Any]
    save_model: bool

    @property
    def parameters(self) -> int:
        """Number of parameters of the model."""
        return sum(parameter.numel() for parameter in self.resident.module.parameters())

    @property
    def model_bytes(self) -> int:
        """Size of the saved model; 0 where none is saved."""
        return saved_bytes(self.pool, self.machine.save_dtype) if self.save_model else 0

    def scorer(self, panel: Panel) -> Scorer:
        """Returns what scores weights on `panel`."""
        return Scorer(self.resident, self.engine, panel)

    @classmethod
    def open(cls, config: DictConfig) -> Study:
        """Returns the study that the configuration describes.

        The longer a step takes, the later it comes: options, headers of the checkpoints, one
        tensor, the base, the evaluators' data; then all weights are read, and last held.

        Raises:
            ValueError: an option, file or checkpoint cannot be used; names it.
        """
        rehearse(config)
        machine = assemble.open_machine(config)
        pool = assemble.open_pool(config)
        space = assemble.open_space(config, pool)
        strategy = assemble.open_partial(config.strategy)(axes=space.axes, seed=config.seed)
        check_merges(space.decode(start(space.axes)), pool)
        resident = Resident.from_pool(pool, device=machine.device, dtype=machine.dtype)
        search_on = assemble.open_panel("search", config.search_on, resident)
        assert search_on is not None, "refused in the rehearsal"
        select_on = assemble.open_panel("selection", config.select_on, resident)
        report_on = assemble.open_panel("report", config.report_on, resident)
        objective = assemble.open_partial(config.objective)
        check_panels(search_on, select_on, report_on, objective)
        pool.check_finite()
        held = pool.resident(machine.device)
        return cls(
            seed=config.seed,
            machine=machine,
            pool=pool,
            held=held,
            resident=resident,
            engine=assemble.open_engine(config, resident),
            space=assemble.open_space(config, held),
            search_on=search_on,
            select_on=select_on,
            report_on=report_on,
            objective=objective,
            baselines=assemble.open_baselines(config),
            strategy=strategy,
            save_model=config.save_model,
        )
