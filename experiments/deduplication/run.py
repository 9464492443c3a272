"""Models deduplicated from end to end: `evomerge zoo dedup`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from evaluators.requests import EvaluationError, TransientFailure
from experiments.deduplication.models import DedupModel, Taking, assign
from experiments.deduplication.storing import check_name, check_room, store
from experiments.deduplication.summary import SUMMARY_FILE, lines, summary_of
from experiments.deduplication.targets import Deduplicated, Means, deduplicate_target
from experiments.deduplication.validation import PrivateValidation
from experiments.runs.directory import (
    check_ingredients,
    clear_drafts,
    locked,
    make_run,
    plan_run,
    run_identity,
)
from experiments.runs.errors import UserError, explained
from experiments.runs.files import read_json
from experiments.runs.options import check_groups, check_options
from experiments.runs.starts import PUBLIC_NOISE, check_starts, write_start
from experiments.searches.private_key import (
    destroy,
    open_noise,
    release_by_seed,
    release_of,
    seeded_noise,
)
from experiments.setup import assemble
from experiments.setup.dry_run import check_data
from experiments.setup.private_checks import check_engine
from experiments.zoo.dates import hide_dates
from experiments.zoo.opening import open_sources
from merging.files import write_text
from merging.privacy.composition import Price
from merging.weights import CheckpointError
from merging.zoo.store import Zoo
from search.deduplication.schedules import DedupSchedule
from search.loop.jsonl import DamagedFileError

_EXPLAINED = (
    EvaluationError,
    TransientFailure,
    CheckpointError,
    DamagedFileError,
    ValueError,
    OSError,
)


def run_dedup(config: DictConfig) -> dict[str, Any]:
    """Deduplicates ``config.models`` and adds what comes of them to the zoo ``config.store``.

    Prints a table and writes ``summary.json`` into the run's directory. A run that was stopped
    continues from its written answers; a finished one shows its table again.

    Returns:
        The summary; see `summary_of`.

    Raises:
        UserError: wrong input, found before long work; or a model that cannot be scored.
    """
    with explained():
        check_options(config)
        check_groups(config)
        run = plan_run(config, "blocks")
    if not (run / SUMMARY_FILE).exists():
        _work(run, config)
    if config.privacy:
        _seal(run, config)  # a start that was killed may not have come so far
    summary = read_json(run / SUMMARY_FILE)
    print(*lines(summary), *_absent(config, summary), run, sep="\n")
    return summary


def _work(run: Path, config: DictConfig) -> None:
    """Deduplicates all targets and writes the summary."""
    with explained():
        job = _Job.open(config, run)
    with locked(run):
        clear_drafts(run)
        make_run(run, config)
        try:
            summary = job.done()
        except _EXPLAINED as error:
            raise UserError(str(error)) from error
        write_text(run / SUMMARY_FILE, json.dumps(summary, indent=2) + "\n")


def _absent(config: DictConfig, summary: Mapping[str, Any]) -> list[str]:
    """Returns notes on what a run that had ended before it was told of the zoo did not add."""
    there = {one.name for one in _zoo(config).models()} if config.save else set[str]()
    names = {f"{name}{config.suffix}": one for name, one in summary["targets"].items()}
    return [
        f"note: {name} is not in the zoo: what has ended adds nothing; choose another out="
        for name, one in names.items()
        if config.save and name not in there and one["new_blocks"] < one["blocks"]
    ]


def _seal(run: Path, config: DictConfig) -> None:
    """Destroys what must not be released with a private run that has ended."""
    destroy(run)
    if config.save:
        hide_dates(_zoo(config))


def _zoo(config: DictConfig) -> Zoo:
    return Zoo.open(None if config.store is None else Path(config.store), create=True)


@dataclass(frozen=True, eq=False)
class _Job:
    """What a run is made of, checked.

    Args:
        plan: who takes blocks of whom, in order.
        zoo: where results go; None: nowhere.
    """

    config: DictConfig
    run: Path
    models: Mapping[str, DedupModel]
    plan: Sequence[Taking]
    schedule: DedupSchedule
    privacy: PrivateValidation | None
    zoo: Zoo | None

    @classmethod
    def open(cls, config: DictConfig, run: Path) -> _Job:
        """Returns the job after all checks that need no weights."""
        schedule: DedupSchedule = assemble.open_part(config.schedule)
        privacy = _open_privacy(config, schedule)
        if privacy is not None:
            check_starts()
        _check_panels(config)
        open_sources(map(str, config.models.values()))
        models = {
            str(name): DedupModel.open(
                str(name),
                str(source),
                config.block_size,
                base=name in (config.bases or ()),
                trust_remote_code=config.trust_remote_code,
            )
            for name, source in config.models.items()
        }
        plan = _plan(config, models, privacy)
        zoo = None
        if config.save:
            zoo = _zoo(config)
            _check_places(config, zoo, models, plan)
        return cls(config, run, models, plan, schedule, privacy, zoo)

    def done(self) -> dict[str, Any]:
        """Returns the summary; every target is in the zoo before the next is begun."""
        identities = {name: model.checkpoint.sha256 for name, model in self.models.items()}
        check_ingredients(self.run, {"models": identities})
        means, done = self._means(), list[Deduplicated]()
        for one in self.plan:
            self._start(means, self.models[one.target])
        for one in self.plan:
            target, bases = self.models[one.target], [self.models[name] for name in one.bases]
            before = done[-1] if done and self.config.fair else None
            takers = [other for other in done if target in other.bases]
            result = deduplicate_target(means, target, bases, takers=takers, before=before)
            if self.zoo is not None and result.substitution.removed:
                name = f"{one.target}{self.config.suffix}"
                store(self.zoo, name, target, bases, result.substitution, result.ledger)
            done.append(result)
        if self.zoo is not None:
            self.zoo.gc()
        return summary_of(done, self.models)

    def _means(self) -> Means:
        privacy, noise, release = self.privacy, None, ""
        identity = run_identity(self.config)
        belongs = [identity, *(model.checkpoint.sha256 for model in self.models.values())]
        if privacy is not None and privacy.randomness == "secret":
            begun = any(self.run.glob("answers-*.jsonl"))
            noise = open_noise(self.run, belongs, begun=begun)
            release = str(release_of(self.run))
        elif privacy is not None:
            noise = seeded_noise(self.config.seed, belongs)
            release = release_by_seed(identity)
        return Means(self.config, self.run, self.schedule, privacy, noise, release)

    def _start(self, means: Means, target: DedupModel) -> None:
        """Writes down what the target's checks may cost, before the first."""
        if self.privacy is not None:
            spend = self.privacy.spend(target.name, means.release)
            price = Price(spend.epsilon, spend.delta)
            void = None if means.void is None else PUBLIC_NOISE
            write_start(spend.dataset, str(spend.release), price, self.run, void=void)


