"""Layer stacks against models that transformers builds by hand, layer by layer."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor, nn

from evaluators.engine.resident import Resident
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.method import MergeError
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import uniform_plan
from merging.plans import plan_from_description
from merging.recipe import Recipe
from merging.saving.save import save_model, saved_bytes
from merging.stacks.layer_stack import BASE, MERGED, LayerStackPlan, StackedLayer, layers_of
from merging.stacks.layers import scaled
from merging.weights import CheckpointError, Weights
from tests import builders

LAYERS = 3
TOKENS = torch.arange(12).view(1, -1) * 7 % 200 + 3


def gemma2(path: Path, *, num_hidden_layers: int, **options: Any) -> Path:
    """Sliding and full attention by turns, and norms behind every branch."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        vocab_size=builders.VOCAB,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=num_hidden_layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        sliding_window=4,
        **options,
    )
    return builders.save(transformers.Gemma2ForCausalLM(config), path)


def gpt2(path: Path, *, num_hidden_layers: int) -> Path:
    return builders.gpt2(path, n_layer=num_hidden_layers)


FAMILIES: dict[str, Callable[..., Path]] = {
    "llama": builders.llama,
    "qwen2": builders.qwen2,
    "gpt_neox": builders.gpt_neox,
    "gpt2": gpt2,
    "gemma2": lambda path, num_hidden_layers: gemma2(
        path, num_hidden_layers=num_hidden_layers, layer_types=["full_attention"] * LAYERS
    ),
}


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExpertPool]:
    """Three layers and two experts of every family."""
    opened = {}
    for family, build in FAMILIES.items():
        base = build(tmp_path_factory.mktemp(family) / "base", num_hidden_layers=LAYERS)
        opened[family] = ExpertPool.open(str(base), builders.experts_of(base, 2, 0.1))
    return opened


@pytest.fixture(params=FAMILIES)
def pool(request: pytest.FixtureRequest, pools: dict[str, ExpertPool]) -> ExpertPool:
    return pools[request.param]


@pytest.fixture
def llama(pools: dict[str, ExpertPool]) -> ExpertPool:
    return pools["llama"]


def stack(*places: tuple[int, str] | tuple[int, str, float], **options: Any) -> LayerStackPlan:
    return LayerStackPlan(tuple(StackedLayer(*place) for place in places), **options)


def loaded(path: Path | str) -> Any:
    model: Any = transformers.AutoModelForCausalLM.from_pretrained(path)
    return model.eval()


def layer_list(model: Any) -> nn.ModuleList:
    inner = model.base_model
    found = inner.h if hasattr(inner, "h") else inner.layers
    assert isinstance(found, nn.ModuleList)
    return found


def by_hand(pool: ExpertPool, places: Sequence[tuple[int, str]], outer: str = BASE) -> Any:
    """A model of transformers' own whose layers are loaded one by one from whole models."""
    paths = {BASE: pool.base.source, **pool.sources}
    models = {name: loaded(path) for name, path in paths.items()}
    config = copy.deepcopy(models[BASE].config)
    if getattr(config, "layer_types", None):
        config.layer_types = [config.layer_types[origin] for origin, _ in places]
    config.num_hidden_layers = len(places)
    model = type(models[BASE])(config).eval()
    own = layer_list(models[outer])
    state = models[outer].state_dict()
    prefix = next(n for n, m in models[outer].named_modules() if m is own)
    outside = {k: v for k, v in state.items() if not k.startswith(f"{prefix}.")}
    model.load_state_dict(outside, strict=False)
    for layer, (origin, source) in zip(layer_list(model), places, strict=True):
        layer.load_state_dict(layer_list(models[source])[origin].state_dict())
    return model


def logits(model: Any) -> Tensor:
    with torch.no_grad():
        out: Tensor = model(TOKENS).logits
    return out


def continued(model: Any) -> Tensor:
    """Greedy tokens with a key-value cache."""
    told = {"max_new_tokens": 5, "do_sample": False, "pad_token_id": 0}
    with torch.no_grad():
        tokens: Tensor = model.generate(TOKENS, attention_mask=torch.ones_like(TOKENS), **told)
    return tokens


