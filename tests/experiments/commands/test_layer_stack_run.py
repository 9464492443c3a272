"""A search over layer stacks from the command line: another depth than the base's, end to end."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

from tests import builders
from tests.experiments.local import evomerge, overrides
from tests.experiments.refusals import Shell

STACK = ("space=layer_stack_merged", "budget.evaluations=4", "finalists=2")


@pytest.fixture(scope="module")
def run(world: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("stack") / "run"
    options = overrides(world, *STACK, "space.depth=3", "strategy=random", f"out={out}")
    done = evomerge("search", *options, cwd=out.parent)
    assert done.returncode == 0, done.stderr
    assert "evolved" in done.stdout
    return out


def test_the_winner_is_a_model_of_that_depth(run: Path) -> None:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(run / "model")
    assert model.config.num_hidden_layers == len(model.model.layers) == 3
    tokens = transformers.AutoTokenizer.from_pretrained(run / "model")("fox", return_tensors="pt")
    assert model.generate(**tokens, max_new_tokens=4, do_sample=False).shape[1] > 3
    recipe = json.loads((run / "recipe.json").read_text())
    assert recipe["kind"] == "layer_stack"
    assert len(recipe["places"]) == 3
    assert "layers of base and experts" in (run / "model" / "README.md").read_text()


def test_rebuild_gives_the_same_bytes(run: Path, tmp_path: Path) -> None:
    out = tmp_path / "again"
    done = evomerge("rebuild", str(run / "recipe.json"), "--out", str(out), cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    for name in ("model.safetensors", "config.json"):
        assert (out / name).read_bytes() == (run / "model" / name).read_bytes()


def test_the_winner_scores_what_its_saved_model_scores(run: Path, world: Path) -> None:
    """So that what was searched in memory, among bases of another depth, is what was saved."""
    done = evomerge(
        "evaluate",
        f"model={run / 'model'}",
        "evaluator@report_on=perplexity",
        f"report_on.text.data={world}/report.jsonl",
        "device=cpu",
        cwd=run.parent,
    )
    assert done.returncode == 0, done.stderr
    summary = json.loads((run / "summary.json").read_text())
    (evolved,) = [model for model in summary["models"] if model["kind"] == "evolved"]
    held_out = evolved["report"]["scores"]["text/perplexity"]
    assert f"text/perplexity     {held_out:.6g}" in done.stdout, (held_out, done.stdout)


def test_base_and_experts_score_as_in_a_search_without_stacks(run: Path, world: Path) -> None:
    out = run.parent / "plain"
    options = overrides(world, "budget.evaluations=2", "strategy=random", f"out={out}")
    done = evomerge("search", *options, cwd=run.parent)
    assert done.returncode == 0, done.stderr
    for one, other in zip(*(_references(path) for path in (run, out)), strict=True):
        assert one == other


def _references(run: Path) -> list[dict[str, Any]]:
    lines = map(json.loads, (run / "references.jsonl").read_text().splitlines())
    return [
        {key: line[key] for key in ("name", "kind", "split", "scores")}
        for line in lines
        if line["kind"] != "evolved"
    ]


def test_shallow_stacks_of_adapters_with_a_sequential_strategy(
    world: Path, tmp_path: Path
) -> None:
    adapters = [
        builders.lora_adapter(tmp_path / name, world / "base", seed=seed)
        for seed, name in enumerate(("code", "prose"))
    ]
    experts = ",".join(f"{path.name}:{path}" for path in adapters)
    out = tmp_path / "run"
    options = overrides(
        world,
        "space=layer_stack",
        "space.depth=1",
        "strategy=oneplusone",
        "budget.evaluations=3",
        f"experts.experts={{{experts}}}",
        f"out={out}",
    )
    done = evomerge("search", *options, cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(out / "model")
    assert len(model.model.layers) == 1
    with torch.no_grad():
        assert torch.isfinite(model(torch.arange(9).view(1, -1)).logits).all()


def test_a_mergekit_file_of_slices_and_back(world: Path, shell: Shell, tmp_path: Path) -> None:
    """The same layers by `merge`, by its recipe as a file, and by `merge` of that."""
    file, code, maths = tmp_path / "stack.yaml", world / "base-code", world / "base-maths"
    slices = [(code, 0, 2), (code, 1, 2), (maths, 0, 1)]
    sources = [{"sources": [{"model": str(m), "layer_range": [a, b]}]} for m, a, b in slices]
    file.write_text(json.dumps({"merge_method": "passthrough", "slices": sources}))
    again = tmp_path / "again.yaml"
    first, second = (tmp_path / name for name in ("first", "second"))
    assert shell.run("merge", f"mergekit={file}", f"out={first}").code == 0
    assert shell.run("rebuild", str(first / "recipe.json"), "--mergekit", str(again)).code == 0
    assert shell.run("merge", f"mergekit={again}", f"out={second}").code == 0
    for name in ("model.safetensors", "config.json"):
        assert (first / name).read_bytes() == (second / name).read_bytes()
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(first)
    theirs: Any = transformers.AutoModelForCausalLM.from_pretrained(maths)
    assert torch.equal(
        model.model.layers[3].mlp.up_proj.weight, theirs.model.layers[0].mlp.up_proj.weight
    )


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["space.depth=0"], "depth 0: a model needs at least one layer"),
        (["space.bounds=[2,3]"], r"bounds of the scale: expected \[low, high\] around 1"),
        (["space.experts=false", "space.base=false", "space=layer_stack"], "has no source"),
        (
            ["strategy=mergevolve"],
            r"strategy \w+ searches paths .* which LayerStackSpace has none of",
        ),
    ],
)
def test_refusals(world: Path, shell: Shell, idle: None, options: list[str], message: str) -> None:
    shell.refuse(message, "check", *overrides(world, *STACK, *options))
