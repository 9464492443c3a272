"""Candidates that lie beside one centre are scored together; the others one after the other."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

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
    Match,
    Request,
    TokenStatistics,
)
from evaluators.tries import tries
from experiments.setup.ingredients import Ingredients
from merging.lora.low_rank import CentredCandidate, StackedFactors, low_rank_of
from merging.method import MergeError
from merging.paths.noise import LowRankNoise
from merging.paths.path import PathPlan
from merging.spaces.space import SearchSpace
from search.loop.evaluation import Batch, Evaluated, attempt
from search.loop.pool import TaskQueue

BATCH = 16
"""Candidates of a batch where the option says ``auto``."""
_FEW_TOKENS = 1024
"""Items of at most so many tokens are read by a CPU faster together; see `population_speed`."""


class PopulationPool(TaskQueue[Batch[Any]]):
    """Scores the genomes of a batch in shared passes, as far as they lie beside one centre.

    Args:
        panel: the items of a generation, by its number.
    """

    def __init__(
        self, ingredients: Ingredients, space: SearchSpace[Any], panel: Callable[[int], Panel]
    ) -> None:
        super().__init__()
        self._ingredients = ingredients
        self._space = space
        self._panel = panel
        self._stacks = StackedFactors(ingredients.held)

    def next(self) -> tuple[int, list[Evaluated]]:
        """Scores the first batch in the line."""
        ticket, batch = self._take()
        panel = self._panel(batch.generation)
        results: dict[int, Evaluated] = {}
        centred: dict[Any, dict[int, CentredCandidate]] = {}
        for i, genome in enumerate(batch.genomes):
            candidate: CentredCandidate | None = None
            with attempt() as tried:
                candidate = self._centred(genome)
            if tried.failure is not None:
                results[i] = Evaluated(failure=tried.failure)
            elif candidate is None:
                results[i] = self._alone(genome, panel)
            else:
                centred.setdefault(candidate.key, {})[i] = candidate
        for group in centred.values():
            scored = self._group(list(group.values()), panel) or [
                self._alone(batch.genomes[i], panel) for i in group
            ]
            results |= zip(group, scored, strict=True)
        return ticket, [results[i] for i in range(len(batch.genomes))]

    def _centred(self, genome: Any) -> CentredCandidate | None:
        """Returns the candidate as a difference to a centre; None: it has to be scored alone."""
        space = self._space
        candidate = low_rank_of(space.plan(genome), self._stacks, space.decode(genome))
        if candidate is None or not _fits(self._ingredients.engine.resident, candidate):
            return None
        return candidate

    def _alone(self, genome: Any, panel: Panel) -> Evaluated:
        scores: Mapping[str, Score] = {}
        with attempt() as tried:
            scores = self._ingredients.scorer(panel)(self._space.decode(genome))
        return Evaluated(scores, tried.failure, tried.seconds)

    def _group(self, group: Sequence[CentredCandidate], panel: Panel) -> list[Evaluated]:
        """Scores a group in shared passes; none where that fails, whoever of it is to blame."""
        engine = self._ingredients.engine
        results: list[Evaluated] = []
        with attempt() as tried:
            for one in tries(self._ingredients.scorer(panel).control):
                with one:
                    engine.resident.write(group[0].centre)
                    results = _scored(engine, panel, group)
        if tried.failure is not None:
            return []
        share = tried.seconds / len(group)
        return [replace(evaluated, seconds=share) for evaluated in results]


def batch_size(option: int | str | None, ingredients: Ingredients, space: SearchSpace[Any]) -> int:
    """Returns how many candidates are scored together; 1: each alone.

    The answer rests on configuration, items and kind of device alone, so that a run that is
    continued, and workers of one run, agree.

    Args:
        option: ``together``: a number, ``auto`` or None.
    """
    if option is None or option == 1 or not isinstance(ingredients.model, ResidentModel):
        return 1
    if isinstance(option, int) and not isinstance(option, bool) and option > 1:
        return option if _is_centred(ingredients, space) else 1
    if option != "auto":
        raise ValueError(f"together must be auto, null or a number from 1 on, got {option!r}")
    few = sum(map(_tokens, ingredients.panels["search"].requests)) <= _FEW_TOKENS
    if ingredients.engine.resident.device.type == "cpu" and not few:
        return 1
    return BATCH if _is_centred(ingredients, space) else 1


def _is_centred(ingredients: Ingredients, space: SearchSpace[Any]) -> bool:
    """Whether the candidates of a space are of the form that can be scored together."""
    first = space.plan(space.first())
    if isinstance(first, PathPlan):  # it begins with its centre; noise comes later
        return isinstance(first.noise, LowRankNoise)
    try:
        candidate = low_rank_of(first, StackedFactors(ingredients.held))
    except MergeError:
        return False
    return candidate is not None and _fits(ingredients.engine.resident, candidate)


def _fits(resident: Resident, candidate: CentredCandidate) -> bool:
    return refusal_of(resident, candidate.deltas) is None


def _scored(engine: Engine, panel: Panel, group: Sequence[CentredCandidate]) -> list[Evaluated]:
    results = []
    for answers in engine.run_population(panel.requests, [one.deltas for one in group]):
        scores: Mapping[str, Score] = {}
        with attempt() as tried:
            if isinstance(answers, EvaluationError):
                raise answers
            scores = panel.scores(answers)
        results.append(Evaluated(scores, tried.failure))
    return results


def _tokens(request: Request) -> int:
    match request:
        case Loglikelihood(context, continuation):
            return len(context) + len(continuation)
        case Generate(prompt=prompt, max_new_tokens=more):
            return len(prompt) + more
        case TokenStatistics(tokens=tokens):
            return len(tokens)
        case Classify(inputs=inputs) | Match(inputs=inputs):
            return max(tensor.shape[0] for tensor in inputs.values())
