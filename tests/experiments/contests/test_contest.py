"""A contest from one experiment file: what runs, what is shared, what the page says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.contests.plan import plan_entries
from experiments.runs.errors import UserError
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell

FILE = """\
# @package _global_
# A contest for tests.
name: duel
contest:
  title: A duel
  results: PAGE.md
  workers: 1
  options: [tracker=none, baselines=none, save_model=false, in_hull=null, budget.evaluations=4]
  worlds:
    tiny: {title: A tiny world., options: OPTIONS, seeds: [0, 1]}
    off: null
  tables:
    main:
      title: Strategies
      against: in hull
      arms:
        in hull: [strategy=cma, space=convex]
        affine: [strategy=cma, space=weights]
        broken: [strategy=cma, space=weights, initial=recipe, initial.path=nowhere.json]
    models:
      title: Models
      models: true
      arms:
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


def test_contest_runs_shares_reports_and_goes_on(shell: Shell, world: Path) -> None:
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
    arms = shell.cwd / "all" / "duel" / "tiny" / "main"
    scored = [
        (arms / run / "references.jsonl").read_text().splitlines()
        for run in ("in-hull-s0", "affine-s1")
    ]
    own, shared = ([json.loads(line) for line in lines] for lines in scored)
    assert [line["id"] for line in shared] == list(range(len(shared)))
    known = {(line["kind"], line["name"], line["split"]): line["scores"] for line in own}
    for line in shared:
        if line["kind"] != "evolved":
            assert known[line["kind"], line["name"], line["split"]] == line["scores"]
    history = (arms / "affine-s0" / "history.jsonl").read_bytes()
    stamp = (arms / "affine-s0" / "history.jsonl").stat().st_mtime_ns
    (arms / "affine-s0" / "report.html").unlink()
    again = shell.run(*command)
    assert again.code == 2
    assert (arms / "affine-s0" / "history.jsonl").read_bytes() == history
    assert (arms / "affine-s0" / "history.jsonl").stat().st_mtime_ns == stamp
    checked = shell.run("check", *command[1:])
    assert "in all       8 runs, 6 of them finished" in checked.stdout


def test_an_arm_that_cannot_start_is_refused_by_name(shell: Shell, world: Path) -> None:
    write_experiment(shell.cwd, world)
    bad = "contest.tables.main.arms.affine=['strategy=mergevolve','space=weights']"
    shell.refuse(
        "contest, tiny, arm 'affine': strategy MergEvolve searches paths",
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
            "contest.tables.main.against=nobody",
            "there is no arm 'nobody', only in hull, affine, br",
        ),
        ("~contest.worlds.tiny.title", r"contest\.worlds\.tiny\.title is missing"),
        ("+contest.tables.main.againts=x", r"contest\.tables\.main\.againts is unknown: expected"),
        ("contest.workers=0", r"contest\.workers=0: it must be at least 1"),
        (
            "budget.evaluations=7",
            "budget.evaluations=7 does not reach the runs of a contest: put it",
        ),
        ("contest.title=???", "contest: Missing mandatory value: title"),
    ],
)
def test_contests_that_make_no_sense_are_refused(
    shell: Shell, world: Path, option: str, pattern: str
) -> None:
    write_experiment(shell.cwd, world)
    shell.refuse(pattern, "check", "--config-dir", "mine", "experiment=duel", option)


PLAN = {
    "options": ["c=1"],
    "worlds": {"w": {"options": ["a=1"], "seeds": [0, 1]}, "v": {"options": [], "seeds": [5]}},
    "tables": {
        "one": {"arms": {"A b": ["x=1"], "c": []}},
        "two": {"arms": {"A b": ["x=2"]}, "worlds": ["w"], "seeds": [7]},
    },
}


def test_every_arm_runs_in_every_world_with_every_seed() -> None:
    entries = list(plan_entries(PLAN, Path("runs")))
    assert [(e.table, e.world, e.arm, e.seed) for e in entries] == [
        ("one", "w", "A b", 0),
        ("one", "w", "c", 0),
        ("one", "w", "A b", 1),
        ("one", "w", "c", 1),
        ("one", "v", "A b", 5),
        ("one", "v", "c", 5),
        ("two", "w", "A b", 7),
    ]
    assert entries[0].options == ("a=1", "c=1", "x=1")
    assert entries[-1].run == Path("runs/w/two/a-b-s7")
    wrong = {**PLAN, "tables": {"one": {"arms": {}, "worlds": ["z"]}}}
    with pytest.raises(UserError, match=r"contest\.tables\.one\.worlds: there is no world 'z'"):
        list(plan_entries(wrong, Path("runs")))
