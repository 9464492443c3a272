"""Racing on models: the items of a generation are asked in stages, none twice."""

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import accumulate
from typing import Any

import numpy as np

from evaluators.evaluator import Evaluator, Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, Loglikelihood, Response
from experiments.scoring.asking import Answer, Question
from merging.arrays import Vector
from search.loop.evaluation import Batch, Evaluated, FitnessEstimate, attempt
from search.loop.pool import Pool, TaskQueue, run_all
from search.objective import BoundObjective, Objective
from search.racing.racing import Full, Places, Race, Racing, best_full


class ItemTable:
    """The search items by number, and which of the panel's requests belong to each.

    The items of the objective's tasks come first, as their cases stand in a record; those of tasks
    that do not count come last.
    """

    def __init__(self, panel: Panel, objective: BoundObjective) -> None:
        assert objective.weights is not None, "refused in the dry run"
        self._panel = panel
        self._terms = objective.terms
        counting = [term.task for term in objective.terms]
        tasks = counting + [task for task in panel.evaluators if task not in counting]
        counts = [len(panel.evaluators[task].items) for task in tasks]
        self.strata = list(zip(counts[: len(counting)], objective.weights, strict=True))
        self.count = sum(counts)
        self.sizes = np.concatenate([_sizes(panel.evaluators[task]) for task in counting])
        self._begins = dict(zip(tasks, accumulate([0, *counts]), strict=False))
        requests: dict[str, list[range]] = {}
        asked = 0
        for task, evaluator in panel.evaluators.items():  # the order in which a panel asks
            spans = evaluator.items.spans
            requests[task] = [range(asked + span.start, asked + span.stop) for span in spans]
            asked += len(evaluator.items.requests)
        self._requests = [indices for task in tasks for indices in requests[task]]

    def requests(self, items: Places) -> tuple[int, ...]:
        """Returns which of the panel's requests belong to these items, ascending."""
        return tuple(sorted(index for item in items for index in self._requests[item]))

    def scores(self, items: Places, responses: Mapping[int, Response]) -> dict[str, Score]:
        """Returns the scores of some of the items; as the panel's own where it is all of them.

        Args:
            items: by number, ascending.
            responses: by index of the request.
        """
        scores: dict[str, Score] = {}
        for task, evaluator in self._panel.evaluators.items():
            begin, count = self._begins[task], len(evaluator.items)
            chosen = [int(item) - begin for item in items if begin <= item < begin + count]
            if not chosen:
                continue
            part = evaluator if len(chosen) == count else evaluator.subset(chosen)
            answers = [responses[i] for item in chosen for i in self._requests[begin + item]]
            for metric, score in part.score(answers).items():
                if not math.isfinite(score.value):
                    raise EvaluationError(f"{task}/{metric} is {score.value}, no finite score")
                scores[f"{task}/{metric}"] = score
        return scores

    def cases(self, scores: Mapping[str, Score]) -> Vector:
        """Returns the cases in units of the fitness, of the tasks that have scores."""
        parts = []
        for term in self._terms:
            if term.key in scores:
                cases = scores[term.key].cases
                assert cases is not None, "refused before the search"
                parts.append(term.case_gains(cases))
        gains = np.concatenate(parts)
        if not np.isfinite(gains).all():
            raise EvaluationError("the score of a single item is not finite")
        return gains


def _sizes(evaluator: Evaluator) -> Vector:
    """Returns ``(items,)`` how many tokens are scored of each; 1 where answers are no tokens."""
    scored = [
        sum(len(r.continuation) for r in item.requests if isinstance(r, Loglikelihood))
        for item in evaluator.items
    ]
    return np.maximum(np.array(scored, np.float64), 1.0)


@dataclass(eq=False)
class _Runner:
    """A candidate in its race."""

    genome: Any
    stage: int = -1
    responses: dict[int, Response] = field(default_factory=dict)
    scores: dict[str, Score] = field(default_factory=dict)
    cases: Vector = field(default_factory=lambda: np.zeros(0))
    failure: str | None = None
    seconds: float = 0.0


