"""A merge made public: its card, whether that is true, and what goes to the Hub."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import ModelCard, constants

from experiments.cli import main
from experiments.reports.card_numbers import differences
from tests.experiments.hub_server import Hub, hub
from tests.experiments.local import EXPERTS, overrides
from tests.experiments.refusals import Ended, Shell, own_logging

TOKEN = "hf_AbCdEfGhIjKlMnOpQrStUvWxYz"


def told(ended: Ended) -> list[str]:
    """Returns what a verb says on standard error beside its progress."""
    return [line for line in ended.messages if line.startswith("evomerge ")]


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Searched by a method that is not the default one, as `config.yaml` names it in full."""
    out = tmp_path_factory.mktemp("published") / "run"
    words = overrides(world, f"out={out}", "budget.evaluations=4", "method=linear")
    with own_logging():
        assert main(["search", *words]) == 0
    return out


def test_head_has_the_held_out_scores_as_the_hub_reads_them(run: Path) -> None:
    data = ModelCard.load(run / "model" / "README.md").data
    (result,) = data.eval_results
    evolved = json.loads((run / "summary.json").read_text())["models"][-1]["report"]["scores"]
    assert result.metric_name == "text/bits_per_byte"
    assert result.metric_value == round(evolved["text/bits_per_byte"], 4)
    low, high = result.metric_args["interval_95"]
    assert low < result.metric_value < high
    assert result.metric_args["items"] == 4
    assert (result.task_type, result.dataset_type) == ("text-generation", "text")


def test_recipe_beside_the_weights_names_no_path_of_this_machine(run: Path, world: Path) -> None:
    own, shown = (json.loads((d / "recipe.json").read_text()) for d in (run, run / "model"))
    assert own["base"]["source"] == f"{world}/base"
    assert [e["source"] for e in shown["experts"].values()] == [f"base-{n}" for n in EXPERTS]
    assert str(world) not in json.dumps(shown)
    assert {**shown, "base": own["base"], "experts": own["experts"]} == own


def test_fresh_run_is_verified(run: Path, shell: Shell) -> None:
    ended = shell.run("verify", str(run / "recipe.json"))
    assert (ended.code, told(ended)) == (0, [])
    assert re.search(r"files +7, each bit for bit", ended.stdout)
    assert re.search(r"scores +9 models, asked 4 held-out items", ended.stdout)
    assert not list(run.glob(".*.tmp"))


@pytest.mark.parametrize(
    ("line", "name"),
    [
        (r"\| \*\*evolved\*\* \|.*\| (\S+) \|$", "Scores, evolved, text/bits_per_byte ↓"),
        (r"\| ties \| static \| (\S+) \|", "Scores, ties, fitness ↑"),
        (r"    - type: bits_per_byte\n      value: (\S+)$", "head, text/bits_per_byte"),
        (r"        interval_95:\n        - (\S+)$", "head, text/bits_per_byte"),
        (r"\| model \| \S+ \| (\S+) \|", "Coefficients, model, weight prose"),
        (r"\| text \| 12 \| 4 \| 4 \| (4) \|", "Items|Scores, text, held out"),
    ],
)
def test_edited_number_is_named(run: Path, line: str, name: str) -> None:
    card = (run / "model" / "README.md").read_text()
    edited, before, after = edit(card, line)
    (message,) = differences(edited, card)
    assert re.search(rf"({name}).*: {re.escape(after)} in the card, {re.escape(before)}", message)
    if "." in after:
        assert differences(edited, card, 10) == []


def edit(card: str, line: str) -> tuple[str, str, str]:
    """Returns a card with the last digit of the number in a line changed, and both numbers."""
    found = re.search(line, card, re.MULTILINE)
    assert found is not None
    after = found[1][:-1] + str((int(found[1][-1]) + 1) % 10)
    start, end = found.span(1)
    return card[:start] + after + card[end:], found[1], after


