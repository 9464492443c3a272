"""Options, directories and files that cannot be meant: refused by name, before any long work."""

from __future__ import annotations

import json
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from merging.checkpoints.experts import ExpertPool
from tests.experiments.local import environment, evomerge, overrides
from tests.experiments.refusals import Shell, tree

pytestmark = pytest.mark.usefixtures("idle")

HYDRA = [  # found by Hydra while it composes the configuration; the nearest name, if any is near
    ("sed=1", r"Could not override 'sed'", "sed is unknown; did you mean seed?"),
    (
        "strategy=cmaa",
        r"Could not find 'strategy/cmaa'(.|\n)*\tcma\n",
        "strategy=cmaa is unknown; did you mean cma?",
    ),
    (
        "strateg=cma",
        r"Could not override 'strateg'",
        "strateg is unknown; did you mean strategy?",
    ),
    (
        "method.normalise=true",
        r"Key 'normalise' is not in struct\n +full_key: method.normalise",
        "method.normalise is unknown; did you mean method.normalize?",
    ),
    (
        "budget.evaluation=3",
        r"Could not override 'budget.evaluation'",
        "budget.evaluation is unknown; did you mean budget.evaluations?",
    ),
    (
        "evaluator@report_on=[none,perplexiti]",
        r"Could not load 'evaluator/perplexiti'",
        "evaluator@report_on=perplexiti is unknown; did you mean perplexity?",
    ),
    ("evaluator@search=perplexity", r"Could not override 'evaluator@search'", None),
    ("zzzz=1", r"Could not override 'zzzz'", None),
    (
        "experiment=quikstart",
        r"Could not find 'experiment/quikstart'(.|\n)*\tquickstart\n",
        "experiment=quikstart is unknown; did you mean quickstart?",
    ),
]

EARLY = [  # found before an expert is opened, so that not even the quickstart is trained
    ("method.normalize=3", "method.normalize=3: expected true or false"),
    (
        "+method.normalise=true",
        "method.normalise: .* has no such option, only normalize; did you mean normalize?",
    ),
    ("method._target_=merging.methods.ties.Tie", r"method._target_=.*ties.Tie does not exist"),
    ("search_on=perplexity", "choose a group with evaluator@search_on=NAME, for example"),
    ("evaluator@search_on=none", "search_on names no evaluator: choose a group, e.g. evaluator@s"),
    ("evaluator@search_on=lm_eval", "search_on.task.task is not set: give search_on.task.task=V"),
    ("space.knobs=[wieght]", "knobs: TaskArithmetic has no knob 'wieght', its knobs are weight"),
    ("space.bounds={wieght: [0, 1]}", "bounds: TaskArithmetic has no knob 'wieght', its knobs ar"),
    ("space.bounds={weight: 3}", r"space.bounds={'weight': 3}: expected a mapping {NAME: a list"),
    (
        "strategy=mergevolve && space=coefficients",
        "MergEvolve searches paths through all weights, which CoefficientSpace has none of",
    ),
    (
        "strategy=cma && space=full_weights",
        "NevergradStrategy searches numbers along axes, which FullWeightSpace has none of: choose",
    ),
    ("strategy=crossover && space=weights", "GeneticAlgorithm searches lineage trees, which Coe"),
    (
        "strategy=mergevolve && space=full_weights && objective=pareto",
        "MergEvolve ranks by one number, candidate 0 has 3: choose an objective with one",
    ),
    (
        "strategy=model_swarms && space=lineage",
        "ModelSwarms searches numbers along axes, which Line",
    ),
    (
        "strategy=map_elites && objective=normalized && space=lineage",
        r"MapElites needs .* Pareto \(objective=pareto\) .* Truncation \(strategy=crossover\)",
    ),
    (
        "objective=pareto && choose=shrinkage",
        "choose=shrinkage ranks by one number, the objective",
    ),
    (
        "strategy=auto && choose=shrinkage",
        "choose=shrinkage looks at nothing again, Auto comp",
    ),
    ("space=convex && method=ties", "method Ties has no effect in ConvexSpace: leave method= out"),
    (
        "noise=rows",
        "noise RowNoise has no effect in CoefficientSpace: leave noise= out, or choose",
    ),
    (
        "strategy=mergevolve && space=full_weights && grouping=layers",
        "grouping Layers has no effect in FullWeightSpace: leave grouping= out",
    ),
    ("choose=luck", "choose=luck: expected 'second_look' or 'shrinkage'"),
    ("space.start.weight=a", r"start of weight: 'a' is neither a number, average nor"),
    ("strategy.optimizer=CMAA", "nevergrad has no optimizer 'CMAA'; close are CMA"),
    ("strategy.sigma=wide", "strategy.sigma=wide: expected a number"),
    ("grouping=layers && grouping.every=0", "every is 0, it must be a whole number of layers"),
    (
        "objective.normalize=best",
        "objective.normalize=best: expected 'expert' or 'spread' or 'ratio' or",
    ),
    ("budget.evaluations=null", "the budget is unlimited; set evaluations, seconds or target"),
    ("budget.evaluations=-1", "budget.evaluations must be at least 1, got -1"),
    ("budget.evaluations=1.5", "budget.evaluations=1.5: expected a whole number or null"),
    ("+budget.hours=3", "budget.hours: Budget has no such option, only evaluations, seconds, t"),
    ("device=tpu", "device=tpu is unknown: expected auto, cpu, cuda, cuda:N or mps"),
    ("dtype=float33", "dtype 'float33' is unknown: expected one of bfloat16, float16, float32"),
    ("seed=-1", "seed=-1: it must be at least 0"),
    ("seed=4294967296", "seed=4294967296: it must be at most 4294967295"),
    ("finalists=0", "finalists=0: it must be at least 1"),
    ("baselines.report=-1", "baselines.report=-1: it must be at least 0"),
    ("baselines.report=some", "baselines.report=some: expected a whole number or 'all'"),
    ("stream=perhaps", "stream=perhaps: expected "),
    ("compile=1", "compile=1: expected true or false"),
    ("timeout_s=0", "timeout_s=0: it must be above 0"),
    ("baselines=null", "baselines=null: choose all, few or none"),
    ("out=7", "out=7: expected text or null; quote it"),
]

