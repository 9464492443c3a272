"""A benchmark suite from one experiment file: what runs, what is shared, what the page says."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import cast

import pytest
from hydra import compose, initialize_config_module
from omegaconf import DictConfig, OmegaConf

import conf
from experiments.runs.errors import UserError
from experiments.runs.model_scores import Kind, ModelScores
from experiments.runs.options import check_options
from experiments.suites import workers
from experiments.suites.plan import Suite, SuiteSetting, SuiteTable, checked_suite, planned_runs
from experiments.suites.results import results_page
from experiments.suites.shared_references import share
from experiments.suites.suite import marked
from search.loop import jsonl
from tests.experiments.local import overrides, write_texts
from tests.experiments.refusals import Shell, own_logging

CONF = Path(conf.__file__).parent

FILE = """\
# @package _global_
# A suite for tests.
name: duel
suite:
  title: A duel
  results: PAGE.md
  workers: 1
  options: [tracker=none, baselines=none, save_model=false, in_hull=null, budget.evaluations=4]
  settings:
    tiny: {title: A tiny setting., options: OPTIONS, seeds: [0, 1]}
    off: null
  tables:
    main:
      title: Strategies
      against: in hull
      variants:
        in hull: [strategy=cma, space=convex]
        affine: [strategy=cma, space=weights]
        broken: [strategy=cma, space=weights, initial=recipe, initial.path=nowhere.json]
    nothing: {title: Of no setting that is there, settings: [off], variants: {any: []}}
    models:
      title: Models
      models: true
      variants:
        some: [strategy=oneplusone, space=weights, budget.evaluations=1, baselines=few]
