"""One normaliser for a whole run: no search is lost to what its other items say of the experts."""

from __future__ import annotations

import json
import math
from pathlib import Path

import numpy as np
import pytest

from experiments.runs.item_scores import read_item_scores
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell

SHORT = ("baselines=none", "in_hull=null", "save_model=false", "strategy=random")
SPLITS = ("search", "report")


@pytest.fixture
def sorted_items(shell: Shell, world: Path) -> Path:
    """Folder of ``search.jsonl``, on which an expert is best, and of others where the base is."""
    rng, texts = np.random.default_rng(0), shell.cwd / "texts.jsonl"
    alphabets = [rng.choice(list("abcdefghijklmnopqrstuvwxyz"), 3) for _ in range(80)]
    words = ["".join(rng.choice(letters, 60)) for letters in alphabets]
    texts.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    line = overrides(world, *SHORT, "budget.evaluations=1", "out=first")
    assert shell.run("search", *line, f"report_on.text.data={texts}").code == 0
    bits = {
        name: scores.cases["text/bits_per_byte"]
        for (_, name), scores in read_item_scores(shell.cwd / "first", "report").items()
    }
    best_expert = np.min([bits[name] for name in ("code", "prose", "maths")], axis=0)
    order = np.argsort(best_expert - bits["base"])
    assert best_expert[order[-8]] > bits["base"][order[-8]], "no expert is better on 8 items"
    lines = np.array(texts.read_text(encoding="utf-8").splitlines())
    kept = {"search": order[:8], "selection": order[-8:-4], "report": order[-4:]}
    for split, chosen in kept.items():
        text = "\n".join(lines[chosen]) + "\n"
        (shell.cwd / f"{split}.jsonl").write_text(text, encoding="utf-8")
    return shell.cwd


def test_items_on_which_no_expert_is_better_do_not_cost_the_search(
    shell: Shell, world: Path, sorted_items: Path
) -> None:
    line = overrides(world, *SHORT[1:], "objective.normalize=expert", "out=run")
    names = {"search_on": "search", "select_on": "selection", "report_on": "report"}
    data = [f"{key}.text.data={sorted_items / name}.jsonl" for key, name in names.items()]
    ended = shell.run("search", *line, *data)
    assert ended.code == 0, ended.stderr
    assert (sorted_items / "run" / "report.html").exists()
    summary = json.loads((sorted_items / "run" / "summary.json").read_text())
    (term,) = summary["terms"]
    models = {model["name"]: model for model in summary["models"]}
    best = max(models[name]["search"]["fitness"][0] for name in ("code", "prose", "maths"))
    assert best == pytest.approx(1.0)
    assert models["base"]["search"]["fitness"] == [0.0]
    for split in SPLITS:  # the search items' units on every split
        for model in models.values():
            bits = model[split]["scores"]["text/bits_per_byte"]
            gain = (-bits - term["base"]) / term["span"]
            assert model[split]["fitness"][0] == pytest.approx(gain)
    assert (
        max(models[name]["report"]["fitness"][0] for name in ("code", "prose", "maths"))
        < (models["base"]["report"]["fitness"][0])
    ), "the case that was meant"
    evolved = models["evolved"]
    gained = [evolved[s]["fitness"][0] - models["base"][s]["fitness"][0] for s in SPLITS]
    assert summary["optimism"] == pytest.approx(gained[0] - gained[1])


def test_a_span_that_may_be_luck_is_said_before_the_search_and_after_it(
    shell: Shell, world: Path
) -> None:
    rng = np.random.default_rng(6)
    letters = list("abcdefghijklmnopqrstuvwxyz")
    words = ["".join(rng.choice(rng.choice(letters, 3), 60)) for _ in range(30)]
    data = Path("noise.jsonl").resolve()
    data.write_text("".join(json.dumps({"text": word}) + "\n" for word in words))
    line = overrides(world, *SHORT[1:], "objective.normalize=expert", "out=run", "baselines=none")
    line.append(f"search_on.text.data={data}")
    first = shell.run("search", *line)
    assert first.code == 0, first.stderr
    warning = next(each for each in first.stdout.splitlines() if "not clearly better" in each)
    items = read_item_scores(Path("run"), "search")
    summary = json.loads(Path("run/summary.json").read_text())
    (term,) = summary["terms"]
    base, best = (
        items[key].cases[term["key"]] for key in (("base", "base"), ("expert", term["ends"][1]))
    )
    error = float(np.std(best - base, ddof=1)) / 30**0.5
    assert term["span"] < 2 * error
    assert f"{math.ceil(30 * (2 * error / term['span']) ** 2)} such items would do" in warning
    (note,) = summary["notes"]
    assert warning == f"warning     {note}"
    Path("run/report.html").unlink()
    assert warning in shell.run("search", *line).stdout.splitlines(), "from an earlier start"
    assert (
        shell.run("search", *line, "objective.normalize=raw", "out=raw").stdout.count("luck") == 0
    )
