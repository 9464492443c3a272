"""The hull certificate of real searches, its companion inside the hull, and its gain."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy import stats
from scipy.optimize import nnls

from evaluators.requests import EvaluationError
from experiments.reports.hull_plot import beyond_edge, hull_chart
from experiments.reports.hull_section import hull_section
from experiments.runs.model_scores import ModelScores
from experiments.searches.certificate import improvements, sentences
from experiments.searches.gain import held_out_gain
from merging.checkpoints.experts import ExpertPool
from merging.recipe import Recipe
from search.loop import jsonl
from search.loop.history import Record
from search.normalisation import Term
from search.objective import BoundObjective
from tests.experiments.local import EXPERTS, overrides
from tests.experiments.refusals import Shell


@pytest.fixture
def finished(shell: Shell):
    def run(world: Path, *more: str) -> tuple[Path, str]:
        out = shell.cwd / "run"
        ended = shell.run("search", *overrides(world, f"out={out}", *more))
        assert ended.code == 0, ended.stderr
        return out, ended.stdout

    return run


def read(run: Path) -> dict:
    return json.loads((run / "certificate.json").read_text())


def vectors(run: Path, world: Path, recipe: Path):
    """Experts' and a recipe's task vectors, dense and in float64."""
    pool = ExpertPool.open(str(world / "base"), {n: f"{world}/base-{n}" for n in EXPERTS})
    weights = Recipe.load(recipe).plan.weights(pool, dtype=torch.float32)
    base = {name: pool.base_tensor(name).double() for name in pool.names}
    experts = [
        np.concatenate([pool.deltas(n)[i].double().flatten().numpy() for n in pool.names])
        for i in range(len(EXPERTS))
    ]
    moved = [(weights[n].double() - base[n]).flatten().numpy() for n in pool.names]
    return np.array(experts), np.concatenate(moved)


def test_search_proves_where_it_ended_and_what_that_gave(finished, world: Path) -> None:
    """The winner's distances agree with dense float64 and scipy; the gain with its own parts."""
    run, printed = finished(world, "strategy=random")
    found = read(run)
    winner = found["points"][found["winner"]]
    experts, point = vectors(run, world, run / "recipe.json")
    assert winner["from_base"] == pytest.approx(np.linalg.norm(point))
    assert found["expert_scale"] == pytest.approx(np.linalg.norm(experts, axis=1).mean())
    heavy = 1e4 * np.linalg.norm(experts)  # the sum of weights as one more equation
    sums = np.full(len(experts), heavy)
    for span, rows, target in [
        ("hull", np.vstack([experts.T, sums]), np.append(point, heavy)),
        ("hull_with_base", np.vstack([np.c_[experts.T, 0 * point], np.append(sums, heavy)]), None),
    ]:
        target = np.append(point, heavy) if target is None else target
        weights, _ = nnls(rows, target)
        weights /= weights.sum()
        distance = np.linalg.norm(weights[: len(experts)] @ experts - point)
        assert winner[span]["distance"] == pytest.approx(distance, rel=1e-4)
        assert winner[span]["residual"] < 1e-6
    along = np.linalg.lstsq((experts[1:] - experts[0]).T, point - experts[0], rcond=None)[0]
    distance = np.linalg.norm(experts[0] + along @ (experts[1:] - experts[0]) - point)
    assert winner["affine_span"]["distance"] == pytest.approx(distance, rel=1e-4)
    assert winner["hull"]["outside"]
    assert not winner["linear_span"]["outside"]

    gain, inside = found["gain"], found["points"]["best in hull"]
    assert not inside["hull"]["outside"]
    summary = json.loads((run / "summary.json").read_text())
    rows = {model["kind"]: model["report"]["fitness"][0] for model in summary["models"]}
    assert gain["difference"] == pytest.approx(rows["evolved"] - rows["in_hull"])
    lines = jsonl.read(run / "report_cases.jsonl")
    cases = {line["kind"]: -np.array(line["cases"]["text/bits_per_byte"]) for line in lines}
    gaps = cases["evolved"] - cases["in_hull"]
    assert gaps.mean() == pytest.approx(gain["difference"])  # of documents of unequal length
    known = stats.ttest_1samp(gaps, 0).confidence_interval()
    width = known.high - known.low
    interval = gain["interval"]
    assert interval["low"] < known.low + 0.05 * width
    assert interval["high"] > known.high - 0.05 * width
    assert interval["high"] - interval["low"] < 2 * width
    assert interval["items"] == len(gaps)
    assert found["sentences"][0].startswith("The winner lies outside the experts' convex hull by")
    assert "as many evaluations (8) has held-out fitness" in found["sentences"][1]
    assert all(sentence in printed for sentence in found["sentences"])
    assert "best in hull" in printed
    assert "Beyond the hull" in (run / "report.html").read_text()


