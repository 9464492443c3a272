"""Pedigrees: who is bred from whom, in a full lineage and in one tensor of it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from merging.lineages.lineage import BASE_FOUNDER, Crossed, Founder, Lineage, Mutated, ancestry
from merging.lineages.slices import TensorSlice


@dataclass(frozen=True, eq=False)
class Pedigree:
    """Individuals by number, each once, parents before children; the last one is what is bred.

    `parents` are the numbers of each one's parents.
    """

    individuals: tuple[Lineage, ...]
    parents: tuple[tuple[int, ...], ...]

    @classmethod
    def of(cls, lineage: Lineage) -> Pedigree:
        """Returns the pedigree of a lineage with all its ancestors."""
        individuals = tuple(ancestry(lineage))
        number = {individual: i for i, individual in enumerate(individuals)}
        return cls(
            individuals,
            tuple(tuple(number[parent] for parent in child.parents) for child in individuals),
        )

    @property
    def measuring(self) -> list[int]:
        """Individuals whose operators read lengths and angles of their parents."""
        return [
            i
            for i, individual in enumerate(self.individuals)
            if not isinstance(individual, Founder) and individual.by.measures
        ]

    def in_tensor(self, tensor: TensorSlice) -> Pedigree:
        """Returns the pedigree in one tensor, without individuals that play no part in it.

        A child that takes the tensor from one parent, or has one individual for both parents
        there, is that individual; a mutated zero stays zero.
        """
        equal: list[int] = []  # the number of the individual that each one equals here
        for i, individual in enumerate(self.individuals):
            parents = [equal[parent] for parent in self.parents[i]]
            equal.append(i)
            if isinstance(individual, Mutated) and self.individuals[parents[0]] == BASE_FOUNDER:
                equal[i] = parents[0]
            elif isinstance(individual, Crossed):
                same = parents[0] == parents[1]
                side = 0 if same else individual.by.single_parent(tensor)
                equal[i] = i if side is None else parents[side]
        parents_here = [tuple(equal[parent] for parent in parents) for parents in self.parents]
        order = _with_ancestors(parents_here, [equal[-1]])
        number = {old: new for new, old in enumerate(order)}
        return Pedigree(
            tuple(self.individuals[i] for i in order),
            tuple(tuple(number[parent] for parent in parents_here[i]) for i in order),
        )

    def with_ancestors(self, targets: Iterable[int]) -> list[int]:
        """Returns `targets` and all their ancestors, parents before their children."""
        return _with_ancestors(self.parents, targets)


def _with_ancestors(parents: Sequence[tuple[int, ...]], targets: Iterable[int]) -> list[int]:
    """Returns targets and ancestors in rising order, which puts parents before children."""
    reached = set(targets)
    for i in range(len(parents) - 1, -1, -1):
        if i in reached:
            reached.update(parents[i])
    return sorted(reached)
