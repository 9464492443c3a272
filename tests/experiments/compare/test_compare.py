"""Comparisons of run directories, from the files to the command line."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from experiments.compare import plots
from experiments.compare.groups import find_runs, gains_of, read_run
from experiments.compare.labels import labels
from experiments.compare.page import render_comparison
from experiments.compare.run import compare
from experiments.compare.significance import holm
from experiments.compare.text import markdown, plain, to_json
from tests.experiments.compare.compare_directories import STATIC, TASKS, write_finished
from tests.experiments.reports.test_report import Page

ROOT = Path(__file__).parents[3]


def write_groups(root: Path, seeds: int = 3, **options) -> Path:
    """Writes CMA (0.70), PSO (0.69) and random search (0.60) with some seeds each."""
    for strategy, level in (("cma", 0.7), ("pso", 0.69), ("random", 0.6)):
        for seed in range(seeds):
            write_finished(
                root / f"{strategy}-{seed}",
                strategy=strategy,
                seed=seed,
                level=level,
                run_noise=0.01,
                item_noise=0.1,
                **options,
            )
    return root


@pytest.fixture(scope="module")
def runs(tmp_path_factory) -> Path:
    root = write_groups(tmp_path_factory.mktemp("compare") / "runs")
    write_finished(root / "begun", strategy="cma", seed=9, finished=False)
    return root


@pytest.fixture(scope="module")
def found(runs):
    return compare([runs])


# -- groups --------------------------------------------------------------------------------


def test_runs_are_grouped_by_everything_but_the_seed(found):
    assert {row.label for row in found.groups} == {
        "strategy=Nevergrad optimizer=CMA",
        "strategy=Nevergrad optimizer=PSO",
        "strategy=RandomSearch",
    }
    assert all(row.seeds == (0, 1, 2) for row in found.groups)
    means = [row.report.mean for row in found.groups]
    assert means == sorted(means, reverse=True)


def test_unfinished_runs_are_listed_and_left_out(found):
    assert [path.name for path in found.unfinished] == ["begun"]
    assert "Left out, as unfinished (1): begun." in plain(found)


def test_a_run_is_named_itself_below_a_directory_or_by_a_pattern(runs):
    one = find_runs([runs / "cma-0"])
    assert [path.name for path in one] == ["cma-0"]
    assert [path.name for path in find_runs([runs / "cma-*"])] == ["cma-0", "cma-1", "cma-2"]
    assert len(find_runs([runs, runs / "cma-0"])) == 10


def test_seed_that_other_options_follow_makes_no_group(tmp_path):
    for seed in (0, 1):  # method.seed and space.method.seed are the run's
        write_finished(tmp_path / f"a{seed}", seed=seed)
    for seed in (0, 1):  # the experts' training seed is not
        write_finished(tmp_path / f"b{seed}", seed=seed, options={"experts__seed": 5})
    found = compare([tmp_path])
    assert sorted((row.label, row.seeds) for row in found.groups) == [
        ("seed=0", (0, 1)),
        ("seed=5", (0, 1)),
    ]


def test_output_places_and_trackers_make_no_group(tmp_path):
    write_finished(tmp_path / "a", seed=0)
    write_finished(tmp_path / "b", seed=1, options={"out": "elsewhere", "runs": "other"})
    assert [row.label for row in compare([tmp_path]).groups] == ["search"]


def test_repeated_run_is_left_out_and_named(tmp_path):
    write_finished(tmp_path / "a", seed=0)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    found = compare([tmp_path])
    assert found.groups[0].seeds == (0,)
    assert re.search(r"b repeats .*a and is left out", found.notes[0])


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ([{"name": "x", "a": 1}], ["x"]),
        ([{"name": "x", "a": 1}, {"name": "x", "a": None}], ["a=1", "a=null"]),
        ([{"name": "first arm", "a": 1}, {"name": "second", "a": 2}], ["first arm", "second"]),
        (
            [
                {"s._target_": "m.Cma", "s.sigma": 1.0},
                {"s._target_": "m.Cma", "s.sigma": 2.0},
                {"s._target_": "m.Grid", "s.step": 3},
            ],
            ["s=Cma sigma=1.0", "s=Cma sigma=2.0", "s=Grid"],
        ),
        (
            [
                {"method._target_": "m.Ties", "space.method._target_": "m.Ties"},
                {"method._target_": "m.Dare", "space.method._target_": "m.Dare"},
            ],
            ["method=Ties", "method=Dare"],
        ),
        ([{"a.k": 1, "b.k": 1}, {"a.k": 1, "b.k": 2}, {"a.k": 2, "b.k": 1}],
         ["a.k=1 b.k=1", "a.k=1 b.k=2", "a.k=2 b.k=1"]),
        ([{"p._target_": "one.Same"}, {"p._target_": "two.Same"}], ["p=Same #1", "p=Same #2"]),
        ([{"strategy.k": 1, "a": 1}, {"strategy.k": 2, "a": 2}], ["k=1 a=1", "k=2 a=2"]),
    ],
)  # fmt: skip
def test_labels_show_the_options_that_differ(options, expected):
    assert labels(options)[0] == expected


# -- numbers -------------------------------------------------------------------------------


def test_numbers_are_those_of_the_runs(runs, found):
    for row in found.groups:
        summaries = [json.loads((path / "summary.json").read_text()) for path in row.runs]
        winners = [summary["models"][-1] for summary in summaries]
        held_out = [winner["report"]["fitness"][0] for winner in winners]
        accuracy = [winner["report"]["scores"]["choice/acc"] for winner in winners]
        assert row.report.mean == pytest.approx(np.mean(held_out))
        assert row.report.sd == pytest.approx(np.std(held_out, ddof=1))
        assert row.scores["choice/acc"].mean == pytest.approx(np.mean(accuracy))
        assert row.optimism.mean == pytest.approx(np.mean([s["optimism"] for s in summaries]))


def test_reaching_the_target_is_timed(tmp_path):
    """Fitness rises linearly: level * (i + 1) / 30, at 0.5 s each; two of three reach 0.6."""
    for seed, level in enumerate((1.2, 0.9, 0.3)):
        write_finished(tmp_path / str(seed), seed=seed, level=level)
    reach = compare([tmp_path], target=0.6).groups[0].reach
    assert (reach.evaluations, reach.seconds) == (20.0, 10.0)  # median of 15, 20 and never
    assert (reach.reached, reach.runs) == (2, 3)
    assert "20 (2 of 3 runs)" in plain(compare([tmp_path], target=0.6))
    never = compare([tmp_path], target=0.95).groups[0].reach
    assert (never.evaluations, never.seconds, never.reached) == (None, None, 1)
    assert "not reached (1 of 3 runs)" in plain(compare([tmp_path], target=0.95))


def test_target_is_the_best_static_merge_unless_given(found):
    assert found.target == pytest.approx(STATIC)
    assert found.target_name == "that of the best static merge, ties"


def test_repeats_cost_no_evaluation(tmp_path):
    path = write_finished(tmp_path / "run")
    lines = (path / "history.jsonl").read_text().splitlines()
    repeat = {**json.loads(lines[0]), "id": 30, "same_as": 0}
    (path / "history.jsonl").write_text("\n".join([*lines, json.dumps(repeat)]) + "\n")
    assert len(read_run(path).best) == 30


def test_curve_begins_where_all_have_a_success_and_an_ended_run_keeps_its_best(tmp_path):
    write_finished(tmp_path / "a", seed=0, level=0.6, evaluations=10)
    path = write_finished(tmp_path / "b", seed=1, level=0.6, evaluations=20)
    lines = [json.loads(line) for line in (path / "history.jsonl").read_text().splitlines()]
    lines[0] |= {"fitness": None, "failure": "broken"}
    (path / "history.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    mean, sd = compare([tmp_path]).groups[0].curve
    assert np.isnan(mean[0])
    assert np.isfinite(mean[1:]).all()
    assert mean[19] == pytest.approx(0.6)
    assert sd[19] == pytest.approx(0.0)


def test_items_in_units_of_fitness_have_the_fitness_as_weighted_mean(runs):
    run = read_run(runs / "cma-1")
    gains = gains_of(run, ("evolved", "evolved"))
    assert [len(each) for each in gains] == list(TASKS.values())
    weights = [term["weight"] for term in run.summary["terms"]]
    total = sum(w * g.mean() for w, g in zip(weights, gains, strict=True))
    assert total == pytest.approx(run.winner.fitness("report")[0])


def test_a_score_that_is_no_mean_of_its_items_has_none(tmp_path):
    """Such as bits per byte of every document by itself, as older runs have them."""
    path = write_finished(tmp_path / "run")
    summary = json.loads((path / "summary.json").read_text())
    row = summary["models"][-1]["report"]
    assert gains_of(read_run(path), ("evolved", "evolved")) is not None
    row["scores"]["code/bits_per_byte"] -= 0.05
    (path / "summary.json").write_text(json.dumps(summary))
    assert gains_of(read_run(path), ("evolved", "evolved")) is None


# -- tests ---------------------------------------------------------------------------------


def test_all_pairs_are_tested_and_corrected(found):
    assert len(found.tests) == 3
    clear = next(test for test in found.tests if "CMA" in test.first and "Random" in test.second)
    assert clear.difference.over == "items and seeds"
    assert clear.difference.paired_seeds
    assert clear.difference.low > 0
    assert [test.corrected for test in found.tests] == holm([t.difference.p for t in found.tests])


def test_verdict_counts_those_above_and_below(runs):
    text = plain(compare([runs], against="static"))
    assert "3 of 3 groups are above static ties and 0 below it (p < 0.05, corrected)" in text


@pytest.mark.parametrize(
    ("against", "chosen"),
    [
        ("optimizer=PSO", "strategy=Nevergrad optimizer=PSO"),
        ("strategy=Nevergrad", "strategy=Nevergrad optimizer=CMA"),  # the better of the two
        ("strategy=RandomSearch | optimizer=PSO", "strategy=Nevergrad optimizer=PSO"),
        ("Random", "strategy=RandomSearch"),
        ("static", "static ties"),
        ("expert", "expert code"),
        ("base", "base"),
    ],
)
def test_against_a_group_a_kind_or_the_best_of_several(runs, against, chosen):
    found = compare([runs], against=against)
    assert found.against == chosen
    assert {test.second for test in found.tests} == {chosen}
    assert len(found.tests) == 3 - any(row.label == chosen for row in found.groups)


def test_the_best_static_merge_is_named_by_search_scores_of_those_that_were_read(tmp_path):
    path = write_finished(tmp_path / "run")
    summary = json.loads((path / "summary.json").read_text())
    ties = next(model for model in summary["models"] if model["name"] == "ties")
    better, worse = ({**ties["report"], "fitness": [STATIC + d]} for d in (0.2, -0.2))
    summary["models"] += [
        {**ties, "name": "lucky", "search": worse, "report": better},
        {**ties, "name": "unread", "search": better, "report": None},
    ]
    (path / "summary.json").write_text(json.dumps(summary))
    assert compare([path], against="static").against == "static ties"


def test_exact_label_goes_before_a_longer_one(tmp_path):
    for level, name in ((0.6, "in-hull CMA"), (0.7, "in-hull CMA with base"), (0.8, "other")):
        write_finished(tmp_path / name, level=level, options={"name": name})
    assert compare([tmp_path], against="in-hull CMA").against == "in-hull CMA"
    both = compare([tmp_path], against="in-hull CMA | in-hull CMA with base")
    assert both.against == "in-hull CMA with base"
    assert "has the best mean held-out fitness of the 2 groups" in both.notes[0]


def test_without_items_seeds_alone_are_tested_and_it_is_said(tmp_path):
    found = compare([write_groups(tmp_path / "runs", items=False)])
    assert {test.difference.over for test in found.tests} == {"seeds"}
    assert any("Tested over seeds alone, as runs keep no per-item" in note for note in found.notes)


def test_without_items_and_with_one_seed_nothing_is_tested(tmp_path):
    found = compare([write_groups(tmp_path / "runs", seeds=1, items=False)])
    assert [test.corrected for test in found.tests] == [None] * 3
    assert "No difference between groups was tested." in plain(found)
    assert json.dumps(to_json(found), allow_nan=False)


def test_one_seed_with_items_is_tested_over_items(tmp_path):
    found = compare([write_groups(tmp_path / "runs", seeds=1)])
    assert {test.difference.over for test in found.tests} == {"items"}
    assert any("another seed may differ" in note for note in found.notes)


def test_unequal_budgets_are_named(tmp_path):
    for seed in (0, 1):
        write_finished(tmp_path / f"a{seed}", seed=seed, evaluations=30)
        write_finished(tmp_path / f"b{seed}", strategy="pso", seed=seed, evaluations=45)
    note = compare([tmp_path]).notes[0]
    assert "Budgets are unequal" in note
    assert "optimizer=PSO 4,500" in note
    assert "3,000 are usual" in note


def test_equal_runs_give_equal_text(runs, found):
    again = compare([runs])
    assert render_comparison(again) == render_comparison(found)
    assert markdown(again) == markdown(found)


# -- refusals ------------------------------------------------------------------------------


def test_other_items_are_refused_by_name(tmp_path):
    write_finished(tmp_path / "a")
    write_finished(tmp_path / "b", strategy="pso", digest="d1")
    with pytest.raises(
        ValueError,
        match=r"a and .*b cannot be compared: .*different held-out items of task 'code'",
    ):
        compare([tmp_path])


def test_other_units_are_refused_by_name(tmp_path):
    write_finished(tmp_path / "a")
    path = write_finished(tmp_path / "b", strategy="pso")
    summary = json.loads((path / "summary.json").read_text())
    summary["terms"][0]["span"] = 0.7
    (path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(
        ValueError, match=r"code/bits_per_byte enters with span 0\.5 and 0\.7; compare runs with"
    ):
        compare([tmp_path])


def test_other_tasks_are_refused(tmp_path):
    write_finished(tmp_path / "a")
    path = write_finished(tmp_path / "b", strategy="pso")
    text = (path / "summary.json").read_text().replace("choice/acc", "choice/f1")
    (path / "summary.json").write_text(text)
    with pytest.raises(ValueError, match=r"their tasks are .*choice/acc .* and .*choice/f1"):
        compare([tmp_path])


def test_runs_without_items_are_known_by_their_base(tmp_path):
    write_finished(tmp_path / "a", items=False)
    path = write_finished(tmp_path / "b", strategy="pso", items=False)
    summary = json.loads((path / "summary.json").read_text())
    summary["models"][0]["report"]["scores"]["choice/acc"] = 0.5
    (path / "summary.json").write_text(json.dumps(summary))
    with pytest.raises(ValueError, match=r"the base reads 0\.\d+ and 0\.5 on held-out choice/acc"):
        compare([tmp_path])


def test_unknown_group_is_refused_with_those_there_are(runs):
    with pytest.raises(ValueError, match=r"against='de' names no group: there are strategy=Never"):
        compare([runs], against="de")


def test_only_unfinished_runs_are_refused(tmp_path):
    write_finished(tmp_path / "a", finished=False)
    with pytest.raises(ValueError, match=r"none of 1 runs has finished"):
        compare([tmp_path])


def test_place_without_runs_is_refused(tmp_path):
    with pytest.raises(ValueError, match=r"no run there; name directories that"):
        compare([tmp_path])


# -- page and command ----------------------------------------------------------------------


def test_page_holds_every_number_of_the_tables(found):
    page = Page(render_comparison(found))
    cells = {cell for row in page.rows for cell in row}
    for row in found.groups:
        assert row.label in cells
        assert f"{row.report.mean:.4f} ± {row.report.sd:.4f}" in cells
    for test in found.tests:
        assert f"{test.difference.effect:+.4f}" in cells
    assert "standard error of the items' paired differences" in page.text
    assert sum(tag == "svg" for tag, _ in page.elements) == 3
    links = [a for _, attributes in page.elements for a in attributes.values() if a]
    assert not [link for link in links if link.startswith(("http:", "https:", "//"))]


def test_many_groups_are_drawn(tmp_path):
    for index in range(20):
        write_finished(
            tmp_path / str(index), level=0.5 + index / 100, options={"name": f"a{index}"}
        )
    found = compare([tmp_path])
    assert len(found.tests) == 190
    page = render_comparison(found)
    assert f"The first {plots.MOST_TESTS} of 190 tests." in page
    assert "a19" in page


def command(*arguments: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "experiments.cli", "compare", *arguments],
        cwd=cwd,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=240,
        check=False,
    )


def test_command_prints_the_table_and_writes_the_files(runs, tmp_path):
    done = command(str(runs), "--out", "page", "--against", "static", "--wandb", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert "Differences in held-out fitness" in done.stdout
    assert done.stdout.isascii()
    names = {path.name for path in (tmp_path / "page").iterdir()}
    assert names == {"compare.md", "compare.html", "compare.json", "wandb"}
    values = json.loads((tmp_path / "page" / "compare.json").read_text())
    assert len(values["groups"]) == 3
    assert values["tests"][0]["second"] == "static ties"
    logged = list((tmp_path / "page" / "wandb").glob("offline-run-*/files/media/table/*.json"))
    assert {path.name.split("_")[0] for path in logged} == {"groups", "scores", "cost", "tests"}


def test_command_refuses_in_one_sentence(tmp_path):
    done = command("nowhere", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert re.fullmatch(r"evomerge compare: nowhere: no run there; [^\n]+\n", done.stderr)


def test_a_metric_that_judges_without_a_column_is_named(tmp_path: Path, found) -> None:
    for seed in range(2):
        path = write_finished(tmp_path / str(seed), seed=seed) / "summary.json"
        path.write_text(path.read_text().replace('"key": "choice/acc"', '"key": "choice/smooth"'))
    assert "Fitness and tests go by choice/smooth, not by" in markdown(compare([tmp_path]))
    assert "Fitness and tests go by" not in markdown(found)
