"""Statistics of every expert's data on disk: `evomerge statistics`."""

from __future__ import annotations

import dataclasses
import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from evaluators.engine.engine import BATCH_TOKENS
from evaluators.engine.resident import Resident
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, TransientFailure
from experiments.gathering.fisher import gather_fisher
from experiments.gathering.gram import LinearLayers, gather_gram
from experiments.gathering.items import Item, batches_of, digest_of, items_of, pads
from experiments.gathering.private import PrivateStatistics, units_of
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.directory import check_writable, clear_drafts, locked
from experiments.runs.errors import UserError, explained
from experiments.runs.options import check_groups, check_options
from experiments.runs.progress import ProgressBar
from experiments.runs.starts import beside_others, check_starts, write_start
from experiments.setup import assemble
from experiments.setup.dry_run import check_data
from experiments.setup.own_tasks import with_tasks
from experiments.setup.private_checks import check_items, check_shown
from merging.checkpoints.experts import ExpertPool
from merging.files import date_alike
from merging.privacy.composition import Price
from merging.privacy.ledger import Ledger
from merging.recipe import dtype_name
from merging.statistics_files import (
    Origin,
    path_of,
    read_origin,
    records_of,
    write_statistics,
)
from merging.weights import CheckpointError


def run_statistics(config: DictConfig) -> None:
    """Writes one file per expert to ``config.out``; a file that is there already is kept.

    Raises:
        UserError: wrong input, found before the first pass; or an expert that cannot be asked.
    """
    with explained():
        check_options(config)
        config = with_tasks(config)
        check_groups(config)
        check_data(config.gather_on)
        gathering = _Gathering.open(config)
        out = Path(config.out)
        check_writable(out, "out", gathering.file_bytes * len(gathering.pool.expert_names))
        assemble.read_through(gathering.pool)
        out.mkdir(parents=True, exist_ok=True)
    print(gathering.summary)
    with locked(out):
        clear_drafts(out)
        try:
            files = []
            for name in gathering.pool.expert_names:
                files.append(gathering.file(name, out))
                print(f"{name:<11} {files[-1]}")
            if gathering.private is not None:
                date_alike([*files, out])
                print(*_privacy_lines(out), sep="\n")
        except (EvaluationError, TransientFailure, CheckpointError, ValueError, OSError) as error:
            raise UserError(str(error)) from error
        except torch.OutOfMemoryError as error:
            raise UserError(
                f"out of memory ({str(error).splitlines()[0]}): lower batch_tokens, or take a "
                "smaller dtype or another device"
            ) from error


def tasks_of(
    per_expert: Any, experts: Sequence[str], tasks: Sequence[str]
) -> dict[str, list[str]]:
    """Returns expert to the tasks whose items it sees, in the panel's order; default: all.

    ValueError: `per_expert` names an unknown expert or task, or gives an expert none.
    """
    chosen = {name: list(tasks) for name in experts}
    for name, wanted in (per_expert or {}).items():
        if name not in chosen:
            raise ValueError(
                f"per_expert names {name!r}, which is no expert: expected {', '.join(experts)}"
            )
        if unknown := [task for task in wanted if task not in tasks]:
            raise ValueError(
                f"per_expert.{name} names {unknown[0]!r}, which is no task of gather_on: "
                f"expected {', '.join(tasks)}"
            )
        if not wanted:
            raise ValueError(f"per_expert.{name} is empty: name a task, or leave {name} out")
        chosen[name] = [task for task in tasks if task in wanted]
    return chosen


