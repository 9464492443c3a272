"""What a contest consists of: its worlds, tables and arms, checked, and every run of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.runs.errors import UserError

# key: whether it must be there
_PLAN = dict.fromkeys(("title", "workers", "results", "options", "worlds", "tables"), True)
_PLAN["values"] = False  # what options of worlds and arms read, as ${contest.values.NAME}
_WORLD = {"title": True, "options": True, "seeds": True}
_TABLE = {"title": True, "arms": True, "against": False, "worlds": False, "seeds": False}
_TABLE["models"] = False


@dataclass(frozen=True)
class Entry:
    """One run of a contest.

    Args:
        table: which comparison it belongs to.
        world: experts, evaluators and budget.
        arm: what is compared, as the page names it.
        seed: of the run.
        options: overrides of the search's configuration.
        run: its directory.
    """

    table: str
    world: str
    arm: str
    seed: int
    options: tuple[str, ...]
    run: Path

    @property
    def overrides(self) -> list[str]:
        """All overrides, with seed, name and directory."""
        out = str(self.run.absolute())
        return [*self.options, f"seed={self.seed}", f"out='{out}'", f"name='{self.arm}'"]


def checked_plan(plan: Any) -> dict[str, Any]:
    """Returns the contest's options without what is switched off (null).

    Raises:
        UserError: one is missing, unknown or has no meaning; names it.
    """
    _check_keys("contest", plan, _PLAN)
    if not isinstance(plan["workers"], int) or plan["workers"] < 1:
        raise UserError(f"contest.workers={plan['workers']}: it must be at least 1")
    worlds = {name: world for name, world in plan["worlds"].items() if world}
    for name, world in worlds.items():
        _check_keys(f"contest.worlds.{name}", world, _WORLD)
    tables = {name: _checked_table(name, t) for name, t in plan["tables"].items() if t}
    return {**plan, "worlds": worlds, "tables": tables}


def _checked_table(name: str, table: Any) -> dict[str, Any]:
    where = f"contest.tables.{name}"
    _check_keys(where, table, _TABLE)
    arms = {arm: options for arm, options in table["arms"].items() if options is not None}
    wanted = [part.strip() for part in str(table.get("against") or "").split("|") if part.strip()]
    unknown = [part for part in wanted if part not in arms]
    if unknown:
        raise UserError(f"{where}.against: there is no arm {unknown[0]!r}, only {', '.join(arms)}")
    return {**table, "arms": arms}


def _check_keys(where: str, given: Any, wanted: Mapping[str, bool]) -> None:
    if not isinstance(given, Mapping):
        raise UserError(f"{where}: expected a mapping with {', '.join(wanted)}, got {given!r}")
    for key, needed in wanted.items():
        if needed and key not in given:
            raise UserError(f"{where}.{key} is missing")
    if unknown := sorted(set(given) - set(wanted)):
        raise UserError(f"{where}.{unknown[0]} is unknown: expected {', '.join(wanted)}")


def plan_entries(plan: Mapping[str, Any], root: Path) -> list[Entry]:
    """Returns every run: tables, in each the worlds, in each the seeds, in each the arms.

    The seed comes before the arm, so that a contest that is stopped early can be compared.

    Raises:
        UserError: a table names a world that there is not, or two arms share a directory.
    """
    entries: dict[Path, Entry] = {}
    for table, content in plan["tables"].items():
        for world in content.get("worlds") or list(plan["worlds"]):
            if world not in plan["worlds"]:
                raise UserError(
                    f"contest.tables.{table}.worlds: there is no world {world!r}, only "
                    f"{', '.join(plan['worlds'])}"
                )
            for seed in content.get("seeds") or plan["worlds"][world]["seeds"]:
                for arm, options in content["arms"].items():
                    entry = Entry(
                        table=table,
                        world=world,
                        arm=arm,
                        seed=int(seed),
                        options=(*plan["worlds"][world]["options"], *plan["options"], *options),
                        run=root / world / _slug(table) / f"{_slug(arm)}-s{seed}",
                    )
                    if other := entries.get(entry.run):
                        raise UserError(
                            f"contest: arms {other.arm!r} and {arm!r} share the directory "
                            f"{entry.run}: give them names that differ in letters or digits"
                        )
                    entries[entry.run] = entry
    return list(entries.values())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
