"""Statistics against naive versions in float64, and `evomerge statistics` from end to end."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from evaluators.engine.resident import Resident
from evaluators.requests import Classify, EvaluationError, Generate, Loglikelihood
from evaluators.tasks.classification import Accuracy
from evaluators.tasks.perplexity import Perplexity
from experiments.cli import main
from experiments.gathering.fisher import gather_fisher
from experiments.gathering.gram import LinearLayers, gather_gram
from experiments.gathering.items import Item, batches_of, digest_of, items_of
from experiments.gathering.run import tasks_of
from merging.checkpoints.experts import ExpertPool
from merging.statistics_files import read_origin
from tests import builders
from tests.experiments.local import EXPERTS, make_world, overrides, write_texts
from tests.experiments.refusals import Shell


def nothing(_: int) -> None:
    pass


def resident_of(pool: ExpertPool, expert: str) -> Resident:
    resident = Resident.from_pool(pool, device="cpu", dtype=torch.float64)
    resident.write(pool.expert_weights(expert))
    return resident


def gram_of(pool: ExpertPool, expert: str, items: Sequence[Item]) -> dict[str, Tensor]:
    resident = resident_of(pool, expert)
    layers = LinearLayers.of(resident.module, pool.names)
    return gather_gram(resident, expert, batches_of(items, 64), layers, advance=nothing)


def naive_gram(model: Any, inputs: Sequence[dict[str, Tensor]], prefix: str) -> dict[str, Tensor]:
    """Keeps every input of every linear layer, one item at a time, then multiplies once."""
    seen: dict[str, list[Tensor]] = {}
    for name, module in model.named_modules():
        if isinstance(module, nn.Linear | Conv1D) and name.startswith(prefix):
            kept = seen.setdefault(f"{name.removeprefix(prefix)}.weight", [])
            module.register_forward_hook(lambda _, given, __, kept=kept: kept.append(given[0]))
    with torch.no_grad():
        for each in inputs:
            model(**{name: tensor[None] for name, tensor in each.items()})
    stacked = {n: torch.cat([x.flatten(0, -2) for x in kept]) for n, kept in seen.items()}
    return {name: x.T @ x / len(x) for name, x in stacked.items()}


def texts(count: int = 3) -> list[str]:
    """Two of one length, the others of different ones."""
    return ["one two three", "six ten seven", *("word " * (i + 2) for i in range(count - 2))]


def documents(path: Path) -> Path:
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts(4)))
    return path


MAKERS: list[Callable[..., Path]] = [builders.llama, builders.gpt2, builders.qwen2]


@pytest.mark.parametrize("make", MAKERS, ids=lambda make: make.__name__)
def test_gram_of_a_language_model(make: Callable[..., Path], tmp_path: Path) -> None:
    base = make(tmp_path / "base", scale=0.2)
    pool = ExpertPool.open(str(base), {"a": str(make(tmp_path / "a", like=base, seed=1))})
    info = Resident.from_pool(pool, device="cpu", dtype=torch.float64).info
    data = documents(tmp_path / "data.jsonl")
    items = items_of(Perplexity(info, data=str(data)).items.requests, info.max_length)
    gathered = gram_of(pool, "a", items)
    model = transformers.AutoModelForCausalLM.from_pretrained(
        tmp_path / "a", dtype=torch.float64
    ).eval()
    rows = [[1, *info.tokenizer.encode(text)[:-1]] for text in texts(4)]
    naive = naive_gram(model, [{"input_ids": torch.tensor(row)} for row in rows], "")
    if make is not builders.llama:  # the output layer is tied to the embedding
        naive.pop("lm_head.weight")
    assert set(gathered) == set(naive)
    for name, wanted in naive.items():
        assert gathered[name].dtype == torch.float32
        torch.testing.assert_close(gathered[name].double(), wanted, rtol=1e-6, atol=1e-9)


def classifiers(root: Path) -> ExpertPool:
    base = builders.bert_classifier(root / "base", kind="encoder", scale=0.1)
    paths = {
        name: str(builders.bert_classifier(root / name, num_labels=2 + i, like=base, seed=i + 1))
        for i, name in enumerate(("sentiment", "topic"))
    }
    return ExpertPool.open(str(base), paths)


def labelled(path: Path) -> Path:
    lines = [{"text": text, "label": i % 2} for i, text in enumerate(texts(3))]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return path


@pytest.fixture(scope="module")
def bert(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExpertPool, list[Item]]:
    """Two classifiers, and items that the head of the first is asked about."""
    root = tmp_path_factory.mktemp("bert")
    pool = classifiers(root)
    info = Resident.from_pool(pool, device="cpu", dtype=torch.float64).info
    task = Accuracy(info, data=str(labelled(root / "data.jsonl")), head="sentiment")
    return pool, items_of(task.items.requests, info.max_length)


def own_model(pool: ExpertPool, name: str) -> Any:
    model = transformers.AutoModelForSequenceClassification.from_pretrained(
        pool.sources[name], dtype=torch.float64
    )
    return model.eval()


def test_gram_of_a_classifier(bert: tuple[ExpertPool, list[Item]]) -> None:
    pool, items = bert
    gathered = gram_of(pool, "topic", items)
    naive = naive_gram(own_model(pool, "topic"), [dict(i.inputs) for i in items], "bert.")
    assert set(gathered) == set(naive)
    for name, wanted in naive.items():
        torch.testing.assert_close(gathered[name].double(), wanted, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("head", ["sentiment", "topic"])
def test_fisher_of_a_classifier(bert: tuple[ExpertPool, list[Item]], head: str) -> None:
    """Exact over the classes of the expert's own head; by hand with backward()."""
    pool, items = bert
    resident = resident_of(pool, head)
    gathered = gather_fisher(
        resident, head, items, pool.names, seed=0, expert="e", advance=nothing
    )
    model = own_model(pool, head)
    wanted = {name: torch.zeros_like(model.bert.get_parameter(name)) for name in pool.names}
    for item in items:
        inputs = {name: tensor[None] for name, tensor in item.inputs.items()}
        probabilities = model(**inputs).logits[0].detach().softmax(-1)
        for label, probability in enumerate(probabilities):
            model.zero_grad()
            model(**inputs).logits[0].log_softmax(-1)[label].backward()
            for name, total in wanted.items():
                gradient = model.bert.get_parameter(name).grad
                total += probability * gradient**2 / len(items)
    assert set(gathered) == set(pool.names)
    for name, total in wanted.items():
        torch.testing.assert_close(gathered[name].double(), total, rtol=1e-5, atol=1e-12)
    assert not any(parameter.requires_grad for parameter in resident.module.parameters())


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> tuple[ExpertPool, Resident]:
    base = builders.llama(
        tmp_path_factory.mktemp("small") / "base", scale=0.2, num_hidden_layers=1
    )
    pool = ExpertPool.open(str(base), builders.experts_of(base, 1))
    return pool, resident_of(pool, "code")


