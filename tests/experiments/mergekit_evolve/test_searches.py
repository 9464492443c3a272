"""Files of mergekit-evolve run from the command line to a winner, and again as experiments."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.experiments.refusals import Shell

WORDS = ("fox", "hound", "dog", "ox", "hen")
QUICK = (
    *("budget=4", "finalists=1", "baselines=none", "in_hull=null", "tracker=none", "device=cpu"),
    *("strategy.popsize=2", "splits.selection=4", "splits.held_out=6", "save_model=false"),
)


@pytest.fixture(scope="module")
def tasks(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two tasks of lm-eval's in a directory of their own."""
    root = tmp_path_factory.mktemp("tasks")
    for task in ("animals", "places"):
        rows = [
            {"question": f"{task} {i}: the {WORDS[i % 5]} of", "choices": [*WORDS], "label": i % 5}
            for i in range(24)
        ]
        data = root / f"{task}.json"
        data.write_text("\n".join(map(json.dumps, rows)))
        content = {
            "task": task,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {"test": str(data)}},
            "output_type": "multiple_choice",
            "test_split": "test",
            "doc_to_text": "{{question}}",
            "doc_to_choice": "{{choices}}",
            "doc_to_target": "label",
        }
        (root / f"{task}.yaml").write_text(yaml.safe_dump(content))
    return root


FILES: dict[str, dict[str, Any]] = {
    "per-layer": {
        "genome": {
            "merge_method": "task_arithmetic",
            "layer_granularity": 1,
            "filters": ["self_attn", "mlp"],
            "allow_negative_weights": True,
            "models": ["code", "prose", "maths"],
        },
        "tasks": ["animals"],
        "limit": 8,
        "num_fewshot": 1,
        "random_init": True,
    },
    "slerp": {
        "genome": {"merge_method": "slerp", "models": ["code", "prose"]},
        "tasks": [{"name": "places", "metric": "acc_norm,none"}],
        "shuffle": True,
    },
    "dare": {
        "genome": {
            "merge_method": "dare_ties",
            "normalize": True,
            "smooth": True,
            "models": ["code", "maths"],
        },
        "tasks": [{"name": "animals", "weight": 0.5}, {"name": "places", "weight": 2.0}],
        "limit": 6,
    },
}
AXES = {"per-layer": 2 * 3 * 3, "slerp": 2, "dare": 2 * 2}
NOTED = {"per-layer": ["limit"], "slerp": ["shuffle"], "dare": ["genome.smooth", "limit"]}


@pytest.mark.parametrize(
    "name",
    ["dare", *(pytest.param(each, marks=pytest.mark.slow) for each in ("per-layer", "slerp"))],
)
def test_a_file_runs_and_its_experiment_file_shows_the_same_run(
    name: str, tasks: Path, world: Path, shell: Shell
) -> None:
    content = {**FILES[name], "task_search_path": str(tasks)}
    models = [str(world / f"base-{model}") for model in content["genome"]["models"]]
    base = {"base_model": str(world / "base"), "models": models}
    content["genome"] = {**content["genome"], **base}
    file = shell.cwd / f"{name}.yml"
    file.write_text(yaml.safe_dump(content))
    done = shell.run("search", f"mergekit_evolve={file}", *QUICK, "runs=runs")
    assert done.code == 0, done.stderr
    noted = [line for line in done.stderr.splitlines() if line.startswith("mergekit_evolve=")]
    assert [note.split(": ")[1].split(" ")[0] for note in noted] == NOTED[name]
    (run,) = [path for path in (shell.cwd / "runs").iterdir() if path.name.startswith(name)]
    history = [json.loads(line) for line in (run / "history.jsonl").read_text().splitlines()]
    assert {len(record["genome"]) for record in history if "genome" in record} == {AXES[name]}
    summary = json.loads((run / "summary.json").read_text())
    weights = {term["task"]: term["weight"] for term in summary["terms"]}
    wanted = {"dare": {"animals": 0.2, "places": 0.8}}.get(name)
    assert wanted is None or weights == pytest.approx(wanted)
    before = (run / "summary.json").stat().st_mtime_ns
    again = shell.run("search", "--config-dir", str(run), f"experiment={name}", "runs=runs")
    assert again.code == 0, again.stderr
    assert len([path for path in (shell.cwd / "runs").iterdir() if path.is_dir()]) == 1
    assert (run / "summary.json").stat().st_mtime_ns == before


def test_a_file_that_is_none_is_refused(shell: Shell) -> None:
    (shell.cwd / "evolve.yml").write_text("genome: {}\ntasks: [a]")
    for message, *words in (
        ("evolve.yml: genome.merge_method: '' is none", "mergekit_evolve=evolve.yml"),
        ("a whole experiment", "mergekit_evolve=evolve.yml", "experiment=quickstart"),
        ("gone.yml: cannot be read", "mergekit_evolve=gone.yml"),
    ):
        shell.refuse(message, "check", *words)
