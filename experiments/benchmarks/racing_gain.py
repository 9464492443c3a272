"""Item evaluations that a search needs to the same winner, with racing and without.

    EVOMERGE_CACHE=DIR python -m experiments.benchmarks racing_gain

One weight per expert of ``experts=quickstart_long``, with five seeds. After every generation, and
without racing after every candidate, the search names a winner as it does at its end: of the best
three that were asked all search items, the best on the selection items. Counted are search items
asked, by all candidates, until the winners' fitness on held-out items, mean of the seeds, is for
good within 0.5 % of that of the winners that searches without racing end with; for these too.
Winners of five seeds differ by far more than 0.5 %: how much of the ratio is the luck of the seeds
is shown by drawing the seeds again, with replacement (the note), and by `racing_gain_seeds`.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal

import numpy as np
from hydra import compose, initialize_config_module
from omegaconf import DictConfig

from experiments.benchmarks.measured import Measured
from experiments.scoring.choose import ScoringOptions, open_evaluation
from experiments.searches.references import References
from experiments.setup.dry_run import dry_run
from experiments.setup.execution import Local
from experiments.setup.ingredients import open_ingredients, worker_spec
from experiments.setup.problem import Problem, open_strategy
from experiments.setup.racing_checks import open_racing
from search.loop.generational import search
from search.loop.history import History, Record
from search.loop.session import Budget
from search.winners.selection import finalists

SEEDS = range(5)
BAR = 5.0
LOSS = 0.005
EVALUATIONS = 40  # of the quickstart
_DRAWS = 200  # of seeds, for the range of the ratio
_SEARCH = (
    "experts=quickstart_long",
    "space=weights",
    "objective.weights={code:1,prose:1,headers:1,choice:0.25}",
    "finalists=3",
    "threads=1",
)
_COMMON = (*_SEARCH, "in_hull=null", "baselines=none", "tracker=none")


@dataclass(frozen=True)
class Arm:
    """A way of racing."""

    name: str
    options: tuple[str, ...]
    evaluations: int
    bar: float | None = None


def measure() -> Iterator[Measured]:
    """Yields a row for every rule of racing."""
    return rows(
        "quickstart, 210 search items",
        (),
        (
            Arm("halving", ("racing=halving",), 3 * EVALUATIONS, BAR),
            Arm("paired test", ("racing=paired_test",), EVALUATIONS),
        ),
    )


def rows(
    place: str, common: Sequence[str], arms: Sequence[Arm], seeds: Sequence[int] = SEEDS
) -> Iterator[Measured]:
    """Yields a row for every arm."""
    world = _World(common)
    full = [world.course(seed, (), EVALUATIONS) for seed in seeds]
    goal = _goal(full)
    full_items = _needed(full, goal)
    assert full_items is not None, "they end above their own goal"
    for arm in arms:
        raced = [world.course(seed, arm.options, arm.evaluations) for seed in seeds]
        items = _needed(raced, goal)
        yield Measured(
            measure=f"search items per run to the same winner ({place}), {arm.name}",
            ours=items,
            other=full_items,
            against="no racing",
            unit="items",
            ratio=float("nan") if items is None else full_items / items,
            bar=arm.bar,
            note=_note(raced, full, goal),
        )


@dataclass(frozen=True)
class _Course:
    """What a search has named and spent after each of its generations.

    Args:
        items: search items asked so far.
        fitness: on held-out items, of the winner named.
    """

    items: Sequence[int]
    fitness: Sequence[float]
    asked: Sequence[int]

    def at(self, items: float) -> float:
        """Returns the fitness of the winner that so many items name; 0, the base's: none yet."""
        known = [f for spent, f in zip(self.items, self.fitness, strict=True) if spent <= items]
        return known[-1] if known else 0.0