def fisher_of(
    small: tuple[ExpertPool, Resident], items: Sequence[Item], seed: int, expert: str = "e"
) -> dict[str, Tensor]:
    pool, resident = small
    return gather_fisher(
        resident, "code", items, pool.names, seed=seed, expert=expert, advance=nothing
    )


def test_fisher_of_a_language_model_is_unbiased(small: tuple[ExpertPool, Resident]) -> None:
    """The mean over many draws against every token's exact expectation, of the output layer.

    There the gradient is known: log p of token y at a position with state h has the gradient
    (e_y - p) h^T, so its expected square is p (1 - p) h^2, summed over the scored positions.
    """
    _, resident = small
    item = Item({"input_ids": torch.tensor([1, 40, 50, 60])}, scored=2)
    draws = 200
    mean = torch.zeros(builders.VOCAB, 32, dtype=torch.float64)
    for seed in range(draws):
        mean += fisher_of(small, [item], seed)["lm_head.weight"].double() / draws
    with torch.no_grad():
        states = resident.module.model(item.inputs["input_ids"][None])[0][0, 2:]
        p = resident.module.lm_head(states).softmax(-1)
    exact = (p * (1 - p)).T @ states.square()
    assert float(mean.sum()) == pytest.approx(float(exact.sum()), rel=0.03)
    assert torch.corrcoef(torch.stack([mean.sum(0), exact.sum(0)]))[0, 1] > 0.99


def test_draws_belong_to_seed_expert_and_item(small: tuple[ExpertPool, Resident]) -> None:
    one, two = (Item({"input_ids": torch.tensor([1, 40 + i, 50])}, scored=2) for i in range(2))
    first = fisher_of(small, [one, two], 0)
    again = fisher_of(small, [two, one], 0)
    for name, value in first.items():
        torch.testing.assert_close(value, again[name])
    alone = [fisher_of(small, [each], 0)["lm_head.weight"] for each in (one, two)]
    torch.testing.assert_close(first["lm_head.weight"], torch.stack(alone).mean(0))
    for other in (fisher_of(small, [one, two], 1), fisher_of(small, [one, two], 0, "f")):
        assert not torch.allclose(other["lm_head.weight"], first["lm_head.weight"])


