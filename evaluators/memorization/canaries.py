r"""Canaries: planted values in their records, with values that could have stood in their place.

A file of canaries is JSON lines, one canary each::

    {"id": "A-ipv4-0", "group": "A", "kind": "IP_ADDRESS",
     "text": "{\"host\":\"192.0.2.7\",\"port\":80}", "span": [9, 18],
     "variants": ["192.0.2.91", "192.0.2.44"]}

``text`` is a record as the model would read it, with the planted value at the characters
``span[0]`` to ``span[1]``; ``variants`` are values of the same format that were never trained on:
each is put at the same place. ``id`` is unique. ``group`` (to choose some canaries by) and
``kind`` (what pseudonyms are made for) may be left out.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from evaluators.tasks.data import Line, data_path, read_lines, take_range
from merging.seeding import generator


@dataclass(frozen=True)
class Canary:
    """A planted value in a record, and its variants.

    Args:
        name: unique within a file.
        text: the record, with the planted value from character `start` to before `end`.
        variants: values that might have been planted instead, none of them twice.
        group: class of the canary; empty: none.
        kind: type of the field, as pseudonyms name it; empty: none.
    """

    name: str
    text: str
    start: int
    end: int
    variants: tuple[str, ...]
    group: str = ""
    kind: str = ""

    @property
    def value(self) -> str:
        """The planted value."""
        return self.text[self.start : self.end]

    @property
    def candidates(self) -> tuple[str, ...]:
        """The planted value and then its variants."""
        return (self.value, *self.variants)

    def record(self, value: str) -> str:
        """Returns the record with `value` in the place of the planted one."""
        return self.text[: self.start] + value + self.text[self.end :]

    def line(self) -> dict[str, object]:
        """Returns the canary as its file holds it."""
        return {
            "id": self.name,
            "group": self.group,
            "kind": self.kind,
            "text": self.text,
            "span": [self.start, self.end],
            "variants": list(self.variants),
        }


def read_canaries(path: Path) -> list[Canary]:
    """Returns the canaries of a file; ValueError if a line is none, or an id comes twice."""
    canaries = [_canary(line) for line in read_lines(path)]
    seen: set[str] = set()
    for canary in canaries:
        if canary.name in seen:
            raise ValueError(f"{path}: id {canary.name!r} comes twice; give each canary its own")
        seen.add(canary.name)
    return canaries


def chosen_canaries(
    data: str,
    *,
    split: str | None,
    group: str | None,
    take: str | None,
    references: int | None,
    seed: int,
) -> tuple[list[Canary], str]:
    """Returns the canaries that an evaluator's options name, and the identity of this choice.

    Args:
        data: file of canaries; `split` replaces ``{split}`` in it.
        group: only canaries of this group; None: all. `take` is ``start:stop`` of these.
        references: variants of each that are drawn as its reference set; None: all.
        seed: of the draw, together with the canary's name.

    Raises:
        ValueError: no such file or group, a line that is no canary, or too few variants.
    """
    path = data_path(data, split)
    canaries = read_canaries(path)
    groups = sorted({canary.group for canary in canaries})
    of_group = [canary for canary in canaries if group is None or canary.group == group]
    if not of_group:
        raise ValueError(f"{path} has no canary of group {group!r}, only of {', '.join(groups)}")
    chosen = take_range(take, len(of_group), str(path))
    sampled = [_sampled(of_group[i], references, seed) for i in chosen]
    name = "" if group is None else f"#{group}"
    sample = "" if references is None else f"~{references}.{seed}"
    return sampled, f"{path.resolve()}[{chosen.start}:{chosen.stop}{name}{sample}]"


def _sampled(canary: Canary, references: int | None, seed: int) -> Canary:
    count = len(canary.variants)
    if references is None:
        return canary
    if not 1 <= references <= count:
        raise ValueError(
            f"canary {canary.name!r} has {count} variants: references must be 1 to {count} or "
            f"null, got {references}"
        )
    order = torch.randperm(count, generator=generator("canary references", seed, canary.name))
    drawn = sorted(order[:references].tolist())
    return replace(canary, variants=tuple(canary.variants[i] for i in drawn))


def _canary(line: Line) -> Canary:
    text = line.text("text")
    start, end = _span(line, len(text))
    variants: list[str] = line.field("variants", list)
    if not variants or not all(isinstance(value, str) and value for value in variants):
        raise ValueError(f"{line}: field 'variants' must be a list of texts, at least one")
    canary = Canary(
        name=line.text("id"),
        text=text,
        start=start,
        end=end,
        variants=tuple(variants),
        group=_optional(line, "group"),
        kind=_optional(line, "kind"),
    )
    _check_apart(line, canary.candidates)
    return canary


def _span(line: Line, length: int) -> tuple[int, int]:
    span = line.field("span", list)
    is_pair = len(span) == 2 and all(type(end) is int for end in span)
    if not is_pair or not 0 <= span[0] < span[1] <= length:
        raise ValueError(
            f"{line}: field 'span' must be [start, end], characters of the value within the "
            f"{length} of 'text', got {span!r:.80}"
        )
    return span[0], span[1]


def _optional(line: Line, name: str) -> str:
    return str(line.field(name, str)) if line.fields.get(name) is not None else ""


def _check_apart(line: Line, candidates: Sequence[str]) -> None:
    """A variant that equals the planted value would tie with it whatever the model knows."""
    seen = {candidates[0]: "the planted value"}
    for number, value in enumerate(candidates[1:]):
        if value in seen:
            raise ValueError(f"{line}: variant {number} equals {seen[value]}; replace it")
        seen[value] = f"variant {number}"
