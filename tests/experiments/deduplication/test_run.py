"""`run_dedup` from checkpoints on disk to models in a zoo: accuracy, bits, ledger, resume."""

import json
import multiprocessing
import shutil
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from hydra import compose, initialize_config_module
from safetensors.torch import load_file

from evaluators.evaluator import Score
from evaluators.panel import Panel
from evaluators.tasks.classification import Accuracy
from experiments.deduplication.answers import WrittenAnswers
from experiments.deduplication.run import run_dedup
from experiments.runs.errors import UserError
from experiments.runs.starts import starts_file
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import (
    PrivacyRecord,
    PrivacySpend,
    read_record,
    write_record,
)
from merging.deduplication.blocking import ModelBlocks
from merging.privacy.ledger import Ledger
from merging.zoo.store import Zoo
from tests import builders

SIZE = 256
EPSILONS = {"base": 1.0, "a": 2.0, "b": 4.0}


def made(root: Path, name: str, scale: float, seed: int) -> Path:
    """A noisy copy of the base, with a record of its training."""
    path = root / name
    if name == "base":
        builders.bert_classifier(path, num_labels=4, initializer_range=0.3)
    else:
        like = transformers.BertForSequenceClassification.from_pretrained(root / "base")
        builders.save(like, path, like=root / "base", seed=seed, scale=scale, classify=True)
    epsilon = EPSILONS.get(name, 8.0)
    spend = PrivacySpend("train", epsilon, 1e-6, "test", "1", release=f"train {name}")
    write_record(path, PrivacyRecord((spend,)))
    return path


def labelled(path: Path, model: Path, first: int, count: int) -> str:
    """Texts with the classes that a model gives them."""
    tokenizer = transformers.AutoTokenizer.from_pretrained(model)
    loaded = transformers.BertForSequenceClassification.from_pretrained(model).eval()
    random = np.random.default_rng(first)
    lines = []
    for _ in range(count):
        text = "".join(random.choice(list("abcdefgh "), 12))
        with torch.no_grad():
            logits = loaded(**tokenizer(text, return_tensors="pt")).logits
        lines.append(json.dumps({"text": text, "label": int(logits.argmax())}))
    path.write_text("\n".join(lines) + "\n")
    return str(path)


@dataclass(frozen=True)
class World:
    root: Path

    def run(self, *more: str) -> dict[str, Any]:
        with initialize_config_module("conf", version_base="1.3"):
            config = compose("dedup", overrides=[*self.options, *more])
        return run_dedup(config)

    @property
    def options(self) -> list[str]:
        task = "_target_: evaluators.tasks.classification.Accuracy, _partial_: true, head: model"
        panels = [f"{k}_on={{task: {{{task}, data: {self.root}/{k}.jsonl}}}}"
                  for k in ("check", "saliency", "report")]  # fmt: skip
        models = ",".join(f"{name}:{self.root}/{name}" for name in EPSILONS)
        return [
            *(f"+{panel}" for panel in panels),
            f"models={{{models}}}",
            f"block_size={SIZE}",
            "schedule.min_length=4",
            "tolerance=0.05",
            f"store={self.root}/zoo",
            f"out={self.root}/out",
            "device=cpu",
        ]


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    for seed, name in enumerate(EPSILONS):
        made(root, name, 0.08, seed)
    for number, split in enumerate(("check", "saliency", "report")):
        labelled(root / f"{split}.jsonl", root / "a", 100 * number, 40)
    return root


@pytest.fixture
def world(models: Path, tmp_path: Path) -> World:
    for path in models.iterdir():
        (tmp_path / path.name).symlink_to(path)
    return World(tmp_path)


def releases(one: dict[str, Any]) -> list[str]:
    return [spend["release"] for spend in one["privacy"]["spends"]]