def test_head_of_one_class_is_refused(tmp_path: Path) -> None:
    base = builders.bert_classifier(tmp_path / "base", kind="encoder")
    expert = builders.bert_classifier(tmp_path / "a", num_labels=1, like=base)
    pool = ExpertPool.open(str(base), {"a": str(expert)})
    item = Item({"input_ids": torch.tensor([1, 5, 2])})
    with pytest.raises(EvaluationError, match=r"expert 'a' has a head of one class"):
        gather_fisher(
            resident_of(pool, "a"), "a", [item], pool.names, seed=0, expert="e", advance=nothing
        )


def test_gram_of_an_adapter_is_that_of_the_model_it_makes(tmp_path: Path) -> None:
    import peft  # slow to import, and only this test needs it

    base = builders.llama(tmp_path / "base", scale=0.2)
    adapter = builders.lora_adapter(tmp_path / "lora", base, targets=["q_proj", "down_proj"])
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    whole = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    builders.save(whole, tmp_path / "whole")
    items = [Item({"input_ids": torch.arange(1, 9)}, 7), Item({"input_ids": torch.arange(5)}, 1)]
    pools = [
        ExpertPool.open(str(base), {"a": str(path)}) for path in (adapter, tmp_path / "whole")
    ]
    found, wanted = (gram_of(pool, "a", items) for pool in pools)
    assert len(found) == 4
    for name, value in found.items():
        torch.testing.assert_close(value, wanted[name], rtol=1e-4, atol=1e-6)


class TestItems:
    def test_what_is_read_and_scored(self) -> None:
        items = items_of(
            [
                Loglikelihood((1, 2), (3, 4)),
                Loglikelihood((1, 2, 3), (5,)),  # reads the same
                Loglikelihood((1, 2, 3, 4), (5, 6)),
                Generate((1, 2, 3, 4, 5), max_new_tokens=2),
                Classify("a", {"pixel_values": torch.zeros(3, 32, 16)}),
            ],
            max_length=4,
        )
        image, *rows = items
        assert (image.tokens, image.cost, image.scored) == (0, 2, 0)
        assert [(row.inputs["input_ids"].tolist(), row.scored) for row in rows] == [
            ([1, 2, 3], 2),
            ([2, 3, 4, 5], 2),
            ([4, 5], 1),
        ]

    def test_batches_hold_equal_shapes_within_the_budget(self) -> None:
        items = [Item({"input_ids": torch.arange(n)}, 1) for n in (3, 5, 3, 3, 9)]
        batches = batches_of(items, 6)
        assert [[item.tokens for item in batch] for batch in batches] == [[9], [5], [3, 3], [3]]

    def test_digest_tells_content_apart(self) -> None:
        a, b, c = (
            Item({"input_ids": torch.tensor([1, 2])}, 1),
            Item({"input_ids": torch.tensor([1, 3])}, 1),
            Item({"input_ids": torch.tensor([1, 2])}, 2),
        )
        digests = [digest_of(each) for each in ([a], [b], [c], [a, b], [b, a])]
        assert len(set(digests)) == 5
        assert digest_of([a]) == digest_of([Item({"input_ids": torch.tensor([1, 2])}, 1)])

    def test_layers_that_share_a_weight_share_its_gram(self) -> None:
        model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 3))
        model[1].weight = model[0].weight
        layers = LinearLayers.of(model, ["0.weight", "0.bias", "1.bias", "2.weight"])
        assert layers.modules == {"0.weight": (model[0], model[1]), "2.weight": (model[2],)}
        assert layers.averaged == ("0.bias", "1.bias")


class TestTasks:
    def test_every_expert_sees_all_tasks_by_default(self) -> None:
        assert tasks_of(None, ["a", "b"], ["x", "y"]) == {"a": ["x", "y"], "b": ["x", "y"]}
        assert tasks_of({"a": ["y"]}, ["a", "b"], ["x", "y"]) == {"a": ["y"], "b": ["x", "y"]}

    @pytest.mark.parametrize(
        ("given", "message"),
        [
            ({"c": ["x"]}, r"per_expert names 'c', which is no expert: expected a, b"),
            (
                {"a": ["z"]},
                r"per_expert.a names 'z', which is no task of gather_on: expected x, y",
            ),
            ({"a": []}, r"per_expert.a is empty: name a task, or leave a out"),
        ],
    )
    def test_refused(self, given: dict[str, list[str]], message: str) -> None:
        with pytest.raises(ValueError, match=message):
            tasks_of(given, ["a", "b"], ["x", "y"])


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_world(tmp_path_factory.mktemp("world"))


