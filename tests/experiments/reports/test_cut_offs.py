"""Answers that ended for want of tokens: in table, report, card and `evaluate`."""

from __future__ import annotations

import json
from html import escape
from pathlib import Path

import pytest

from experiments.reports.cut_offs import cut_off_lines
from experiments.runs.model_scores import ModelScores
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell
from tests.experiments.run_directories import build_summary


@pytest.mark.parametrize(("winner", "warned"), [(0.125, False), (0.165, True), (0.0, True)])
def test_a_winner_that_is_cut_off_otherwise_than_its_base_is_warned_of(
    winner: float, warned: bool
) -> None:
    summary = build_summary(experts=("code", "prose"))
    assert cut_off_lines(summary) == []
    shares = {"base": 0.14, "code": 0.5, "evolved": winner}
    for model in summary["models"]:
        if model["name"] in shares:
            model["report"]["cut_offs"] = {"questions/acc": shares[model["name"]]}
    first, *more = cut_off_lines(summary)
    assert first == (
        "questions: answers cut off at their most tokens: base 14.0%, expert code 50.0%, "
        f"evolved {winner:.1%}."
    )
    assert len(more) == warned
    assert all(line.startswith("warning: questions: of the base's answers 14.0%") for line in more)
    for model in summary["models"]:
        if "cut_offs" in (model["report"] or {}):
            model["report"]["cut_offs"] = {"questions/acc": 0.0}
    assert cut_off_lines(summary) == ["questions: no answer was cut off at its most tokens."]


def test_lines_of_references_keep_them() -> None:
    told = ModelScores("a", "expert", "report", {"t/x": 1.0}, cut_offs={"t/x": 0.5})
    assert ModelScores.from_json(json.loads(json.dumps(told.to_json()))) == told


def test_a_search_and_evaluate_say_them(shell: Shell, world: Path) -> None:
    (shell.cwd / "items.jsonl").write_text('{"q": "one and"}\n{"q": "two and"}\n')
    (shell.cwd / "own.yaml").write_text(
        "task: own\ndataset_path: json\n"
        f"dataset_kwargs: {{data_files: {{test: {shell.cwd}/items.jsonl}}}}\n"
        "test_split: test\noutput_type: generate_until\ndoc_to_text: q\ndoc_to_target: q\n"
        "generation_kwargs: {until: ['no such text'], max_gen_toks: 3}\n"
        "metric_list: [{metric: exact_match, aggregation: mean, higher_is_better: true}]\n"
    )
    task = f"report_on.task.task={shell.cwd}/own.yaml"
    own = overrides(world, "in_hull=null", "budget.evaluations=2", "out=run", task)
    ended = shell.run("search", *own, "evaluator@report_on=[perplexity,lm_eval]")
    assert ended.code == 0, ended.stderr
    summary = json.loads((shell.cwd / "run" / "summary.json").read_text())
    (line,) = cut_off_lines(summary)
    assert line.startswith("task: answers cut off at their most tokens: base 100.0%, expert code ")
    assert line.endswith(", evolved 100.0%.")
    assert ended.stdout.count(line) == 1
    assert (shell.cwd / "run" / "report.html").read_text().count(escape(line)) == 1
    assert (shell.cwd / "run" / "model" / "README.md").read_text().count(line) == 1
    models = [f"model={world}/base-code", f"base={world}/base", "device=cpu"]
    ended = shell.run("evaluate", *models, "evaluator@report_on=lm_eval", task, "out=scores.json")
    assert "note: task/exact_match: 100.0% of the answers were cut off" in ended.stdout
    cut_offs = json.loads((shell.cwd / "scores.json").read_text())["cut_offs"]
    assert cut_offs == {"task/exact_match": 1.0}