def accuracy(path: Path, data: Path) -> float:
    loaded = transformers.BertForSequenceClassification.from_pretrained(path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(path)
    right = []
    for line in map(json.loads, data.read_text().splitlines()):
        with torch.no_grad():
            logits = loaded(**tokenizer(line["text"], return_tensors="pt")).logits
        right.append(int(logits.argmax()) == line["label"])
    return float(np.mean(right))


def test_targets_lose_no_more_than_they_may_and_are_made_of_the_bases_bytes(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    summary = world.run()
    assert set(summary["targets"]) == {"a", "b"}
    assert summary["whole"] == ["base"]
    zoo = Zoo.open(world.root / "zoo")
    assert {model.name for model in zoo.models()} == {"base", "a-dedup", "b-dedup"}
    base = ModelBlocks(Checkpoint.open(str(world.root / "base")), SIZE)
    for name, one in summary["targets"].items():
        out = world.root / f"plain-{name}"
        zoo.export(f"{name}-dedup", out)
        before = accuracy(world.root / name, world.root / "check.jsonl")
        after = accuracy(out, world.root / "check.jsonl")
        assert after >= before - 0.05 - 1e-9
        scores = one["scores"]["check"]
        assert scores["deduplicated"]["task/accuracy"] == pytest.approx(after)
        assert scores["original"]["task/accuracy"] == pytest.approx(before)
        in_place = accuracy(world.root / "base", world.root / "report.jsonl")
        assert one["scores"]["report"]["base"]["task/accuracy"] == pytest.approx(in_place)
        own = Checkpoint.open(str(world.root / name))
        target = ModelBlocks(own, SIZE)
        pointers = json.loads((out / "dedup.json").read_text())["pointers"]
        rows = [base.row(p) if p < len(base) else target.row(p - len(base)) for p in pointers]
        plain = load_file(out / "model.safetensors")
        for tensor in own:
            expected = own[tensor]
            if tensor in target.tensors:
                flat = torch.cat([rows[block] for block in target.of(tensor)])
                expected = flat[: expected.numel()].reshape(expected.shape)
            assert torch.equal(plain[tensor], expected)
        kept = {p for p in pointers if p >= len(base)}
        assert one["new_blocks"] == len(kept) < len(target)
        ratio = (len(kept) * SIZE + target.untouched) / target.elements
        assert one["compression"] == pytest.approx(ratio)
        ledger = Ledger().read(read_record(out), name, None)
        assert ledger.everywhere is not None
        assert ledger.everywhere.epsilon == EPSILONS[name] + 1.0 == one["epsilon"]["after"]
        assert (out / "tokenizer.json").read_bytes() == (
            world.root / name / "tokenizer.json"
        ).read_bytes()
    assert zoo.check() == []
    assert summary["epsilon_increase"] == pytest.approx(2.0)
    printed = capsys.readouterr().out
    assert "note: a: its base in its place has task/accuracy" in printed
    assert world.run() == json.loads((world.root / "out" / "summary.json").read_text())
    assert capsys.readouterr().out == printed


def test_a_killed_run_goes_on_from_its_answers(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[Panel] = []
    evaluate, kill_at = Panel.evaluate, 1000

    class Killed(BaseException):
        pass

    def counted(self: Panel, engine: Any) -> Any:
        asked.append(self)
        if len(asked) == kill_at:
            raise Killed
        return evaluate(self, engine)

    def answers(out: str) -> list[str]:
        files = sorted((world.root / out).glob("answers-*.jsonl"))
        return [line for file in files for line in file.read_text().splitlines()]

    monkeypatch.setattr(Panel, "evaluate", counted)
    whole, needed = world.run("save=false"), len(asked)
    ingredients = json.loads((world.root / "out" / "ingredients.json").read_text())
    assert set(ingredients["items of a"]) == {"check", "saliency", "report"}
    asked.clear()
    kill_at = 8
    again = f"out={world.root}/again"
    with pytest.raises(Killed):
        world.run("save=false", again)
    written = len(answers("again"))
    assert 0 < written < whole["targets"]["a"]["checks"]
    asked.clear()
    kill_at = 1000
    assert world.run("save=false", again) == whole
    assert len(asked) == needed - written
    assert answers("again") == answers("out")
    file = world.root / "again" / "answers-a.jsonl"
    (world.root / "again" / "summary.json").unlink()
    file.write_text(file.read_text().replace('"group": [', '"group": [7, '))
    with pytest.raises(UserError, match="line 1 is the answer to another question"):
        world.run("save=false", again)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*multi-threaded, use of fork")
def test_kills_at_any_moment_change_nothing(world: World) -> None:
    """While it asks, and while models go into the zoo."""
    began = time.monotonic()
    whole = world.run(f"store={world.root}/other", f"out={world.root}/whole")
    took = time.monotonic() - began
    random, kills = np.random.default_rng(0), 0
    while not (world.root / "out" / "summary.json").exists():
        process = multiprocessing.get_context("fork").Process(target=world.run)
        process.start()
        process.join(random.uniform(0, took * (kills + 1) / 25))  # at last enough for a whole one
        if process.is_alive():
            process.kill()
            kills += 1
        process.join()
        assert kills < 100, "what was forked does not end"
    assert kills > 5
    assert world.run() == whole
    for name in whole["targets"]:
        zoos = [Zoo.open(world.root / store) for store in ("other", "zoo")]
        assert zoos[0].check() == zoos[1].check() == []
        assert zoos[0].model(f"{name}-dedup").sha256 == zoos[1].model(f"{name}-dedup").sha256
        assert {m.name for m in zoos[0].models()} == {m.name for m in zoos[1].models()}


def test_private_checks_release_bits_and_their_price_alone(
    world: World, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    options = ["privacy=validation", "privacy.data=people", "privacy.epsilon=500",
               "schedule.failures=10"]  # fmt: skip
    with pytest.raises(UserError, match="set how many there may be for each target"):
        world.run(*options[:3])
    summary = world.run(*options)
    run = world.root / "out"
    assert not (run / "secret.key").exists()
    written = "".join(p.read_text() for p in run.glob("*.json*")) + capsys.readouterr().out
    for name, one in summary["targets"].items():
        assert set(one["scores"]) == {"report"}
        assert one["failed"] <= 10
        spends = one["privacy"]["spends"]
        assert [s["dataset"] for s in spends] == ["train", "train", "people"]
        assert spends[2]["epsilon"] == 500
        assert "1 other run on people" in one["privacy"]["words"][-1]  # the other target's checks
        assert spends[2]["mechanisms"] == [{"kind": "sparse_vector", "epsilon": 500, "count": 1}]
        assert one["epsilon"]["after"] == EPSILONS[name] + 1 + 500  # not declared disjoint
    for line in (world.root / "check.jsonl").read_text().splitlines():
        assert json.loads(line)["text"] not in written
    release = summary["targets"]["a"]["privacy"]["spends"][2]["release"]
    assert f'"release": "{release}"' in starts_file().read_text()
    (run / "secret.key").write_text("00")  # as a kill right after the summary leaves it
    assert world.run(*options) == summary
    assert not (run / "secret.key").exists()
    seeded = world.run(
        *options, "privacy.randomness=seed", f"out={world.root}/seeded", "save=false"
    )
    assert seeded["targets"]["b"]["epsilon"]["after"] is None
    assert "public seed" in str(seeded["targets"]["b"]["privacy"]["words"])


def test_where_models_go_is_checked_first_and_may_change_for_a_stopped_run(
    world: World, capsys: pytest.CaptureFixture[str]
) -> None:
    """base and a are of other zoos, and the zoo has another model called base."""
    zoo, others = (Zoo.open(world.root / name, create=True) for name in ("zoo", "others"))
    zoo.add(world.root / "b", "base")
    zoo.add(world.root / "b", "a-dedup")
    for name in ("base", "a"):
        others.add(world.root / name, name)
    models = ",".join(f"{name}:'zoo:{others.directory}/{name}'" for name in ("base", "a"))
    options = [f"models={{{models}}}", "bases=[base]", "report_on=null", "saliency=magnitude"]
    with pytest.raises(UserError, match=r"a-dedup is in the zoo .* made of other models"):
        world.run(*options)
    assert not (world.root / "out").exists()
    with pytest.raises(UserError, match="the name of one of the models"):
        world.run(*options, "suffix=''", f"store={world.root}/third")
    whole = world.run(*options, "save=false")
    capsys.readouterr()
    assert world.run(*options, "suffix=-late") == whole
    assert "note: a-late is not in the zoo: what has ended adds nothing" in capsys.readouterr().out
    (world.root / "out" / "summary.json").unlink()
    assert world.run(*options, "suffix=-small") == whole
    there = {one.name for one in zoo.models()}
    assert there == {"base", "a-dedup", "base-2", "a-small", "b-small"}


def test_private_checks_do_not_go_on_with_other_items(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Killed(BaseException):
        pass

    def killed(*_: object) -> None:
        raise Killed

    options = ["privacy=validation", "privacy.data=people", "privacy.epsilon=500",
               "schedule.failures=5", "report_on=null", "save=false", "bases=[base]"]  # fmt: skip
    with monkeypatch.context() as patched:
        patched.setattr(WrittenAnswers, "__call__", killed)
        with pytest.raises(Killed):
            world.run(*options)
    check = world.root / "check.jsonl"
    lines = check.read_text()
    check.unlink()
    check.write_text("".join(lines.splitlines(keepends=True)[:-1]))
    with pytest.raises(UserError, match="begun with another set of private items"):
        world.run(*options)
    assert "check" not in (world.root / "out" / "ingredients.json").read_text()


def test_an_item_without_a_finite_score_touches_no_other(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else every block would have to stay: one item in forty would be all of them."""
    score, last = Accuracy.score, set[str]()

    def overflowing(self: Accuracy, responses: Any) -> dict[str, Score]:
        (key, found), *_ = score(self, responses).items()
        last.update(self.items.digests[40:])
        bad = [digest in last for digest in self.items.digests]
        cases = np.where(bad, np.nan, found.cases)
        return {key: Score(float(cases.mean()), cases)}

    monkeypatch.setattr(Accuracy, "score", overflowing)
    check = world.root / "check.jsonl"
    lines = check.read_text() + json.dumps({"text": "one more", "label": 0}) + "\n"
    check.unlink()
    check.write_text(lines)
    options = ["privacy=validation", "privacy.data=people", "privacy.epsilon=500",
               "schedule.failures=5", "saliency=magnitude", "report_on=null", "save=false",
               "bases=[base]", "ceilings={b:1}"]  # fmt: skip
    one = world.run(*options)["targets"]["a"]
    assert one["new_blocks"] < one["blocks"]


def test_fair_targets_are_at_least_as_good_as_the_one_before(world: World) -> None:
    summary = world.run("fair=true", "save=false", "bases=[base]", "ceilings={a:2.5}")
    assert list(summary["targets"]) == ["b"]
    assert summary["whole"] == ["base", "a"]
    (world.root / "check.jsonl").unlink()
    labelled(world.root / "check.jsonl", world.root / "b", 0, 40)
    summary = world.run("fair=true", "save=false", "tolerance=0.6", f"out={world.root}/fair")
    assert list(summary["targets"]) == ["a", "b"]
    found = [one["scores"]["check"]["deduplicated"]["task/accuracy"]
             for one in summary["targets"].values()]  # fmt: skip
    original = summary["targets"]["b"]["scores"]["check"]["original"]["task/accuracy"]
    assert found[1] >= min(found[0], original)
    follows = summary["targets"]["b"]  # what `a` scored decides what may go
    assert follows["new_blocks"] < follows["blocks"]
    assert releases(follows) == ["train b", "train base", "train a"]
    assert follows["epsilon"]["after"] == sum(EPSILONS.values())


def test_a_target_of_which_no_block_may_go_stays_what_it_was(world: World) -> None:
    """The worse one is asked to be as good as the better one, which it is not even whole."""
    summary = world.run("fair=true", "bases=[base]", "tolerance=0.01")
    stays, one = summary["targets"]["b"], summary["targets"]["a"]
    assert one["new_blocks"] < one["blocks"]
    assert stays["new_blocks"] == stays["blocks"]
    assert stays["epsilon"] == {"before": 4.0, "after": 4.0}
    assert {m.name for m in Zoo.open(world.root / "zoo").models()} == {"base", "a-dedup"}


def test_what_stays_because_it_was_lent_costs_what_the_takers_spent(world: World) -> None:
    (world.root / "b").unlink()
    for seed, name in ((5, "c"), (6, "b")):
        made(world.root, name, 0.08, seed)
    summary = world.run("plan=cross", "save=false", "tolerance=0.15", f"+models.c={world.root}/c")
    targets = summary["targets"]
    assert [(n, t["bases"]) for n, t in targets.items()] == [
        ("b", ["a"]), ("c", ["a"]), ("a", ["base"]),
    ]  # fmt: skip
    assert targets["b"]["taken_from"] == ["a"]
    assert 0 < targets["a"]["new_blocks"] < targets["a"]["blocks"]
    assert releases(targets["b"]) == ["train b", "train a"]
    assert releases(targets["a"]) == ["train a", "train base", "train b", "train c"]
    assert targets["a"]["epsilon"]["after"] == sum(EPSILONS.values()) + 8


def test_a_chain_keeps_what_it_has_lent_and_a_stranger_may_lend(world: World) -> None:
    summary = world.run("plan=cross", "save=false")
    assert [(n, t["bases"]) for n, t in summary["targets"].items()] == [
        ("a", ["base"]), ("b", ["base"]),
    ]  # fmt: skip
    builders.vit_classifier(world.root / "other", num_labels=3)
    options = ["+models.other=" + str(world.root / "other"), "bases=[other,base]", "save=true"]
    summary = world.run(*options, f"out={world.root}/strange", "block_size=64")
    assert list(summary["targets"]) == ["a", "b"]
    for name, one in summary["targets"].items():
        assert one["bases"] == ["other", "base"]
        assert one["epsilon"]["after"] == EPSILONS[name] + 1
        assert "Model 'other' is taken to be public." in one["privacy"]["words"]
    assert Zoo.open(world.root / "zoo").check() == []


def test_a_promise_is_lost_only_where_that_is_allowed(world: World) -> None:
    other = world.root / "other"  # trained here, and its record is gone
    shutil.copytree(world.root / "base", other)
    (other / "privacy.json").unlink()
    (other / "training.json").write_text("{}")
    options = ["+models.other=" + str(other), "bases=[other]", "save=false"]
    with pytest.raises(UserError, match="inf where a promise of privacy may be lost"):
        world.run(*options)
    summary = world.run(*options, "ceilings={a:inf}")
    assert list(summary["targets"]) == ["a"]
    assert summary["targets"]["a"]["epsilon"] == {"before": 2.0, "after": None}


def test_bad_input_gets_one_sentence(world: World) -> None:
    for option, message in {
        "block_size=100000000": "choose a smaller block_size",
        "bases=[nobody]": "no model is called 'nobody': expected base, a, b",
        "check_on=null": "check_on names no evaluator",
        "saliency_on=null": "saliency_on names no evaluator",
        "ceilings={a:1,b:1,base:0.5}": "no model can take blocks of another",
        "tolerance=-1": "tolerance=-1: it must be at least 0",
        "privacy=means": "choose privacy=validation",
        "timeout_s=3": "set timeout_s=null",
        "compile=true": "set compile=false, or dtype=float32",
    }.items():
        more = ["privacy.data=x"] if option == "privacy=means" else []
        if option in ("timeout_s=3", "compile=true"):
            more = ["privacy=validation", "privacy.data=x", "privacy.epsilon=1", "dtype=bfloat16",
                    "schedule.failures=1"]  # fmt: skip
        with pytest.raises(UserError, match=message):
            world.run(option, *more)
    assert not (world.root / "out").exists()