def pool_options(root: Path) -> list[str]:
    experts = ",".join(f"{name}:{root}/base-{name}" for name in EXPERTS)
    return [
        "experts=local",
        f"experts.base={root}/base",
        f"experts.experts={{{experts}}}",
        "device=cpu",
    ]


def gather(root: Path, *more: str) -> list[str]:
    return [
        *("statistics", *pool_options(root)),
        "evaluator@gather_on=perplexity",
        f"gather_on.text.data={root}/search.jsonl",
        *more,
    ]


@pytest.mark.parametrize(("kind", "method"), [("gram", "regmean"), ("fisher", "fisher")])
def test_from_statistics_to_a_rebuilt_merge(
    world: Path, shell: Shell, kind: str, method: str
) -> None:
    command = gather(world, f"kind={kind}", "out=stats")
    ended = shell.run(*command)
    assert ended.code == 0, ended.stderr
    files = sorted((shell.cwd / "stats").glob("*.safetensors"))
    assert len(files) == 3
    first = read_origin(files[0])
    assert (first.kind, first.items, first.dtype, first.seed) == (kind, 4, "float32", 0)
    assert first.tokens > 100
    files[0].unlink()  # as if the second start followed a kill
    before = {file: file.stat().st_mtime_ns for file in files[1:]}
    (shell.cwd / "stats" / ".gram-x.safetensors.1.tmp").touch()
    assert shell.run(*command).code == 0
    assert before == {file: file.stat().st_mtime_ns for file in files[1:]}
    left = sorted(path.name for path in (shell.cwd / "stats").iterdir())
    assert left == sorted([*(file.name for file in files), "run.lock"])
    merge = [f"method={method}", "method.statistics=stats"]
    ended = shell.run("merge", *pool_options(world), *merge, "out=merged")
    assert ended.code == 0, ended.stderr
    ended = shell.run("rebuild", "merged/recipe.json", "--out", "again")
    assert ended.code == 0, ended.stderr
    merged, again = (load_file(shell.cwd / d / "model.safetensors") for d in ("merged", "again"))
    assert all(torch.equal(merged[name], again[name]) for name in merged)
    ended = shell.run("merge", *pool_options(world), "method=linear", "out=linear")
    average = load_file(shell.cwd / "linear" / "model.safetensors")
    moved = [name for name in merged if not torch.allclose(merged[name], average[name])]
    assert "model.layers.0.self_attn.q_proj.weight" in moved
    assert ("model.norm.weight" in moved) == (kind == "fisher")
    files[0].unlink()
    shell.refuse(
        r"no statistics of expert \w{12}: .* does not exist: if it moved, name its directory",
        *("rebuild", "merged/recipe.json", "--out", "third"),
    )


def test_a_search_uses_them_as_method_and_baseline(world: Path, shell: Shell) -> None:
    assert shell.run(*gather(world, "kind=gram", "out=stats")).code == 0
    assert shell.run(*gather(world, "kind=fisher", "out=stats")).code == 0
    line = [
        "search",
        *pool_options(world),
        "evaluator@search_on=perplexity",
        f"search_on.text.data={world}/search.jsonl",
        "evaluator@select_on=none",
        "evaluator@report_on=none",
        "objective.normalize=raw",
        "baselines=none",
        "+method@baselines.fisher=fisher",
        "baselines.fisher.statistics=stats",
        "method=regmean",
        "method.statistics=stats",
        "tracker=none",
        "strategy=random",
        "budget.evaluations=3",
        "out=run",
    ]
    ended = shell.run(*line)
    assert ended.code == 0, ended.stderr
    recipe = json.loads((shell.cwd / "run" / "recipe.json").read_text())
    assert recipe["method"]["_target_"] == "merging.methods.regmean.RegMean"
    assert len(recipe["method"]["digests"]) == 3
    lines = (shell.cwd / "run" / "references.jsonl").read_text().splitlines()
    static = [line for line in map(json.loads, lines) if line["kind"] == "static"]
    assert [(line["name"], line["failure"]) for line in static] == [("fisher", None)]


