"""State of a strategy as the outcomes it was told: loading replays them into a fresh one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from merging.spaces.axes import Vector
from search.asked import Asked
from search.ranking import Best
from search.strategy import Candidate, Outcome


class Journal:
    """What a strategy over vectors was told, enough to derive its state again.

    For strategies whose asks depend on their arguments and the outcomes told alone. nevergrad's
    optimizers are among them: several cannot be pickled, and all that were tried can be replayed.
    """

    def __init__(self) -> None:
        self._asked: Asked[Vector] = Asked()
        self._best: Best[Vector] = Best()
        self._generations: list[dict[str, Any]] = []

    @property
    def asked(self) -> int:
        """How many generations were asked, also counting one that waits for its outcomes."""
        return len(self._generations) + bool(self._asked.pending)

    @property
    def best(self) -> list[Vector]:
        """The best genome told, or the non-dominated ones; copies."""
        return [genome.copy() for genome in self._best.genomes]

    def check_told(self) -> None:
        """Raises RuntimeError while a generation waits for its outcomes."""
        self._asked.check_told()

    def ask(self, genomes: Sequence[Vector]) -> list[Candidate[Vector]]:
        """Returns candidates for copies of the genomes: what a caller does to them is his own."""
        candidates = self._asked.ask(genomes)
        return [Candidate(candidate.id, candidate.genome.copy()) for candidate in candidates]

    def tell(self, outcomes: Sequence[Outcome]) -> list[tuple[Candidate[Vector], Outcome]]:
        """Returns candidates with their outcomes sorted by id; errors as in `Strategy.tell`."""
        pairs = self._asked.tell(outcomes)
        for candidate, outcome in pairs:
            self._best.add(candidate.id, candidate.genome, outcome.fitness)
        self._generations.append(
            {
                "genomes": _digest([candidate.genome for candidate, _ in pairs]),
                "fitness": [
                    None if outcome.fitness is None else outcome.fitness.tolist()
                    for _, outcome in pairs
                ],
            }
        )
        return pairs

    def state_dict(self) -> dict[str, Any]:
        """Returns JSON values: the outcomes told, and digests of the genomes asked."""
        pending = [candidate.genome for candidate in self._asked.pending]
        return {
            "generations": [dict(generation) for generation in self._generations],
            "pending": _digest(pending) if pending else None,
        }


def replay(
    state: Mapping[str, Any],
    ask: Callable[[], list[Candidate[Vector]]],
    tell: Callable[[Sequence[Outcome]], None],
) -> None:
    """Puts a fresh strategy into `state` by asking and telling what was asked and told.

    Raises:
        RuntimeError: the strategy asks other genomes than those the outcomes belong to.
    """
    for number, generation in enumerate(state["generations"]):
        candidates = _ask_same(ask, generation["genomes"], number)
        tell(
            [
                Outcome(candidate.id, None if fitness is None else np.array(fitness, np.float64))
                for candidate, fitness in zip(candidates, generation["fitness"], strict=True)
            ]
        )
    if state["pending"] is not None:
        _ask_same(ask, state["pending"], len(state["generations"]))


def _ask_same(
    ask: Callable[[], list[Candidate[Vector]]], digest: str, number: int
) -> list[Candidate[Vector]]:
    candidates = ask()
    if _digest([candidate.genome for candidate in candidates]) != digest:
        raise RuntimeError(
            f"generation {number} asks other genomes than this state was saved with; load it into "
            "a strategy built with the same arguments and library versions"
        )
    return candidates


def _digest(genomes: Sequence[Vector]) -> str:
    rows = b"".join(np.ascontiguousarray(genome).tobytes() for genome in genomes)
    return hashlib.blake2b(rows, digest_size=8).hexdigest()
