"""What would release private items without noise, or without paying: refused before any work."""

from collections.abc import Collection, Mapping
from contextlib import suppress
from typing import Any

import torch
from omegaconf import DictConfig

from evaluators.panel import Panel
from evaluators.requests import EvaluationError
from evaluators.split import Split
from experiments.setup.initial import BestExpert, BestOf, Scored
from experiments.setup.parts import SearchParts
from experiments.setup.racing_checks import bound_on_made_up, has_own_cases
from merging.privacy.accounting import check_delta
from search.objective import Pareto, WeightedMean
from search.privacy.privacy import SearchPrivacy
from search.strategy import Strategy

_MANY = 10_000


def sampling_rate(config: DictConfig) -> float:
    """Returns what an accountant may count: 1 but for a Poisson sample."""
    return float(config.common_items) if config.sampling == "poisson" else 1.0


def check_privacy(config: DictConfig, parts: SearchParts, asked: int, objectives: int) -> None:
    """Refuses what reads private items un-noised, and budgets that pay for nothing.

    Args:
        asked: how many candidates the strategy's first generation has.
        objectives: how many numbers a fitness has.

    Raises:
        ValueError: names the option and the remedy.
    """
    if config.sampling == "poisson" and config.common_items is None:
        raise ValueError("sampling=poisson: of how many items? set common_items, for example 0.1")
    privacy = parts.privacy
    if privacy is None:
        _check_not_private(config)
        return
    if config.common_items is not None and config.sampling != "poisson":
        raise ValueError(
            "privacy: which items a share of fixed size holds changes with every item more or "
            "less: set sampling=poisson, or leave common_items out"
        )
    _check_readings(config, privacy)
    _check_ways(config, privacy, parts)
    if config.backend:
        raise ValueError(
            "privacy: another program would read the private items and the secret samples, in "
            "batches of its own: choose backend=resident"
        )
    check_engine(config, parts.machine.dtype)
    _check_objective(config, privacy, parts.objective, asked, objectives)
    privacy.budget(config.choose, sampling_rate(config))


def budget_line(config: DictConfig, privacy: SearchPrivacy, strategy: Strategy[Any]) -> str:
    """Returns in a line what the privacy budget pays for; asks the fresh strategy once."""
    asked = len(strategy.ask())
    budget = privacy.budget(config.choose, sampling_rate(config))
    releases = asked if privacy.release == "means" else asked // 2
    while budget.steps < _MANY and budget.before(releases) is None:
        pass
    count = f"at least {_MANY}" if budget.steps == _MANY else str(budget.steps)
    return (
        f"privacy     epsilon {privacy.epsilon:g}, delta {privacy.delta:g} on {privacy.data}: "
        f"pays for {count} generations of {asked}"
    )


def check_private_panels(
    privacy: SearchPrivacy | None,
    panels: Mapping[Split, Panel],
    objective: Any,
    classes: Mapping[str, tuple[str, ...]],
) -> None:
    """Refuses private items that could move more than their own score; see `check_items`."""
    if privacy is None:
        return
    private = [panel for split, panel in panels.items() if split not in privacy.public]
    check_shown(private, panels.values())
    for panel in private:
        check_items(panel, privacy.delta)
        _check_cases(panel, objective, classes)


def _check_cases(panel: Panel, objective: Any, classes: Mapping[str, tuple[str, ...]]) -> None:
    """Refuses metrics in which an item moves the cases of others, by scoring made-up answers."""
    for term in bound_on_made_up(objective, panel.directions, panel.main).terms:
        with suppress(EvaluationError):  # these answers cannot be scored, a model's may
            if not has_own_cases(panel.evaluators[term.task], term.key, classes):
                raise ValueError(
                    f"privacy: on {panel.split} items {term.key} has no score per item that is "
                    "the item's alone, so that its part in a sum cannot be bounded: choose "
                    "another metric with objective.metrics, or leave the task out"
                )


def check_shown(private: Collection[Panel], panels: Collection[Panel]) -> None:
    """Refuses prompts that show private items as examples: these would change others' scores.

    Examples from any other data are taken to be public.

    Raises:
        ValueError: names the task and the remedy.
    """
    each = [evaluator for panel in private for evaluator in panel.evaluators.values()]
    data = frozenset[str]().union(*(evaluator.items.data for evaluator in each))
    for panel in panels:
        for task, evaluator in panel.evaluators.items():
            if evaluator.items.shown & data:
                raise ValueError(
                    f"{panel.split} task {task!r} shows private items as examples in the prompts "
                    "of others: set num_fewshot=0, or the task's fewshot_split to a public split"
                )


