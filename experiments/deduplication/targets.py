"""One target of a run: loaded, measured, asked about, and what it has become."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from experiments.deduplication.answers import MeasuredTarget, WrittenAnswers
from experiments.deduplication.loaded import LoadedTarget
from experiments.deduplication.models import DedupModel
from experiments.deduplication.plan import deduplicate
from experiments.deduplication.saliency.saliency import Saliency
from experiments.deduplication.validation import (
    Checks,
    ExactChecks,
    Floor,
    NoisyChecks,
    PrivateValidation,
    main_scores,
)
from experiments.runs.directory import check_ingredients
from experiments.runs.progress import ProgressBar
from experiments.runs.starts import beside_others
from experiments.setup import assemble
from experiments.setup.private_checks import check_items, check_shown
from merging.arrays import Vector
from merging.checkpoints.privacy_record import PrivacySpend
from merging.deduplication.saliency import block_saliency
from merging.deduplication.substitution import Candidates, Substitution
from merging.privacy.deduplicated import deduplicated
from merging.privacy.ledger import Ledger
from search.deduplication.schedules import Asked, DedupSchedule
from search.privacy.private_noise import SecretNoise


@dataclass(frozen=True, eq=False)
class Means:
    """What all targets of a run share.

    Args:
        directory: of the run.
        noise: None: the checks are not private.
        release: identity of what the run releases.
    """

    config: DictConfig
    directory: Path
    schedule: DedupSchedule
    privacy: PrivateValidation | None
    noise: SecretNoise | None
    release: str

    def spends(self, target: str) -> list[PrivacySpend]:
        """Returns what a target's checks cost, as far as their noise is secret."""
        if self.privacy is None or self.void is not None:
            return []
        return [self.privacy.spend(target, self.release)]

    @property
    def void(self) -> str | None:
        """What promises nothing, because its noise is public; None: none is."""
        if self.privacy is None or self.privacy.randomness == "secret":
            return None
        return f"the checks on {self.privacy.data}, whose noise follows from its public seed"

    def answers_file(self, target: str) -> Path:
        """Returns where a target's answers are written."""
        return self.directory / f"answers-{target}.jsonl"


@dataclass(frozen=True, eq=False)
class Deduplicated:
    """What a target has become.

    Args:
        asked: all questions and answers.
        ledger: of the deduplicated model.
        spent: of all that its blocks and scores follow from, those of a model that stays whole
            too: for models that are made to fit it.
        checked: its main scores on the items of the checks: not to be shown where these are
            private.
        scores: split to whose ("original", "deduplicated", "base" in its place) to metric to
            value; of public items alone.
    """

    model: DedupModel
    bases: tuple[DedupModel, ...]
    substitution: Substitution
    asked: Asked
    ledger: Ledger
    spent: Ledger
    checked: Mapping[str, Score]
    scores: Mapping[str, Mapping[str, Mapping[str, float]]]


def deduplicate_target(
    means: Means,
    model: DedupModel,
    bases: Sequence[DedupModel],
    *,
    takers: Sequence[Deduplicated] = (),
    before: Deduplicated | None = None,
) -> Deduplicated:
    """Returns what a target becomes of the blocks of `bases`.

    It follows from all that these have become, too, so that it costs what they cost.

    Args:
        takers: models that could take blocks of it; those that they took must stay.
        before: the model that it must be at least as accurate as.

    Raises:
        ValueError, EvaluationError: models, items or options that do not fit each other.
    """
    config = means.config
    machine = assemble.open_machine(config)
    loaded = LoadedTarget.of(
        model.source,
        device=machine.device,
        dtype=machine.dtype,
        engine=partial(assemble.open_engine, config),
        trust_remote_code=config.trust_remote_code,
    )
    panels = _panels(config, loaded, private=means.privacy is not None)
    _check_items(means, model, panels)
    saliency = _saliency(config, means.directory, model, loaded, panels.pop("saliency", None))
    candidates = _candidates(model, bases)
    private = None if means.privacy is None else panels["check"]
    measured = MeasuredTarget(loaded, candidates, private)
    public = [split for split in panels if split != "check" or means.privacy is None]
    originals = _asked(measured, panels, measured.original)
    in_place = _in_place(loaded, model, bases, {split: panels[split] for split in public})
    floors = [Floor(originals["check"], config.tolerance)]
    if before is not None:
        floors.append(Floor(before.checked))
    check = panels["check"]
    checks = _checks(means, model, check, floors)
    with _questions(means.schedule, model) as told:
        answers = WrittenAnswers(
            means.answers_file(model.name), measured, panels["check"], checks, told
        )
        substitution, asked = deduplicate(
            candidates, saliency, means.schedule, answers, keep=_lent(model, takers)
        )
    after = _asked(measured, panels, substitution)
    spent = _spent(means, model, bases, [*takers, *([] if before is None else [before])])
    # where no block may go it is the model that it was
    ledger = beside_others(spent, "deduplication") if substitution.removed else model.ledger
    return Deduplicated(
        model,
        tuple(bases),
        substitution,
        asked,
        ledger,
        spent,
        after["check"],
        {
            split: {
                "original": _values(originals[split]),
                "deduplicated": _values(after[split]),
                **({"base": _values(in_place[split])} if split in in_place else {}),
            }
            for split in public
        },
    )