LATER = [  # needs the experts or the evaluators, but no weights
    ("objective.metrics={text: acc}", "objective.metrics: text has no metric 'acc', only bits_"),
    ("objective.metrics={txt: acc}", r"objective.metrics names unknown tasks \['txt'\]; known"),
    ("objective.weights={txt: 1}", r"objective.weights names unknown tasks \['txt'\]; known ar"),
    ("objective.cap=1 && racing=halving", "racing Halving needs an objective that is a weighted"),
    ("objective.cap=1 && choose=shrinkage", "choose=shrinkage needs an objective .* none of them"),
    ("objective=worst && choose=shrinkage", "or choose=second_look"),
    (
        "+search_on.more={_target_:evaluators.tasks.perplexity.Perplexity,_partial_:true,"
        "data:$WORLD/selection.jsonl} && evaluator@select_on=none",
        "report items: no task there gives more/bits_per_byte, which the objective is made of",
    ),
]


@pytest.mark.parametrize(("option", "pattern", "nearest"), HYDRA)
def test_misspelt_option(
    shell: Shell, world: Path, option: str, pattern: str, nearest: str | None
) -> None:
    ended = shell.run("search", *overrides(world), option)
    assert ended.code == 1
    assert re.search(pattern, ended.stderr), ended.stderr
    lines = [line for line in ended.messages if line.startswith("evomerge")]
    assert lines == ([f"evomerge search: {nearest}"] if nearest else [])
    assert "Traceback" not in ended.stderr
    assert not tree(shell.cwd)


@pytest.mark.parametrize(("option", "pattern"), EARLY)
def test_option_is_refused_before_experts_are_opened(
    shell: Shell, option: str, pattern: str
) -> None:
    line = ["experiment=quickstart", "baselines=none", "tracker=none"]
    shell.refuse(pattern, "search", *line, *option.split(" && "))


@pytest.mark.parametrize(("option", "pattern"), LATER)
def test_option_is_refused_before_weights_are_read(
    shell: Shell, world: Path, option: str, pattern: str
) -> None:
    options = option.replace("$WORLD", str(world)).split(" && ")
    line = overrides(world)
    if "evaluator@select_on=none" in options:
        line = [each for each in line if "select_on" not in each]
    shell.refuse(pattern, "search", *line, *options)


