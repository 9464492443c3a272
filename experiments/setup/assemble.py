"""From configuration to objects that any verb may need: machine, experts, model, evaluators."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from omegaconf import DictConfig

from experiments.runs.device import choose_device, choose_dtype
from experiments.runs.memory import free_bytes
from experiments.runs.progress import ProgressBar, megabytes
from experiments.runs.sources import Sources
from experiments.zoo.opening import open_sources
from merging.checkpoints.expert import CheckpointExpert
from merging.checkpoints.experts import ExpertPool
from merging.recipe import parse_dtype
from merging.weights import Weights

if TYPE_CHECKING:  # a merge imports this module, and asks no model
    from evaluators.engine.engine import Engine
    from evaluators.engine.model import Model
    from evaluators.engine.resident import Resident
    from evaluators.panel import Panel
    from evaluators.split import Split

_KEPT_SHARE = 4  # of the memory that is free: the rest is for passes, and for others
_TASK = re.compile(r"[A-Za-z0-9_.-]+")


@dataclass(frozen=True)
class Machine:
    """Where the resident model lives; `save_dtype` None: each parameter's in the base."""

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
    source: Sources = open_part(config.experts)
    open_sources([source.base, *source.experts.values()])
    return ExpertPool.open(
        source.base,
        source.experts,
        base_revision=source.base_revision,
        trust_remote_code=source.trust_remote_code,
        vocabulary=source.vocabulary,
    )


def check_merges(weights: Weights, pool: ExpertPool) -> None:
    """Computes the smallest tensor of a merge of `pool`.

    Raises:
        MergeError: the method does not take these experts or these knobs.
    """
    given = set(weights)  # a stack of layers may lack what the pool merges
    names = [name for name in pool.names if name in given] or list(weights)[:1]
    weights[min(names, key=lambda name: pool.base.shape(name).numel())]


def named_sources(config: DictConfig) -> dict[str, Any]:
    """Returns an entry of the group `experts` that names what `config` trains or finds."""
    source: Sources = open_part(config.experts)
    return {
        "_target_": "experiments.runs.sources.Sources",
        "base": source.base,
        "experts": dict(source.experts),
        "base_revision": source.base_revision,
        "trust_remote_code": source.trust_remote_code,
        "vocabulary": source.vocabulary,
    }


def read_through(pool: ExpertPool) -> None:
    """Hashes and reads base and experts; raises as `ExpertPool.check_finite`."""
    with megabytes(pool.reading_bytes, "hashing and reading base and experts") as (_, on_bytes):
        pool.check_finite(on_bytes)


def hold(config: DictConfig, pool: ExpertPool, machine: Machine) -> ExpertPool:
    """Returns the pool where its merges run.

    Experts that the device cannot hold are streamed from host memory; those that the machine
    cannot hold stay in their files, of which the system keeps in memory what there is room for.
    """
    stream, on_host = config.stream, machine.device.type == "cpu"
    if stream == "auto":
        stream = fills(pool, free_bytes(machine.device))
    with ProgressBar(1 + len(pool.experts), "holding base and experts", "model") as bar:
        return pool.resident(
            machine.device,
            stream=stream and not on_host,
            shared=stream and on_host,
            cache_bytes=kept_limit(config, machine.device),
            on_model=bar.update,
        )


def kept_limit(config: DictConfig, device: torch.device) -> int:
    """Returns the most bytes of what is kept because no candidate changes it."""
    if config.keep_gb is not None:
        return int(config.keep_gb * 1e9)
    return free_bytes(device) // _KEPT_SHARE


def open_resident(pool: ExpertPool, machine: Machine, layers: int | None = None) -> Resident:
    """Returns the model whose weights are replaced, of so many layers (None: the base's)."""
    from evaluators.engine.resident import Resident

    with ProgressBar(1, "loading the model", "model") as bar:
        resident = Resident.from_pool(
            pool, device=machine.device, dtype=machine.dtype, layers=layers
        )
        bar.update()
        return resident


def fills(pool: ExpertPool, free_bytes: int) -> bool:
    """Returns whether base and whole experts take more than half of the memory that is free.

    The other half is for the resident model, its passes, and what no candidate changes.
    """
    base = pool.base
    one = sum(base.shape(name).numel() * base.dtype(name).itemsize for name in pool.names)
    whole = sum(isinstance(expert, CheckpointExpert) for expert in pool.experts.values())
    return one * (1 + whole) > free_bytes // 2


def open_engine(config: DictConfig, resident: Resident) -> Engine:
    """Returns the engine that scores whatever `resident` holds.

    Where half precision would let private items change one another's scores it asks one by one.
    """
    from evaluators.engine.engine import Engine

    alone = bool(config.get("privacy")) and resident.dtype != torch.float32
    return Engine(
        resident,
        batch_tokens=1 if alone else config.batch_tokens,
        timeout_s=config.timeout_s,
        compile=config.compile,
    )


def open_model(config: DictConfig, pool: ExpertPool, engine: Engine) -> Model:
    """Returns what scores candidates: the engine's resident model, or what ``backend`` names.

    Raises:
        ValueError: nothing answers there, or it cannot answer for these experts.
    """
    from evaluators.engine.model import ResidentModel

    if not config.backend:
        return ResidentModel(engine.resident, engine)
    served: Model = open_part(config.backend)(pool, engine.resident.info)
    return served


def open_panels(config: DictConfig, resident: Resident) -> dict[Split, Panel]:
    """Returns the evaluators of the splits that the configuration names; see `open_panel`.

    No two of them share an item. What a later panel would lose to private items tells who is among
    these, so that with ``privacy`` an overlap is always refused.

    Raises:
        ValueError: two panels read the same data, a task's items are all those of others, or an
            overlap is refused; names both splits and tasks.
    """
    entries: dict[Split, DictConfig | None] = {
        "search": config.search_on,
        "selection": config.select_on,
        "report": config.report_on,
    }
    opened = {split: open_panel(split, entry, resident) for split, entry in entries.items()}
    apart: dict[Split, Panel] = {}
    for split, panel in opened.items():
        if panel is None:
            continue
        if config.overlap == "refuse" or config.privacy:
            for earlier in apart.values():
                earlier.check_apart(panel)
        apart[split] = panel.without(list(apart.values()))
    return apart


def open_panel(split: Split, entries: DictConfig | None, resident: Resident) -> Panel | None:
    """Returns the evaluators of one split; None where the configuration names none.

    Raises:
        ValueError: a task's name would be ambiguous in metric names and files.
    """
    if not entries:
        return None
    from evaluators.panel import Panel

    evaluators = {}
    with ProgressBar(len(entries), f"preparing {split} items", "task") as bar:
        for task, entry in entries.items():
            if not _TASK.fullmatch(str(task)):
                raise ValueError(
                    f"task {task!r}: name it with letters, digits, '.', '_' and '-' only"
                )
            if entry is not None:
                evaluators[str(task)] = open_part(entry)(model=resident.info)
            bar.update()
    return Panel(split, evaluators)


def open_part(entry: DictConfig) -> Any:
    """Returns what an entry of the configuration builds; still to be completed if `_partial_`."""
    return instantiate(entry, _convert_="all")