def in_memory(pool: ExpertPool, weights: Weights, **options: Any) -> Tensor:
    resident = Resident.from_pool(
        pool, device="cpu", dtype=torch.float32, layers=layers_of(weights), **options
    )
    resident.write(weights)
    return logits(resident.module)


def test_layers_in_order_are_the_expert_itself(pool: ExpertPool) -> None:
    expert = pool.expert_weights("code")
    plan = stack(*((i, "code") for i in range(LAYERS)), outer="code")
    weights = plan.weights(pool)
    assert list(weights) == list(pool.names)
    assert all(torch.equal(weights[name], expert[name]) for name in pool.names)
    assert torch.equal(in_memory(pool, weights), logits(loaded(pool.sources["code"])))


@pytest.mark.parametrize("skipped", range(LAYERS))
def test_scale_zero_is_the_model_without_that_layer(pool: ExpertPool, skipped: int) -> None:
    plan = stack(*((i, "code", float(i != skipped)) for i in range(LAYERS)))
    kept = [(i, "code") for i in range(LAYERS) if i != skipped]
    assert torch.equal(in_memory(pool, plan.weights(pool)), logits(by_hand(pool, kept)))


@pytest.mark.parametrize(
    "places",
    [
        [(0, BASE), (1, "code"), (1, "prose"), (0, "code"), (2, BASE)],
        [(2, "prose"), (2, "prose"), (2, "prose"), (0, BASE)],
        [(1, "code")],
        [(2, "code"), (0, "prose")],
    ],
    ids=len,
)
def test_any_depth_equals_transformers_by_hand_and_on_disk(
    pool: ExpertPool, places: list[tuple[int, str]], tmp_path: Path
) -> None:
    plan = stack(*places, outer="prose")
    weights = plan.weights(pool)
    wanted = by_hand(pool, places, outer="prose")
    assert torch.equal(in_memory(pool, weights), logits(wanted))
    save_model(pool, weights, tmp_path / "model")
    saved = loaded(tmp_path / "model")
    assert saved.config.num_hidden_layers == len(places) == len(layer_list(saved))
    assert torch.equal(logits(saved), logits(wanted))
    assert torch.equal(continued(saved), continued(wanted))
    written = Checkpoint.open(str(tmp_path / "model"))
    assert set(written) == set(wanted.state_dict()) - set(written.aliases)
    size = sum(written.shape(name).numel() * 4 for name in written)
    assert size == saved_bytes(pool, None, weights=weights)


def test_a_scale_multiplies_what_the_layer_adds(pool: ExpertPool) -> None:
    """Against hooks on attention and MLP branches; between them the stream is untouched."""
    wanted = by_hand(pool, [(0, "code"), (1, "code"), (2, "code")])
    places = [(0, "code", -0.5), (1, "code", 1.0), (2, "code", 1.75)]
    for layer, (_, _, scale) in zip(layer_list(wanted), places, strict=True):
        for name, module in layer.named_children():
            if name in BRANCHES[pool.base.config.model_type]:
                module.register_forward_hook(_times(scale))
    found = in_memory(pool, stack(*places).weights(pool))
    torch.testing.assert_close(found, logits(wanted), rtol=1e-4, atol=1e-5)


BRANCHES = {
    "llama": ("self_attn", "mlp"),
    "qwen2": ("self_attn", "mlp"),
    "gpt_neox": ("attention", "mlp"),
    "gpt2": ("attn", "mlp"),
    "gemma2": ("post_attention_layernorm", "post_feedforward_layernorm"),
}


def _times(scale: float) -> Callable[..., Any]:
    def hook(_: nn.Module, __: Any, output: Any) -> Any:
        if isinstance(output, tuple):
            return (scale * output[0], *output[1:])
        return scale * output

    return hook


def test_scaling_is_exact_at_zero_whatever_the_tensor_holds() -> None:
    bad = torch.tensor([torch.inf, torch.nan, 3.0])
    assert torch.equal(scaled(bad, 0.0, 0.0), torch.zeros(3))
    assert torch.equal(scaled(bad, 0.0, 1.0), -torch.ones(3))
    assert torch.equal(scaled(torch.tensor([1.0, -3.0]), 0.5, 1.0), torch.tensor([0.0, -2.0]))


