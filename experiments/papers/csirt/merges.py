"""The step that the paper lacks: experts merged by evolution, with and without a limit."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.papers.csirt.cells import CsirtCell, CsirtSetting, trained
from experiments.papers.csirt.corpus import FORMS, Form
from experiments.runs.files import read_json
from experiments.runs.model_scores import models_of
from experiments.suites.plan import PlannedRun

SKILL, MEMORY = "bands/macro_f1", "canaries/exposure"


@dataclass(frozen=True)
class Merging:
    """Which experts are merged, and how.

    Args:
        experts: name to form and regime of the cell that gives it.
        bases: names of the bases whose experts are merged.
        limits: variant to the most exposure of a merge, in bits above `chance` and as a share of
            the worst expert's; None: no limit.
        chance: exposure of the canaries that the search asks, by chance.
        options: further ones of ``evomerge search experiment=csirt_merge``.
        seeds: how many of the experiment's seeds, from the first.
    """

    experts: Mapping[str, Sequence[str]]
    bases: Sequence[str]
    limits: Mapping[str, float | None]
    chance: float
    options: Sequence[str]
    seeds: int

    def count(self, seeds: Sequence[int]) -> int:
        """Returns the number of searches."""
        return len(self.bases) * len(seeds[: self.seeds]) * len(self.limits)

    def runs(self, setting: CsirtSetting, seeds: Sequence[int], out: Path) -> list[PlannedRun]:
        """Returns every search; the experts are there already."""
        return [
            PlannedRun(
                table="merge",
                setting=f"{base}-s{seed}",
                variant=variant,
                seed=seed,
                options=(
                    "experiment=csirt_merge",
                    *self._ingredients(setting, base, seed),
                    *self._objective(limit),
                    *self.options,
                ),
                directory=out / f"{base}-s{seed}" / variant.replace(" ", "-"),
            )
            for base in self.bases
            for seed in seeds[: self.seeds]
            for variant, limit in self.limits.items()
        ]

    def _ingredients(self, setting: CsirtSetting, base: str, seed: int) -> Sequence[str]:
        cells = {
            name: CsirtCell(base, seed, _form(form), regime)
            for name, (form, regime) in self.experts.items()
        }
        folders = ",".join(f"{name}:'{trained(setting, cell)}'" for name, cell in cells.items())
        return (
            f"experts.base='{setting.base(base)}'",
            f"experts.experts={{{folders}}}",
            f"data='{setting.files(seed, 'raw').folder}'",
        )

    def _objective(self, limit: float | None) -> Sequence[str]:
        if limit is None:
            return ("objective=normalized", "objective.weights={bands:1,canaries:0}")
        allowed = f"{{share:{limit},chance:{self.chance}}}"
        return ("objective=constrained", f"objective.limits={{{MEMORY}:{allowed}}}")


def _form(text: str) -> Form:
    for form in FORMS:
        if form == text:
            return form
    raise ValueError(f"merging.experts: form {text!r} must be 'raw' or 'pseudonymised'")


@dataclass(frozen=True)
class SkillMemoryPoint:
    """A model's macro-F1 and exposure in bits, on items that no search has read."""

    skill: float
    memory: float
    kind: str = ""


def points_of(directory: Path) -> dict[str, SkillMemoryPoint]:
    """Returns base, experts, static merges and the evolved merge of a finished search."""
    points = {}
    for model in models_of(read_json(directory / "summary.json")):
        skill, memory = model.score("report", SKILL), model.score("report", MEMORY)
        if skill is not None and memory is not None and model.kind != "in_hull":
            points[model.name] = SkillMemoryPoint(skill, memory, model.kind)
    return points