def test_a_search_in_all_weights_starts_from_regmean(world: Path, shell: Shell) -> None:
    assert shell.run(*gather(world, "kind=gram", "out=stats")).code == 0
    start = ["initial=static", "method@initial.method=regmean", "initial.method.statistics=stats"]
    line = ["search", *overrides(world), "strategy=mergevolve", "space=full_weights", *start]
    ended = shell.run(*line, "in_hull=null", "strategy.popsize=3", "out=run")
    assert ended.code == 0, ended.stderr
    recipe = json.loads((shell.cwd / "run" / "recipe.json").read_text())
    assert recipe["kind"] == "path"
    assert recipe["start"]["method"]["_target_"].endswith("RegMean")
    assert shell.run("rebuild", "run/recipe.json", "--out", "again").code == 0


def test_per_expert_and_other_statistics(world: Path, shell: Shell) -> None:
    write_texts(world / "more.jsonl", first=500)
    task = (
        "{_target_: evaluators.tasks.perplexity.Perplexity, _partial_: true, data: %s/more.jsonl}"
    )
    two = f"+gather_on.other={task % world}"
    ended = shell.run(*gather(world, two, "per_expert={code:[other],prose:[text]}", "out=stats"))
    assert ended.code == 0, ended.stderr
    pool = ExpertPool.open(f"{world}/base", {name: f"{world}/base-{name}" for name in EXPERTS})
    origins = {
        name: read_origin(shell.cwd / "stats" / f"gram-{sha[:16]}.safetensors")
        for name, sha in zip(EXPERTS, pool.identities, strict=True)
    }
    assert [origins[name].items for name in EXPERTS] == [4, 4, 8]
    assert len({each.data for each in origins.values()}) == 3
    ended = shell.run(*gather(world, "out=stats"))
    assert ended.code == 2
    assert "of expert 'code' was gathered otherwise (data: " in ended.stderr
    assert "delete it, or name another out=" in ended.stderr


@pytest.mark.parametrize(
    ("option", "pattern"),
    [
        ("kind=hessian", "kind=hessian: expected 'gram' or 'fisher'"),
        ("evaluator@gather_on=none", "gather_on names no evaluator: choose a group, e.g. evalua"),
        ("gather_on.text.data=no.jsonl", "data file no.jsonl does not exist"),
        ("per_expert={code:3}", r"per_expert=.*: expected a mapping {NAME: a list \[text, ...\]"),
        ("per_expert={coed:[text]}", "per_expert names 'coed', which is no expert: expected code"),
    ],
)
def test_refusals(world: Path, shell: Shell, option: str, pattern: str) -> None:
    line = gather(world, "out=stats", option)
    if option.startswith("evaluator"):
        line = [each for each in line if not each.startswith("gather_on.text")]
        line.remove("evaluator@gather_on=perplexity")
    shell.refuse(pattern, *line)


def test_out_and_statistics_must_be_named(world: Path, shell: Shell) -> None:
    shell.refuse("out is not set: give out=VALUE", *gather(world))
    shell.refuse(
        "method.statistics is not set: give method.statistics=VALUE",
        *("merge", *pool_options(world), "method=regmean", "out=merged"),
    )
    shell.refuse(
        "statistics directory nowhere does not exist: gather gram of these experts into nowhere",
        *("merge", *pool_options(world), "method=regmean", "method.statistics=nowhere", "out=m"),
    )


def test_classifiers_from_the_command_line(tmp_path: Path) -> None:
    pool = classifiers(tmp_path)
    data = labelled(tmp_path / "data.jsonl")
    experts = ",".join(f"{name}:{path}" for name, path in pool.sources.items())
    options = ["experts=local", f"experts.base={pool.base.source}", "device=cpu"]
    options.append(f"experts.experts={{{experts}}}")
    for kind, method in (("gram", "regmean"), ("fisher", "fisher")):
        task = ["evaluator@gather_on=accuracy", f"gather_on.accuracy.data={data}"]
        task.append("gather_on.accuracy.head=topic")
        out = f"out={tmp_path}/stats"
        assert main(["statistics", *options, *task, f"kind={kind}", out]) == 0
        chosen = [f"method={method}", f"method.statistics={tmp_path}/stats"]
        assert main(["merge", *options, *chosen, f"out={tmp_path}/{method}"]) == 0
        path = tmp_path / method / "heads" / "topic"
        model = transformers.AutoModelForSequenceClassification.from_pretrained(path)
        assert model.config.num_labels == 3
