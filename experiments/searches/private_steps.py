"""The steps of a search on private items: what is released is noisy, counted, and nothing else.

What a finished run leaves on disk may be released: candidates' noisy fitness, the winner, the
models' scores on public splits. Per-item scores, task scores and messages of candidates are never
written, base and experts are not scored on private items at all, and the key of the noise and the
single times are destroyed at the end. The sum of times in the summary is not covered.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import DictConfig

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.tasks.data import digest
from experiments.runs.directory import run_identity
from experiments.runs.errors import UserError
from experiments.runs.model_scores import Kind, ModelScores
from experiments.scoring.choose import local_evaluation
from experiments.searches.private_key import destroy, open_noise, seeded_noise
from experiments.searches.private_scores import item_by_item, robust_scores
from experiments.searches.private_tracking import DeferredTracker
from experiments.searches.references import References
from experiments.searches.steps import SearchSteps
from experiments.searches.tracking import Tracker
from experiments.setup.common_items import PoissonItems
from experiments.setup.initial import StartScores
from experiments.setup.private_checks import check_items, open_privacy, sampling_rate
from experiments.setup.scorer import Scorer
from experiments.setup.study import Study
from merging.checkpoints.privacy_record import PrivacySpend
from merging.files import write_text
from merging.paths.path import Path as WeightPath
from merging.plan import Plan
from merging.privacy import accounting
from merging.privacy.ledger import Ledger
from search.loop.evaluation import Evaluation, LocalPool
from search.loop.generational import search
from search.loop.history import Record
from search.loop.session import Budget, SearchResult
from search.objective import BoundObjective, Objective
from search.privacy.private import PrivatePool
from search.privacy.private_fitness import ClippedSum, Shares, item_differences
from search.privacy.private_svt import AboveThreshold
from search.winners.selection import Finalist, finalists

log = logging.getLogger(__name__)

_UNREAD = "not scored: these items are private"


class PrivateReferences(References):
    """References that read public splits only."""

    def __init__(self, study: Study, path: Path, public: Sequence[str]) -> None:
        super().__init__(study, path)
        self._public = tuple(public)

    def score(
        self, panel: Panel, *, kinds: Sequence[Kind] = ("base", "expert", "static")
    ) -> dict[str, ModelScores]:
        """Returns the models' scores; on private items a failure each, nothing is asked."""
        if panel.split in self._public:
            return super().score(panel, kinds=kinds)
        rivals: dict[str, ModelScores] = {}
        for name, kind, _ in self._models():
            if kind in kinds:
                label = name if name not in rivals else f"{name} ({kind})"
                rivals[label] = ModelScores(name, kind, panel.split, {}, _UNREAD)
        return rivals


