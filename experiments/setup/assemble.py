"""From configuration to objects: the one place where Hydra and the rooms meet."""

from __future__ import annotations

import inspect
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, cast

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from evaluators.engine.engine import Engine
from evaluators.engine.model import Model, ResidentModel
from evaluators.engine.resident import Resident
from evaluators.panel import Panel, Split
from experiments.runs.device import choose_device, choose_dtype
from experiments.runs.sources import ExpertSource
from experiments.setup.execution import Execution
from experiments.setup.initial import Initial
from experiments.setup.pairing import build_space, build_strategy
from merging.checkpoints.expert import CheckpointExpert
from merging.checkpoints.experts import ExpertPool
from merging.method import MergeMethod
from merging.plan import Plan
from merging.recipe import parse_dtype
from merging.spaces.displaced import DisplacedSpace
from merging.spaces.space import SearchSpace
from merging.spaces.vectors import VectorGenomes, VectorSpace
from search.strategy import Strategy

_TASK = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Machine:
    """Where the resident model lives.

    Args:
        device: of the resident model and the experts.
        dtype: of the resident model's parameters.
        save_dtype: of the saved model; None: each parameter's in the base.
    """

    device: torch.device
    dtype: torch.dtype
    save_dtype: torch.dtype | None


def open_machine(config: DictConfig) -> Machine:
    """Returns the device and precision that the configuration asks for; sets torch's threads."""
    if config.threads is not None:
        torch.set_num_threads(int(config.threads))
    device = choose_device(config.device)
    save_dtype = None if config.save_dtype is None else parse_dtype(config.save_dtype)
    return Machine(device, choose_dtype(config.dtype, device), save_dtype)


def open_pool(config: DictConfig) -> ExpertPool:
    """Returns base and experts, checked to fit each other."""
    source = _sources(config)
    return ExpertPool.open(
        source.base,
        source.experts,
        base_revision=source.base_revision,
        trust_remote_code=source.trust_remote_code,
    )


def named_sources(config: DictConfig) -> dict[str, Any]:
    """Returns an entry of the group `experts` that names what `config` trains or finds."""
    source = _sources(config)
    return {
        "_target_": "experiments.runs.sources.Sources",
        "base": source.base,
        "experts": dict(source.experts),
        "base_revision": source.base_revision,
        "trust_remote_code": source.trust_remote_code,
    }


def _sources(config: DictConfig) -> ExpertSource:
    source: ExpertSource = instantiate(config.experts, _convert_="all")
    return source


def hold(config: DictConfig, pool: ExpertPool, machine: Machine) -> ExpertPool:
    """Returns the pool where its merges run; experts that the device cannot hold are streamed."""
    stream = config.stream
    if stream == "auto":
        stream = machine.device.type == "cuda" and fills(pool, torch.cuda.mem_get_info()[0])
    return pool.resident(machine.device, stream=stream)


def fills(pool: ExpertPool, free_bytes: int) -> bool:
    """Returns whether base and whole experts take more than half of the memory that is free.

    The other half is for the resident model, its passes, and what no candidate changes.
    """
    base = pool.base
    one = sum(base.shape(name).numel() * base.dtype(name).itemsize for name in pool.names)
    whole = sum(isinstance(expert, CheckpointExpert) for expert in pool.experts.values())
    return one * (1 + whole) > free_bytes // 2


def open_execution(config: DictConfig) -> Execution:
    """Returns where candidates are scored; nothing is started yet."""
    execution: Execution = instantiate(config.execution, _convert_="all")
    return execution


def open_engine(config: DictConfig, resident: Resident) -> Engine:
    """Returns the engine that scores whatever `resident` holds."""
    return Engine(
        resident,
        batch_tokens=config.batch_tokens,
        timeout_s=config.timeout_s,
        compile=config.compile,
    )


def open_model(config: DictConfig, pool: ExpertPool, engine: Engine) -> Model:
    """Returns what scores candidates: the engine's resident model, or what ``backend`` names.

    Raises:
        ValueError: nothing answers there, or it cannot answer for these experts.
    """
    if not config.backend:
        return ResidentModel(engine.resident, engine)
    served: Model = open_partial(config.backend)(pool, engine.resident.info)
    return served


def open_panel(split: Split, entries: DictConfig | None, resident: Resident) -> Panel | None:
    """Returns the evaluators of one split; None where the configuration names none.

    Raises:
        ValueError: a task's name would be ambiguous in metric names and files.
    """
    if not entries:
        return None
    evaluators = {}
    for task, entry in entries.items():
        if not _TASK.fullmatch(str(task)):
            raise ValueError(f"task {task!r}: name it with letters, digits, '.', '_' and '-' only")
        if entry is not None:
            evaluators[str(task)] = instantiate(entry, _convert_="all")(model=resident.info)
    return Panel(split, evaluators)


def open_method(config: DictConfig) -> MergeMethod:
    """Returns a merge method from its configuration."""
    method: MergeMethod = instantiate(config, _convert_="all")
    return method


def open_space(config: DictConfig, pool: ExpertPool, start: Plan | None) -> SearchSpace[Any]:
    """Returns the search space over `pool`, decoding to float32.

    Args:
        config: of the run.
        pool: base and experts.
        start: the point to start from; None: the space's own.
    """
    build = instantiate(config.space, _convert_="all")
    space: SearchSpace[Any] = build_space(build, pool, {"initial": start, "dtype": torch.float32})
    takes_start = "initial" in inspect.signature(build).parameters
    if start is not None and isinstance(space, VectorGenomes) and not takes_start:
        return DisplacedSpace(cast(VectorSpace, space), start, dtype=torch.float32)
    return space


def open_strategy(config: DictConfig, space: SearchSpace[Any]) -> Strategy[Any]:
    """Returns the strategy for `space`, freshly seeded."""
    build = instantiate(config.strategy, _convert_="all")
    return build_strategy(build, space.domain, int(config.seed))


def open_initial(config: DictConfig) -> Initial:
    """Returns the choice of the initial point."""
    initial: Initial = instantiate(config.initial, _convert_="all")
    return initial


def open_baselines(config: DictConfig) -> Mapping[str, MergeMethod]:
    """Returns the static merges that are scored beside the evolved one."""
    return {str(name): open_method(entry) for name, entry in (config.baselines or {}).items()}


def open_partial(config: DictConfig) -> Any:
    """Returns what a `_partial_` entry builds, still to be completed."""
    return instantiate(config, _convert_="all")