def test_companion_is_resumed_and_ends_the_same(finished, world: Path) -> None:
    run, _ = finished(world, "baselines=none")
    kept = ("certificate.json", "in_hull/history.jsonl", "in_hull/finalists.jsonl")
    kept += ("in_hull/recipe.json", "references.jsonl", "report_cases.jsonl")
    before = {name: (run / name).read_bytes() for name in kept}
    assert len(jsonl.read(run / "in_hull" / "history.jsonl")) == 8
    assert not (run / "in_hull" / "model").exists()
    for name in ("certificate.json", "summary.json", "report.html", "in_hull/recipe.json"):
        (run / name).unlink()
    jsonl.keep_first(run / "in_hull" / "history.jsonl", 3)
    (run / "in_hull" / "finalists.jsonl").unlink()
    finished(world, "baselines=none")
    assert {name: (run / name).read_bytes() for name in kept} == before
    experts, point = vectors(run, world, run / "in_hull" / "recipe.json")
    weights = Recipe.load(run / "in_hull" / "recipe.json").plan.describe()["coefficients"]
    shares = np.array([weights["model"]["weight"][name] for name in EXPERTS])
    assert shares.sum() == 1.0
    np.testing.assert_allclose(shares @ experts, point, atol=1e-6)


def test_search_inside_the_hull_needs_no_companion(finished, world: Path) -> None:
    run, printed = finished(world, "space=convex", "baselines=none")
    found = read(run)
    assert not (run / "in_hull").exists()
    assert found["gain"] is None
    assert not any(point["hull"]["outside"] for point in found["points"].values())
    assert re.search(r"inside the experts' convex hull \(at [\d.]+ \w+", printed)


def test_companion_can_be_left_out(finished, world: Path) -> None:
    run, _ = finished(world, "in_hull=null", "report_on=null", "baselines=none")
    assert not (run / "in_hull").exists()
    found = read(run)
    assert found["gain"] is None
    assert len(found["sentences"]) == 1


@pytest.mark.usefixtures("idle")
@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("in_hull=5", "in_hull=5: expected a space and a strategy, as in the default, or in_hull"),
        ("space@in_hull.space=coefficients", "in_hull.space: CoefficientSpace may leave the hull"),
        ("in_hull.strategy.sigma=-1", "sigma must be a finite number above 0, got -1"),
    ],
)
def test_companions_that_cannot_be_are_refused_early(
    shell: Shell, option: str, message: str
) -> None:
    shell.refuse(re.escape(message), "search", option)


def record(number: int, fitness: float | None) -> Record:
    return Record(number, [0.0], {}, None if fitness is None else np.array([fitness]))


def test_improvements() -> None:
    values = [0.1, None, 0.3, 0.2, 0.3, 0.9, 0.5]
    found = improvements([record(i, v) for i, v in enumerate(values)])
    assert [each.id for each in found] == [0, 2, 5]
    many = improvements([record(i, float(i)) for i in range(500)], most=7)
    assert [each.id for each in many] == [0, 83, 166, 250, 333, 416, 499]
    assert improvements([record(0, None)]) == []


class TestGain:
    OBJECTIVE = BoundObjective(
        (Term("a", "a/acc", 1.0, 0.2, 0.5), Term("b", "b/bpb", -1.0, -2.0, 0.25)), (0.75, 0.25)
    )

    def scores(self, kind: str, a: float, b: float) -> ModelScores:
        return ModelScores(kind, kind, "report", {"a/acc": a, "b/bpb": b})

    def write(self, run: Path, **cases: dict[str, list[float]]) -> None:
        for number, (kind, each) in enumerate(cases.items()):
            line = {"id": number, "name": kind, "kind": kind, "items": {}, "cases": each}
            jsonl.append(run / "report_cases.jsonl", line)

    def test_weights_and_normalises_as_the_objective(self, tmp_path: Path) -> None:
        first = {"a/acc": [1.0, 0.0, 1.0, 1.0], "b/bpb": [1.0, 1.5, 1.1]}
        second = {"a/acc": [0.0, 0.0, 1.0, 1.0], "b/bpb": [1.25, 1.75, 1.2]}
        self.write(tmp_path, evolved=first, in_hull=second)
        winner, other = self.scores("evolved", 0.75, 1.2), self.scores("in_hull", 0.5, 1.4)
        gain = held_out_gain(tmp_path, self.OBJECTIVE, winner, other)
        assert gain["difference"] == pytest.approx(0.75 * 0.25 / 0.5 + 0.25 * 0.2 / 0.25)
        finer = replace(self.OBJECTIVE, ties=(Term("a", "a/acc", 1.0),))
        assert held_out_gain(tmp_path, finer, winner, other) == gain
        a = stats.t(3).rvs(100_000, random_state=0) * 0.75 * 0.25 / 0.5
        b = stats.t(2).rvs(100_000, random_state=1) * 0.25 * 0.05 / 0.25
        low, high = gain["difference"] + np.quantile(a + b, [0.025, 0.975])
        assert gain["interval"]["low"] <= low + 0.05
        assert gain["interval"]["high"] >= high - 0.05
        assert gain["interval"]["items"] == 7

    @pytest.mark.parametrize(
        ("first", "reason"),
        [
            ({"a/acc": [1.0, 0.0]}, "b/bpb has no score per item"),
            ({"a/acc": [1.0], "b/bpb": [1.0, 2.0]}, "a has a single item"),
        ],
    )
    def test_says_why_there_is_no_interval(self, tmp_path: Path, first, reason: str) -> None:
        self.write(tmp_path, evolved=first, in_hull=first)
        pair = self.scores("evolved", 0.5, 1.0), self.scores("in_hull", 0.5, 1.0)
        gain = held_out_gain(tmp_path, self.OBJECTIVE, *pair)
        assert gain["difference"] == 0
        assert gain["interval"] is None
        assert gain["reason"] == reason

    def test_without_held_out_items_or_with_a_failure(self, tmp_path: Path) -> None:
        assert held_out_gain(tmp_path, None, None, None)["reason"] == "there are no held-out items"
        broken = ModelScores("in_hull", "in_hull", "report", {}, "it is broken")
        gain = held_out_gain(tmp_path, self.OBJECTIVE, self.scores("evolved", 1, 1), broken)
        assert gain["reason"] == "it is broken"
        with pytest.raises(EvaluationError):
            self.OBJECTIVE.fitness({})