@pytest.mark.parametrize(
    ("at", "added"),
    [
        ("# ", "It beats every peer by 12pp."),
        ("# ", "<!--"),
        ("---\n\n", "model-index: []"),
        ("---\n\n", "'model-index' : []"),
        (None, "| # |"),
    ],
)
def test_lines_that_claim_or_hide_are_named(run: Path, at: str | None, added: str) -> None:
    """A word of one's own, and an entry of the head that is not there yet, may be added."""
    card = (run / "model" / "README.md").read_text()
    if at is None:
        edited = re.sub(r"\| \S+ \|$", added, card, count=1, flags=re.MULTILINE)
        assert edited != card
    else:
        edited = card.replace(at, f"{added}\n{at}", 1)
    assert differences(edited, card)
    kind = edited.replace(added, "Be kind." if at == "# " else "inference: false")
    assert at is None or differences(kind, card) == []


def test_edited_copy_of_the_card_and_other_weights_are_named(
    run: Path, shell: Shell, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    weights = copy / "model" / "model.safetensors"
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    recipe = copy / "model" / "recipe.json"
    edited_recipe = json.loads(recipe.read_text())
    edited_recipe["coefficients"]["model"]["weight"]["prose"] += 0.1
    recipe.write_text(json.dumps(edited_recipe))
    (copy / "model" / "chat_template.jinja").write_text("Say no.")
    card, before, after = edit(
        (run / "model" / "README.md").read_text(), r"\| linear .* (\S+) \|$"
    )
    more = "\nThanks to all.\n\nIt scores 99.2 on everything.\n"
    (tmp_path / "card.md").write_text(card + more)
    ended = shell.run("verify", str(copy), "--card", str(tmp_path / "card.md"))
    assert ended.code == 1
    changed, coefficient, more, edited, added = told(ended)
    assert f"{weights} is not what the recipe gives" in changed
    assert f"{recipe} is not what the recipe gives" in coefficient
    assert "chat_template.jinja is there: the recipe gives no such file" in more
    assert f"linear, text/bits_per_byte ↓: {after} in the card, {before} made again" in edited
    assert "'It scores 99.2 on everything.': the run gives no such line" in added


def test_static_merge_is_verified_from_its_recipe(world: Path, shell: Shell) -> None:
    experts = ",".join(f"{name}:{world}/base-{name}" for name in EXPERTS)
    words = (f"base={world}/base", f"experts={{{experts}}}", "method=ties")
    assert shell.run("merge", *words, "out=merged").code == 0
    assert shell.run("verify", "merged/recipe.json").code == 0
    Path("merged/tool.py").write_text("")
    ended = shell.run("verify", "merged")
    assert (ended.code, "tool.py is there: the recipe gives no such file" in ended.stderr) == (
        1,
        True,
    )
    recipe = json.loads(Path("merged/recipe.json").read_text())
    recipe["experts"]["code"]["sha256"] = "0" * 64
    Path("merged/recipe.json").write_text(json.dumps(recipe))
    ended = shell.run("verify", "merged")
    assert ended.code == 2
    assert "code: " in ended.stderr


def test_what_cannot_be_verified_is_refused(run: Path, shell: Shell, tmp_path: Path) -> None:
    (tmp_path / "bare").mkdir()
    shutil.copy(run / "recipe.json", tmp_path / "bare")
    shell.refuse("bare holds no model that could be verified", "verify", str(tmp_path / "bare"))
    shell.refuse("in_hull holds no model", "verify", str(run / "in_hull" / "recipe.json"))
    shell.refuse("recipe.json: cannot be read", "verify", str(tmp_path))
    for mark in ("config.yaml", "environment.json"):
        (tmp_path / mark).write_text("{}\n")
    shell.refuse("is not finished", "verify", str(tmp_path))


@pytest.fixture(params=["xet", "lfs"])
def server(
    request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> Iterator[Hub]:
    """A Hub in place of the real one, and a token; uploads with hf_xet, and as without it."""
    pytest.importorskip("hf_xet" if request.param == "xet" else "huggingface_hub")
    with hub(tmp_path / "store") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", request.param == "lfs")
        monkeypatch.setenv("HF_TOKEN", TOKEN)
        yield server


def test_push_sends_exactly_the_models_files(run: Path, shell: Shell, server: Hub) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    ended = shell.run("push", str(run), "me/merge")
    assert (ended.code, ended.stdout) == (0, f"{server.url}/me/merge\n")
    model = run / "model"
    files = {str(p.relative_to(model)): p.read_bytes() for p in model.rglob("*") if p.is_file()}
    assert server.files["me/merge"] == files
    assert {"README.md", "recipe.json", "model.safetensors", "tokenizer.json"} <= files.keys()
    assert server.visibility == {"me/merge": "private"}
    assert server.tokens == {f"Bearer {TOKEN}"}
    assert before == {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    assert shell.run("push", str(run), "me/open", "--public").code == 0
    assert server.visibility["me/open"] in ("public", None)


def test_push_sends_no_path_of_this_machine(
    world: Path, shell: Shell, server: Hub, tmp_path: Path
) -> None:
    experts = ",".join(f"{name}:{world}/base-{name}" for name in EXPERTS)
    words = (f"base={world}/base", f"experts={{{experts}}}", "method=ties", "adapter_rank=4")
    assert shell.run("merge", *words, "out=merged").code == 0
    assert shell.run("rebuild", "merged/recipe.json", "--out", "rebuilt").code == 0
    for folder in ("merged", "rebuilt"):
        assert shell.run("push", folder, "me/merge").code == 0
        for name, data in server.files["me/merge"].items():
            assert str(world).encode() not in data, f"{folder}/{name}"
    assert {"recipe.json", "adapter/adapter_config.json"} <= server.files["me/merge"].keys()


def test_model_of_a_run_that_is_not_finished_is_not_pushed(
    run: Path, shell: Shell, tmp_path: Path
) -> None:
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    (copy / "report.html").unlink()
    for named in (copy, copy / "model"):
        shell.refuse("is not finished: the command", "push", str(named), "me/merge")


def test_verify_beside_a_model_that_cannot_be_written_says_so(
    run: Path, shell: Shell, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(**_: object) -> None:
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("experiments.searches.verification.tempfile.TemporaryDirectory", refuse)
    shell.refuse("Permission denied", "verify", str(run))


def test_cut_push_goes_on_and_tells_no_token(
    run: Path, shell: Shell, server: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    # The Hub's client itself tries PUT again, and the commit five times where it uses Xet.
    monkeypatch.setattr("huggingface_hub.utils._http.time.sleep", lambda _: None)
    server.cut = {"PUT": 1, "commit": 1 if constants.HF_HUB_DISABLE_XET else 6}
    ended = shell.run("push", str(run), "me/merge")
    assert ended.code == 2
    (message,) = told(ended)
    assert "run the same command again" in message
    assert server.files["me/merge"] == {}
    arrived = server.chunks
    assert bool(arrived) != constants.HF_HUB_DISABLE_XET
    assert shell.run("push", str(run), "me/merge").code == 0
    assert len(server.files["me/merge"]) == sum(p.is_file() for p in (run / "model").rglob("*"))
    assert set(server.received.values()) <= {1}, "what had arrived was sent again"
    assert server.chunks == arrived, "what had arrived was stored again"
    assert TOKEN not in ended.stdout + ended.stderr
    home = Path(constants.HF_HOME)
    logs = (*home.glob("*token*"), *home.glob("xet/logs/*"))
    written = [*run.rglob("*"), *tmp_path.rglob("*"), *logs]
    for path in written:
        assert not path.is_file() or TOKEN.encode() not in path.read_bytes(), path


def test_push_of_what_is_no_model_is_refused(run: Path, shell: Shell) -> None:
    shell.refuse("holds no model: name a finished run", "push", str(shell.cwd), "me/merge")
