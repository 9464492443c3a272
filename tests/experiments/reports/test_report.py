from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest

from experiments.reports.report import coefficient_maps, write_report
from tests.experiments.run_directories import FAILURE, build_recipe, write_run

_VOID = {"meta", "br", "link", "img", "hr", "input"}


class Page(HTMLParser):
    """Text and elements of a page; an end tag must close the element opened last."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.words: list[str] = []
        self.rows: list[list[str]] = []
        self.best: list[str] = []
        self.feed(html)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        if tag not in _VOID:
            self.open.append(tag)
        if tag == "tr":
            self.rows.append([])
        if tag in ("td", "th"):
            self.rows[-1].append("")
            self.in_best = dict(attrs).get("class") == "best"

    def handle_startendtag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        if not self.open or self.open[-1] == "style":
            return
        self.words.append(data)
        if self.open[-1] in ("td", "th"):
            self.rows[-1][-1] += data
            if self.in_best:
                self.best.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())


def report(path: Path, **options) -> tuple[str, Page]:
    html = write_report(write_run(path, **options)).read_text(encoding="utf-8")
    return html, Page(html)


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return report(tmp_path_factory.mktemp("runs") / "plain")


def test_headline_says_what_was_merged_and_whether_it_paid(plain):
    _, page = plain
    assert "TaskArithmetic merge of 3 experts (code, prose, config)" in page.text
    assert (
        "beats every static merge on held-out data with fitness 0.8800 against 0.7200" in page.text
    )


def test_page_fetches_nothing_and_leads_nowhere(plain):
    html, page = plain
    code = re.sub(r"base64,[^\"]*", "", html)  # the colour bar
    assert not any(word in code for word in ("http", "//", "@import"))
    tags = {tag for tag, _ in page.elements}
    assert tags.isdisjoint({"a", "script", "link", "img", "iframe"})
    for tag, attributes in page.elements:
        for name in ("href", "src", "xlink:href"):
            assert attributes.get(name, "#").startswith(("#", "data:image/png;base64,")), tag


def test_every_reference_inside_the_page_has_one_target(tmp_path):
    html, page = report(tmp_path / "run", knobs=("weight", "density"))
    ids = [attributes["id"] for _, attributes in page.elements if "id" in attributes]
    assert len(ids) == len(set(ids))
    used = set(re.findall(r'(?:href="#|url\(#)([^")]+)', html))
    assert used
    assert used <= set(ids)


def test_same_files_same_bytes_in_another_process(tmp_path):
    run = write_run(tmp_path / "run")
    here = write_report(run).read_bytes()
    code = (
        "import sys, pathlib; from experiments.reports.report import write_report as write; "
        "write(pathlib.Path(sys.argv[1]))"
    )
    subprocess.run(
        [sys.executable, "-c", code, str(run)],
        check=True,
        cwd=Path(__file__).parents[3],
        env={**os.environ, "PYTHONHASHSEED": "77"},
    )
    assert (run / "report.html").read_bytes() == here


def test_nothing_but_the_page_is_left_behind(tmp_path):
    run = write_run(tmp_path / "run")
    before = {path.name for path in run.iterdir()}
    write_report(run)
    assert {path.name for path in run.iterdir()} == before | {"report.html"}


def test_score_tables_are_sorted_by_held_out_fitness(plain):
    _, page = plain
    names = [row[0] for row in page.rows if len(row) == 7]
    order = [
        "model", "evolved", "task arithmetic 0.4", "ties", "uniform average", "code", "prose",
        "config", "base", "slerp",
    ]  # fmt: skip
    assert names == order + order  # held-out items, then search items in the same order


def test_best_of_every_column_is_bold_in_its_own_direction(plain):
    _, page = plain
    heads = next(row for row in page.rows if row[0] == "model")
    arrows = [head[-1] for head in heads[2:]]
    assert arrows == ["↑", "↓", "↓", "↓", "↑"]
    assert page.best == [
        "0.8800", "2.1480", "2.1480", "2.1480", "0.5000",
        "0.9000", "2.1400", "2.1400", "2.1400", "0.5200",
    ]  # fmt: skip


def test_failed_model_is_shown_with_its_reason(plain):
    html, page = plain
    row = next(row for row in page.rows if row[0] == "slerp")
    assert row[2:] == ["failed", "-", "-", "-", "-"]
    assert 'title="weights sum to zero"' in html


def test_convergence_names_what_is_to_be_beaten(plain):
    _, page = plain
    for label in ("best so far", "static task arithmetic 0.4 0.740", "base 0.000"):
        assert label in page.text
    assert "Crosses at the bottom: 3 failed" in page.text
    assert "Triangles at the bottom" in page.text


def test_failures_are_listed_by_reason(plain):
    _, page = plain
    assert [FAILURE, "3", "7, 31, 32"] in page.rows


def test_without_failures_the_page_says_so(tmp_path):
    _, page = report(tmp_path / "run", failures=())
    assert "No candidate failed." in page.text
    assert "Crosses" not in page.text


def test_optimism_shows_all_three_readings(plain):
    _, page = plain
    assert ["candidate 57 (winner)", "0.9000", "0.8900", "0.8800"] in page.rows
    assert ["candidate 40", "0.9050", "0.8800", "not read"] in page.rows
    assert "the winner gained 0.0200 more on the base than on held-out items" in page.text


def test_a_second_look_is_claimed_only_where_there_was_one(tmp_path, plain):
    _, page = plain
    assert "read again on selection items" in page.text
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    for finalist in summary["finalists"]:
        finalist["selection"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run).read_text(encoding="utf-8"))
    assert "read again on selection items" not in page.text
    assert ["candidate 57 (winner)", "0.9000", "-", "0.8800"] in page.rows


def test_run_facts_and_versions(plain):
    _, page = plain
    facts = {row[0]: row[1] for row in page.rows if len(row) == 2}
    assert facts["base"] == "hub-org/base-model, SHA-256 bbbbbbbbbbbb…"
    assert facts["expert prose"] == "hub-org/prose, SHA-256 111111111111…"
    assert facts["evaluations"].startswith("60 (3 failed)")
    assert facts["item evaluations"] == "36,000"
    assert facts["time in evaluations"] == "81 s, median 0.43 s each"
    assert facts["peak memory"] == "1.23 GB"
    assert facts["seed"] == "0"
    assert facts["torch"] == "2.13.0"
    assert "peft" not in facts  # not installed there


def test_commands_rebuild_the_run_from_beside_it(plain):
    _, page = plain
    assert "evomerge search experiment=quickstart seed=0" in page.text
    assert "/home/user" not in page.text
    assert "evomerge rebuild plain/recipe.json --out rebuilt-model" in page.text


def test_heat_map_has_every_value(plain):
    _, page = plain
    recipe = build_recipe()
    for knobs in recipe["coefficients"].values():
        for value in knobs["weight"].values():
            assert f"{value:.2f}" in page.text


def test_knobs_shared_by_all_experts_have_one_column():
    maps = coefficient_maps(build_recipe(knobs=("weight", "scale")))
    assert list(maps) == ["weight", "scale"]
    assert list(maps["weight"]["layers.1"]) == ["code", "prose", "config"]
    assert list(maps["scale"]["layers.1"]) == ["all experts"]


def test_many_groups_stay_readable_and_small(tmp_path):
    html, page = report(tmp_path / "run", groups=290, knobs=("weight", "density", "scale"))
    assert len(html) < 1_000_000
    svgs = [attributes for tag, attributes in page.elements if tag == "svg"]
    assert len(svgs) == 4
    assert "embeddings" in page.text
    assert "layers.285" in page.text
    assert page.text.count("layers.") <= 3 * 60
    height = max(float(str(svg["viewbox"]).split()[3]) for svg in svgs)
    assert height < 1300


def test_names_cannot_break_the_page(tmp_path):
    names = ("<script>alert(1)</script>", "a$b$ & c", '"quoted"')
    html, page = report(tmp_path / "run", experts=names)
    assert "<script" not in html
    assert "a$b$ & c" in page.text


def test_several_objectives_show_the_front(tmp_path):
    _, page = report(tmp_path / "run", objectives=3)
    assert "code, search items" in page.text
    assert "prose, search items" in page.text
    assert "winner" in page.text
    assert "the other 1 objectives are not drawn" in page.text
    assert "dominates 3 of 3 static merges" in page.text


def test_unfinished_run_gets_a_page_that_says_so(tmp_path):
    html, page = report(tmp_path / "run", finished=False, evaluations=20)
    assert "This run has not finished: 20 candidates so far, best fitness" in page.text
    assert "Start the same command again to continue it" in page.text
    assert "best so far" in page.text
    assert "beats every" not in html


@pytest.mark.parametrize("count", [0, 1, 2])
def test_hardly_begun_run(tmp_path, count):
    _, page = report(tmp_path / "run", finished=False, evaluations=count, failures=(0,))
    assert f"{count} candidates so far" in page.text


def test_line_cut_off_by_a_kill_is_left_out(tmp_path):
    run = write_run(tmp_path / "run", finished=False, evaluations=20)
    history = run / "history.jsonl"
    history.write_bytes(history.read_bytes()[:-30])
    assert "19 candidates so far" in Page(write_report(run).read_text()).text


def test_run_without_held_out_items(tmp_path):
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["optimism"] = None
    for model in summary["models"]:
        model["report"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run).read_text())
    assert "Held-out items" not in page.text
    assert "on the search items, which chose it, with fitness 0.9000" in page.text
    assert "this run has no held-out score" in page.text


def test_score_that_was_not_finite_is_left_out(tmp_path):
    run = write_run(tmp_path / "run")
    summary = json.loads((run / "summary.json").read_text())
    summary["models"][0]["report"]["scores"]["questions/acc"] = None
    (run / "summary.json").write_text(json.dumps(summary))
    page = Page(write_report(run).read_text())
    assert next(row for row in page.rows if row[0] == "base")[-1] == "-"


def test_missing_directory_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"nothing is no directory; give the directory"):
        write_report(tmp_path / "nothing")


def test_directory_that_is_no_run_is_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"has no history\.jsonl, so no candidate was"):
        write_report(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_damaged_files_are_named(tmp_path):
    run = write_run(tmp_path / "run")
    (run / "summary.json").write_text('{"models": [')
    with pytest.raises(ValueError, match=r"summary\.json is not valid JSON .*run the command"):
        write_report(run)
    (run / "summary.json").write_text("[1]")
    with pytest.raises(ValueError, match=r"summary\.json holds a list, expected a JSON object"):
        write_report(run)
    (run / "summary.json").unlink()
    lines = (run / "history.jsonl").read_text().splitlines()
    (run / "history.jsonl").write_text("\n".join([*lines[:4], "{oops", *lines[5:]]) + "\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 5: not valid JSON"):
        write_report(run)
    (run / "history.jsonl").write_text("[1]\n")
    with pytest.raises(ValueError, match=r"history\.jsonl, line 1: expected a JSON object"):
        write_report(run)
    assert not (run / "report.html").exists()