@dataclasses.dataclass(frozen=True, eq=False)
class _Gathering:
    """Experts, their items, and the one model that they are written into."""

    kind: Any
    seed: int
    batch_tokens: int
    pool: ExpertPool
    resident: Resident
    layers: LinearLayers
    items: Mapping[str, Sequence[Item]]
    units: Mapping[str, Sequence[Sequence[Item]]]
    private: PrivateStatistics | None

    @classmethod
    def open(cls, config: DictConfig) -> _Gathering:
        machine = assemble.open_machine(config)
        pool = assemble.open_pool(config)
        resident = Resident.from_pool(pool, device=machine.device, dtype=machine.dtype)
        panel = assemble.open_panel("search", config.gather_on, resident)
        if panel is None:
            raise UserError(
                "gather_on names no evaluator: choose a group, e.g. evaluator@gather_on=perplexity"
            )
        wanted = OmegaConf.to_container(config.per_expert) if config.per_expert else None
        tasks = tasks_of(wanted, pool.expert_names, list(panel.evaluators))
        private = _open_private(config, pool.expert_names)
        length = resident.info.max_length
        units = {}
        if private is not None:
            check_shown([panel], [panel])
            for name, several in tasks.items():
                read = {task: panel.evaluators[task] for task in several}
                check_items(Panel("search", read), private.delta)
                units[name] = units_of(panel, several, length)
        return cls(
            config.kind,
            config.seed if config.kind == "fisher" else 0,
            config.batch_tokens or BATCH_TOKENS,
            pool,
            resident,
            LinearLayers.of(resident.module, pool.names),
            _items(panel, tasks, length),
            units,
            private,
        )

    @property
    def file_bytes(self) -> int:
        """Size of one expert's file."""
        return 4 * sum(map(math.prod, self.shapes.values()))

    @property
    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Shape of every statistic of an expert."""
        if self.kind == "gram":
            return {name: (self.layers.width(name),) * 2 for name in self.layers.modules}
        return {name: tuple(self.pool.base.shape(name)) for name in self.pool.names}

    @property
    def summary(self) -> str:
        """What will be gathered, for a person."""
        what = {
            "gram": f"Gram matrices of {len(self.layers.modules)} linear layers",
            "fisher": f"Fisher information of {len(self.pool.names)} parameters",
        }[self.kind]
        return (
            f"{what}, {self.file_bytes / 1e6:.1f} MB for each of "
            f"{len(self.pool.expert_names)} experts, "
            f"{self.resident.device} {dtype_name(self.resident.dtype)}"
        )

    def file(self, name: str, out: Path) -> Path:
        """Returns an expert's file, gathered now unless it is there.

        Raises:
            ValueError: a file is there that was gathered from something else.
            EvaluationError: the expert cannot be asked, or a statistic is not finite.
        """
        origin = self._origin(name)
        path = path_of(out, self.kind, origin.expert)
        if path.exists():
            _refuse_other(path, name, _unnamed(read_origin(path)), origin)
            return path
        self.resident.write(self.pool.expert_weights(name))
        tensors = self._gathered(name, origin)
        for tensor, value in tensors.items():
            if not bool(value.isfinite().all()):
                raise EvaluationError(
                    f"expert {name!r}: the statistics of {tensor} are not finite: gather in "
                    "dtype=float32 and leave out items that overflow"
                )
        if (spend := origin.privacy) is not None:  # what dies before has left nothing
            release = f"statistics {secrets.token_hex(8)}"
            write_start(origin.data, release, Price(spend["epsilon"], spend["delta"]), path)
            origin = dataclasses.replace(origin, privacy={**spend, "release": release})
        return write_statistics(out, origin, tensors)

    def _origin(self, name: str) -> Origin:
        items = self.items[name]
        gram = self.kind == "gram"
        spend = None if self.private is None else self.private.spend(name, self.kind)
        return Origin(
            kind=self.kind,
            expert=self.pool.experts[name].sha256,
            base=self.pool.base.sha256,
            data=digest_of(items) if spend is None else spend.dataset,
            dtype=str(dtype_name(self.resident.dtype)),
            seed=self.seed,
            items=len(items) if spend is None else len(self.units[name]),
            tokens=sum(item.tokens for item in items) if spend is None else 0,
            privacy=None if spend is None else spend.to_json(),
            transposed=self.layers.transposed if gram else (),
            averaged=self.layers.averaged if gram else (),
        )

    def _gathered(self, name: str, origin: Origin) -> dict[str, Tensor]:
        items = self.items[name] if self.private is None else self.units[name]
        with ProgressBar(len(items), name, "item") as bar:
            if self.private is not None:
                gather = partial(self._statistics, name, origin, advance=lambda _: None)
                return self.private.release(
                    self.units[name], gather, origin.kind, self.shapes, advance=bar.update
                )
            return self._statistics(name, origin, self.items[name], advance=bar.update)

    def _statistics(
        self, name: str, origin: Origin, items: Sequence[Item], *, advance: Callable[[int], object]
    ) -> dict[str, Tensor]:
        """Returns the statistics of the expert that is held, on some items, without noise."""
        if self.kind == "gram":
            limit = self.batch_tokens if pads(self.resident, name) else 1
            batches = batches_of(items, limit)
            return gather_gram(self.resident, name, batches, self.layers, advance=advance)
        return gather_fisher(
            self.resident,
            name,
            items,
            self.pool.names,
            seed=origin.seed,
            expert=origin.expert,
            advance=advance,
        )


def _open_private(config: DictConfig, experts: Sequence[str]) -> PrivateStatistics | None:
    """Returns how statistics are released with noise; None: they are written as they are."""
    if not config.privacy:
        return None
    private = assemble.open_part(config.privacy)
    if not isinstance(private, PrivateStatistics):
        raise UserError("these are statistics, no search: choose privacy=statistics")
    private.check(experts)
    check_starts()
    return private


def _items(
    panel: Panel, tasks: Mapping[str, Sequence[str]], max_length: int
) -> dict[str, list[Item]]:
    """Returns expert to items; experts with the same tasks share them."""
    by_task = {
        task: items_of(evaluator.items.requests, max_length)
        for task, evaluator in panel.evaluators.items()
    }
    return {
        name: [item for task in chosen for item in by_task[task]] for name, chosen in tasks.items()
    }


def _privacy_lines(out: Path) -> list[str]:
    """Returns what all released statistics in a directory have cost, beside other runs."""
    ledger = Ledger()
    for sha256, record in records_of(out).values():
        ledger = ledger if record is None else ledger.read(record, "the statistics", sha256)
    return privacy_lines(beside_others(ledger, "directory").describe())


def _unnamed(origin: Origin) -> Origin:
    """Returns the origin without the identity of its release, which differs with every one."""
    if origin.privacy is None:
        return origin
    return dataclasses.replace(origin, privacy={**origin.privacy, "release": None})


def _refuse_other(path: Path, name: str, there: Origin, now: Origin) -> None:
    before, after = dataclasses.asdict(there), dataclasses.asdict(now)
    changed = [key for key in after if before[key] != after[key]]
    if changed:
        key = changed[0]
        raise ValueError(
            f"{path} of expert {name!r} was gathered otherwise ({key}: {before[key]!r:.60} there, "
            f"{after[key]!r:.60} now): delete it, or name another out="
        )