def _spent(
    means: Means, model: DedupModel, bases: Sequence[DedupModel], read: Sequence[Deduplicated]
) -> Ledger:
    """Returns what a target costs that follows from its bases and what was made before."""
    before = [base.ledger for base in bases] + [one.spent for one in read]
    spent = deduplicated(model.ledger, before, means.spends(model.name))
    return spent if means.void is None else spent.read(None, means.void, None)


def _panels(config: DictConfig, loaded: LoadedTarget, *, private: bool) -> dict[str, Panel]:
    """Returns the panels ``check``, ``saliency`` and ``report``, as far as they are named."""
    info = loaded.resident
    opened = {
        "check": assemble.open_panel("selection", config.check_on, info),
        "saliency": assemble.open_panel("search", config.saliency_on, info),
        "report": assemble.open_panel("report", config.report_on, info),
    }
    panels = {name: panel for name, panel in opened.items() if panel is not None}
    if "report" in panels:
        panels["check"].check_apart(panels["report"])
    if private:
        check_items(panels["check"], 0.0)
        check_shown([panels["check"]], panels.values())
        if "saliency" in panels:
            panels["check"].check_apart(panels["saliency"])
    return panels


def _check_items(means: Means, model: DedupModel, panels: Mapping[str, Panel]) -> None:
    """Refuses other items than those that an earlier start has asked.

    Of private ones a number is written down that needs the key: a plain digest would tell whoever
    guesses the whole set that the guess is right.
    """
    items: dict[str, Any] = {split: panel.contents for split, panel in panels.items()}
    if means.noise is not None:
        private = repr(sorted(items.pop("check").items()))
        items["private"] = means.noise.uniform("items", model.name, private)
    check_ingredients(means.directory, {f"items of {model.name}": items})


def _saliency(
    config: DictConfig, run: Path, model: DedupModel, loaded: LoadedTarget, panel: Panel | None
) -> Vector:
    """Returns every block's saliency, as an earlier start of the run has found it."""
    file = run / f"saliency-{model.name}.npy"
    if file.exists():
        found: Vector = np.load(file, allow_pickle=False)
        return found
    saliency: Saliency = assemble.open_part(config.saliency)
    count = 0 if panel is None else panel.item_count
    with ProgressBar(count, f"{model.name}: saliency", "item") as bar:
        scores = saliency.scores(loaded, panel, bar.update)
    found = block_saliency(model.blocks, scores, saliency.norm)
    draft = file.with_name(f".{file.name}.tmp")
    with draft.open("wb") as stream:
        np.save(stream, found)
    draft.replace(file)
    return found


def _lent(model: DedupModel, takers: Sequence[Deduplicated]) -> set[int]:
    """Returns the blocks of a model that stand in others."""
    taken = [one.substitution.taken(one.bases.index(model)) for one in takers]
    return set().union(*taken)


def _candidates(model: DedupModel, bases: Sequence[DedupModel]) -> Candidates:
    rows = len(model.blocks) * (len(bases) + 1)
    with ProgressBar(rows, f"{model.name}: distances", "block") as bar:
        return Candidates.of(model.blocks, [base.blocks for base in bases], bar.update)


def _asked(
    measured: MeasuredTarget, panels: Mapping[str, Panel], substitution: Substitution
) -> dict[str, dict[str, Score]]:
    return {
        split: main_scores(panel, measured.scores(substitution, panel))
        for split, panel in panels.items()
    }


def _in_place(
    loaded: LoadedTarget,
    model: DedupModel,
    bases: Sequence[DedupModel],
    panels: Mapping[str, Panel],
) -> dict[str, dict[str, Score]]:
    """Returns split to the scores of the target's only base in its place, where that can be.

    Whoever is content with these needs no deduplication.
    """
    scores: dict[str, dict[str, Score]] = {}
    if len(bases) > 1 or bases[0].blocks.shapes != model.blocks.shapes:
        return scores
    loaded.write(bases[0].checkpoint)
    for split, panel in panels.items():
        with suppress(EvaluationError):
            scores[split] = main_scores(panel, panel.evaluate(loaded.engine))
    loaded.write(model.checkpoint)
    return scores


def _checks(means: Means, model: DedupModel, panel: Panel, floors: Sequence[Floor]) -> Checks:
    if means.privacy is None or means.noise is None:
        return ExactChecks(panel.directions, floors)
    return NoisyChecks(
        means.privacy,
        panel.directions,
        floors,
        failures=means.schedule.failures or 1,
        noise=means.noise,
        name=f"{model.name} {sorted(panel.contents.items())}",
    )


@contextmanager
def _questions(schedule: DedupSchedule, model: DedupModel) -> Iterator[Callable[[int], object]]:
    """Shows how many questions are answered, of how many that it may take at most."""
    left = count = len(model.blocks)

    def told(gone: int) -> None:
        nonlocal left
        left -= gone
        bar.update(1, f"{left} of {count} blocks left")

    most = schedule.most(count) + 1
    with ProgressBar(most, f"{model.name}: checks, at most", "check") as bar:
        yield told


def _values(scores: Mapping[str, Score]) -> dict[str, float]:
    return {key: score.value for key, score in scores.items()}