def test_merged_layers_are_those_of_the_merge(llama: ExpertPool) -> None:
    merge = uniform_plan(TaskArithmetic(), Whole(), llama)
    whole = merge.weights(llama)
    plan = stack((1, MERGED), (0, "code"), (1, MERGED, 0.5), outer=MERGED, merged=merge)
    weights = plan.weights(llama)
    assert torch.equal(weights["lm_head.weight"], whole["lm_head.weight"])
    for inside in ("self_attn.q_proj.weight", "mlp.down_proj.weight"):
        merged = whole[f"model.layers.1.{inside}"]
        assert torch.equal(weights[f"model.layers.0.{inside}"], merged)
        half = merged * 0.5 if "down" in inside else merged
        assert torch.equal(weights[f"model.layers.2.{inside}"], half)


def test_what_adapters_leave_alone_comes_from_the_base(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base", num_hidden_layers=LAYERS)
    adapter = builders.lora_adapter(tmp_path / "adapter", base, layers_to_transform=[1])
    pool = ExpertPool.open(str(base), {"lora": str(adapter)})
    assert len(pool.names) == 2
    weights = stack((2, "lora"), (1, "lora"), (1, BASE), (0, "lora")).weights(pool)
    assert not [name for name in weights if "layers" not in name], "the base's head is resident"
    own, name = pool.expert_weights("lora"), "model.layers.{}.self_attn.q_proj.weight"
    for place, tensor in enumerate(
        [
            pool.base[name.format(2)],
            own[name.format(1)],
            *(pool.base[name.format(i)] for i in (1, 0)),
        ]
    ):
        assert torch.equal(weights[name.format(place)], tensor), place
    save_model(pool, weights, tmp_path / "model")
    assert torch.equal(in_memory(pool, weights), logits(loaded(tmp_path / "model")))


def test_shallow_stacks_need_no_tensor_that_is_merged(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base", num_hidden_layers=LAYERS)
    adapter = builders.lora_adapter(tmp_path / "adapter", base, layers_to_transform=[2])
    pool = ExpertPool.open(str(base), {"lora": str(adapter)})
    weights = stack((2, "lora")).weights(pool)
    save_model(pool, weights, tmp_path / "model")
    assert torch.equal(in_memory(pool, weights), logits(loaded(tmp_path / "model")))


def test_the_resident_forgets_stacks_of_any_depth(tmp_path: Path) -> None:
    """Base and experts are scored between stacks, and adapters write few tensors themselves."""
    base = builders.llama(tmp_path / "base", num_hidden_layers=LAYERS)
    adapter = builders.lora_adapter(tmp_path / "adapter", base)
    pool = ExpertPool.open(str(base), {"lora": str(adapter)})
    told = {name: pool.base_tensor(name) for name in pool.names}
    for places in ([(2, BASE)] * 5, [(2, BASE)] * 2, [(2, BASE)] * 3):
        weights = stack(*places).weights(pool)
        resident = Resident.from_pool(pool, device="cpu", dtype=torch.float32, layers=len(places))
        assert torch.equal(logits(resident.module), logits(loaded(base)))
        resident.write(weights)
        assert torch.equal(logits(resident.module), logits(by_hand_of(base, places)))
        assert torch.equal(continued(resident.module), continued(by_hand_of(base, places)))
        resident.write(told)
        assert torch.equal(logits(resident.module), logits(loaded(base)))
        assert torch.equal(continued(resident.module), continued(loaded(base)))
        assert resident.module.config.num_hidden_layers == LAYERS


def by_hand_of(base: Path, places: Sequence[tuple[int, str]]) -> Any:
    model = loaded(base)
    layers = layer_list(model)
    model.model.layers = nn.ModuleList(copy.deepcopy(layers[i]) for i, _ in places)
    model.config.num_hidden_layers = len(places)
    for i, layer in enumerate(model.model.layers):
        layer.self_attn.layer_idx = i
    return model


def test_a_resident_refuses_more_layers_than_it_holds(llama: ExpertPool) -> None:
    deep = stack(*[(0, BASE)] * 5).weights(llama)
    resident = Resident.from_pool(llama, device="cpu", dtype=torch.float32, layers=4)
    with pytest.raises(ValueError, match=r"no parameter or buffer 'model.layers.4"):
        resident.write(deep)


def test_recipe_rebuilds_the_same_bits(llama: ExpertPool, tmp_path: Path) -> None:
    merge = uniform_plan(TaskArithmetic(), Whole(), llama)
    plan = stack((0, MERGED, 0.1), (2, "code"), (2, BASE, 1.9), (1, "prose"), merged=merge)
    recipe = Recipe.of(llama, plan, dtype="bfloat16")
    recipe.save(tmp_path / "recipe.json")
    assert (tmp_path / "recipe.json").stat().st_size < 5000
    again = Recipe.load(tmp_path / "recipe.json")
    assert again.plan == plan
    opened = again.open_pool()
    for out, each, held in (("a", plan, llama), ("b", again.plan, opened)):
        weights = each.weights(held, dtype=again.torch_dtype)
        save_model(held, weights, tmp_path / out, dtype=again.torch_dtype)
    first, second = (tmp_path / out / "model.safetensors" for out in ("a", "b"))
    assert first.read_bytes() == second.read_bytes()
    assert json.loads((tmp_path / "a" / "config.json").read_text())["num_hidden_layers"] == 4


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"places": None}, "a layer stack needs a list of 'places' and a name 'outer'"),
        ({"outer": 3}, "a layer stack needs a list of 'places'"),
        ({"places": [{"layer": 1}]}, "place 0 must have layer, source and scale"),
        ({"places": [{"layer": 1.5, "source": "a", "scale": 1}]}, "layer of place 0 makes no"),
        ({"merged_source": 3}, "'merged_source' must be a plan"),
        ({"behind": 3}, "'behind' is a name"),
        ({"factors": {"model.norm.weight": "big"}}, "factor of model.norm.weight makes no sense"),
    ],
)
def test_broken_recipes_are_refused(change: dict[str, Any], message: str) -> None:
    description = {**stack((0, BASE)).describe(), **change}
    with pytest.raises(ValueError, match=message):
        plan_from_description(description)


