"""A search on private items: what is released is noisy, counted, and nothing else.

What a finished run leaves on disk may be released: candidates' noisy fitness, the winner, the
models' scores on public splits. Per-item scores, task scores, messages of candidates, times and
memory are never written, base and experts are not scored on private items at all, and the key of
the noise and the files' dates are destroyed at the end. docs/privacy.md says what that covers.
"""

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from omegaconf import DictConfig

from evaluators.evaluator import Score
from evaluators.panel import Panel
from experiments.runs.directory import run_identity
from experiments.runs.errors import UserError
from experiments.runs.model_scores import SPLITS, ModelScores
from experiments.runs.starts import PUBLIC_NOISE, beside_others, write_start
from experiments.scoring.choose import local_evaluation
from experiments.searches.disclosure import Loop, living, look_again, unseen_finalists
from experiments.searches.private_key import (
    open_noise,
    release_by_seed,
    release_of,
    seeded_noise,
)
from experiments.searches.private_scores import item_by_item, robust_scores
from experiments.searches.references import References
from experiments.setup.common_items import PoissonItems
from experiments.setup.ingredients import Ingredients
from experiments.setup.initial import StartScores
from experiments.setup.parts import SearchParts
from experiments.setup.private_checks import sampling_rate
from experiments.setup.problem import Problem
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.privacy_record import PrivacySpend
from merging.files import write_text
from merging.paths.path import Path as WeightPath
from merging.plan import Plan
from merging.privacy import accounting
from merging.privacy.composition import Price
from merging.privacy.ledger import Ledger
from merging.spaces.space import SearchSpace
from search.loop.evaluation import Evaluation, LocalPool
from search.loop.generational import search
from search.loop.history import Record
from search.loop.session import SearchResult
from search.objective import BoundObjective, Objective
from search.privacy.private import PrivatePool
from search.privacy.private_budget import STOP
from search.privacy.private_fitness import ClippedSum, Shares, item_differences
from search.privacy.private_svt import AboveThreshold
from search.winners.selection import Finalist

log = logging.getLogger(__name__)


