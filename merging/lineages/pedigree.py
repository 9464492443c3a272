"""Pedigrees: who is bred from whom, in a whole lineage and in one tensor of it."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from merging.lineages.lineage import BASE_FOUNDER, Crossed, Founder, Lineage, Mutated, ancestry
from merging.lineages.slices import TensorSlice


@dataclass(frozen=True, eq=False)
class Pedigree:
    """Individuals by number, parents before their children; the last one is what is bred.

    Args:
        individuals: each once.
        parents: of each, by their numbers.
    """

    individuals: tuple[Lineage, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, lineage: Lineage) -> Pedigree:
        """Returns the pedigree of a lineage with all its ancestors."""
        individuals = ancestry(lineage)
        number = {each: i for i, each in enumerate(individuals)}
        return cls(
            tuple(individuals),
            tuple(tuple(number[parent] for parent in each.parents) for each in individuals),
        )

    @property
    def measuring(self) -> list[int]:
        """Individuals whose operators read lengths and angles of their parents."""
        return [
            i
            for i, each in enumerate(self.individuals)
            if not isinstance(each, Founder) and each.by.measures
        ]

    def at(self, place: TensorSlice) -> Pedigree:
        """Returns the pedigree in one tensor, without individuals that play no part in it.

        A child that takes the whole tensor from one parent, or has one individual for both
        parents there, is that individual; a mutated zero stays zero.
        """
        same: list[int] = []
        for i, each in enumerate(self.individuals):
            parents = [same[parent] for parent in self.parents[i]]
            same.append(i)
            if isinstance(each, Mutated) and self.individuals[parents[0]] == BASE_FOUNDER:
                same[i] = parents[0]
            elif isinstance(each, Crossed):
                side = 0 if parents[0] == parents[1] else each.by.source(place)
                same[i] = i if side is None else parents[side]
        parents_here = [tuple(same[p] for p in parents) for parents in self.parents]
        order = _reached(parents_here, [same[-1]])
        number = {old: new for new, old in enumerate(order)}
        return Pedigree(
            tuple(self.individuals[i] for i in order),
            tuple(tuple(number[p] for p in parents_here[i]) for i in order),
        )

    def towards(self, targets: Iterable[int]) -> list[int]:
        """Returns `targets` and all their ancestors, parents before their children."""
        return _reached(self.parents, targets)


def _reached(
    parents: list[tuple[int, ...]] | tuple[tuple[int, ...], ...], targets: Iterable[int]
) -> list[int]:
    """Returns targets and ancestors in rising order, which puts parents before children."""
    reached = set(targets)
    for i in range(len(parents) - 1, -1, -1):
        if i in reached:
            reached.update(parents[i])
    return sorted(reached)