@pytest.mark.parametrize(
    ("plan", "message"),
    [
        (stack(), "the layer stack is empty"),
        (stack((3, BASE)), "place 0: there is no layer 3, the base has 3"),
        (stack((0, BASE), (-1, BASE)), "place 1: there is no layer -1"),
        (stack((0, "law")), "place 0: 'law' is no source, expected one of base, code, prose"),
        (stack((0, MERGED)), "'merged' is no source"),
        (stack((0, BASE), outer="law"), "outer: 'law' is no source"),
        (stack((0, BASE, float("nan"))), "scale nan is no finite number"),
    ],
)
def test_senseless_stacks_are_refused(
    llama: ExpertPool, plan: LayerStackPlan, message: str
) -> None:
    with pytest.raises(MergeError, match=message):
        plan.weights(llama)


def test_weights_that_lack_a_layer_are_not_saved(llama: ExpertPool, tmp_path: Path) -> None:
    weights = stack((0, BASE), (1, BASE)).weights(llama)
    weights._names.pop("model.layers.1.mlp.up_proj.weight")
    with pytest.raises(CheckpointError, match=r"lack 1 tensors: model\.layers\.1\.mlp\.up_proj"):
        save_model(llama, weights, tmp_path / "model")


class TestKinds:
    """Gemma 2 as it is: sliding and full attention by turns."""

    @pytest.fixture(scope="class")
    def mixed(self, tmp_path_factory: pytest.TempPathFactory) -> ExpertPool:
        base = gemma2(tmp_path_factory.mktemp("gemma") / "base", num_hidden_layers=4)
        return ExpertPool.open(str(base), builders.experts_of(base, 1))

    def test_layers_of_the_same_kinds_are_searched(
        self, mixed: ExpertPool, tmp_path: Path
    ) -> None:
        weights = stack((2, BASE), (3, BASE), (0, "code", 0.0), (1, BASE)).weights(mixed)
        save_model(mixed, weights, tmp_path / "model")
        assert torch.equal(in_memory(mixed, weights), logits(loaded(tmp_path / "model")))

    @pytest.mark.parametrize("places", [(0, 0, 1, 3, 2), (1, 0), (3, 2, 1, 0)], ids=len)
    def test_layers_take_their_kind_along(
        self, mixed: ExpertPool, places: tuple[int, ...], tmp_path: Path
    ) -> None:
        weights = stack(*((i, "code") for i in places)).weights(mixed)
        save_model(mixed, weights, tmp_path / "model")
        kinds = [mixed.base.config.layer_types[i] for i in places]
        config = json.loads((tmp_path / "model" / "config.json").read_text())
        assert (config["layer_types"], config["num_hidden_layers"]) == (kinds, len(places))
        wanted = by_hand(mixed, [(i, "code") for i in places])
        assert torch.equal(logits(loaded(tmp_path / "model")), logits(wanted))

    def test_a_search_keeps_the_kinds_of_the_base(self, mixed: ExpertPool) -> None:
        """The module in memory was built for them."""
        with pytest.raises(MergeError, match=r"place 1: layer 0 is of kind .*sliding_attention"):
            in_memory(mixed, stack(*[(0, BASE)] * 4).weights(mixed))
        with pytest.raises(MergeError, match=r"depth 3: the configuration tells layers apart"):
            in_memory(mixed, stack((0, BASE), (1, BASE), (2, BASE)).weights(mixed))


