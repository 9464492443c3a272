"""Candidates that lie beside one centre are scored together; the others one after the other."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from evaluators.engine.engine import Engine
from evaluators.engine.model import ResidentModel
from evaluators.engine.population import refusal_of
from evaluators.engine.resident import Resident
from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import (
    Classify,
    EvaluationError,
    Generate,
    Loglikelihood,
    Request,
    TokenStatistics,
)
from experiments.setup.study import Study
from merging.lora.low_rank import CentredCandidate, Stacks, low_rank_of
from merging.method import MergeError
from merging.paths.noise import LowRankNoise
from merging.paths.path import PathPlan
from search.loop.evaluation import Evaluated, attempt, units
from search.loop.history import Record

UNIT = 16
"""Candidates of a unit where the option says ``auto``."""
_FEW_TOKENS = 1024
"""Items of at most so many tokens are read by a CPU faster together; see `population_speed`."""


class PopulationEvaluation:
    """Scores the genomes of a generation in units of fixed size.

    A unit is scored as a whole, also where a killed search has written down a part of it, so that
    its rounding does not depend on where the search was stopped.

    Args:
        study: started.
        panel: the items of a generation, by its number.
        own_items: whether they differ between generations.
        size: genomes of a unit, at least 2.
    """

    def __init__(
        self, study: Study, panel: Callable[[int], Panel], *, own_items: bool, size: int
    ) -> None:
        self._study, self._panel, self.own_items, self.unit = study, panel, own_items, size
        self._stacks = Stacks(study.held)

    def __call__(
        self, genomes: Sequence[Any], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what each gave, in order; see `Evaluation`."""
        for unit in units(len(genomes), self.unit, first):
            found = self._scored([genomes[i] for i in unit], generation)
            yield from found[max(0, first - unit.start) :]

    def _scored(self, genomes: Sequence[Any], generation: int) -> list[Evaluated]:
        """Returns what the genomes of one unit gave."""
        panel = self._panel(generation)
        found: dict[int, Evaluated] = {}
        nearby: dict[Any, list[tuple[int, CentredCandidate]]] = {}
        for place, genome in enumerate(genomes):
            try:
                beside = self._nearby(genome)
            except MergeError as error:
                found[place] = Evaluated(failure=str(error))
                continue
            if beside is None:
                found[place] = attempt(lambda each: self._alone(each, panel), genome)
            else:
                nearby.setdefault(beside.key, []).append((place, beside))
        for group in nearby.values():
            answers = self._group([beside for _, beside in group], panel)
            found |= dict(zip([place for place, _ in group], answers, strict=True))
        return [found[place] for place in range(len(genomes))]

    def _nearby(self, genome: Any) -> CentredCandidate | None:
        space, resident = self._study.space, self._study.engine.resident
        beside = low_rank_of(space.plan(genome), self._stacks, space.decode(genome))
        if beside is not None and refusal_of(resident, beside.deltas) is not None:
            return None
        return beside

    def _alone(self, genome: Any, panel: Panel) -> Mapping[str, Score]:
        return self._study.scorer(panel)(self._study.space.decode(genome))

    def _group(self, group: Sequence[CentredCandidate], panel: Panel) -> list[Evaluated]:
        began = time.perf_counter()
        engine = self._study.engine
        try:
            engine.resident.write(group[0].centre)
            found = _scored(engine, panel, group)
        except (EvaluationError, MergeError) as error:
            found = [Evaluated(failure=str(error)) for _ in group]
        except (MemoryError, torch.cuda.OutOfMemoryError):
            found = [Evaluated(failure="out of memory") for _ in group]
        share = (time.perf_counter() - began) / len(group)
        return [replace(each, seconds=share) for each in found]


def unit_size(option: int | str | None, study: Study) -> int:
    """Returns how many candidates of a study are scored together; 1: each alone.

    The answer rests on configuration, items and kind of device alone, so that a run that is
    continued, and workers of one run, agree.

    Args:
        option: ``together``: a number, ``auto`` or None.
        study: of the search.

    Raises:
        ValueError: the option is none of these.
    """
    if option is None or option == 1 or not isinstance(study.model, ResidentModel):
        return 1
    if isinstance(option, int) and not isinstance(option, bool) and option > 1:
        return option if _lies_nearby(study) else 1
    if option != "auto":
        raise ValueError(f"together must be auto, null or a number from 1 on, got {option!r}")
    few = sum(map(_tokens, study.search_on.requests)) <= _FEW_TOKENS
    if study.engine.resident.device.type == "cpu" and not few:
        return 1
    return UNIT if _lies_nearby(study) else 1


def _lies_nearby(study: Study) -> bool:
    """Whether the candidates of a study's space are of the form that can be scored together."""
    first = study.space.plan(study.space.first())
    if isinstance(first, PathPlan):  # it begins with its centre; noise comes later
        return isinstance(first.noise, LowRankNoise)
    try:
        beside = low_rank_of(first, Stacks(study.held))
    except MergeError:
        return False
    return beside is not None and _fits(study.engine.resident, beside)


def _fits(resident: Resident, beside: CentredCandidate) -> bool:
    return refusal_of(resident, beside.deltas) is None


def _scored(engine: Engine, panel: Panel, group: Sequence[CentredCandidate]) -> list[Evaluated]:
    found = []
    for answers in engine.run_population(panel.requests, [beside.deltas for beside in group]):
        if isinstance(answers, EvaluationError):
            found.append(Evaluated(failure=str(answers)))
            continue
        try:
            found.append(Evaluated(panel.scores(answers)))
        except EvaluationError as error:
            found.append(Evaluated(failure=str(error)))
    return found


def _tokens(request: Request) -> int:
    match request:
        case Loglikelihood(context, continuation):
            return len(context) + len(continuation)
        case Generate(prompt=prompt, max_new_tokens=more):
            return len(prompt) + more
        case TokenStatistics(tokens=tokens):
            return len(tokens)
        case Classify(inputs=inputs):
            return max(tensor.shape[0] for tensor in inputs.values())
