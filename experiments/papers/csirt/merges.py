"""The step that the paper lacks: experts merged by evolution, with and without a limit."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.contests.plan import Entry
from experiments.papers.csirt.cells import StudyCell, StudySetting, trained
from experiments.papers.csirt.corpus import Form
from experiments.runs.files import read_json
from experiments.runs.model_scores import ModelRow, models_of

SKILL, MEMORY = "bands/macro_f1", "canaries/exposure"


@dataclass(frozen=True)
class Merging:
    """Which experts are merged, and how.

    Args:
        experts: name to form and regime of the cell that gives it.
        bases: names of the bases whose experts are merged.
        arms: name to options of ``evomerge search experiment=csirt_merge``.
        seeds: how many of the study's seeds, from the first.
    """

    experts: Mapping[str, Sequence[str]]
    bases: Sequence[str]
    arms: Mapping[str, Sequence[str]]
    seeds: int

    def entries(self, setting: StudySetting, seeds: Sequence[int], out: Path) -> list[Entry]:
        """Returns every search, as the entry of a contest; the experts are there already."""
        return [
            Entry(
                table="merge",
                world=f"{base}-s{seed}",
                arm=arm,
                seed=seed,
                options=(
                    "experiment=csirt_merge",
                    *self._ingredients(setting, base, seed),
                    *given,
                ),
                run=out / f"{base}-s{seed}" / arm.replace(" ", "-"),
            )
            for base in self.bases
            for seed in seeds[: self.seeds]
            for arm, given in self.arms.items()
        ]

    def _ingredients(self, setting: StudySetting, base: str, seed: int) -> Sequence[str]:
        cells = {
            name: StudyCell(base, seed, _form(form), regime)
            for name, (form, regime) in self.experts.items()
        }
        folders = ",".join(f"{name}:'{trained(setting, cell)}'" for name, cell in cells.items())
        return (
            f"experts.base='{setting.base(base)}'",
            f"experts.experts={{{folders}}}",
            f"data='{setting.files(seed, 'raw').folder}'",
        )


def _form(text: str) -> Form:
    if text not in ("raw", "pseudonymised"):
        raise ValueError(f"merging.experts: form {text!r} must be 'raw' or 'pseudonymised'")
    return "raw" if text == "raw" else "pseudonymised"


@dataclass(frozen=True)
class SkillMemoryPoint:
    """One model on the plane of skill and memory, on items that no search has read.

    Args:
        skill: macro-F1.
        memory: exposure, in bits.
        kind: ``base``, ``expert``, ``static`` or ``evolved``.
    """

    skill: float
    memory: float
    kind: str = ""


def points_of(run: Path) -> dict[str, SkillMemoryPoint]:
    """Returns base, experts, static merges and the evolved merge of a finished search."""
    points = {}
    for model in models_of(read_json(run / "summary.json")):
        point = _point(model)
        if point is not None and model.kind != "in_hull":
            points[model.name] = point
    return points


def _point(model: ModelRow) -> SkillMemoryPoint | None:
    skill, memory = model.score("report", SKILL), model.score("report", MEMORY)
    return None if skill is None or memory is None else SkillMemoryPoint(skill, memory, model.kind)