@pytest.mark.parametrize("device", ["cuda", "cuda:7", "mps"])
def test_no_such_device(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch, device: str
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)
    pattern = f"device={device}: this machine has 0 .* device.*: use device=auto or device=cpu"
    shell.refuse(pattern, "search", *overrides(world), f"device={device}")


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("space.start={density: 1.5}", r"start of density: 1.5 lies outside \[0.0, 1.0\]: set st"),
        ("space.bounds={density: [0, 1.5]}", r"bounds of density: \[0, 1.5\] does not lie in \[0"),
    ],
)
def test_density_of_a_search(shell: Shell, world: Path, option: str, pattern: str) -> None:
    shell.refuse(pattern, "search", *overrides(world), "method=ties", option)


class TestDirectories:
    def test_another_configuration(self, shell: Shell, world: Path) -> None:
        run = shell.cwd / "run"
        run.mkdir()
        line = overrides(world, "out=run")
        config = shell.run("search", *line, "--cfg", "job").stdout
        (run / "config.yaml").write_text(config)
        for verb in ("search", "check"):
            shell.refuse(
                "run belongs to another configuration: 1 option.* differ, first "
                "strategy.popsize: None there, 6 now; choose another out=",
                *(verb, *line, "strategy.popsize=6"),
            )

    @pytest.mark.parametrize("verb", ["search", "check"])
    def test_something_else(self, shell: Shell, world: Path, verb: str) -> None:
        (shell.cwd / "thesis").mkdir()
        (shell.cwd / "thesis" / "chapter.tex").touch()
        pattern = "out=thesis holds something else: name a new directory"
        shell.refuse(pattern, verb, *overrides(world), "out=thesis")
        pattern = "out=thesis/chapter.tex is a file: name a directory"
        shell.refuse(pattern, verb, *overrides(world), "out=thesis/chapter.tex")

    @pytest.mark.parametrize("option", ["out", "runs"])
    def test_read_only(self, shell: Shell, world: Path, option: str) -> None:
        if not Path("/proc/self").exists():
            pytest.skip("nobody, root included, may write to /proc; there is none here")
        pattern = f"{option}=/proc/new.*: /proc cannot be written .*: name a directory that you m"
        shell.refuse(pattern, "search", *overrides(world), f"{option}=/proc/new")

    def test_read_only_sweep(self, shell: Shell, world: Path) -> None:
        if not Path("/proc/self").exists():
            pytest.skip("nobody, root included, may write to /proc; there is none here")
        sweep = ["-m", *overrides(world), "runs=/proc/new", "seed=0,1"]
        shell.refuse(
            "runs=/proc/new: /proc cannot be written .*: name a directory", "search", *sweep
        )

    @pytest.mark.parametrize("verb", ["search", "check", "merge", "evaluate", "rebuild"])
    def test_full_disk(
        self, shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch, verb: str
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=1_000_000))
        (shell.cwd / "recipe.json").write_text(json.dumps(recipe(world)))
        line = {
            "merge": [*merge_line(world), "out=new"],
            "evaluate": [*evaluate_line(world), "out=new.json"],
            "rebuild": ["recipe.json", "--out", "new"],
        }.get(verb, overrides(world, "out=new"))
        pattern = r"out=.* 0.00 GB free on its disk, 0.05 GB are needed: free some space or name"
        shell.refuse(pattern, verb, *line)

    def test_disk_too_small_for_the_model(
        self, shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_100_000))
        pattern = "out=new: 0.05 GB free on its disk, 0.05 GB are needed: free some space or name"
        shell.refuse(pattern, "merge", *merge_line(world), "out=new")


def merge_line(world: Path) -> list[str]:
    experts = f"experts.experts={{code:{world}/base-code,prose:{world}/base-prose}}"
    return ["experts=local", f"experts.base={world}/base", experts, "device=cpu"]


def evaluate_line(world: Path) -> list[str]:
    data = ["evaluator@report_on=perplexity", f"report_on.text.data={world}/report.jsonl"]
    return [f"model={world}/base", *data, "device=cpu"]