class _World:
    """The quickstart, opened once; what a genome scores on other items is asked once."""

    def __init__(self, common: Sequence[str]) -> None:
        self._common = (*_COMMON, *common)
        config = self._config(0, ())
        parts = dry_run(config)
        self._ingredients, trial = open_ingredients(config, parts)
        self._space = Problem.open(config, self._ingredients.held, trial.start, 0).space
        with tempfile.TemporaryDirectory() as folder:
            references = References(self._ingredients, {}, Path(folder))
            self._objective = references.bound(parts.objective)
        self._known: dict[tuple[str, str], float] = {}

    def _config(self, seed: int, options: Sequence[str]) -> DictConfig:
        more = [*self._common, "save_model=false", f"seed={seed}", *options]
        with initialize_config_module("conf", version_base="1.3"):
            return compose("search", overrides=more)

    def course(self, seed: int, options: Sequence[str], evaluations: int) -> _Course:
        """Returns the course of one search."""
        config = self._config(seed, options)
        ingredients, space = self._ingredients, self._space
        strategy = open_strategy(config.strategy, space.domain, seed)
        scoring = ScoringOptions(
            execution=Local(),
            worker_spec=partial(worker_spec, config, ingredients),
            racing=open_racing(config),
            common=None,
            together=config.together,
            seed=seed,
        )
        problem = Problem(space, strategy, None)
        objective = self._objective
        generations: list[int] = []  # candidates asked by the end of each
        with tempfile.TemporaryDirectory() as folder:
            result = search(
                _Noting(strategy, generations),
                open_evaluation(ingredients, problem, scoring, objective),
                objective,
                History(Path(folder)),
                Budget(evaluations=evaluations),
                encode=space.to_json,
            )
        total = ingredients.panels["search"].item_count
        asked = [total if r.asked is None else r.asked for r in result.records]
        ends = [end for end in generations if end <= len(result.records)]
        if not options:  # it may be stopped after any candidate
            ends = list(range(1, len(result.records) + 1))
        named = [self._winner(result.records[:end], config.finalists) for end in ends]
        return _Course([sum(asked[:end]) for end in ends], named, asked)

    def _winner(self, records: Sequence[Record], count: int) -> float:
        """Returns the held-out fitness of the winner that these records name."""
        best = finalists(records, count)
        winner = max(best, key=lambda record: self._score("selection", record))
        return self._score("report", winner)

    def _score(self, split: Literal["selection", "report"], record: Record) -> float:
        key = (split, str(record.genome))
        if key not in self._known:
            weights = self._space.decode(self._space.from_json(record.genome))
            scores = self._ingredients.scorer(self._ingredients.panels[split])(weights)
            values = {name: score.value for name, score in scores.items()}
            self._known[key] = float(self._objective.fitness(values)[0])
        return self._known[key]


class _Noting:
    """A strategy, and a note of where its generations end."""

    def __init__(self, strategy: Any, ends: list[int]) -> None:
        self._strategy, self._ends = strategy, ends
        self.tell: Callable[..., None] = strategy.tell
        self.recommend = strategy.recommend
        self.compares_generations: bool = strategy.compares_generations

    def ask(self) -> Any:
        """Returns the strategy's candidates."""
        candidates = self._strategy.ask()
        self._ends.append((self._ends or [0])[-1] + len(candidates))
        return candidates


def _needed(courses: Sequence[_Course], goal: float) -> float | None:
    """Returns the items, mean of the seeds, from which on the mean fitness is at the goal.

    All seeds are given the same items; what a search has spent when it names its winner counts.
    None: it is below the goal in the end.
    """
    grid = sorted({items for course in courses for items in course.items})
    needed: float | None = None
    for items in reversed(grid):
        if np.mean([course.at(items) for course in courses]) < goal:
            break
        needed = float(items)
    return needed


def _goal(full: Sequence[_Course]) -> float:
    """Returns the fitness that suffices."""
    return (1 - LOSS) * float(np.mean([course.fitness[-1] for course in full]))


def _again(raced: Sequence[_Course], full: Sequence[_Course]) -> tuple[float, float]:
    """Returns the range of 80 % of the ratios of seeds drawn again; 0 where no goal is reached."""
    rng, ratios = np.random.default_rng(0), []
    for _ in range(_DRAWS):
        drawn = rng.integers(len(full), size=len(full))
        chosen = [full[seed] for seed in drawn]
        goal = _goal(chosen)
        full_items, items = _needed(chosen, goal), _needed([raced[seed] for seed in drawn], goal)
        ratios.append(0.0 if items is None or full_items is None else full_items / items)
    low, high = np.quantile(ratios, (0.1, 0.9))
    return float(low), float(high)


def _note(raced: Sequence[_Course], full: Sequence[_Course], goal: float) -> str:
    """Returns what explains the figure: where both arms end, and what candidates cost."""
    asked = np.concatenate([course.asked for course in raced])
    shares = [f"{n}: {np.mean(asked == n):.0%}" for n in np.unique(asked)]
    low, high = _again(raced, full)
    return (
        f"seeds drawn again: 80 % of the ratios from {low:.1f} (0: goal not reached) to "
        f"{high:.1f}, as the luck of {len(full)} seeds moves the mean winner by "
        f"{_luck(raced):.1%}, without racing by {_luck(full):.1%} (standard error), and the goal "
        f"is {LOSS:.1%} off; "
        f"held-out fitness at the end: {_end(raced)}; without racing {_end(full)}; goal "
        f"{goal:.4f}; items of a raced candidate: {asked.mean():.0f} in the mean "
        f"({', '.join(shares)})"
    )


def _luck(courses: Sequence[_Course]) -> float:
    """Returns the standard error of the mean fitness at the end, relative to it."""
    ends = np.array([course.fitness[-1] for course in courses])
    return float(ends.std(ddof=1) / np.sqrt(len(ends)) / ends.mean())


def _end(courses: Sequence[_Course]) -> str:
    """Returns the fitness at the end, mean and by seed, and what it took."""
    by_seed = "/".join(f"{course.fitness[-1]:.3f}" for course in courses)
    mean = np.mean([course.fitness[-1] for course in courses])
    items = np.mean([course.items[-1] for course in courses])
    candidates = np.mean([len(course.asked) for course in courses])
    return f"{mean:.4f} ({by_seed}) after {items:.0f} items and {candidates:.0f} candidates"
