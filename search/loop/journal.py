"""State of a strategy as the outcomes it was told: loading replays them into a fresh one."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Generic

import numpy as np

from merging.arrays import Vector
from search.loop.asked import Asked
from search.ranking import Best
from search.strategy import Candidate, G, Outcome


class GenomeJournal(Generic[G]):
    """What a strategy was told, enough to derive its state again.

    For strategies whose asks depend on their arguments and the outcomes told alone. nevergrad's
    optimizers are among them: several cannot be pickled, and all that were tried can be replayed.

    Args:
        digest: a few characters that tell one list of genomes from another.
        copy: what callers get of a genome; genomes that cannot be changed need none.
        keep_cases: keep the outcomes' cases too, for a strategy whose asks depend on them.
    """

    def __init__(
        self,
        digest: Callable[[Sequence[G]], str],
        copy: Callable[[G], G] | None = None,
        keep_cases: bool = False,
    ) -> None:
        self._digest, self._copy, self._keep_cases = digest, copy, keep_cases
        self._asked: Asked[G] = Asked()
        self._best: Best[G] = Best()
        self._generations: list[dict[str, Any]] = []
        self._steady: dict[str, list[Any]] = {"asked": [], "told": []}

    @property
    def candidates(self) -> int:
        """How many candidates were asked."""
        return self._asked.count

    @property
    def asked(self) -> int:
        """How many generations were asked, also counting one that waits for its outcomes."""
        return len(self._generations) + bool(self._asked.pending)

    @property
    def best(self) -> list[G]:
        """The best genome told, or the non-dominated ones; copies."""
        return [self._own(genome) for genome in self._best.genomes]

    def check_told(self) -> None:
        """Raises RuntimeError while a generation waits for its outcomes."""
        self._asked.check_told()

    def ask(self, genomes: Sequence[G]) -> list[Candidate[G]]:
        """Returns candidates for copies of the genomes: what a caller does to them is his own."""
        candidates = self._asked.ask(genomes)
        return [Candidate(candidate.id, self._own(candidate.genome)) for candidate in candidates]

    def tell(self, outcomes: Sequence[Outcome]) -> list[tuple[Candidate[G], Outcome]]:
        """Returns candidates with their outcomes sorted by id; errors as in `Strategy.tell`."""
        pairs = self._asked.tell(outcomes)
        for candidate, outcome in pairs:
            self._best.add(candidate.id, candidate.genome, outcome.fitness)
        generation: dict[str, Any] = {
            "genomes": self._digest([candidate.genome for candidate, _ in pairs]),
            "fitness": [_values(outcome.fitness) for _, outcome in pairs],
        }
        if self._keep_cases:
            generation["cases"] = [_values(outcome.cases) for _, outcome in pairs]
        self._generations.append(generation)
        return pairs

    def check_alone(self) -> None:
        """Raises RuntimeError where whole generations were asked."""
        self._asked.check_alone()

    def ask_one(self, genome: G) -> Candidate[G]:
        """Returns a candidate for a copy of the genome; others may wait for their outcomes."""
        candidate = self._asked.ask_one(genome)
        self._steady["asked"].append(self._digest([genome]))
        return Candidate(candidate.id, self._own(genome))

    def tell_one(self, outcome: Outcome) -> Candidate[G]:
        """Returns the outcome's candidate; errors as in `Asked.tell_one`."""
        candidate = self._asked.tell_one(outcome)
        self._best.add(candidate.id, candidate.genome, outcome.fitness)
        told = {"after": self.candidates, "id": outcome.id, "fitness": _values(outcome.fitness)}
        if self._keep_cases:
            told["cases"] = _values(outcome.cases)
        self._steady["told"].append(told)
        return candidate

    def state_dict(self) -> dict[str, Any]:
        """Returns JSON values: the outcomes told, and digests of the genomes asked."""
        if self._steady["asked"]:
            return {"steady": {key: list(values) for key, values in self._steady.items()}}
        pending = [candidate.genome for candidate in self._asked.pending]
        return {
            "generations": [dict(generation) for generation in self._generations],
            "pending": self._digest(pending) if pending else None,
        }

    def _own(self, genome: G) -> G:
        return genome if self._copy is None else self._copy(genome)


class Journal(GenomeJournal[Vector]):
    """The journal of a strategy over vectors."""

    def __init__(self) -> None:
        super().__init__(vector_digest, np.ndarray.copy)


def vector_digest(genomes: Sequence[Vector]) -> str:
    """Returns 16 characters that tell one list of vectors from another."""
    rows = b"".join(np.ascontiguousarray(genome).tobytes() for genome in genomes)
    return hashlib.blake2b(rows, digest_size=8).hexdigest()


def replay(
    state: Mapping[str, Any],
    ask: Callable[[], list[Candidate[Vector]]],
    tell: Callable[[Sequence[Outcome]], None],
) -> None:
    """Replays a strategy over vectors; see `replay_genomes`."""
    replay_genomes(state, ask, tell, vector_digest)


def replay_genomes(
    state: Mapping[str, Any],
    ask: Callable[[], list[Candidate[G]]],
    tell: Callable[[Sequence[Outcome]], None],
    digest: Callable[[Sequence[G]], str],
) -> None:
    """Puts a fresh strategy into `state` by asking and telling what was asked and told.

    Raises:
        RuntimeError: the strategy asks other genomes than those the outcomes belong to.
    """
    for number, generation in enumerate(state["generations"]):
        candidates = _ask_same(ask, generation["genomes"], number, digest)
        fitness = generation["fitness"]
        cases = generation.get("cases", [None] * len(fitness))
        tell(
            [
                Outcome(candidate.id, _vector(values), _vector(items))
                for candidate, values, items in zip(candidates, fitness, cases, strict=True)
            ]
        )
    if state["pending"] is not None:
        _ask_same(ask, state["pending"], len(state["generations"]), digest)


def replay_steady(
    state: Mapping[str, Any],
    ask_one: Callable[[], Candidate[G]],
    tell_one: Callable[[Outcome], None],
    digest: Callable[[Sequence[G]], str],
) -> None:
    """Puts a fresh strategy into a steady `state`, in the order of its asks and tells.

    Raises:
        RuntimeError: the strategy asks other genomes than those the outcomes belong to.
    """
    asked = 0

    def ask_until(count: int) -> None:
        nonlocal asked
        while asked < count:
            if digest([ask_one().genome]) != state["asked"][asked]:
                raise RuntimeError(_other(f"candidate {asked} has another genome"))
            asked += 1

    for told in state["told"]:
        ask_until(told["after"])
        tell_one(Outcome(told["id"], _vector(told["fitness"]), _vector(told.get("cases"))))
    ask_until(len(state["asked"]))


def _other(what: str) -> str:
    return (
        f"{what} than this state was saved with; load it into a strategy built with the same "
        "arguments and library versions"
    )


def _values(vector: Vector | None) -> list[float] | None:
    return None if vector is None else vector.tolist()


def _vector(values: Sequence[float] | None) -> Vector | None:
    return None if values is None else np.array(values, np.float64)


def _ask_same(
    ask: Callable[[], list[Candidate[G]]],
    expected: str,
    number: int,
    digest: Callable[[Sequence[G]], str],
) -> list[Candidate[G]]:
    candidates = ask()
    if digest([candidate.genome for candidate in candidates]) != expected:
        raise RuntimeError(_other(f"generation {number} asks other genomes"))
    return candidates