MERGES = [
    ("knobs={wieght: 1}", "knobs: Ties has no knob 'wieght': it reads weight, density, scale"),
    (
        "knobs={density: 1.5}",
        r"'density' is 1.5 at group .*, expected a finite number in \[0.0, 1.0\]",
    ),
    ("knobs={weight: {cod: 1}}", "knobs: weight names 'cod', which is no expert: expected code,"),
    ("knobs={weight: much}", r"knobs={'weight': 'much'}: expected a mapping"),
    ("knobs=[weight]", r"knobs=\['weight'\]: expected a mapping"),
    ("method.majority=loud", "method.majority=loud: expected 'mass' or 'count'"),
    ("mergekit=gone.yaml", "gone.yaml: cannot be read .*: correct its path"),
    ("mergekit=broken.yaml", "broken.yaml: not YAML"),
    ("mergekit=other.yaml", "other.yaml: merge_method 'magic' is not supported: expec"),
    ("mergekit=empty.yaml", "empty.yaml: there is no merge_method: this is no mergekit"),
    ("method=slerp", "slerp merges exactly 2 experts, 1 given: select other experts or another"),
    ("out=taken", "out=taken exists already: name a new directory"),
    ("out=null", "out is not set: give out=DIR"),
    ("adapter_rank=0", "adapter_rank=0: it must be at least 1"),
]


@pytest.mark.parametrize(("option", "pattern"), MERGES)
def test_static_merge(shell: Shell, world: Path, option: str, pattern: str) -> None:
    (shell.cwd / "taken").mkdir()
    files = {"broken": "merge_method: [", "other": "merge_method: magic", "empty": ""}
    for name, text in files.items():
        (shell.cwd / f"{name}.yaml").write_text(text)
    line = merge_line(world)
    if option == "method=slerp":
        line[2] = f"experts.experts={{code:{world}/base-code}}"
    shell.refuse(pattern, "merge", *line, "method=ties", "out=new", option)


def test_an_option_that_a_method_inherits(shell: Shell, world: Path) -> None:
    line = [*merge_line(world), "method=della", "out=new", "method.majority=loud"]
    shell.refuse("method.majority=loud: expected 'mass' or 'count'", "merge", *line)


def test_merge_without_out(shell: Shell, world: Path) -> None:
    shell.refuse("out is not set: give out=VALUE", "merge", *merge_line(world))


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("model=/gone", "/gone does not exist; expected a checkpoint directory"),
        ("out=.", r"out=\. is a directory: name a JSON file in it"),
        ("out=gone/new.json", "out=gone/new.json: .*gone does not exist: make it first"),
        ("report_on=perplexity", "choose a group with evaluator@report_on=NAME, for example"),
        ("report_on.text.data=gone.jsonl", "data file gone.jsonl does not exist: correct its"),
        ("report_on.text.window=wide", "report_on.text.window=wide: expected a whole number or"),
    ],
)
def test_evaluation(shell: Shell, world: Path, option: str, pattern: str) -> None:
    shell.refuse(pattern, "evaluate", *evaluate_line(world), option)


def recipe(world: Path) -> dict[str, Any]:
    """A recipe of the world's experts, as a run writes it."""
    pool = ExpertPool.open(f"{world}/base", {"code": f"{world}/base-code"})
    return {
        "format": 1,
        "base": {"source": pool.base.source, "sha256": pool.base.sha256},
        "experts": {"code": {"source": pool.sources["code"], "sha256": pool.identities[0]}},
        "kind": "coefficients",
        "method": {"_target_": "merging.methods.linear.Linear", "normalize": True},
        "grouping": {"kind": "Whole"},
        "merged": ["code"],
        "coefficients": {"model": {"weight": {"code": 1.0}}},
        "dtype": None,
        "privacy": None,
    }