class TestRefusedArchitectures:
    def test_encoders_are_not_scaled_but_rearranged(self, tmp_path: Path) -> None:
        base = builders.bert_classifier(tmp_path / "base", kind="encoder")
        heads = builders.bert_classifier(tmp_path / "a", like=base, seed=1)
        pool = ExpertPool.open(str(base), {"a": str(heads)})
        weights = stack((1, "a"), (0, BASE)).weights(pool)
        name = "encoder.layer.{}.output.dense.weight"
        assert torch.equal(weights[name.format(1)], pool.base[name.format(0)])
        with pytest.raises(MergeError, match=r"layers of bert cannot be scaled or skipped"):
            stack((0, "a"), (1, "a", 0.0)).weights(pool)
        with pytest.raises(MergeError, match="classifiers keep the depth of their encoder"):
            stack((0, "a")).weights(pool)

    def test_layers_that_depend_on_their_index(self, tmp_path: Path) -> None:
        base = builders.gpt2(tmp_path / "base", scale_attn_by_inverse_layer_idx=True)
        pool = ExpertPool.open(str(base), builders.experts_of(base, 1))
        with pytest.raises(MergeError, match="scale_attn_by_inverse_layer_idx is set"):
            stack((0, BASE)).weights(pool)

    def test_two_stacks(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = transformers.T5Config(
            vocab_size=64, d_model=16, d_kv=4, d_ff=32, num_layers=2, num_heads=4
        )
        transformers.T5ForConditionalGeneration(config).save_pretrained(tmp_path / "base")
        pool = ExpertPool.open(str(tmp_path / "base"), {"same": str(tmp_path / "base")})
        with pytest.raises(
            MergeError, match=r"one stack of layers, .* has encoder.block, decoder"
        ):
            stack((0, BASE)).weights(pool)

    def test_converted_checkpoints_keep_their_depth(self, tmp_path: Path) -> None:
        torch.manual_seed(0)
        config = transformers.MixtralConfig(
            vocab_size=builders.VOCAB,
            hidden_size=16,
            intermediate_size=16,
            num_hidden_layers=2,
            num_attention_heads=2,
            num_key_value_heads=1,
            num_local_experts=2,
        )
        transformers.MixtralForCausalLM(config).save_pretrained(tmp_path / "base")
        pool = ExpertPool.open(str(tmp_path / "base"), {"same": str(tmp_path / "base")})
        swapped = stack((1, BASE), (0, "same")).weights(pool)
        save_model(pool, swapped, tmp_path / "model")
        assert torch.equal(in_memory(pool, swapped), logits(loaded(tmp_path / "model")))
        deep = stack((1, BASE), (0, "same"), (1, BASE)).weights(pool)
        with pytest.raises(MergeError, match="transformers converts the tensors"):
            save_model(pool, deep, tmp_path / "deep")
