"""Chance and confidence intervals beside scores: evaluate, table and report."""

from __future__ import annotations

import json
from pathlib import Path

from experiments.reports.report import render_report
from experiments.reports.table import table
from experiments.runs.files import RunFiles
from experiments.runs.model_scores import ModelScores, evidence
from tests.evaluators.memorization.conftest import canary_line
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell
from tests.experiments.run_directories import build_summary, write_run


def canaries(path: Path) -> Path:
    path.write_text("".join(json.dumps(canary_line(i)) + "\n" for i in range(4)))
    return path


def test_words() -> None:
    assert evidence(None, None) == ""
    assert evidence(1.40412, (0.9, 2.12345)) == "0.9 to 2.123, chance 1.404"
    assert evidence(None, [0.5, 1]) == "0.5 to 1"


def test_lines_of_references_without_evidence_are_as_before() -> None:
    plain = ModelScores("a", "expert", "report", {"t/x": 1.0})
    assert list(plain.to_json()) == ["name", "kind", "split", "scores", "failure"]
    told = ModelScores(
        "a", "expert", "report", {"t/x": 1.0}, None, {"t/x": 0.5}, {"t/x": [0.1, 0.9]}
    )
    assert ModelScores.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_table_and_report_say_nothing_where_nothing_is_stated(tmp_path: Path) -> None:
    summary = build_summary()
    assert "intervals" not in table(summary)
    run = write_run(tmp_path / "run")
    before = render_report(RunFiles.read(run))
    assert "In brackets" not in before
    (base,) = [each for each in summary["models"] if each["kind"] == "base"]
    base["report"] |= {"chances": {"questions/acc": 0.25}}
    base["report"] |= {"intervals": {"questions/acc": [0.2, 0.3]}}
    told = "questions/acc with 95 % intervals: base 0.2 to 0.3, chance 0.25."
    lines = table(summary).splitlines()
    assert lines.count(told) == 1
    assert [line for line in lines if line != told] == [
        *(kept := table(build_summary()).splitlines())[: lines.index(told)],
        "",
        *kept[lines.index(told) :],
    ]
    (run / "summary.json").write_text(json.dumps(summary))
    page = render_report(RunFiles.read(run))
    assert "0.2300 (0.2 to 0.3, chance 0.25)" in page
    assert "In brackets: the 95 % interval over items, and what chance gives." in page


def test_evaluate_prints_and_writes_them(shell: Shell, world: Path) -> None:
    data = canaries(shell.cwd / "canaries.jsonl")
    common = [f"model={world}/base-code", f"base={world}/base", "device=cpu"]
    ended = shell.run(
        "evaluate",
        *common,
        "evaluator@report_on=exposure",
        f"report_on.exposure.data={data}",
        "out=scores.json",
    )
    assert ended.code == 0, ended.stderr
    (line,) = [each for each in ended.stdout.splitlines() if each.startswith("exposure/exposure ")]
    content = json.loads((shell.cwd / "scores.json").read_text())
    low, high = content["intervals"]["exposure/exposure"]
    assert line.endswith(f"(minimize)  {low:.4g} to {high:.4g}, chance 1.143")
    assert content["chances"]["exposure/ranked_first"] == 0.1
    plain = ["evaluator@report_on=perplexity", f"report_on.text.data={world}/report.jsonl"]
    ended = shell.run("evaluate", *common, *plain, "out=plain.json")
    assert all(each.endswith("(minimize)") for each in ended.stdout.splitlines())
    assert set(json.loads((shell.cwd / "plain.json").read_text())) == {"model", "scores"}


def test_a_search_shows_them_for_every_model(shell: Shell, world: Path) -> None:
    data = canaries(shell.cwd / "canaries.jsonl")
    own = overrides(world, "in_hull=null", "budget.evaluations=2", "out=run")
    own += ["evaluator@report_on=[perplexity,exposure]", f"report_on.exposure.data={data}"]
    ended = shell.run("search", *own)
    assert ended.code == 0, ended.stderr
    run = shell.cwd / "run"
    summary = json.loads((run / "summary.json").read_text())
    assert list(summary["tasks"]) == ["text"]
    assert summary["report_tasks"]["exposure"]["metric"] == "exposure/exposure"
    low, high = summary["models"][-1]["report"]["intervals"]["exposure/exposure"]
    said = f"{low:.4g} to {high:.4g}, chance 1.143"
    assert "exposure/exposure with 95 % intervals: base " in ended.stdout
    assert f"evolved {said}." in ended.stdout
    page = (run / "report.html").read_text()
    assert f"({said})" in page
    assert "| exposure/exposure ↓ |" in (run / "model" / "README.md").read_text()


def test_what_texts_give_away_without_a_model_is_said(shell: Shell, world: Path) -> None:
    """By evaluate, and by a search's table and report; with two files of reference losses."""
    rows = [
        {"text": "a word" * (1 + 8 * (i % 2)) + str(i), "member": i % 2 == 1} for i in range(40)
    ]
    data = shell.cwd / "texts.jsonl"
    data.write_text("\n".join(map(json.dumps, rows)))
    said = (
        "eport task 'membership': what was trained on can be told from the rest without the model "
        "(AUC "
    )
    for name in ("base", "base-maths"):
        options = [str(world / name), str(data), f"{name}.json", "--device", "cpu"]
        assert shell.run("reference-losses", *options).code == 0
    asked = f"report_on.membership.data={data}"
    ended = shell.run(
        "evaluate",
        f"model={world}/base-code",
        f"base={world}/base",
        "device=cpu",
        "evaluator@report_on=membership",
        asked,
        "report_on.membership.attacks=[wbc,lira]",
        "report_on.membership.reference=[base.json,base-maths.json]",
    )
    assert ended.code == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert lines[0].startswith("membership/wbc_auc ")
    assert f"note: r{said}" in lines[-1]
    own = overrides(world, "in_hull=null", "budget.evaluations=2", "out=run", asked)
    ended = shell.run("search", *own, "evaluator@report_on=[perplexity,membership]")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count(f"note: r{said}") == 1
    assert (shell.cwd / "run" / "report.html").read_text().count(
        f"R{said}".replace("'", "&#x27;")
    ) == 1