RECIPES: list[tuple[Callable[[dict[str, Any]], Any], str]] = [
    (lambda r: r.pop("base"), "recipe.json: recipe: 'base' is missing"),
    (lambda r: r.update(format=9), "recipe.json: recipe: format 9 is not 1: rebuild it with the"),
    (lambda r: r.update(dtype="int3"), "recipe.json: dtype 'int3' is unknown: expected one of b"),
    (lambda r: r["base"].update(source=None), "recipe.json: recipe: source None and .* be text"),
    (lambda r: r["base"].update(sha256="0"), "base: .* has content .*: name the right checkpoint"),
    (lambda r: r["base"].update(source="/gone"), "/gone does not exist; expected a checkpoint"),
    (lambda r: r["method"].update(_target_="os.system"), "'os.system' is no merge method"),
    (lambda r: r["method"].update(sign=1), "unexpected keyword argument 'sign'"),
    (lambda r: r.update(coefficients=[]), "recipe.json: recipe: 'coefficients' must be"),
    (
        lambda r: r["coefficients"]["model"].pop("weight"),
        "knob 'weight' is missing at group 'model'",
    ),
    (lambda r: r.update(merged=["prose"]), "no expert is named 'prose'; the pool has code"),
]


@pytest.mark.parametrize(("damage", "pattern"), RECIPES)
def test_recipe(
    shell: Shell, world: Path, damage: Callable[[dict[str, Any]], Any], pattern: str
) -> None:
    content = recipe(world)
    damage(content)
    (shell.cwd / "recipe.json").write_text(json.dumps(content))
    shell.refuse(pattern, "rebuild", "recipe.json", "--out", "new")


@pytest.mark.parametrize(
    ("text", "pattern"),
    [
        (None, r"recipe.json: cannot be read .*: name a run's recipe.json"),
        ("{", r"recipe.json: not JSON .*: name a run's recipe.json"),
        ("[]", "recipe.json: recipe: expected a JSON object: this is no recipe of evomerge"),
    ],
)
def test_unreadable_recipe(shell: Shell, text: str | None, pattern: str) -> None:
    if text is not None:
        (shell.cwd / "recipe.json").write_text(text)
    shell.refuse(pattern, "rebuild", "recipe.json", "--out", "new")


def test_rebuild_to_a_directory_that_exists(shell: Shell, world: Path) -> None:
    (shell.cwd / "recipe.json").write_text(json.dumps(recipe(world)))
    pattern = r"--out \. exists already: name a new directory"
    shell.refuse(pattern, "rebuild", "recipe.json", "--out", ".")
    pattern = "--source prose: expected NAME=PATH"
    shell.refuse(pattern, "rebuild", "recipe.json", "--out", "new", "--source", "prose")


def test_report_of_what_is_no_run(shell: Shell) -> None:
    (shell.cwd / "thesis").mkdir()
    shell.refuse("gone is no directory; give the directory of a run", "report", "gone")
    shell.refuse("thesis has no history.jsonl.*; give the directory that", "report", "thesis")


def test_unknown_verb(shell: Shell) -> None:
    ended = shell.run("serach")
    assert ended.code == 2
    assert ended.messages == [
        "evomerge: unknown verb 'serach': expected search, check, merge, evaluate, statistics, "
        "split vendor, split customer, rebuild, report, verify, push, runs, pseudonymize, "
        "reference-losses, compare, zoo, zoo dedup; did you mean search?"
    ]


def test_refusal_in_a_process_of_its_own(world: Path, tmp_path: Path) -> None:
    done = evomerge("search", *overrides(world), "seed=-1", cwd=tmp_path)
    assert done.returncode == 2
    assert done.stderr == "evomerge search: seed=-1: it must be at least 0\n"
    assert not tree(tmp_path)


def test_interrupted_search_says_so_and_continues(world: Path, tmp_path: Path) -> None:
    line = overrides(world, "out=run", "budget.evaluations=200", "baselines=none", "in_hull=null")
    process = subprocess.Popen(
        [sys.executable, "-m", "experiments.cli", "search", *line],
        cwd=tmp_path,
        env=environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        # a shell's background job, as this test may be, ignores SIGINT and so would its children
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    history = tmp_path / "run" / "history.jsonl"
    while process.poll() is None and not history.exists():
        time.sleep(0.001)
    process.send_signal(signal.SIGINT)
    _, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr.endswith("evomerge search: interrupted; the same command continues it\n")
    assert "Traceback" not in stderr
    begun = history.read_bytes()
    assert begun.count(b"\n") < 200
    done = evomerge("search", *line, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert history.read_bytes().startswith(begun)
    assert history.read_bytes().count(b"\n") == 200
