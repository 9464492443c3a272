"""The answers of one target: measured in place, written down, and read back after a kill."""

from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from evaluators.tries import tries
from experiments.deduplication.loaded import LoadedTarget
from experiments.deduplication.validation import Checks, main_scores
from experiments.runs.errors import UserError
from experiments.searches.private_scores import robust
from merging.deduplication.substitution import Candidates, Substitution
from search.loop import jsonl


class MeasuredTarget:
    """Scores a target with any of its blocks exchanged; only what differs is written.

    Args:
        target: holds the model as it was.
        private: panel of which an item that has no finite score must touch no other item's.
    """

    def __init__(
        self, target: LoadedTarget, candidates: Candidates, private: Panel | None = None
    ) -> None:
        self._target, self._private = target, private
        self.original = self._held = Substitution.none(candidates)

    def scores(self, substitution: Substitution, panel: Panel) -> Mapping[str, Score]:
        """Returns all scores of a panel; raises EvaluationError where there are none.

        Of a private one there are scores always: NaN for the items that have none.
        """
        score = partial(self._tried, substitution)
        return robust(panel, score) if panel is self._private else score(panel)

    def _tried(self, substitution: Substitution, panel: Panel) -> Mapping[str, Score]:
        found: dict[str, Score] = {}
        for one in tries(lambda: self._ask(self.original, panel)):
            with one:
                found = self._ask(substitution, panel)
        return found

    def _ask(self, substitution: Substitution, panel: Panel) -> dict[str, Score]:
        positions = substitution.changed(self._held)
        substitution.write(self._target.state, positions)
        self._held = substitution
        return panel.evaluate(self._target.engine)


class WrittenAnswers:
    """Answers a schedule's questions; what was answered in an earlier start is not asked again.

    Args:
        file: one line per answer, which is there before it is used.
        told: called with the number of blocks that went after every answer.
    """

    def __init__(
        self,
        file: Path,
        measured: MeasuredTarget,
        panel: Panel,
        checks: Checks,
        told: Callable[[int], object] = lambda _: None,
    ) -> None:
        self._file, self._measured, self._panel = file, measured, panel
        self._checks, self._told = checks, told
        self._written = jsonl.read(file)
        self._count = 0

    def __call__(self, now: Substitution, proposed: Substitution) -> bool:
        """Whether the target may become `proposed`.

        Raises:
            UserError: an earlier start asked something else.
        """
        group = sorted(proposed.removed - now.removed)
        number, self._count = self._count, self._count + 1
        if number < len(self._written):
            line = self._written[number]
            if line["group"] != group:
                raise UserError(
                    f"{self._file}, line {number + 1} is the answer to another question: it "
                    "belongs to other models or options; choose another out="
                )
            answer = bool(line["accepted"])
            self._checks.repeat(answer)
        else:
            answer = self._is_good(proposed)
            line = {"id": number, "group": group, "accepted": answer}
            jsonl.append(self._file, line)
        self._told(len(group) if answer else 0)
        return answer

    def _is_good(self, proposed: Substitution) -> bool:
        try:
            scores = self._measured.scores(proposed, self._panel)
        except EvaluationError:  # of public items: no finite scores are not good enough
            return False
        return self._checks.holds(main_scores(self._panel, scores))