"""


@pytest.fixture
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]):  # type: ignore[no-untyped-def]
    monkeypatch.chdir(tmp_path)
    return Shell(tmp_path, capsys)


def write_experiment(root: Path, world: Path) -> None:
    (root / "mine" / "experiment").mkdir(parents=True)
    runs = [each for each in overrides(world) if not each.startswith(("runs=", "budget", "bas"))]
    text = FILE.replace("OPTIONS", json.dumps(runs))
    (root / "mine" / "experiment" / "duel.yaml").write_text(text)


def test_suite_runs_shares_reports_and_goes_on(shell: Shell, world: Path) -> None:
    write_experiment(shell.cwd, world)
    command = ["search", "--config-dir", "mine", "experiment=duel", "runs=all"]
    first = shell.run(*command)
    assert first.code == 2
    assert "2 of 8 runs failed; all/duel/tiny/main/broken-s0: initial.path: nowh" in first.stderr
    assert "8 runs, 1 at a time" in first.stdout
    page = (shell.cwd / "PAGE.md").read_text()
    assert page == (shell.cwd / "all" / "duel" / "RESULTS.md").read_text()
    assert "# A duel\n\nWritten by `evomerge search experiment=duel`" in page
    assert "| ties | static |" in page
    assert "## Strategies: tiny" in page
    assert "| affine |" in page
    assert "failed: broken, seed 0: initial.path: nowhere.json does not exist" in page
    variants = shell.cwd / "all" / "duel" / "tiny" / "main"
    scored = [
        (variants / run / "references.jsonl").read_text().splitlines()
        for run in ("in-hull-s0", "affine-s1")
    ]
    own, shared = ([json.loads(line) for line in lines] for lines in scored)
    assert [line["id"] for line in shared] == list(range(len(shared)))
    known = {(line["kind"], line["name"], line["split"]): line["scores"] for line in own}
    for line in shared:
        if line["kind"] != "evolved":
            assert known[line["kind"], line["name"], line["split"]] == line["scores"]
    history = (variants / "affine-s0" / "history.jsonl").read_bytes()
    stamp = (variants / "affine-s0" / "history.jsonl").stat().st_mtime_ns
    (variants / "affine-s0" / "report.html").unlink()
    again = shell.run(*command)
    assert again.code == 2
    assert (variants / "affine-s0" / "history.jsonl").read_bytes() == history
    assert (variants / "affine-s0" / "history.jsonl").stat().st_mtime_ns == stamp
    checked = shell.run("check", *command[1:])
    assert "in all       8 runs, 6 of them finished" in checked.stdout


def test_of_private_variants_neither_time_nor_failure_nor_output_is_written(
    world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(workers, "process_pool", ThreadPoolExecutor)
    data = write_texts(tmp_path / "twice.jsonl", first=0)
    data.write_text(2 * data.read_text())
    own = (
        "select_on",
        "report_on",
        "evaluator@select_on",
        "evaluator@report_on",
        "runs",
        "budget",
    )
    options = [each for each in overrides(world) if not each.startswith(own)]
    options += ["evaluator@select_on=none", "evaluator@report_on=none", "budget.evaluations=4"]
    options += ["in_hull=null", "strategy=cma", "space=weights", "objective=raw"]
    options += ["baselines=none", "save_model=false"]
    quiet = ["privacy=means", "privacy.data=letters", "privacy.epsilon=90"]
    twice = [*quiet, f"search_on.text.data={data}"]
    table = SuiteTable("", {"plain": [], "quiet": quiet, "twice": twice})
    suite = Suite("", 1, None, options, {"tiny": SuiteSetting("", [], [0])}, {"main": table})
    with initialize_config_module("conf", version_base="1.3"):
        runs = marked(planned_runs(suite, tmp_path))
    with own_logging():
        failures = workers.run_all(runs, 1, None)
    assert [run.variant for run in runs if run.directory in failures] == ["twice"]
    assert "hold one item twice" in failures[runs[-1].directory], "which the terminal says"
    page = results_page(suite, runs, failures, command="", seconds=7777.0)
    assert "- runs: 3, 1 at a time; how long private ones take is not written\n" in page
    assert "- failed: twice, seed 0: why, the terminal says alone\n" in page
    assert "| quiet |" in page
    written = {path.name for path in (tmp_path / "tiny" / "main").iterdir()}
    assert written == {"plain-s0", "plain-s0.log", "quiet-s0"}


def test_static_starts_that_draw_nothing_of_their_own_are_shared(tmp_path: Path) -> None:
    def config(seed: int) -> DictConfig:
        words = [f"seed={seed}", "initial=best_static", "space=own_knobs", "experts.base=b"]
        with initialize_config_module("conf", version_base="1.3"):
            return compose("search", overrides=["experts=local", "experts.experts={}", *words])

    source = tmp_path / "source"
    source.mkdir()
    OmegaConf.save(config(0), source / "config.yaml")
    (source / "ingredients.json").write_text("{}")
    names = {"base": "base", "ties": "start", "dare_ties": "start", "sce": "static"}
    for number, (name, kind) in enumerate(names.items()):
        line = ModelScores(name, cast(Kind, kind), "search", {"a/b": float(number)}).to_json()
        jsonl.append(source / "references.jsonl", {"id": number, **line})
    for seed, shared in [(0, ["base", "ties", "dare_ties"]), (1, ["base", "ties"])]:
        assert share(source, tmp_path / f"run{seed}", config(seed))
        lines = jsonl.read(tmp_path / f"run{seed}" / "references.jsonl")
        assert [line["name"] for line in lines] == shared


@pytest.mark.parametrize("private", [False, True])
def test_nothing_is_shared_of_a_run_on_private_items(tmp_path: Path, private: bool) -> None:
    config = OmegaConf.create({"experts": {"base": "b"}, "privacy": {}})
    source = tmp_path / "source"
    source.mkdir()
    OmegaConf.save({**config, "privacy": {"data": "d"} if private else {}}, source / "config.yaml")
    (source / "ingredients.json").write_text('{"items": {"private": 0.5}}')
    (source / "references.jsonl").touch()
    assert share(source, tmp_path / "run", config) is not private
    assert (tmp_path / "run").exists() is not private


def test_a_variant_that_cannot_start_is_refused_by_name(shell: Shell, world: Path) -> None:
    write_experiment(shell.cwd, world)
    bad = "suite.tables.main.variants.affine=['strategy=mergevolve','space=weights']"
    shell.refuse(
        "suite, tiny, variant 'affine': strategy MergEvolve searches paths",
        "search",
        "--config-dir",
        "mine",
        "experiment=duel",
        bad,
    )


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        (
            "suite.tables.main.against=nobody",
            "there is no variant 'nobody', only in hull, affine, br",
        ),
        ("~suite.settings.tiny.title", r"suite\.settings\.tiny\.title is missing"),
        ("+suite.tables.main.againts=x", r"suite\.tables\.main\.againts is unknown: expected"),
        ("suite.workers=0", r"suite\.workers=0: it must be at least 1"),
        (
            "budget.evaluations=7",
            "budget.evaluations=7 does not reach the runs of a suite: put it",
        ),
        ("suite.title=???", "suite: Missing mandatory value: title"),
    ],
)
def test_suites_that_make_no_sense_are_refused(
    shell: Shell, world: Path, option: str, pattern: str
) -> None:
    write_experiment(shell.cwd, world)
    shell.refuse(pattern, "check", "--config-dir", "mine", "experiment=duel", option)


SUITE = Suite(
    title="",
    workers=1,
    results=None,
    options=["c=1"],
    settings={"w": SuiteSetting("", ["a=1"], [0, 1]), "v": SuiteSetting("", [], [5])},
    tables={
        "one": SuiteTable("", {"A b": ["x=1"], "c": []}),
        "two": SuiteTable("", {"A b": ["x=2"]}, settings=["w"], seeds=[7]),
    },
)


@pytest.mark.parametrize("fast", [False, True])
def test_a_trial_is_what_the_suite_says_and_is_marked(tmp_path: Path, fast: bool) -> None:
    content = OmegaConf.create(FILE.replace("OPTIONS", "[]")).suite
    trial = {"title": "A trial.", "options": ["seed=9"], "seeds": [5]}
    tables = {"main": {"variants": {"broken": None, "affine": ["space=convex"]}}, "models": None}
    small = {"settings": {"tiny": None, "trial": trial}, "tables": tables}
    whole = {**OmegaConf.to_container(content), "fast": fast, "small": small}  # type: ignore[dict-item]
    suite = checked_suite(whole)
    runs = planned_runs(suite, tmp_path)
    assert len(runs) == (2 if fast else 8)
    assert {run.setting for run in runs} == {"trial" if fast else "tiny"}
    assert {run.options[-1] for run in runs if run.variant == "affine"} == {
        "space=convex" if fast else "space=weights"
    }
    lost = {run.directory: "it was not run" for run in runs}
    page = results_page(suite, runs, lost, command="x", seconds=0.0)
    assert ("**A trial" in page) == fast


def test_every_variant_runs_in_every_setting_with_every_seed() -> None:
    runs = planned_runs(SUITE, Path("runs"))
    assert [(run.table, run.setting, run.variant, run.seed) for run in runs] == [
        ("one", "w", "A b", 0),
        ("one", "w", "c", 0),
        ("one", "w", "A b", 1),
        ("one", "w", "c", 1),
        ("one", "v", "A b", 5),
        ("one", "v", "c", 5),
        ("two", "w", "A b", 7),
    ]
    assert runs[0].options == ("a=1", "c=1", "x=1")
    assert runs[-1].directory == Path("runs/w/two/a-b-s7")
    wrong = replace(SUITE, tables={"one": SuiteTable("", {}, settings=["z"])})
    with pytest.raises(UserError, match=r"suite\.tables\.one\.settings: there is no setting 'z'"):
        planned_runs(wrong, Path("runs"))
    twins = replace(SUITE, tables={"one": SuiteTable("", {"A b": [], "a-B": []})})
    with pytest.raises(UserError, match="variants 'A b' and 'a-B' share the directory"):
        planned_runs(twins, Path("runs"))


def test_the_settings_and_variants_of_the_suites_that_come_along_can_be_composed() -> None:
    seen: set[tuple[str, ...]] = set()
    with initialize_config_module("conf", version_base=None):
        for file in sorted(CONF.glob("experiment/*.yaml")):
            if "\nsuite:" not in file.read_text():
                continue
            config = compose("search", overrides=[f"experiment={file.stem}"])
            for value in config.suite.get("values") or {}:
                config.suite["values"][value] = "DIR"
            suite = checked_suite(OmegaConf.to_container(config.suite, resolve=True))
            for run in planned_runs(suite, Path("runs")):
                setting = tuple(suite.settings[run.setting].options)
                variant = tuple(suite.tables[run.table].variants[run.variant] or ())
                if not {setting, variant} <= seen:
                    check_options(compose("search", overrides=run.overrides))
                seen |= {setting, variant}
