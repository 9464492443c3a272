"""What a benchmark suite consists of: settings, tables and variants, checked, and every run."""

import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any, TypeVar

from experiments.runs.errors import UserError

Part = TypeVar("Part")


@dataclass(frozen=True)
class SuiteSetting:
    """Experts, evaluators and budget that variants are compared in."""

    title: str
    options: Sequence[str]
    seeds: Sequence[int]


@dataclass(frozen=True)
class SuiteTable:
    """One comparison on the page.

    Args:
        variants: what is compared: name to overrides; null: it is left out.
        against: labels of variants, separated by ``|``, whose best one the others are tested
            against; None: all against all.
        settings: where; None: in all.
        seeds: of the runs; None: those of each setting.
        models: show base, experts and static merges of one run instead.
    """

    title: str
    variants: Mapping[str, Sequence[str] | None]
    against: str | None = None
    settings: Sequence[str] | None = None
    seeds: Sequence[int] | None = None
    models: bool = False


@dataclass(frozen=True)
class Suite:
    """Searches on equal terms, and the page that compares them.

    Args:
        results: page that the plain command writes beside its runs; None: none.
        values: what options read, as ``${suite.values.NAME}``.
        fast: take what `small` replaces, for a trial.
        small: its settings have names of their own: their runs share no directory with others.
    """

    title: str
    workers: int
    results: str | None
    options: Sequence[str]
    settings: Mapping[str, SuiteSetting]
    tables: Mapping[str, SuiteTable]
    values: Mapping[str, Any] | None = None
    fast: bool = False
    small: Mapping[str, Any] | None = None


@dataclass(frozen=True)
class PlannedRun:
    """One run of a suite.

    Args:
        variant: what is compared, as the page names it.
        options: overrides of the search's configuration.
        private: whether it reads private items. Nothing is written of how long such a run took
            or why it failed, nor what it says to a terminal.
    """

    table: str
    setting: str
    variant: str
    seed: int
    options: tuple[str, ...]
    directory: Path
    private: bool = False

    @property
    def overrides(self) -> list[str]:
        """All overrides, with seed, name and directory."""
        out = str(self.directory.absolute())
        return [*self.options, f"seed={self.seed}", f"out='{out}'", f"name='{self.variant}'"]


def checked_suite(content: Any) -> Suite:
    """Returns the suite without what is null; raises UserError, naming an option that is wrong."""
    suite = _part(Suite, "suite", content)
    if suite.fast:
        suite = _part(Suite, "suite", _replaced(content, suite.small or {}))
    if not isinstance(suite.workers, int) or suite.workers < 1:
        raise UserError(f"suite.workers={suite.workers}: it must be at least 1")
    settings = {
        name: _part(SuiteSetting, f"suite.settings.{name}", setting)
        for name, setting in suite.settings.items()
        if setting
    }
    tables = {name: _table(name, table) for name, table in suite.tables.items() if table}
    left_out = {name for name, setting in suite.settings.items() if not setting}
    return replace(suite, settings=settings, tables=_without(tables, left_out))


def _without(tables: Mapping[str, SuiteTable], left_out: Collection[str]) -> dict[str, SuiteTable]:
    """Returns the tables without these settings, and without those tables that name no other."""
    kept = {}
    for name, table in tables.items():
        named = [setting for setting in table.settings or () if setting not in left_out]
        if named or not table.settings:
            kept[name] = replace(table, settings=named)
    return kept


def _replaced(content: Mapping[str, Any], small: Mapping[str, Any]) -> dict[str, Any]:
    """Returns `content` with the entries of `small`, mapping by mapping."""
    changed = {
        key: _replaced(content[key], value)
        if isinstance(value, Mapping) and isinstance(content.get(key), Mapping)
        else value
        for key, value in small.items()
    }
    return {**content, **changed}


def _table(name: str, content: Any) -> SuiteTable:
    where = f"suite.tables.{name}"
    table = _part(SuiteTable, where, content)
    variants = {key: options for key, options in table.variants.items() if options is not None}
    for label in (part.strip() for part in str(table.against or "").split("|")):
        if label and label not in variants:
            raise UserError(
                f"{where}.against: there is no variant {label!r}, only {', '.join(variants)}"
            )
    return replace(table, variants=variants)


def _part(kind: type[Part], where: str, content: Any) -> Part:
    """Returns a part of the plan from the mapping that has its fields as keys."""
    known = {field.name: field.default is MISSING for field in fields(kind)}  # type: ignore[arg-type]
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: expected a mapping with {', '.join(known)}, got {content!r}")
    for key, needed in known.items():
        if needed and key not in content:
            raise UserError(f"{where}.{key} is missing")
    if unknown := sorted(set(content) - set(known)):
        raise UserError(f"{where}.{unknown[0]} is unknown: expected {', '.join(known)}")
    return kind(**content)


def planned_runs(suite: Suite, root: Path) -> list[PlannedRun]:
    """Returns every run: tables, in each the settings, in each the seeds, in each the variants.

    The seed comes before the variant, so that a suite that is stopped early can be compared.
    UserError: a table names a setting that there is not, or two variants share a directory.
    """
    runs: dict[Path, PlannedRun] = {}
    for name, table in suite.tables.items():
        for where in table.settings or list(suite.settings):
            if where not in suite.settings:
                raise UserError(
                    f"suite.tables.{name}.settings: there is no setting {where!r}, only "
                    f"{', '.join(suite.settings)}"
                )
            setting = suite.settings[where]
            for seed in table.seeds or setting.seeds:
                for variant, options in table.variants.items():
                    run = PlannedRun(
                        table=name,
                        setting=where,
                        variant=variant,
                        seed=int(seed),
                        options=(*setting.options, *suite.options, *(options or ())),
                        directory=root / where / _slug(name) / f"{_slug(variant)}-s{seed}",
                    )
                    if other := runs.get(run.directory):
                        raise UserError(
                            f"suite: variants {other.variant!r} and {variant!r} share the "
                            f"directory {run.directory}: give them names that differ in letters "
                            "or digits"
                        )
                    runs[run.directory] = run
    return list(runs.values())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")