class PrivateDisclosure:
    """Strategy, files and people see a search through its noisy fitness alone.

    Args:
        ingredients: of the run, with every panel.
        run: its directory.
        begun: whether something was released already.

    Raises:
        UserError: the key of the noise is gone.
    """

    def __init__(
        self,
        config: DictConfig,
        parts: SearchParts,
        ingredients: Ingredients,
        run: Path,
        *,
        begun: bool,
    ) -> None:
        assert parts.privacy is not None, "privacy=none discloses all"
        self._privacy, self._run = parts.privacy, run
        self._selection = ingredients.panels.get("selection")
        panels = [ingredients.panels["search"]]
        if self._selection is not None:
            panels.append(self._selection)
        belongs = (run_identity(config), *_contents(ingredients.pool, panels))
        if self._privacy.randomness == "secret":
            self._noise = open_noise(run, belongs, begun=begun)
            self._release = str(release_of(run))
        else:
            self._noise = seeded_noise(config.seed, belongs)
            self._release = release_by_seed(run_identity(config))
        unread = set(SPLITS) - set(self._privacy.public)
        readable = dict(ingredients.panels)
        if "selection" in unread:  # so that no other step can read these items
            readable.pop("selection", None)
        ingredients = replace(ingredients, panels=readable)
        self.references = References(ingredients, parts.baselines, run, unread=unread)
        self._rate = sampling_rate(config)
        self._budget = self._privacy.budget(config.choose, self._rate)
        self._poisson = config.sampling == "poisson"
        self._together = config.together
        self._choice, self._count = config.choose, config.finalists

    def items(self) -> Mapping[str, Any]:
        """Returns digests of public items; of the private ones a number that needs the key.

        A plain digest would tell whoever guesses the whole set that the guess is right.
        """
        panels, public = self.references.ingredients.panels, self._privacy.public
        items: dict[str, Any] = {s: panels[s].contents for s in panels if s in public}
        if self._privacy.randomness == "secret":
            items["private"] = self._noise.uniform("items")
        return items

    def start_scores(self, search: Mapping[str, ModelScores], objective: Objective) -> StartScores:
        """Returns that nothing is known of the search items."""

        def refuse(name: str, plan: Plan) -> float | None:
            raise UserError(f"privacy: start {name!r} would be scored on private items")

        pool = self.references.ingredients.pool
        return StartScores(dict.fromkeys(pool.expert_names, 0.0), refuse)

    def loop(self, problem: Problem, objective: Objective) -> Loop:
        """Returns the search through noisy fitness, ended by its privacy budget."""
        privacy = self._privacy
        budget = Price(privacy.epsilon, privacy.delta)
        void = PUBLIC_NOISE if privacy.randomness == "seed" else None
        write_start(privacy.data, self._release, budget, self._run, void=void)
        pool = self._evaluation_pool(problem.space, objective)
        return partial(
            search,
            problem.strategy,
            pool.evaluation,
            account=lambda new: self._budget.before(pool.releases(new)),
        )

    def _evaluation_pool(self, space: SearchSpace[Any], objective: Objective) -> PrivatePool[Any]:
        ingredients = self.references.ingredients
        panel = ingredients.panels["search"]
        items = PoissonItems(panel, self._rate, self._noise) if self._poisson else None

        def of(generation: int) -> Panel | None:
            return panel if items is None else items.of(generation)

        def sampled(generation: int) -> Panel:
            sample = of(generation)
            assert sample is not None, "an empty sample is not asked"
            return sample

        def singly(genome: Any, generation: int) -> Mapping[str, Score]:
            if (sample := of(generation)) is None:
                ingredients.model.write(space.decode(genome))
                return {}
            weights = space.decode(genome)
            return item_by_item(sample, lambda asked: ingredients.scorer(asked)(weights))

        # Whether candidates share a pass depends on all items, and rounds otherwise than alone.
        exact = ingredients.machine.dtype == torch.float32 and ingredients.engine.batch_tokens > 1
        inner = local_evaluation(ingredients, space, None, self._together if exact else None)
        if items is not None:
            local = LocalPool(space.decode, lambda number: ingredients.scorer(sampled(number)))
            inner = Evaluation(local, own_items=True)
        return PrivatePool(
            inner=inner,
            singly=singly,
            empty=lambda generation: of(generation) is None,
            shares=_shares(objective, panel, self._rate),
            mechanism=ClippedSum(self._privacy.clip, self._privacy.noise_multiplier, self._noise),
            release=self._privacy.release,
            encode=space.to_json,
        )

    def comparable(
        self, problem: Problem, result: SearchResult, objective: Objective
    ) -> tuple[SearchResult, int]:
        """Returns the result as it is, with the candidates that differences do not tell apart.

        Differences tell nothing of a candidate, so that the only record that is left is the
        strategy's centre, or the one that the second look takes, with a noisy reading.
        """
        panel = self.references.ingredients.panels["search"]
        expected = round(self._rate * panel.item_count)
        items = result.evaluations * expected
        if self._privacy.release == "means":
            return result, items
        genomes = self._centres(problem, result)
        chosen = genomes[0]
        if self._choice == "svt":
            chosen = genomes[self._first_above(problem.space, objective, genomes)]
        reading = self._noisy_fitness(problem.space, objective, chosen)
        winner = Record(len(result.records), chosen, {}, reading)
        return replace(result, records=(winner,), best=(winner.id,)), items

    def choose(
        self, problem: Problem, result: SearchResult, objective: Objective
    ) -> list[Finalist]:
        """Returns the best few by their noisy fitness, the winner first."""
        if self._choice == "second_look":
            return look_again(self.references, problem, result, objective, self._count, self._run)
        best = unseen_finalists(result, self._count)
        if self._choice == "svt" and self._privacy.release == "means":
            genomes = [finalist.genome for finalist in best]
            index = self._first_above(problem.space, objective, genomes)
            best.insert(0, best.pop(index))
        return best

    def _centres(self, problem: Problem, result: SearchResult) -> list[Any]:
        """Returns the strategy's last centres as JSON, the last first; at most ``finalists``."""
        space = problem.space
        centres = [space.to_json(genome) for genome in problem.strategy.recommend()]
        for record in reversed(result.records):
            genome = space.from_json(record.genome)
            centre = space.to_json(genome.centre) if isinstance(genome, WeightPath) else None
            if centre is not None and centre not in centres:
                centres.append(centre)
        if not centres:
            raise UserError("privacy: the search ended before its first step was told")
        return centres[: self._count]

    def _noisy_fitness(self, space: SearchSpace[Any], objective: Objective, genome: Any) -> Any:
        """Returns the noisy fitness of one genome on all search items, by Laplace noise."""
        privacy, ingredients = self._privacy, self.references.ingredients
        panel = ingredients.panels["search"]
        weights = space.decode(space.from_json(genome))
        shares = _shares(objective, panel, 1.0)
        (contributions,) = shares.contributions(robust_scores(ingredients, panel, weights))
        mechanism = ClippedSum(privacy.reading_clip, 1.0, self._noise)
        total = mechanism.reading(contributions, privacy.reading_epsilon, json.dumps(genome))
        return np.array([total / shares.divisors[0]])

    def _first_above(
        self, space: SearchSpace[Any], objective: Objective, genomes: Sequence[Any]
    ) -> int:
        """Returns the first genome that is better than the start by the margin; none: 0.

        Asked on the private selection items, one after the other, by AboveThreshold.
        """
        privacy, panel = self._privacy, self._selection
        assert panel is not None, "refused in the dry run"
        shares = _shares(objective, panel, 1.0)
        mechanism = ClippedSum(privacy.svt_clip, 1.0, self._noise)
        svt = AboveThreshold(
            epsilon=privacy.svt_epsilon,
            sensitivity=mechanism.part,
            threshold=round(privacy.svt_margin * panel.item_count / mechanism.unit),
            noise=self._noise,
            name=f"svt {json.dumps(list(genomes))}",
        )

        def contributions(genome: Any) -> list[Any]:
            weights = space.decode(genome)
            return shares.contributions(robust_scores(self.references.ingredients, panel, weights))

        start = contributions(space.first())
        answers: list[bool] = []
        for genome in genomes:
            if svt.ended:
                break
            tasks = zip(contributions(space.from_json(genome)), start, strict=True)
            gain = sum(mechanism.sum(item_differences(own, first)) for own, first in tasks)
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

    def population(self, problem: Problem, result: SearchResult) -> list[Record]:
        """Returns the final population where every member's noisy fitness was released.

        Its genomes then follow from what the ledger counts. Differences release nothing of a
        candidate, which is a probe beside the centre; that is the winner.
        """
        return living(problem, result) if self._privacy.release == "means" else []

    def charged(self, ledger: Ledger, result: SearchResult) -> Ledger:
        """Returns the ledger with what the search has spent.

        That is its whole budget where what was released has decided how much would be: composition
        knows a price for what is fixed beforehand, and a bound that is never exceeded.
        """
        privacy, budget = self._privacy, self._budget
        if privacy.randomness == "seed":
            what = f"the search on {privacy.data}, whose noise follows from its public seed"
            return beside_others(ledger.read(None, what, None), "search")
        fixed = result.stop in ("evaluations", STOP) and not result.repeats
        spend = PrivacySpend(
            dataset=privacy.data,
            epsilon=budget.spent if fixed else privacy.epsilon,
            delta=privacy.delta,
            accountant="dp-accounting rdp",
            accountant_version=accounting.library_version(),
            unit=privacy.unit,
            disjoint_from=tuple(privacy.disjoint_from),
            mechanisms=(*budget.mechanisms, *privacy.reserved(self._choice)) if fixed else None,
            what=f"search: noisy {privacy.release} of {budget.steps} generations; "
            "scores and per-item scores were not kept",
            release=self._release,
        )
        return beside_others(ledger.add(spend), "search")


def _contents(pool: ExpertPool, panels: Sequence[Panel]) -> list[str]:
    """Returns what tells these experts and items from any others."""
    tasks = (task for panel in panels for task in panel.evaluators.items())
    items = [f"{name} {evaluator.items.content}" for name, evaluator in tasks]
    return [pool.base.sha256, *pool.identities, *items]


def _shares(objective: Objective, panel: Panel, rate: float) -> Shares:
    assert isinstance(objective, BoundObjective), "refused in the dry run"
    sizes = {task: len(evaluator.items) for task, evaluator in panel.evaluators.items()}
    return Shares(objective, sizes, rate)