def point(distance: float, *, own: float = 2.0, outside: bool = True) -> dict:
    span = {
        "distance": distance,
        "of_own_distance": distance / own,
        "of_expert_distance": distance,
        "outside": outside,
        "coefficients": {"code": 0.25, "prose": 0.75},
        "residual": 0.0,
    }
    spans = dict.fromkeys(("hull", "hull_with_base", "affine_span", "linear_span"), span)
    return {"from_base": own, "floor": 1e-6, "experts": {}, "search": [0.5], **spans}


def certificate(**more) -> dict:
    names = ["candidate 0", "candidate 5", "candidate 9"]
    at = {name: [0.1 * i, 0.5] for i, name in enumerate(names)}
    statics = {"static near": [0.5, 0.5], "static far": [50.0, 0.0]}
    return {
        "winner": names[-1],
        "expert_scale": 1.0,
        "points": {name: point(0.5 + i) for i, name in enumerate([*names, *statics])},
        "path": names,
        "finalists": [names[-1], names[0]],
        "plane": {
            "share": 0.8,
            "base": [0.0, 0.0],
            "experts": {"code": [1.0, 0.0], "prose": [0.0, 1.0], "<b>": [1.0, 1.0]},
            "points": {**at, **statics},
            "off": {},
        },
        "gain": None,
        **more,
    }


class TestWords:
    def test_a_point_without_a_place(self) -> None:
        words = sentences({"winner": None, "reason": "it is a stack", "gain": None})
        assert words == ["The winner has no place among the experts: it is a stack."]
        html = hull_section({"winner": None, "sentences": words, "gain": None})
        assert "it is a stack" in html
        assert "<svg" not in html

    def test_inside(self) -> None:
        inside = certificate(points={"candidate 9": point(0.0, outside=False)})
        assert (
            "inside the experts' convex hull (at 0.25 code + 0.75 prose)" in sentences(inside)[0]
        )

    def test_outside(self) -> None:
        text = sentences(certificate(points={"candidate 9": point(0.5)}))[0]
        assert "by 0.25 of its distance from the base (0.25 outside their affine span" in text

    def test_no_comparison(self) -> None:
        gain = {"difference": None, "reason": "there are no held-out items"}
        found = certificate(gain=gain, in_hull={"evaluations": 40})
        assert sentences(found)[1].endswith(
            "(40) cannot be compared: there are no held-out items."
        )

    def test_an_interval_over_items(self) -> None:
        interval = {"low": 0.1, "high": 0.3, "p": 0.01, "level": 0.95, "items": 90}
        gain = {"difference": 0.25, "inside": 0.5, "winner": 0.75, "reason": None}
        found = certificate(gain={**gain, "interval": interval}, in_hull={"evaluations": 40})
        assert sentences(found)[1].endswith(
            "a gain of +0.2500, 95% interval +0.1000 to +0.3000 (paired over 90 items, p = 0.01)."
        )


class TestChart:
    def test_names_and_path(self) -> None:
        svg = hull_chart(certificate())
        for text in ("code", "prose", "&lt;b&gt;", "base", "winner", "hull of the experts"):
            assert text in svg
        assert svg == hull_chart(certificate())

    def test_far_static_merges_are_counted(self) -> None:
        assert beyond_edge(certificate()) == 1
        assert "1 static merge(s) lie too far away" in hull_section(
            {**certificate(), "sentences": ["Well."]}
        )

    def test_one_expert_at_the_base(self) -> None:
        plane = {**certificate()["plane"], "experts": {"only": [0.0, 0.0]}}
        plane["points"] = {name: [0.0, 0.0] for name in plane["points"]}
        assert hull_chart(certificate(plane=plane, expert_scale=0.0)).startswith("<svg")

    def test_a_run_without_a_certificate(self) -> None:
        assert hull_section(None) == ""
