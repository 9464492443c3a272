"""What a mergekit-evolve file says, key by key; and the groups and sums that it stands for."""

from __future__ import annotations

import copy
import json
import os
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from hydra import compose, initialize_config_module
from hydra.core.override_parser.overrides_parser import OverridesParser
from hypothesis import given
from hypothesis import strategies as st

from experiments.commands.shorthands import longhand
from experiments.mergekit_evolve.values import EvolveError
from experiments.mergekit_evolve.words import read_file, spelt
from experiments.setup import assemble
from experiments.setup.problem import open_space
from merging.checkpoints.experts import ExpertPool
from merging.spaces.coefficients import CoefficientSpace
from tests import builders

MERGEKIT = "EVOMERGE_MERGEKIT_PYTHON"
LAYERS = 4
FILE: dict[str, Any] = {
    "genome": {"models": ["one", "two"], "merge_method": "ties", "base_model": "base"},
    "tasks": [{"name": "arc_easy"}],
}
# Every key of mergekit 0.1.5 with a value that is not what it is without the key.
SCHEMA: dict[str, Mapping[str, Any]] = {
    "genome": {
        "models": ["one", "three"],
        "merge_method": "dare_ties",
        "base_model": "root",
        "tokenizer_source": "union",
        "layer_granularity": 2,
        "normalize": False,
        "allow_negative_weights": True,
        "filters": ["mlp"],
        "smooth": True,
    },
    "tasks.0": {"name": "boolq", "weight": 2.0, "metric": "acc_norm,none"},
    "": {
        "genome": {**FILE["genome"], "merge_method": "dare_ties"},
        "tasks": ["boolq"],
        "limit": 7,
        "num_fewshot": 3,
        "shuffle": True,
        "random_init": True,
        "apply_chat_template": False,
        "fewshot_as_multiturn": False,
    },
}


def evolution(content: Any, directory: Path) -> Any:
    file = directory / "evolve.yml"
    file.write_text(content if isinstance(content, str) else yaml.safe_dump(content))
    return read_file(file)


def changed(key: str, value: Any, where: str) -> dict[str, Any]:
    content = copy.deepcopy(FILE)
    owner = content
    for part in filter(None, where.split(".")):
        owner = owner[int(part) if part.isdigit() else part]
    owner[key] = value
    return content


@pytest.mark.parametrize(
    ("where", "key"), [(where, key) for where, keys in SCHEMA.items() for key in keys]
)
def test_every_key_is_honoured_or_named(where: str, key: str, tmp_path: Path) -> None:
    before = evolution(FILE, tmp_path)
    assert not before.notes
    after = evolution(changed(key, SCHEMA[where][key], where), tmp_path)
    honoured = after.options != before.options
    named = [note for note in after.notes if key in note.partition(" ")[0]]
    assert honoured or len(named) == 1, (after.options, after.notes)
    assert named or not after.notes


@pytest.mark.skipif(MERGEKIT not in os.environ, reason="needs a Python with mergekit 0.1.5")
def test_these_are_all_keys_of_mergekit() -> None:
    script = (
        "import json; from mergekit.evo.config import *; print(json.dumps([sorted(c.model_fields) "
        "for c in (ModelGenomeDefinition, TaskConfiguration, EvolMergeConfiguration)]))"
    )
    done = subprocess.run(
        [os.environ[MERGEKIT], "-c", script], check=True, capture_output=True, text=True
    )
    theirs = json.loads(done.stdout.splitlines()[-1])
    assert theirs == [sorted(keys) for keys in SCHEMA.values()]


@pytest.mark.parametrize("where", ["", "genome", "tasks.0"])
def test_a_key_that_mergekit_does_not_have_is_named(where: str, tmp_path: Path) -> None:
    after = evolution(changed("granularity", 3, where), tmp_path)
    assert after.options == evolution(FILE, tmp_path).options
    (note,) = after.notes
    assert "granularity: no key of mergekit-evolve; left out" in note