def _check_places(
    config: DictConfig, zoo: Zoo, models: Mapping[str, DedupModel], plan: Sequence[Taking]
) -> None:
    """Refuses, before any work, models that would not come into the zoo."""
    for one in plan:
        name, bases = f"{one.target}{config.suffix}", [models[base] for base in one.bases]
        if name in models:
            raise ValueError(f"{name} is the name of one of the models: choose another suffix")
        check_name(zoo, name, models[one.target], bases)
    check_room(zoo, [models[name] for one in plan for name in (one.target, *one.bases)])


def _plan(
    config: DictConfig, models: Mapping[str, DedupModel], privacy: PrivateValidation | None
) -> list[Taking]:
    plan = assign(
        models,
        bases=list(config.bases or []),
        plan=config.plan,
        ceilings={str(k): float(v) for k, v in (config.ceilings or {}).items()},
        fair=config.fair,
        checks=lambda target: [] if privacy is None else [privacy.spend(target, "a run")],
    )
    if not plan:
        raise ValueError(
            "no model can take blocks of another: name models of one architecture and the same "
            "data, or bases=[NAME]; or raise ceilings, inf where a promise of privacy may be lost"
        )
    return plan


def _open_privacy(config: DictConfig, schedule: DedupSchedule) -> PrivateValidation | None:
    if not config.privacy:
        return None
    privacy = assemble.open_part(config.privacy)
    if not isinstance(privacy, PrivateValidation):
        raise ValueError("this is a deduplication: choose privacy=validation")
    if schedule.failures is None:
        raise ValueError(
            "privacy: the noes are what is paid for: set how many there may be for each target, "
            "for example schedule.failures=3"
        )
    check_engine(config, assemble.open_machine(config).dtype)
    return privacy


def _check_panels(config: DictConfig) -> None:
    for panel in (config.check_on, config.saliency_on, config.report_on):
        check_data(panel)
    if not any((config.check_on or {}).values()):
        raise ValueError(
            "check_on names no evaluator, so that nothing says which blocks may go: choose a "
            "group, for example evaluator@check_on=accuracy"
        )
    if assemble.open_part(config.saliency).reads_items and not any(
        (config.saliency_on or {}).values()
    ):
        raise ValueError(
            "saliency_on names no evaluator: choose a group of public items, for example "
            "evaluator@saliency_on=accuracy, or saliency=magnitude"
        )
