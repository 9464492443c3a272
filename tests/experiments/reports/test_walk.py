"""The diagnosis of a walk: against noises that are really drawn, and on the page."""

from __future__ import annotations

import itertools
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pytest

from experiments.reports.report import write_report
from experiments.reports.walk import WalkFigures, generations, walk_of
from experiments.reports.walk_section import sentences
from search.strategies.mergevolve import MergEvolve
from search.strategy import Outcome
from tests.experiments.run_directories import write_run

Array = npt.NDArray[np.float64]
SIZE = 300


def noise(number: int) -> Array:
    return np.random.default_rng(number).normal(size=SIZE)


def place(genome: dict[str, Any], centre: bool = False) -> Array:
    """Where a path leads, term by term, from noises that are drawn."""
    at, blend, steps = np.zeros(SIZE), genome["blend"], genome["steps"]
    for t in range(len(steps)):
        for age in range(min(len(blend), t + 1)):
            for number, coefficient in steps[t - age]:
                at += blend[age] * coefficient * noise(number)
    if genome["own"] and not centre:
        at += genome["own"][1] * noise(genome["own"][0])
    return at


def history(
    fitness: Callable[[Array], float], generations: int = 6, **options: Any
) -> list[dict[str, Any]]:
    """The lines of a search by MERGEvolve."""
    strategy, lines = MergEvolve(seed=0, starts=["start"], **options), []
    for _ in range(generations):
        asked, outcomes = strategy.ask(), []
        for candidate in asked:
            genome = candidate.genome.to_json()
            value = fitness(place(genome))
            lines.append({"id": candidate.id, "genome": genome, "fitness": [value]})
            outcomes.append(Outcome(candidate.id, np.array([value])))
        strategy.tell(outcomes)
    return lines


def walk(lines: list[dict[str, Any]]) -> WalkFigures:
    return walk_of(generations(lines))


@pytest.mark.parametrize("options", [{}, {"antithetic": True}, {"momentum": 0.6, "memory": 2}])
def test_figures_are_those_of_the_noises_themselves(options: dict[str, Any]) -> None:
    gradient = np.random.default_rng(7_000_001).normal(size=SIZE)
    lines = history(lambda x: float(gradient @ x), **options)
    found = walk(lines)
    centres = {json.dumps(line["genome"]["steps"]): line["genome"] for line in lines}
    at = np.array([place(genome, centre=True) for genome in centres.values()])
    moves = np.diff(at, axis=0)
    long = np.linalg.norm(moves, axis=1) / np.sqrt(SIZE)
    np.testing.assert_allclose(found.length, long, rtol=0.15)
    np.testing.assert_allclose(
        found.distance[1:], np.linalg.norm(at[1:], axis=1) / np.sqrt(SIZE), rtol=0.15
    )
    if "momentum" not in options:  # of that the noises of earlier generations are a part
        np.testing.assert_allclose(found.promised, moves @ gradient, rtol=1e-9)


def test_signal_is_the_cosine_with_the_gradient() -> None:
    gradient = np.random.default_rng(7_000_001).normal(size=SIZE)
    lines = history(lambda x: float(gradient @ x), generations=40)
    centres = {json.dumps(line["genome"]["steps"]): line["genome"] for line in lines}
    at = np.array([place(genome, centre=True) for genome in centres.values()])
    moves = np.diff(at, axis=0)
    cosines = moves @ gradient / np.linalg.norm(moves, axis=1) / np.linalg.norm(gradient)
    error = cosines.std() / np.sqrt(len(cosines))
    assert abs(walk(lines).signal(SIZE) - cosines.mean()) < 3 * error
    assert cosines.mean() > 10 * error


def test_steps_that_are_too_long_walk_and_their_reach_would_have_given_most() -> None:
    target = 0.05 * np.random.default_rng(7_000_001).normal(size=SIZE)

    def fitness(x: Array) -> float:
        return -float(((x - target) ** 2).mean())

    lines = history(fitness, 25, sigma=0.1, alpha=0.2)
    found = walk(lines)
    text = " ".join(sentences(found, SIZE))
    assert "The centre walks: 0.1" in text
    assert found.given.sum() < 0 < found.promised.sum()
    assert found.reach is not None
    assert f"steps {found.reach:.2g} times as long would have given most" in text
    centres = {json.dumps(line["genome"]["steps"]): line["genome"] for line in lines}
    at = [place(genome, centre=True) for genome in centres.values()]

    def given(times: float) -> float:
        return sum(fitness(a + times * (b - a)) - fitness(a) for a, b in itertools.pairwise(at))

    assert max((0.6, 1.0, 1.6), key=lambda part: given(part * (found.reach or 0.0))) == 1.0
    assert given(found.reach) > 0


def test_a_centre_that_climbs_is_said_to() -> None:
    found = walk(history(lambda x: -float(((x - 0.3) ** 2).mean()), 25, sigma=0.05, alpha=0.02))
    assert found.mean[-6:].mean() > found.mean[:6].mean()
    assert "The centre climbs." in sentences(found)[0]


@pytest.mark.parametrize(("of_items", "low", "high"), [(0.0, 0.99, 1.01), (30.0, -0.2, 0.2)])
def test_agreement_of_two_halves_of_the_items_is_that_of_the_slopes(
    of_items: float, low: float, high: float
) -> None:
    gradient = np.random.default_rng(7_000_001).normal(size=SIZE)
    lines, rng = history(lambda x: float(gradient @ x), 20), np.random.default_rng(0)
    cases = {
        line["id"]: line["fitness"][0] + of_items * np.sqrt(40) * rng.normal(size=40)
        for line in lines
    }
    strata = [(10, 0.5), (30, 0.5)]
    found = walk_of(generations(lines), cases, strata)
    assert found.agreement is not None
    assert found.floor is not None
    assert low < found.agreement < high
    # sd of a difference: sqrt(2) of sqrt(0.25 / 10 + 0.25 / 30) of an item's
    expected = of_items * np.sqrt(40) * np.sqrt(2 * (0.25 / 10 + 0.25 / 30))
    assert found.floor == pytest.approx(expected, rel=0.1, abs=1e-6)
    assert "Noise floor" in " ".join(sentences(found))


def test_the_page_of_a_search_along_paths_has_the_section(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run")
    assert "Signal and walk" not in write_report(run).read_text(encoding="utf-8")
    with_rest = [
        {"scores": {}, "failure": None, "same_as": None, **line}
        for line in history(lambda x: -float(x @ x), include_centre="always")
    ]
    text = "".join(json.dumps(line) + "\n" for line in with_rest)
    (run / "history.jsonl").write_text(text)
    (run / "summary.json").unlink()
    assert "<h2>Signal and walk</h2>" in write_report(run).read_text(encoding="utf-8")
    halves = [line for line in with_rest if line["genome"]["own"]]
    # as a private search is told: the difference of both sides, halved
    halves = [{**line, "fitness": [0.25 * (-1) ** i]} for i, line in enumerate(halves)]
    (run / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in halves))
    assert "Signal and walk" not in write_report(run).read_text(encoding="utf-8")
    (run / "history.jsonl").write_text(text)
    page = write_report(run).read_text(encoding="utf-8")
    assert "<h2>Signal and walk</h2>" in page
    assert "The centre walks." in page
    # constants of fresh noises, whatever the search
    assert "random walk" not in page
    assert "of that step with the one before" not in page