def check_items(panel: Panel, delta: float) -> None:
    """Refuses items whose part in a sum cannot be bounded by clipping it, and too large a delta.

    One that occurs twice contributes twice, and so does a record that two tasks read; one whose
    score is a comparison with the others changes their scores. A delta of one in n allows to give
    one of n items away. How many items there are is taken as public, and so are the mean bytes
    or words of texts that are scored per byte or word.

    Raises:
        ValueError: names the tasks, or the option.
    """
    from evaluators.memorization.membership import Membership  # imports scipy.stats

    seen: dict[str, str] = {}
    read: dict[str, str] = {}
    for task, evaluator in panel.evaluators.items():
        for data in sorted(evaluator.items.data):
            if data in read:
                raise ValueError(
                    f"{panel.split} tasks {read[data]!r} and {task!r} both read {data}, of which "
                    "a record would contribute twice to what is released: give each task a file "
                    "of other records"
                )
            read[data] = task
        if isinstance(evaluator, Membership):
            raise ValueError(
                f"{panel.split} task {task!r}: membership inference compares its texts with one "
                "another, so that one of them changes the scores of all: leave it out of a "
                "private search"
            )
        for item in evaluator.items.digests:
            if item in seen:
                raise ValueError(
                    f"{panel.split} tasks {seen[item]!r} and {task!r} hold one item twice, which "
                    "would contribute twice to what is released: take it out of the data"
                )
            seen[item] = task
    check_delta(delta, len(seen), f"{panel.split} items")


def check_engine(config: DictConfig, dtype: torch.dtype) -> None:
    """Refuses an engine in which private items change whether, or how, others are answered.

    Raises:
        ValueError: names the option and the remedy.
    """
    if config.timeout_s is not None:
        raise ValueError("privacy: whether time is up depends on the items: set timeout_s=null")
    if config.compile and dtype != torch.float32:
        raise ValueError(
            "privacy: how a compiled model rounds depends on what it was asked before: set "
            "compile=false, or dtype=float32"
        )


def _check_not_private(config: DictConfig) -> None:
    if config.sampling == "poisson":
        raise ValueError(
            "sampling=poisson is for private items, whose noise it makes cheaper: set privacy=, "
            "or leave sampling out"
        )
    if config.choose in ("last", "svt"):
        raise ValueError(
            f"choose={config.choose} is for private items: choose=second_look, or set privacy="
        )


def _check_readings(config: DictConfig, privacy: SearchPrivacy) -> None:
    """Refuses what would read a private split besides the search."""
    for key, split in (("select_on", "selection"), ("report_on", "report")):
        named = any((config[key] or {}).values())
        read = named and not (split == "selection" and config.choose in ("svt", "last"))
        if read and split not in privacy.public:
            other = "choose=svt, or " if split == "selection" else ""
            raise ValueError(
                f"privacy: {split} items would be read without noise: declare them public with "
                f"privacy.public=[{split}], {other}leave them out with evaluator@{key}=none"
            )
    if config.choose == "svt":
        if not any((config.select_on or {}).values()):
            raise ValueError("choose=svt needs selection items: choose evaluator@select_on=NAME")
        if "selection" in privacy.public:
            raise ValueError(
                "choose=svt is for private selection items, these are public: choose=second_look"
            )


def _check_ways(config: DictConfig, privacy: SearchPrivacy, parts: SearchParts) -> None:
    """Refuses ways of searching that release more than is paid for."""
    if isinstance(parts.initial, Scored | BestExpert | BestOf):
        raise ValueError(
            "privacy: this initial point is chosen by scores on the private search items: choose "
            "initial=average, own, static or recipe"
        )
    if config.get("in_hull"):
        raise ValueError(
            "privacy: the companion search inside the hull would read the private items too: set "
            "in_hull=null"
        )
    if parts.racing is not None or config.asynchronous:
        raise ValueError(
            "privacy: a generation is released as a whole: leave racing= and asynchronous= out"
        )
    if parts.execution.elsewhere:
        raise ValueError("privacy: secret samples stay in one process: choose execution=local")
    if config.budget.seconds is not None:
        raise ValueError(
            "privacy: how many generations a time allows depends on the items: set "
            "budget.seconds=null and limit budget.evaluations"
        )
    if config.choose == "shrinkage":
        raise ValueError("privacy: choose=shrinkage needs every item's score: choose=svt or last")
    if config.choose == "last" and privacy.release == "means":
        raise ValueError(
            "choose=last is for privacy=differences, whose candidates have no fitness of their "
            "own: choose=second_look (of noisy fitness) or svt"
        )


def _check_objective(
    config: DictConfig, privacy: SearchPrivacy, objective: Any, asked: int, objectives: int
) -> None:
    if not isinstance(objective, WeightedMean | Pareto) or objective.normalize != "raw":
        raise ValueError(
            "privacy: the objective must be a sum over items that no reference's score on the "
            "private items enters: choose objective=raw, or objective=pareto with "
            "objective.normalize=raw"
        )
    if objective.cap is not None:
        raise ValueError(
            "privacy: objective.cap is on a mean of private items, whose sum is released as it "
            "is: leave it out"
        )
    if privacy.release != "differences":
        return
    if objectives > 1:
        raise ValueError("privacy=differences knows one objective: choose objective=raw")
    if asked % 2:
        raise ValueError(
            f"privacy=differences releases differences of pairs, the strategy asks for {asked}: "
            "choose strategy=dp_zo, or privacy=means"
        )
    if (config.budget.evaluations or asked) < asked:
        raise ValueError(
            f"privacy=differences: budget.evaluations={config.budget.evaluations} ends before the "
            f"first step of {asked} candidates is told: raise it to {asked}"
        )
    if config.choose == "second_look":
        raise ValueError(
            "privacy=differences: no candidate has a fitness of its own to be chosen by: choose="
            "last (the strategy's last centre) or choose=svt"
        )
