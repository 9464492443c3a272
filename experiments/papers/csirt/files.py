"""A seed's data as the files that evaluators read."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from evaluators.memorization.canaries import Canary
from experiments.papers.csirt.corpus import Corpus, Form, canary_of
from experiments.papers.csirt.pseudonymised import pseudonymised, pseudonyms_of
from experiments.papers.csirt.records import Scan, band_of, question_of, text_of
from experiments.pseudonyms.pseudonyms import slugged
from experiments.runs.files import write_lines

_OTHERS = 10  # unseen values for each planted one, in membership inference


@dataclass(frozen=True)
class DataFiles:
    """Where the files of one seed and form lie."""

    folder: Path

    @property
    def canaries(self) -> Path:
        """The first attack: planted values as they are, in a record of the training's form."""
        return self.folder / "canaries.jsonl"

    @property
    def slugs(self) -> Path:
        """The second attack: planted values and variants as slugs; only where pseudonymised."""
        return self.folder / "slugs.jsonl"

    @property
    def members(self) -> Path:
        """Records with a planted value, and such with an unseen one: which is which?"""
        return self.folder / "members.jsonl"

    def questions(self, split: str) -> Path:
        """Held-out records up to their base score."""
        return self.folder / f"questions.{split}.jsonl"

    def texts(self, split: str) -> Path:
        """Held-out records."""
        return self.folder / f"texts.{split}.jsonl"


def write_files(folder: Path, corpus: Corpus, seed: int, form: Form) -> None:
    """Writes the data of a seed; records around planted values and held-out ones in `form`."""
    pseudonyms = pseudonyms_of(seed)

    def formed(record: Scan) -> Scan:
        return pseudonymised(record, pseudonyms) if form == "pseudonymised" else record

    files = DataFiles(folder)
    canaries = [canary_of(replace(s, probe=formed(s.probe))) for s in corpus.secrets]
    write_lines(files.canaries, [canary.line() for canary in canaries])
    if form == "pseudonymised":
        write_lines(files.slugs, [slug.line() for slug in slugged(canaries, pseudonyms)])
    write_lines(files.members, [line for canary in canaries for line in _members(canary)])
    for split, records in corpus.held_out.items():
        shown = [formed(record) for record in records]
        write_lines(files.texts(split), [{"text": text_of(record)} for record in shown])
        write_lines(files.questions(split), [_question(record) for record in shown])


def _members(canary: Canary) -> list[Mapping[str, Any]]:
    """Returns the record with the planted value, a member, and with some unseen ones."""
    values = canary.candidates[: 1 + _OTHERS]
    return [{"text": canary.record(v), "member": v == canary.value} for v in values]


def _question(record: Scan) -> Mapping[str, Any]:
    text, behind = question_of(record)
    return {"text": text, "behind": behind, "band": band_of(record)}
