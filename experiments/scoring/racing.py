"""Racing on models: the items of a generation are asked in stages, none twice."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, Response
from experiments.runs.errors import UserError
from experiments.setup.asking import RaceClient, RaceFactory
from merging.arrays import Vector
from search.loop.evaluation import Evaluated, FitnessEstimate
from search.loop.history import Record
from search.objective import BoundObjective, Objective
from search.racing.racing import Full, Places, Race, Racing, best_full


class Sheet:
    """The search items by number, and what belongs to each.

    The items of the objective's tasks come first, as their cases stand in a record; those of tasks
    that do not count come last.

    Args:
        panel: all search items.
        objective: with one number.
    """

    def __init__(self, panel: Panel, objective: BoundObjective) -> None:
        assert objective.weights is not None, "refused in the rehearsal"
        self._panel, self._terms = panel, objective.terms
        counting = [term.task for term in objective.terms]
        self._tasks = counting + [task for task in panel.evaluators if task not in counting]
        counts = [len(panel.evaluators[task].items) for task in self._tasks]
        self.strata = list(zip(counts[: len(counting)], objective.weights, strict=True))
        self.counting = sum(items for items, _ in self.strata)
        self.count = sum(counts)
        self._begins = dict(zip(self._tasks, accumulate([0, *counts]), strict=False))
        slots: dict[str, list[range]] = {}
        asked = 0
        for task, evaluator in panel.evaluators.items():  # the order in which a panel asks
            sizes = [
                len(evaluator.subset([i]).items.requests) for i in range(len(evaluator.items))
            ]
            begins = accumulate([asked, *sizes])
            slots[task] = [range(a, a + size) for a, size in zip(begins, sizes, strict=False)]
            asked += sum(sizes)
        self._slots = [each for task in self._tasks for each in slots[task]]

    def slots(self, places: Places) -> tuple[int, ...]:
        """Returns which of the panel's requests belong to these items, ascending."""
        return tuple(sorted(slot for place in places for slot in self._slots[place]))

    def scores(self, places: Places, responses: Mapping[int, Response]) -> dict[str, Score]:
        """Returns the scores of some of the items; as the panel's own where it is all of them.

        Args:
            places: of the items, ascending.
            responses: by slot.

        Raises:
            EvaluationError: a score is not finite.
        """
        scores: dict[str, Score] = {}
        for task, evaluator in self._panel.evaluators.items():
            begin, items = self._begins[task], len(evaluator.items)
            own = [int(p) - begin for p in places if begin <= p < begin + items]
            if not own:
                continue
            part = evaluator if len(own) == items else evaluator.subset(own)
            answers = [responses[s] for place in own for s in self._slots[begin + place]]
            for metric, score in part.score(answers).items():
                if not math.isfinite(score.value):
                    raise EvaluationError(f"{task}/{metric} is {score.value}, no finite score")
                scores[f"{task}/{metric}"] = score
        return scores

    def cases(self, scores: Mapping[str, Score]) -> Vector:
        """Returns the cases in units of the fitness, of the tasks that have scores.

        Raises:
            EvaluationError: one is not finite.
        """
        parts = []
        for term in self._terms:
            if term.key in scores:
                own = scores[term.key].cases
                assert own is not None, "refused before the search"
                parts.append((term.sign * own - term.base) / term.span)
        cases = np.concatenate(parts).astype(np.float64)
        if not np.isfinite(cases).all():
            raise EvaluationError("the score of a single item is not finite")
        return cases


@dataclass(eq=False)
class _Runner:
    """A candidate in its race."""

    stage: int = -1
    responses: dict[int, Response] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    cases: Vector = field(default_factory=lambda: np.zeros(0))
    failure: str | None = None
    seconds: float = 0.0


