"""Genetic search over lineages: experts and their descendants, crossed on task vectors."""

from collections.abc import Callable, Sequence

import numpy as np

from merging.lineages.lineage import Founder, Lineage, ancestry
from merging.seeding import stable_seed
from search.checks import check_at_least, check_probability
from search.loop.ask_tell import AskTell
from search.populations.population import Individual, Pair, SurvivalRule, Truncation
from search.populations.variation import Bred, Variation
from search.strategy import Candidate, Outcome

_TRUNCATION, _VARIATION = Truncation(), Variation()
_TRIES = 8
"""Pairs drawn until one has a child with few enough ancestors."""


class GeneticAlgorithm:
    """Breeds generation after generation: pairs from a population, children by variation.

    The first generation are the founders as they are, filled up with children of random pairs of
    them. What makes it a genetic algorithm, M2N2, NSGA-II, MAP-Elites or CycleQD is `population`:
    who lives on and who mates. Failures never become parents. While nobody lives, and for pairs
    whose child would have too many ancestors, children are bred afresh from the founders: from
    those that were scored, or where these cannot have a child, from all.

    Args:
        seed: with a child's id, decides its parents and how it is made.
        founders: names of the space's founders: experts, or the run's start.
        popsize: candidates per generation; the first has as many as there are founders, if more.
        ancestors: most individuals in a lineage, itself and every step between parents and child
            included: bounds the time to compute it and its recipe (about 60 bytes each). Children
            of founders, of at most six, are never too many.
        backcross: probability that a member's mate is a founder, even one that lives no more: few
            founders are soon blended away, and what was lost with them comes back only so.
        population: who lives on and who mates.
        variation: how children are made.

    Source: Holland 1975, Adaptation in natural and artificial systems; the populations name
        theirs.
    """

    compares_generations = True
    one_at_a_time = False

    def __init__(
        self,
        *,
        seed: int,
        founders: Sequence[str],
        popsize: int = 16,
        ancestors: int = 200,
        backcross: float = 0.1,
        population: SurvivalRule = _TRUNCATION,
        variation: Variation = _VARIATION,
    ) -> None:
        if isinstance(founders, str) or not founders or len(set(founders)) < len(founders):
            raise ValueError(f"founders must be a list of different names, got {founders!r}")
        check_at_least(1, popsize=popsize, ancestors=ancestors)
        check_probability(backcross=backcross)
        if len(founders) == 1 and not variation.mutates:
            raise ValueError(
                f"{founders[0]!r} is the only founder and nothing mutates it: name a second "
                "expert, or give variation.scale, low_rank or sign more than 0"
            )
        self._seed = seed
        self._popsize = popsize
        self._ancestors = ancestors
        self._backcross = backcross
        self._founders = [Bred(Founder(name)) for name in founders]
        self._population = population
        self._variation = variation
        self._ask_tell = AskTell[Lineage]()
        self._waiting: dict[int, Bred] = {}
        self._outcomes = 0
        self._members: list[Individual] = []
        self._sound = self._founders  # those that did not fail, unless all did

    @property
    def members(self) -> tuple[int, ...]:
        """Ids of the candidates that live now: the population, or the archive."""
        return tuple(individual.id for individual in self._members)

    def check_objectives(self, count: int) -> None:
        """Raises ValueError where the population cannot judge a fitness of so many numbers.

        `tell` does so; a run that knows its objective can ask before any work.
        """
        self._population.check_objectives(count)

    def ask(self) -> list[Candidate[Lineage]]:
        """Returns the next generation; the first begins with the founders."""
        self._ask_tell.check_told()
        first, generation = self._ask_tell.candidates, self._ask_tell.generations
        brood = list(self._founders) if generation == 0 else []
        pair = self._pairing(generation)
        for number in range(first + len(brood), first + self._popsize):
            brood.append(self._child(pair, number))
        self._waiting = dict(enumerate(brood, start=first))
        return self._ask_tell.ask([bred.genome for bred in brood])

    def tell(self, outcomes: Sequence[Outcome]) -> None:
        """Lets children and members compete for a place in the population."""
        self._check(outcomes)
        self._learn(self._ask_tell.tell(outcomes))

    def ask_one(self) -> Candidate[Lineage]:
        """Returns the next child of who lives now; see `search.loop.steady_state.SteadyStrategy`.

        The first are the founders. `popsize` outcomes count as one generation, for populations
        whose rules change from one to the next.
        """
        self._ask_tell.check_steady()
        number = self._ask_tell.candidates
        if number < len(self._founders):
            bred = self._founders[number]
        else:
            bred = self._child(self._pairing(self._outcomes // self._popsize), number)
        self._waiting[number] = bred
        return self._ask_tell.ask_one(bred.genome)

    def tell_one(self, outcome: Outcome) -> None:
        """Lets a child compete for a place in the population; errors as `tell`."""
        self._check([outcome])
        self._ask_tell.tell_one(outcome)
        self._learn([outcome])

    def recommend(self) -> list[Lineage]:
        """Returns the best lineage ever told, or the non-dominated ones."""
        return self._ask_tell.best

    def _check(self, outcomes: Sequence[Outcome]) -> None:
        for outcome in outcomes:
            if outcome.fitness is not None:
                self.check_objectives(outcome.fitness.size)
        self._population.check_cases(outcomes, self._members)

    def _learn(self, outcomes: Sequence[Outcome]) -> None:
        children = []
        for outcome in outcomes:
            bred = self._waiting.pop(outcome.id)
            if outcome.fitness is not None:
                children.append(self._individual(bred, outcome))
            elif outcome.id < len(self._founders):
                self._sound = [one for one in self._sound if one is not bred] or self._founders
        self._outcomes += len(outcomes)
        if children:
            self._members = self._population.survivors([*self._members, *children])

    def _pairing(self, generation: int) -> Callable[[np.random.Generator], Pair] | None:
        """Returns what draws two members; None: there are no two."""
        if len(self._members) < 2:
            return None
        return self._population.pairing(self._members, generation)

    def _individual(self, bred: Bred, outcome: Outcome) -> Individual:
        """Returns a scored candidate; what a caller does to the outcome later is his own."""
        assert outcome.fitness is not None
        cases = outcome.cases if self._population.reads_cases else None
        return Individual(
            outcome.id, bred, outcome.fitness.copy(), None if cases is None else cases.copy()
        )

    def _child(self, pair: Callable[[np.random.Generator], Pair] | None, number: int) -> Bred:
        rng = np.random.default_rng(stable_seed("parents", self._seed, number))
        for _ in range(_TRIES if self._members else 0):
            parents = self._parents(pair, rng)
            if parents is not None:
                child = self._variation.child(*parents, seed=self._seed, number=number)
                if len(ancestry(child.genome)) <= self._ancestors:
                    return child
        return self._fresh(rng, number)

    def _parents(
        self, pair: Callable[[np.random.Generator], Pair] | None, rng: np.random.Generator
    ) -> tuple[Bred, Bred | None] | None:
        """Returns a pair, or a member that is alone; None: alone, and nothing mutates it."""
        first, second = (self._members[0], None) if pair is None else pair(rng)
        if rng.random() < self._backcross:
            others = [one for one in self._sound if one.genome != first.bred.genome]
            if others:
                return first.bred, others[int(rng.integers(len(others)))]
        if second is None:
            return (first.bred, None) if self._variation.mutates else None
        return first.bred, second.bred

    def _fresh(self, rng: np.random.Generator, number: int) -> Bred:
        """Returns a child of founders."""
        alone = len(self._sound) == 1 and not self._variation.mutates
        pool = self._founders if alone else self._sound
        order = rng.permutation(len(pool)).tolist()
        second = pool[order[1]] if len(pool) > 1 else None
        return self._variation.child(pool[order[0]], second, seed=self._seed, number=number)
