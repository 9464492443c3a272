"""The ingredients of a search: what takes time to open, and what scores its candidates."""

import os
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from evaluators.engine.engine import Engine
from evaluators.engine.model import Model
from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from evaluators.split import Split
from evaluators.tries import tries
from experiments.setup import assemble, in_hull
from experiments.setup.assemble import Machine
from experiments.setup.dry_run import check_panels
from experiments.setup.execution import WorkerSpec
from experiments.setup.initial import StartScores
from experiments.setup.parts import SearchParts
from experiments.setup.private_checks import check_private_panels
from experiments.setup.problem import Problem, open_space
from experiments.setup.racing_checks import check_cases
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.linear import Linear
from merging.plan import Plan, uniform_plan
from merging.saving.save_adapter import check_adapter
from merging.spaces.space import SearchSpace
from merging.stacks.layer_stack import layers_of
from merging.weights import Weights


@dataclass(frozen=True)
class Scorer:
    """Writes weights into the one model and asks it what a panel wants to know.

    Args:
        pool: base and experts, which can be scored and merged if anything can.
    """

    model: Model
    panel: Panel
    pool: ExpertPool

    def __call__(self, weights: Weights) -> dict[str, Score]:
        """Returns ``task/metric`` to score.

        Raises:
            EvaluationError: the model cannot be scored; says why.
            MergeError: the weights cannot be computed.
            TransientFailure: nothing can be scored now; says why.
        """
        scores: dict[str, Score] = {}
        for one in tries(self.control):
            with one:
                self.model.write(weights)
                scores = self.panel.evaluate(self.model)
        return scores

    def control(self) -> None:
        """Raises what says that nothing can be scored now; leaves the base in the model.

        The experts' average is written first: it needs what any candidate needs, such as all
        files, memory to merge in, and a server that takes adapters.
        """
        with suppress(EvaluationError):  # no adapter has to hold the average
            self.model.write(uniform_plan(Linear(), Whole(), self.pool).weights(self.pool))
        self.model.write(self.pool.base_weights())
        self.model.run(self.panel.requests)


@dataclass(frozen=True)
class Ingredients:
    """Experts, evaluators and the model of one configuration.

    Args:
        pool: base and experts, on disk.
        held: the same pool, held on the device.
        engine: asks the resident model, the one on the device.
        model: scores candidates: the resident model, or one that is served.
        panels: evaluators by split; those on ``search`` items are always there.
    """

    machine: Machine
    pool: ExpertPool
    held: ExpertPool
    engine: Engine
    model: Model
    panels: Mapping[Split, Panel]

    def scorer(self, panel: Panel) -> Scorer:
        """Returns what scores weights on `panel`."""
        return Scorer(self.model, panel, self.held)

    def saved(self, plan: Plan) -> Weights:
        """Returns the weights of `plan` as they would be saved; to be scored once."""
        return plan.weights(self.held.reading(), dtype=self.machine.save_dtype)

    def identities(self) -> dict[str, str]:
        """Returns the sha256 of every expert by its name."""
        return dict(zip(self.pool.expert_names, self.pool.identities, strict=True))


def open_ingredients(config: DictConfig, parts: SearchParts) -> tuple[Ingredients, Problem]:
    """Returns what a search is made of, and the problem as it stands before anything is scored.

    The longer a step takes, the later it comes: headers of the checkpoints, one tensor, the base,
    the evaluators' data; then all weights are read, and last held.

    Raises:
        ValueError: an option, file or checkpoint cannot be used; names it.
    """
    pool = assemble.open_pool(config)
    # A trial over the files: what a space or strategy refuses of these experts is refused before
    # their weights are read. Where to start is known only once experts have been scored.
    all_alike = StartScores(dict.fromkeys(pool.expert_names, 0.0), lambda name, plan: 0.0)
    trial = Problem.open(config, pool, parts.initial.plan(pool, all_alike), config.seed)
    if in_hull.has_companion(config, trial.space):
        in_hull.open_companion(config, pool)
    first = trial.space.decode(trial.space.first())
    assemble.check_merges(first, pool)
    if config.adapter_rank is not None:
        check_adapter(pool, first)
    machine, layers = parts.machine, layers_of(first)
    resident = assemble.open_resident(pool, machine, layers)
    panels = assemble.open_panels(config, resident)
    check_panels(panels, parts.objective)
    classes = resident.info.classes
    check_private_panels(parts.privacy, panels, parts.objective, classes)
    check_cases(config, parts.racing, panels["search"], parts.objective, classes)
    assemble.read_through(pool)
    held = assemble.hold(config, pool, machine)
    engine = assemble.open_engine(config, resident)
    model = assemble.open_model(config, held, engine)
    return Ingredients(machine, pool, held, engine, model, panels), trial


def worker_spec(config: DictConfig, ingredients: Ingredients, start: Plan | None) -> WorkerSpec:
    """Returns what `open_for_worker` makes the same ingredients and space of, elsewhere."""
    config = config.copy()
    config.experts = assemble.named_sources(config)
    config.device = ingredients.machine.device.type
    config.execution = {"_target_": "experiments.setup.execution.Local"}
    return WorkerSpec(
        config=OmegaConf.to_yaml(config, resolve=True),
        start=None if start is None else start.describe(),
        base=ingredients.pool.base.sha256,
        experts=ingredients.identities(),
        items=ingredients.panels["search"].contents,
        directory=str(Path.cwd()),
        device=config.device,
        threads=torch.get_num_threads(),
    )


def open_for_worker(
    config: DictConfig, start: Plan | None
) -> tuple[Ingredients, SearchSpace[Any]]:
    """Returns ingredients and space as far as candidates are scored, for another process.

    Everything was checked where the search was started. On a CPU all workers of a node share
    one copy of base and experts, the system's of their files.

    Raises:
        ValueError: a file is missing here.
    """
    machine = assemble.open_machine(config)
    pool = assemble.open_pool(config)
    on_cpu = machine.device.type == "cpu"
    beside = max(1, (os.cpu_count() or 1) // torch.get_num_threads()) if on_cpu else 1
    kept = assemble.kept_limit(config, machine.device) // beside
    held = pool.resident(machine.device, shared=on_cpu, cache_bytes=kept)
    space = open_space(config.space, held, start)
    layers = layers_of(space.decode(space.first()))
    resident = assemble.open_resident(pool, machine, layers)
    panel = assemble.open_panel("search", config.search_on, resident)
    assert panel is not None, "refused where the search was started"
    engine = assemble.open_engine(config, resident)
    model = assemble.open_model(config, held, engine)
    return Ingredients(machine, pool, held, engine, model, {"search": panel}), space