def genome(**keys: Any) -> dict[str, Any]:
    return {**FILE, "genome": {**FILE["genome"], **keys}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "not YAML"),
        ("tasks: [a]", "it has no genome, or no tasks: this is no file of mergekit-evolve"),
        ({**FILE, "genome": 3}, "genome: expected a table, got 3"),
        (
            genome(merge_method="della"),
            "genome.merge_method: 'della' is none of mergekit",
        ),
        (genome(models=[]), "genome.models: expected a list of ids and directories, got none"),
        (genome(models=["base"]), "genome.models: too few for ties"),
        (genome(models=["one"], merge_method="slerp"), "genome.models: too few for slerp"),
        (genome(models=["one@main"]), "genome: model one@main: a revision behind @"),
        (genome(base_model=None), "genome.base_model: merge_method ties needs one"),
        (genome(normalize="yes"), "normalize: expected true or false, got 'yes'"),
        (genome(layer_granularity=1.5), "layer_granularity: expected a whole number, got 1.5"),
        (genome(filters=[1]), r"filters: expected a list of texts, got \[1\]"),
        ({**FILE, "limit": True}, "limit: expected a whole number, got True"),
        ({**FILE, "tasks": []}, "tasks: expected a list of names"),
        ({**FILE, "tasks": [{"weight": 1}]}, "tasks: .* names no task of lm-eval"),
        (
            {**FILE, "tasks": [{"name": "a", "weight": "x"}]},
            "tasks: a: weight: expected a number, got 'x'",
        ),
    ],
)
def test_refusals(content: Any, message: str, tmp_path: Path) -> None:
    with pytest.raises(EvolveError, match=message):
        evolution(content, tmp_path)


def test_a_metric_that_is_better_when_lower_has_a_negative_weight(tmp_path: Path) -> None:
    task = {"name": "wikitext", "metric": "word_perplexity,none", "weight": -0.5}
    (entry,) = evolution({**FILE, "tasks": [task]}, tmp_path).options["tasks"]
    assert (entry["metric"], entry["weight"]) == ("-word_perplexity", 0.5)
    unknown = {**task, "metric": "pct_stereotype,none"}
    (entry,) = evolution({**FILE, "tasks": [unknown]}, tmp_path).options["tasks"]
    assert entry["metric"] == "-pct_stereotype"
    (note,) = evolution({**FILE, "tasks": [{**task, "weight": 1}]}, tmp_path).notes
    assert "word_perplexity is lowered, which in mergekit-evolve takes a negative weight" in note


def test_answer_filters_and_a_task_twice(tmp_path: Path) -> None:
    tasks = [
        {"name": "gsm8k", "metric": f"exact_match,{each}"} for each in ("strict-match", "none")
    ]
    first, second = evolution({**FILE, "tasks": tasks}, tmp_path).options["tasks"]
    assert (first["metric"], second["metric"]) == ("exact_match@strict-match", "exact_match")
    assert ("name" in first, second["name"]) == (False, "gsm8k-exact_match")


values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False)
    | st.text(st.characters(exclude_categories=("Cs", "Cc")), max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(st.from_regex(r"[a-z][a-z0-9_]*", fullmatch=True), inner, max_size=2)
    ),
    max_leaves=5,
)


@given(values)
def test_hydra_reads_back_what_is_spelt(value: Any) -> None:
    (override,) = OverridesParser.create().parse_overrides([f"key={spelt(value)}"])
    assert override.value() == value


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    base = builders.llama(root / "base", num_hidden_layers=LAYERS)
    for seed, name in enumerate(("one", "two"), 1):
        builders.llama(root / name, num_hidden_layers=LAYERS, like=base, seed=seed)
    return root


def opened(content: Any, directory: Path, *words: str) -> tuple[ExpertPool, CoefficientSpace]:
    """Pool and space of a file, by way of the command line."""
    file = directory / "evolve.yml"
    file.write_text(yaml.safe_dump(content))
    given = longhand("search", [f"mergekit_evolve={file}", *words])
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("search", overrides=given)
    pool = assemble.open_pool(config)
    space = open_space(config.space, pool, None)
    assert isinstance(space, CoefficientSpace)
    return pool, space


def named(models: Path, **keys: Any) -> dict[str, Any]:
    paths = {"models": [str(models / name) for name in ("one", "two")]}
    return genome(**paths, base_model=str(models / "base"), **keys)


FILTERS = ["mlp", "q_proj", "norm"]


def test_each_slice_and_filter_has_its_own_weights(models: Path, tmp_path: Path) -> None:
    """Against base + sum_i w_i (theta_i - base), as mergekit-evolve's discrete slices have it."""
    keys = {"layer_granularity": 2, "filters": FILTERS, "merge_method": "task_arithmetic"}
    pool, space = opened(named(models, **keys), tmp_path)
    assert len(space.axes) == LAYERS // 2 * len(pool.experts) * (len(FILTERS) + 1)
    weights = np.random.default_rng(0).random(len(space.axes))
    by_axis = dict(zip((axis.name for axis in space.axes), weights.tolist(), strict=True))
    merged = space.plan(weights).weights(pool)
    for name in pool.names:
        layer = int(name.split(".")[2]) if "layers" in name else LAYERS * ("embed" not in name)
        span = "0-1" if layer < 2 else "2-3"
        part = next((each for each in FILTERS if each in name), "rest")
        wanted = pool.base[name].double()
        for expert in ("one", "two"):
            delta = pool.expert_weights(expert)[name].double() - pool.base[name].double()
            wanted = wanted + by_axis[f"weight/layers.{span}.{part}/{expert}"] * delta
        torch.testing.assert_close(merged[name].double(), wanted, rtol=1e-5, atol=1e-6)


