"""Common random items: every generation is scored on its own random share of the search items.

What is hard for every candidate of a generation cancels out of its ranking, so that a strategy
that ranks within generations gets more candidates for the same number of item evaluations.
"""

from __future__ import annotations

from typing import Any

from omegaconf import DictConfig

from evaluators.panel import Panel
from merging.seeding import stable_seed
from search.privacy.private_noise import SecretNoise
from search.strategy import Strategy


class CommonItems:
    """The items of every generation: a share in (0, 1) of every task's."""

    def __init__(self, panel: Panel, share: float, seed: int) -> None:
        self._panel = panel
        self._share = share
        self._seed = seed
        self._latest: tuple[int, Panel] | None = None

    @classmethod
    def open(cls, config: DictConfig, panel: Panel) -> CommonItems | None:
        """Returns the items that a run's configuration asks for; None: all.

        A Poisson sample is secret (`PoissonItems`): what asks here goes by all items.
        """
        if config.common_items is None or config.sampling == "poisson":
            return None
        return cls(panel, config.common_items, config.seed)

    def of(self, generation: int) -> Panel:
        """Returns the items of a generation; while it lasts, the same object."""
        if self._latest is None or self._latest[0] != generation:
            seed = stable_seed("common items", self._seed, generation)
            self._latest = generation, self._panel.subset(self._share, seed)
        return self._latest[1]

    @property
    def item_count(self) -> int:
        """Items of one generation, all tasks together; equally many for all."""
        return self.of(0).item_count


class PoissonItems:
    """The secret search items of every generation: each with the same probability, on its own.

    What an accountant counts as amplification by sampling holds for this sample alone, and only
    while nobody knows who is in it: neither the sample nor its size may be released.

    Args:
        rate: probability of every item, in (0, 1).
    """

    def __init__(self, panel: Panel, rate: float, noise: SecretNoise) -> None:
        self._panel = panel
        self._rate = rate
        self._noise = noise
        self._latest: tuple[int, Panel | None] | None = None

    def of(self, generation: int) -> Panel | None:
        """Returns the tasks that have items in a generation, on these; None: no task has any."""
        if self._latest is None or self._latest[0] != generation:
            sampled = {
                task: evaluator.subset(indices)
                for task, evaluator in self._panel.evaluators.items()
                if (indices := self._sample(generation, task, len(evaluator.items)))
            }
            panel = Panel(self._panel.split, sampled) if sampled else None
            self._latest = generation, panel
        return self._latest[1]

    def _sample(self, generation: int, task: str, count: int) -> list[int]:
        drawn = (self._noise.uniform("item", generation, task, i) for i in range(count))
        return [i for i, uniform in enumerate(drawn) if uniform < self._rate]


def check_common_items(
    config: DictConfig, strategy: Strategy[Any], asked: int, objectives: int
) -> None:
    """Refuses what compares scores of different generations.

    Args:
        asked: how many candidates its first generation has.
        objectives: how many numbers a fitness has.

    Raises:
        ValueError: names the option that cannot go together with ``common_items``.
    """
    if config.common_items is None:
        return
    given, remedy = f"common_items={config.common_items}", "leave common_items out"
    if config.choose == "shrinkage":
        raise ValueError(
            f"{given}: choose=shrinkage needs every candidate's score on the same items: choose="
            f"second_look, or {remedy}"
        )
    if config.budget.target is not None:
        raise ValueError(
            f"{given}: budget.target would be reached by luck on few items: set "
            f"budget.target=null, or {remedy}"
        )
    if objectives > 1:
        raise ValueError(
            f"{given}: candidates are ranked within their generation by one number, the objective "
            f"has {objectives}: choose an objective with one, or {remedy}"
        )
    name = type(strategy).__name__
    if strategy.compares_generations:
        raise ValueError(
            f"{given}: {name} compares candidates with those of earlier generations, which have "
            f"other items: choose a strategy such as mergevolve or cma, or {remedy}"
        )
    if config.strategy.get("patience") is not None:
        raise ValueError(
            f"{given}: strategy.patience compares scores of different generations: set "
            f"strategy.patience=null, or {remedy}"
        )
    if asked == 1:
        raise ValueError(
            f"{given}: {name} asks for one candidate at a time, which has none to be compared "
            f"with on the same items: choose a strategy with generations, or {remedy}"
        )