class RacingPool(TaskQueue[Batch[Any]]):
    """Scores whole generations by racing; see `search.racing.racing`.

    Survivors have been asked all items and have the scores of these. They differ from those of an
    unraced evaluation by no more than the rounding that other batches make: a batch is padded to
    its longest request, and stages batch fewer requests at a time.

    A generation is raced as a whole before its first candidate is written down: a search that is
    killed meanwhile races it again, and what a budget of evaluations cuts off was asked too.

    Args:
        keeps: places in the first generation of those who are asked all items in any case.
    """

    def __init__(
        self,
        racing: Racing,
        panel: Panel,
        objective: Objective,
        asker: Pool[Question, Answer],
        seed: int,
        keeps: Collection[int] = (),
    ) -> None:
        super().__init__()
        assert isinstance(objective, BoundObjective), "refused in the dry run"
        self._racing = racing
        self._table = ItemTable(panel, objective)
        self._objective = objective
        self._asker = asker
        self._seed = seed
        self._keeps = keeps

    def next(self) -> tuple[int, list[Evaluated]]:
        """Races the first generation in the line."""
        ticket, batch = self._take()
        strata, count = self._table.strata, len(batch.genomes)
        race = self._racing.race(
            count, batch.generation, batch.records, strata, self._seed, self._table.sizes
        )
        runners = [_Runner(genome) for genome in batch.genomes]
        best = best_full(batch.records)
        try:
            self._run(race, runners, best is not None)
            for number in self._keeps if batch.generation == 0 else ():
                self._finish(race, number, runners)
        finally:
            self._asker.drop()
        finished = [self._full(r) for r in runners if r.stage == len(race.stages) - 1]
        known = [*finished, *([] if best is None else [best])]
        reference = max(known, key=lambda full: full.fitness) if known else None
        return ticket, [self._evaluated(race, runner, reference, finished) for runner in runners]

    def _run(self, race: Race, runners: Sequence[_Runner], has_reference: bool) -> None:
        """Runs the stages; where nobody would reach the end, one of those dropped last does."""
        last = len(race.stages) - 1
        running = list(range(len(runners)))
        dropped: list[int] = []
        for stage in range(last + 1):
            running = self._stage(race, stage, running, runners)
            if stage < last and running:
                staying = race.staying(stage, {n: runners[n].cases for n in running})
                dropped = [n for n in running if n not in staying] + dropped
                running = staying
        while not has_reference and not running and dropped:  # those who stayed failed later
            running = self._finish(race, dropped.pop(0), runners)

    def _finish(self, race: Race, number: int, runners: Sequence[_Runner]) -> list[int]:
        """Asks one candidate the rest of all items; returns it, or nobody where it fails."""
        running = [number] if runners[number].failure is None else []
        for stage in range(runners[number].stage + 1, len(race.stages)):
            running = self._stage(race, stage, running, runners)
        return running

    def _stage(
        self, race: Race, stage: int, running: Sequence[int], runners: Sequence[_Runner]
    ) -> list[int]:
        """Asks what is new in a stage, scores all asked so far; returns who did not fail."""
        asked = self._items(race, stage)
        new = asked if stage == 0 else np.setdiff1d(asked, self._items(race, stage - 1))
        requests = self._table.requests(new)
        questions = [Question(runners[number].genome, requests) for number in running]
        for number, answer in zip(running, run_all(self._asker, questions), strict=True):
            runner = runners[number]
            runner.seconds += answer.seconds
            runner.failure = answer.failure
            if answer.failure is not None:
                continue
            runner.responses.update(zip(requests, answer.responses, strict=True))
            with attempt() as tried:
                runner.scores = self._table.scores(asked, runner.responses)
                runner.cases = self._table.cases(runner.scores)
                runner.stage = stage
            runner.failure = tried.failure
        return [number for number in running if runners[number].failure is None]

    def _items(self, race: Race, stage: int) -> Places:
        """Returns the items asked by the end of a stage; of the last one really all."""
        if stage == len(race.stages) - 1:
            return np.arange(self._table.count)
        return race.stages[stage]

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
        expected = race.estimate(runner.stage, runner.cases, reference)
        fitness = expected.fitness
        if fitness >= reference.fitness:  # else a guess would be the best
            fitness = min((full.fitness for full in finished), default=reference.fitness)
        asked = len(race.stages[runner.stage])
        estimate = FitnessEstimate(np.array([fitness]), expected.cases, asked)
        return Evaluated(runner.scores, seconds=runner.seconds, estimate=estimate)