class RacingEvaluation:
    """Scores generations by racing; see `search.racing.racing`.

    Survivors have been asked all items and have the scores of these. They differ from those of an
    unraced evaluation by no more than the rounding that other batches make: a batch is padded to
    its longest request, and stages batch fewer requests at a time.

    A generation is raced as a whole before its first candidate is written down: a search that is
    killed meanwhile races it again, and what a budget of evaluations cuts off was asked too.

    Args:
        racing: the rule.
        panel: all search items.
        objective: with one number, bound.
        opening: asks the candidates of a generation.
        seed: of the run.
    """

    own_items = False
    unit = 1

    def __init__(
        self, racing: Racing, panel: Panel, objective: Objective, opening: RaceFactory, seed: int
    ) -> None:
        if not isinstance(objective, BoundObjective) or objective.weights is None:
            raise UserError("racing needs an objective with one number that is a weighted mean")
        self._racing, self._opening, self._seed = racing, opening, seed
        self._sheet, self._objective = Sheet(panel, objective), objective

    def __call__(
        self, genomes: Sequence[Any], generation: int, records: Sequence[Record], first: int
    ) -> Iterator[Evaluated]:
        """Yields what each gave; see `Evaluation`."""
        strata = self._sheet.strata
        race = self._racing.race(len(genomes), generation, records, strata, self._seed)
        runners = [_Runner() for _ in genomes]
        best = best_full(records)
        self._run(race, runners, self._opening(genomes), best is not None)
        finished = [self._full(r) for r in runners if r.stage == len(race.stages) - 1]
        known = [*finished, *([] if best is None else [best])]
        reference = max(known, key=lambda each: each.fitness) if known else None
        for runner in runners[first:]:
            yield self._evaluated(race, runner, reference, finished)

    def _run(
        self, race: Race, runners: Sequence[_Runner], asking: RaceClient, has_reference: bool
    ) -> None:
        """Runs the stages; where nobody would reach the end, one of those dropped last does."""
        last = len(race.stages) - 1
        running = list(range(len(runners)))
        dropped: list[int] = []
        for stage in range(last + 1):
            running = self._stage(race, stage, running, runners, asking)
            if stage < last and running:
                staying = race.staying(stage, {n: runners[n].cases for n in running})
                dropped = [n for n in running if n not in staying] + dropped
                running = staying
        while not has_reference and not running and dropped:  # those who stayed failed later
            running = [dropped.pop(0)]
            for stage in range(runners[running[0]].stage + 1, last + 1):
                running = self._stage(race, stage, running, runners, asking)

    def _stage(
        self,
        race: Race,
        stage: int,
        running: Sequence[int],
        runners: Sequence[_Runner],
        asking: RaceClient,
    ) -> list[int]:
        """Asks what is new in a stage, scores all asked so far; returns who did not fail."""
        if not running:
            return []
        so_far, new = self._places(race, stage), self._new(race, stage)
        slots = self._sheet.slots(new)
        answers = asking(running, slots)
        for number in running:
            runner, answer = runners[number], answers[number]
            runner.seconds += answer.seconds
            runner.failure = answer.failure
            if answer.failure is not None:
                continue
            runner.responses.update(zip(slots, answer.responses, strict=True))
            try:
                runner.scores = self._sheet.scores(so_far, runner.responses)
                runner.cases = self._sheet.cases(runner.scores)
                runner.stage = stage
            except EvaluationError as error:
                runner.failure = str(error)
        return [number for number in running if runners[number].failure is None]

    def _places(self, race: Race, stage: int) -> Places:
        """Returns the items asked by the end of a stage; of the last one really all."""
        if stage == len(race.stages) - 1:
            return np.arange(self._sheet.count)
        return race.stages[stage]

    def _new(self, race: Race, stage: int) -> Places:
        if stage == 0:
            return self._places(race, 0)
        return np.setdiff1d(self._places(race, stage), self._places(race, stage - 1))

    def _full(self, runner: _Runner) -> Full:
        values = {key: score.value for key, score in runner.scores.items()}
        return Full(float(self._objective.fitness(values)[0]), runner.cases)

    def _evaluated(
        self, race: Race, runner: _Runner, reference: Full | None, finished: Sequence[Full]
    ) -> Evaluated:
        if runner.failure is not None:
            return Evaluated(failure=runner.failure, seconds=runner.seconds)
        if runner.stage == len(race.stages) - 1:
            return Evaluated(runner.scores, seconds=runner.seconds)
        assert reference is not None, "a race that nobody finishes has only failures"
        found = race.estimate(runner.stage, runner.cases, reference)
        fitness = found.fitness
        if fitness >= reference.fitness:  # else a guess would be the best
            fitness = min((each.fitness for each in finished), default=reference.fitness)
        estimate = FitnessEstimate(
            np.array([fitness]), found.cases, len(race.stages[runner.stage])
        )
        return Evaluated(runner.scores, seconds=runner.seconds, estimate=estimate)