def test_the_start_is_mergekit_evolves(models: Path, tmp_path: Path) -> None:
    _, space = opened(named(models, layer_granularity=1), tmp_path)
    assert {(a.name.split("/")[0], a.start, a.low, a.scale) for a in space.axes} == {
        ("weight", 0.5, 0.0, 1 / 6),
        ("density", 1.0, 0.0, 1 / 6),
    }
    _, negative = opened(named(models, allow_negative_weights=True), tmp_path)
    assert negative.axes[0].low == -np.inf
    anywhere = {**named(models, layer_granularity=1), "random_init": True}
    starts = [
        [axis.start for axis in opened(anywhere, tmp_path, *words)[1].axes]
        for words in ((), (), ("seed=1",))
    ]
    assert starts[0] == starts[1] != starts[2]
    assert len(set(starts[0])) == len(space.axes)
    assert all(0 <= start < 1 for start in starts[0])


def test_another_space_takes_its_method_and_groups_along(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "evolve.yml").write_text(yaml.safe_dump(genome(filters=["mlp"])))
    for space, parts in (("full_weights", []), ("coefficients", ["method", "grouping"])):
        words = longhand("search", [f"mergekit_evolve={tmp_path}/evolve.yml", f"space={space}"])
        left = [p for p in ("method", "grouping") if any(word.startswith(p) for word in words)]
        assert left == parts
        assert capsys.readouterr().err.count("reads none; left out") == 2 - len(parts)


def test_another_word_goes_before_the_file(models: Path, tmp_path: Path) -> None:
    _, space = opened(named(models), tmp_path, "grouping=whole", "space.start={weight:0.3}")
    assert [axis.name for axis in space.axes][:1] == ["weight/model/one"]
    assert space.axes[0].start == 0.3


@pytest.mark.skipif(MERGEKIT not in os.environ, reason="needs a Python with mergekit 0.1.5")
@pytest.mark.parametrize(("method", "count"), [("linear", 1), ("task_arithmetic", 1), ("ties", 2)])
def test_a_genome_is_the_merge_that_mergekit_evolve_makes_of_it(
    models: Path, tmp_path: Path, method: str, count: int
) -> None:
    """Its own translation of a genome to slices, and its own merge of these."""
    content = named(models, layer_granularity=2, filters=FILTERS[:2], merge_method=method)
    if method == "linear":
        del content["genome"]["base_model"]
    pool, space = opened(content, tmp_path)
    shape = (LAYERS // 2, 2, 3, count)  # their order of axes
    # exact in float32, and of every tensor a whole number of entries to keep
    theirs = np.random.default_rng(1).integers(1, 32, shape) / 32
    script = (
        "import sys, yaml, torch, json\n"
        "from mergekit.evo.genome import *\n"
        "from mergekit.merge import run_merge, MergeOptions\n"
        "content = yaml.safe_load(open(sys.argv[1]))\n"
        "genome = ModelGenome(ModelGenomeDefinition.model_validate(content['genome']))\n"
        "merge = genome.genotype_merge_config(torch.tensor(json.loads(sys.argv[2])))\n"
        "merge.dtype = 'float32'\n"
        "run_merge(merge, sys.argv[3], MergeOptions(write_model_card=False, copy_tokenizer=False))"
    )
    command = [os.environ[MERGEKIT], "-c", script, str(tmp_path / "evolve.yml")]
    out = tmp_path / "theirs"
    subprocess.run([*command, json.dumps(theirs.tolist()), str(out)], check=True)
    ours = np.empty(len(space.axes))
    for i, axis in enumerate(space.axes):
        knob, group, expert = axis.name.split("/")
        _, span, part = group.split(".", 2)
        ours[i] = theirs[
            ("0-1", "2-3").index(span),
            ("one", "two").index(expert),
            (*FILTERS[:2], "rest").index(part),
            ("weight", "density").index(knob),
        ]
    merged = space.plan(ours).weights(pool)
    wanted = ExpertPool.open(str(models / "base"), {"theirs": str(out)}).expert_weights("theirs")
    for name in pool.names:
        torch.testing.assert_close(merged[name], wanted[name], rtol=1e-5, atol=1e-6)