class PrivateSteps(SearchSteps):
    """A search that strategy, files and people see through its noisy fitness alone."""

    def __init__(
        self, config: DictConfig, study: Study, run: Path, budget: Budget, tracker: Tracker
    ) -> None:
        privacy = open_privacy(config)
        assert privacy is not None, "privacy=none has no private steps"
        self._privacy = privacy
        self._selection = study.select_on
        if "selection" not in privacy.public:
            study = replace(study, select_on=None)  # so that no other step can read them
        references = PrivateReferences(study, run / "references.jsonl", privacy.public)
        super().__init__(config, study, run, budget, DeferredTracker(tracker), references)
        for panel in (study.search_on, self._selection):
            if panel is not None:
                check_items(panel, privacy.delta)
        self._spending = privacy.budget(config.choose, sampling_rate(config))
        belongs = (
            run_identity(config),
            *(study.pool.base.sha256, *study.pool.identities),
            *_items(study.search_on),
            *_items(self._selection),
        )
        begun = bool(self._history.records)
        self._noise = (
            open_noise(run, belongs, begun=begun)
            if privacy.randomness == "secret"
            else seeded_noise(study.seed, belongs)
        )
        self._rate = sampling_rate(config)

    def finish(self) -> None:
        """Runs every step that is left, and destroys the key of the noise."""
        super().finish()
        destroy(self._run)

    def _scouting(self, objective: Objective, rivals: Mapping[str, ModelScores]) -> StartScores:
        """Returns that nothing is known of the search items."""

        def refuse(name: str, plan: Plan) -> float | None:
            raise UserError(f"privacy: start {name!r} would be scored on private items")

        return StartScores(dict.fromkeys(self._study.pool.expert_names, 0.0), refuse)

    def _loop(self, objective: Objective) -> Callable[..., SearchResult]:
        """Returns the search through noisy fitness, ended by its privacy budget."""
        pool = self._private(objective)
        return partial(
            search,
            self._study.strategy,
            pool.evaluation,
            account=lambda new: self._spending.before(pool.releases(new)),
        )

    def _private(self, objective: Objective) -> PrivatePool[Any]:
        study = self._study
        space, items = study.space, self._items()
        panel = study.search_on

        def of(generation: int) -> Panel | None:
            return panel if items is None else items.of(generation)

        def scorer(generation: int) -> Scorer:
            sampled = of(generation)
            assert sampled is not None, "an empty sample is not asked"
            return study.scorer(sampled)

        def singly(genome: Any, generation: int) -> Mapping[str, Score]:
            sampled = of(generation)
            assert sampled is not None, "an empty sample is not asked"
            return item_by_item(study, sampled, space.decode(genome))

        inner = local_evaluation(study, None)
        if items is not None:
            inner = Evaluation(LocalPool(space.decode, scorer), own_items=True)
        return PrivatePool(
            inner=inner,
            singly=singly,
            empty=lambda generation: of(generation) is None,
            shares=self._shares(objective, panel, self._rate),
            mechanism=ClippedSum(self._privacy.clip, self._privacy.noise_multiplier, self._noise),
            release=self._privacy.release,
            encode=space.to_json,
        )

    def _items(self) -> PoissonItems | None:
        """Returns the items of every generation; None: all."""
        if self._config.sampling == "poisson":
            return PoissonItems(self._study.search_on, self._rate, self._noise)
        return None

    def _shares(self, objective: Objective, panel: Panel, rate: float) -> Shares:
        assert isinstance(objective, BoundObjective), "refused in the rehearsal"
        sizes = {task: len(evaluator.items) for task, evaluator in panel.evaluators.items()}
        return Shares(objective, sizes, rate)

    def _comparable(self, result: SearchResult, objective: Objective) -> tuple[SearchResult, int]:
        """Returns the result as it is, with the candidates that differences do not tell apart.

        Differences tell nothing of a candidate, so that the only record that is left is the
        strategy's centre, or the one that the second look takes, with a noisy reading.
        """
        expected = round(self._rate * self._study.search_on.item_count)
        items = result.evaluations * expected
        if self._privacy.release == "means":
            return result, items
        genomes = self._centres(result)
        chosen = genomes[0]
        if self._config.choose == "svt":
            chosen = genomes[self._first_above(genomes)]
        reading = self._reading(objective, chosen)
        winner = Record(len(result.records), chosen, {}, reading)
        return replace(result, records=(winner,), best=(winner.id,)), items

    def _choose(self, result: SearchResult, objective: Objective) -> list[Finalist]:
        """Returns the best few by their noisy fitness, the winner first."""
        if self._config.choose == "second_look":
            return self._second_look(result)
        best = [
            Finalist(r.id, r.genome, r.fitness, {}, None)
            for r in finalists(result.records, self._config.finalists)
            if r.fitness is not None
        ]
        if self._config.choose == "svt" and self._privacy.release == "means":
            place = self._first_above([each.genome for each in best])
            best.insert(0, best.pop(place))
        return best

    def _centres(self, result: SearchResult) -> list[Any]:
        """Returns the strategy's last centres as JSON, the last first; at most ``finalists``."""
        space = self._study.space
        found = [space.to_json(genome) for genome in self._study.strategy.recommend()]
        for record in reversed(result.records):
            genome = space.from_json(record.genome)
            centre = space.to_json(genome.centre) if isinstance(genome, WeightPath) else None
            if centre is not None and centre not in found:
                found.append(centre)
        if not found:
            raise UserError("privacy: the search ended before its first step was told")
        return found[: self._config.finalists]

    def _reading(self, objective: Objective, genome: Any) -> Any:
        """Returns the noisy fitness of one genome on all search items, by Laplace noise."""
        study, privacy = self._study, self._privacy
        weights = study.space.decode(study.space.from_json(genome))
        shares = self._shares(objective, study.search_on, 1.0)
        (contributions,) = shares.contributions(robust_scores(study, study.search_on, weights))
        mechanism = ClippedSum(privacy.reading_clip, 0.0, self._noise)
        noise = self._noise.laplace("reading", json.dumps(genome))
        total = mechanism.sum(contributions)
        total += privacy.reading_clip / privacy.reading_epsilon * noise
        return np.array([total / shares.divisors[0]])

    def _first_above(self, genomes: Sequence[Any]) -> int:
        """Returns the first genome that is better than the start by the margin; none: 0.

        Asked on the private selection items, one after the other, by AboveThreshold.
        """
        panel = self._selection
        assert panel is not None, "refused in the rehearsal"
        study, privacy = self._study, self._privacy
        selecting = self._bind(panel, self._references.score(panel, kinds=("base", "expert")))
        shares = self._shares(selecting, panel, 1.0)
        mechanism = ClippedSum(privacy.svt_clip, 0.0, self._noise)
        svt = AboveThreshold(
            epsilon=privacy.svt_epsilon,
            sensitivity=privacy.svt_clip,
            threshold=privacy.svt_margin * panel.item_count,
            noise=self._noise,
            name=f"svt {json.dumps(list(genomes))}",
        )

        def parts(genome: Any) -> list[Any]:
            return shares.contributions(robust_scores(study, panel, study.space.decode(genome)))

        start = parts(study.space.first())
        answers: list[bool] = []
        for genome in genomes:
            if svt.ended:
                break
            own = parts(study.space.from_json(genome))
            gain = sum(
                mechanism.sum(item_differences(a, b)) for a, b in zip(own, start, strict=True)
            )
            answers.append(svt.above(gain))
        self._write_answers(genomes, answers)
        return answers.index(True) if True in answers else 0

    def _write_answers(self, genomes: Sequence[Any], answers: Sequence[bool]) -> None:
        lines = [
            json.dumps({"genome": genome, "above": answer}) + "\n"
            for genome, answer in zip(genomes, answers, strict=False)
        ]
        write_text(self._run / "svt.jsonl", "".join(lines))
        if True not in answers:
            log.warning(
                "no finalist was found to be better than the start by the margin: the first is "
                "taken, as a search that is not private takes its best"
            )

    def _ledger(self, plan: Plan) -> Ledger:
        """Returns what the experts' and the search's private data cost."""
        ledger = super()._ledger(plan).add(self._spend())
        if self._privacy.randomness == "seed":
            what = f"the search on {self._privacy.data}, whose noise follows from its public seed"
            ledger = replace(ledger, unrecorded=(*ledger.unrecorded, what), words=())
        return ledger

    def _spend(self) -> PrivacySpend:
        privacy, spending = self._privacy, self._spending
        released = hashlib.sha256((self._run / "history.jsonl").read_bytes()).hexdigest()
        return PrivacySpend(
            dataset=privacy.data,
            epsilon=spending.spent,
            delta=privacy.delta,
            accountant="dp-accounting rdp",
            accountant_version=accounting.library_version(),
            unit=privacy.unit,
            disjoint_from=tuple(privacy.disjoint_from),
            mechanisms=(*spending.mechanisms, *privacy.reserved(self._config.choose)),
            what=f"search: noisy {privacy.release} of {spending.steps} generations; scores and "
            "per-item scores were not kept",
            release=f"search {released[:16]}",
        )


def open_steps(
    config: DictConfig, study: Study, run: Path, budget: Budget, tracker: Tracker
) -> SearchSteps:
    """Returns the steps of a search, private where its configuration says so."""
    steps = SearchSteps if open_privacy(config) is None else PrivateSteps
    return steps(config, study, run, budget, tracker)


def destroy_secrets(config: DictConfig, run: Path) -> None:
    """Destroys what must not be released with a finished private run, where a crash has not."""
    if open_privacy(config) is not None:
        destroy(run)


def _items(panel: Panel | None) -> list[str]:
    """Returns a digest of every task's items."""
    if panel is None:
        return []
    return [f"{task} {digest(*each.items.digests)}" for task, each in panel.evaluators.items()]
