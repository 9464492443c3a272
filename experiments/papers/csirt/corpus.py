"""The data of one seed: training records with planted canaries, held-out records, attacks."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from evaluators.memorization.canaries import Canary
from experiments.papers.csirt.catalogue import catalogue
from experiments.papers.csirt.pseudonymised import FIELDS
from experiments.papers.csirt.records import FIELD_OF, Scan, planted, scans, span_of, text_of
from experiments.papers.csirt.values import KINDS, Class, Kind, candidates
from merging.seeding import stable_seed

Form: TypeAlias = Literal["raw", "pseudonymised"]

FORMS: Sequence[Form] = ("raw", "pseudonymised")
CLASSES: Sequence[Class] = ("A", "B")


@dataclass(frozen=True)
class CorpusSize:
    """How much data a seed has.

    Args:
        records: organic training records.
        canaries: of each class and kind.
        clones: training records that a canary is planted in.
        variants: unseen values of a canary's format.
        held_out: records of each split that are only scored.
        text_length: most characters of a description or solution; the published code: 1024.
        copies: records repeat identifiers in ``display_fqdn``, ``ipv4_addresses``, ``scan``.
    """

    records: int = 600
    canaries: int = 2
    clones: int = 10
    variants: int = 100
    held_out: int = 120
    text_length: int = 48
    copies: bool = False

    def __post_init__(self) -> None:
        for option in ("records", "canaries", "clones", "variants", "held_out", "text_length"):
            if getattr(self, option) < 1:
                raise ValueError(f"data.{option}={getattr(self, option)}: it must be at least 1")
        if self.clones > self.records:
            raise ValueError(
                f"data.clones={self.clones}: a canary's clones are drawn from the "
                f"{self.records} organic records; ask for fewer"
            )


@dataclass(frozen=True)
class PlantedSecret:
    """A planted value, its unseen variants, and the held-out record that they are compared in."""

    name: str
    cls: Class
    kind: Kind
    value: str
    variants: tuple[str, ...]
    probe: Scan


@dataclass(frozen=True)
class Corpus:
    """All data of one seed, before any pseudonym.

    Args:
        held_out: split (search, selection, report) to records of the same plugins.
        secrets: the canaries, so that any half of them holds both classes and all kinds alike.
    """

    training: Sequence[Scan]
    held_out: Mapping[str, Sequence[Scan]]
    secrets: Sequence[PlantedSecret]


def make_corpus(size: CorpusSize, seed: int) -> Corpus:
    """Returns the data of a seed, the same on every machine."""

    def draw(part: str) -> random.Random:
        return random.Random(stable_seed("csirt", seed, part))

    plugins = catalogue("site", size.text_length)
    organic = scans(plugins, size.records, draw("organic"), copies=size.copies)
    secrets = _secrets(size, draw("secrets"), scans(plugins, 1, draw("probe"), copies=False)[0])
    cloning = draw("clones")
    clones = [
        planted(record, secret.kind, secret.value)
        for secret in secrets
        for record in cloning.sample(organic, size.clones)
    ]
    training = [*organic, *clones]
    draw("order").shuffle(training)
    held_out = {
        split: scans(plugins, size.held_out, draw(split), copies=size.copies)
        for split in ("search", "selection", "report")
    }
    return Corpus(training, held_out, secrets)


def pretraining_records(size: CorpusSize, count: int) -> list[Scan]:
    """Returns records of public flaws and other assets, without any canary, for a tiny base."""
    draw = random.Random(stable_seed("csirt", "pretraining"))
    return scans(catalogue("public", size.text_length), count, draw, copies=size.copies)


def _secrets(size: CorpusSize, draw: random.Random, probe: Scan) -> list[PlantedSecret]:
    """Returns canaries in rounds: in each every class and kind once."""
    values_of = {
        (cls, kind): candidates(kind, cls, size.canaries * (1 + size.variants), draw)
        for cls in CLASSES
        for kind in KINDS
    }
    return [
        PlantedSecret(
            name=f"{cls}-{kind}-{number}",
            cls=cls,
            kind=kind,
            value=values[number],
            variants=tuple(values[size.canaries + number * size.variants :][: size.variants]),
            probe=probe,
        )
        for number in range(size.canaries)
        for (cls, kind), values in values_of.items()
    ]


def canary_of(secret: PlantedSecret) -> Canary:
    """Returns a secret as evaluators read it, in its probe."""
    record = planted(secret.probe, secret.kind, secret.value)
    start, end = span_of(record, secret.kind)
    return Canary(
        name=secret.name,
        text=text_of(record),
        start=start,
        end=end,
        variants=secret.variants,
        group=secret.cls,
        kind=FIELDS[f"asset.{FIELD_OF[secret.kind]}"],
    )
