import itertools
import json
import logging
import shutil
from pathlib import Path
from typing import Any

import peft
import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file

from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.lora.low_rank import StackedFactors, low_rank_of
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan
from merging.recipe import Recipe, RecipeError
from merging.weights import CheckpointError
from merging.zoo.store import Zoo
from tests import builders


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.llama(tmp_path_factory.mktemp("llama") / "base")


def merged_by_peft(base: Path, adapter: Path) -> dict[str, torch.Tensor]:
    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    merged = peft.PeftModel.from_pretrained(model, adapter).merge_and_unload()
    state: dict[str, torch.Tensor] = merged.state_dict()
    return state


def pool_of(base: Path, **adapters: Path) -> ExpertPool:
    return ExpertPool.open(str(base), {name: str(path) for name, path in adapters.items()})


def edit(adapter: Path, **changes: Any) -> None:
    file = adapter / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | changes))


KINDS: dict[str, dict[str, Any]] = {
    "plain": {},
    "all linear layers": {"targets": "all-linear", "rank": 2, "alpha": 7},
    "rslora": {"use_rslora": True, "rank": 3},
    "patterns": {
        "targets": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"down_proj": 2, "layers.1.self_attn.q_proj": 6},
        "alpha_pattern": {"q_proj": 5, r"layers\.0\.self_attn\.v_proj": 1},
    },
    "some layers": {"layers_to_transform": [1]},
    "whole modules beside": {"modules_to_save": ["lm_head", "norm"]},
    "embedding": {"targets": ["embed_tokens", "q_proj"]},
}


@pytest.mark.parametrize("kind", KINDS)
def test_deltas_equal_what_peft_merges(llama: Path, tmp_path: Path, kind: str) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama, **KINDS[kind])
    pool = pool_of(llama, lora=adapter)
    expected = merged_by_peft(llama, adapter)
    own = pool.expert_weights("lora")
    assert pool.names
    for name in pool.base:
        delta = expected[name] - pool.base[name]
        if name in pool.names:
            torch.testing.assert_close(pool.deltas(name)[0], delta, rtol=1e-5, atol=1e-6)
            torch.testing.assert_close(own[name], expected[name], rtol=1e-5, atol=1e-6)
        else:
            assert not delta.any(), f"{name} changed, but is not among the merged"


LORA = {"r": 4, "lora_alpha": 6, "target_modules": ["q_proj", "down_proj"]}
FUSED = ["experts.gate_up_proj", "experts.down_proj"]
BY_PEFT: dict[str, tuple[str, str, dict[str, Any]]] = {  # base, kind of adapter, its options
    "dora": ("llama", "Lora", {**LORA, "use_dora": True}),
    "dora transposed": ("gpt2", "Lora", {"target_modules": ["c_attn"], "use_dora": True}),
    "lora bias": ("gpt2", "Lora", {"target_modules": ["c_attn"], "lora_bias": True}),
    "biases trained": ("gpt2", "Lora", {"target_modules": ["c_attn"], "bias": "all"}),
    "pissa": ("llama", "Lora", {**LORA, "init_lora_weights": "pissa"}),
    "stacked experts": ("mixtral", "Lora", {"target_parameters": FUSED, "use_rslora": True}),
    "single tokens": ("tied", "Lora", {**LORA, "trainable_token_indices": [5, 9]}),
    "tied embedding": (
        "tied",
        "Lora",
        {**LORA, "modules_to_save": ["lm_head"], "ensure_weight_tying": True},
    ),
    "ia3": (
        "gpt2",
        "IA3",
        {"target_modules": ["c_attn", "c_fc"], "feedforward_modules": ["c_fc"]},
    ),
    "loha": ("llama", "LoHa", {"r": 4, "alpha": 6, "target_modules": ["q_proj"]}),
    "lokr": ("llama", "LoKr", {"r": 4, "alpha": 6, "target_modules": ["q_proj"]}),
    "vera": ("llama", "Vera", {"r": 4, "target_modules": ["q_proj", "down_proj"]}),
    "oft": ("llama", "OFT", {"oft_block_size": 8, "target_modules": ["q_proj"]}),
    "boft": ("llama", "BOFT", {"boft_block_size": 4, "target_modules": ["q_proj"]}),
    "hra": ("llama", "HRA", {"target_modules": ["q_proj"]}),
    "fourier": ("llama", "FourierFT", {"n_frequency": 50, "target_modules": ["q_proj"]}),
    "adalora": ("llama", "AdaLora", {"total_step": 9, "target_modules": ["q_proj"]}),
    "norms": ("llama", "LNTuning", {"target_modules": ["input_layernorm"]}),
}


@pytest.fixture(scope="module")
def bases(tmp_path_factory: pytest.TempPathFactory, llama: Path) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("bases")
    return {
        "llama": llama,
        "tied": builders.llama(folder / "tied", tie=True),
        "gpt2": builders.gpt2(folder / "gpt2"),
        "mixtral": builders.mixtral(folder / "mixtral"),
    }


@pytest.mark.parametrize("kind", BY_PEFT)
def test_kinds_without_an_exact_product(bases: dict[str, Path], tmp_path: Path, kind: str) -> None:
    """As peft merges them, and as they compute before they are merged."""
    named, cls, options = BY_PEFT[kind]
    base = bases[named]
    config = getattr(peft, f"{cls}Config")(task_type="CAUSAL_LM", **options)
    adapter = builders.adapter(tmp_path / "adapter", base, config)
    pool = pool_of(base, own=adapter)
    own = pool.expert_weights("own")
    expected = merged_by_peft(base, adapter)
    assert pool.names
    for name in pool.base:
        if name in pool.names:
            torch.testing.assert_close(own[name], expected[name], rtol=1e-6, atol=1e-6)
        else:
            assert torch.equal(expected[name], pool.base[name]), name
    tokens = torch.arange(3, 15)[None]
    module = transformers.AutoModelForCausalLM.from_pretrained(base)
    trained = peft.PeftModel.from_pretrained(module, adapter).eval()
    merged = pool.base.module(dtype=torch.float32, device=torch.device("cpu"))
    merged.load_state_dict(dict(own), strict=False)
    with torch.no_grad():
        wanted = trained(input_ids=tokens).logits
        torch.testing.assert_close(merged(input_ids=tokens).logits, wanted, rtol=0, atol=1e-5)


def test_adapter_of_experts_that_were_layers_of_their_own(
    bases: dict[str, Path], tmp_path: Path
) -> None:
    """Files of transformers 4: one pair of factors for each expert's w1, w2 and w3."""
    adapter = builders.lora_adapter(tmp_path / "adapter", bases["mixtral"], targets=["q_proj"])
    edit(adapter, target_modules=["q_proj", "w1", "w2", "w3"])
    tensors = load_file(adapter / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.{}.block_sparse_moe.experts.{}.{}.lora_{}.weight"
    noise = torch.Generator().manual_seed(1)
    products = {}
    for layer, expert, w in itertools.product(range(2), range(4), ("w1", "w2", "w3")):
        wide, narrow = (64, 32) if w != "w2" else (32, 64)
        a, b = (torch.randn(shape, generator=noise) for shape in [(4, narrow), (wide, 4)])
        for side, factor in (("A", a), ("B", b)):
            tensors[stem.format(layer, expert, w, side)] = factor
        products[layer, expert, w] = 2 * b @ a
    save_file(tensors, adapter / "adapter_model.safetensors")
    pool = pool_of(bases["mixtral"], old=adapter)
    for layer, expert in itertools.product(range(2), range(4)):
        up, down = (
            pool.deltas(f"model.layers.{layer}.mlp.experts.{name}")[0][expert]
            for name in ("gate_up_proj", "down_proj")
        )
        both = torch.cat([products[layer, expert, w] for w in ("w1", "w3")])
        torch.testing.assert_close(up, both, rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(down, products[layer, expert, "w2"], rtol=1e-4, atol=1e-5)


def test_kinds_mixed_in_one_pool(llama: Path, tmp_path: Path) -> None:
    lora = builders.lora_adapter(tmp_path / "lora", llama)
    config = peft.IA3Config(
        task_type="CAUSAL_LM", target_modules=["q_proj"], feedforward_modules=[]
    )
    ia3 = builders.adapter(tmp_path / "ia3", llama, config)
    pool = pool_of(llama, lora=lora, ia3=ia3)
    table = {"weight": {"lora": 0.5, "ia3": -1.0}, "scale": 1.0}
    groups = dict.fromkeys(Whole().assign(pool.names).values(), table)
    plan = MergePlan(TaskArithmetic(), Whole(), pool.expert_names, groups)
    assert low_rank_of(plan, StackedFactors(pool)) is None, "written as whole tensors instead"
    recipe = Recipe.of(pool, plan)
    again = Recipe.from_json(recipe.to_json()).open_pool()
    merged, rebuilt = plan.weights(pool), plan.weights(again)
    for name in pool.names:
        assert torch.equal(merged[name], rebuilt[name])
        one, other = pool.deltas(name)
        torch.testing.assert_close(merged[name], pool.base[name] + 0.5 * one - other)
    edit(ia3, init_ia3_weights=False)
    with pytest.raises(RecipeError, match="ia3"):
        recipe.open_pool()


@pytest.mark.parametrize("targets", [["c_attn"], ["c_attn", "c_proj", "c_fc"]])
def test_layers_that_store_their_weight_transposed(tmp_path: Path, targets: list[str]) -> None:
    base = builders.gpt2(tmp_path / "gpt2")
    adapter = builders.lora_adapter(tmp_path / "adapter", base, targets=targets)
    edit(adapter, fan_in_fan_out=False)  # wrong, as often on the hub: the layer's kind decides
    pool = pool_of(base, lora=adapter)
    expected = merged_by_peft(base, adapter)
    for name in pool.names:
        torch.testing.assert_close(
            pool.deltas(name)[0], expected[name] - pool.base[name], rtol=1e-5, atol=1e-6
        )


def test_adapter_of_a_model_whose_names_transformers_changes(tmp_path: Path) -> None:
    base = builders.gpt_neox(tmp_path / "neox")
    adapter = builders.lora_adapter(tmp_path / "adapter", base, targets=["query_key_value"])
    pool = pool_of(base, lora=adapter)
    assert len(pool.names) == 2
    expected = merged_by_peft(base, adapter)
    for name in pool.names:
        torch.testing.assert_close(pool.expert_weights("lora")[name], expected[name])


def test_product_is_exact_and_rounded_once(llama: Path, tmp_path: Path) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama, rank=4, alpha=6)
    factors = load_file(adapter / "adapter_model.safetensors")
    stem = "base_model.model.model.layers.0.self_attn.q_proj.lora_"
    exact = 1.5 * (factors[f"{stem}B.weight"].double() @ factors[f"{stem}A.weight"].double())
    delta = pool_of(llama, lora=adapter).deltas("model.layers.0.self_attn.q_proj.weight")
    assert torch.equal(delta[0], exact.float())


def test_unequal_ranks_and_targets_in_one_pool(llama: Path, tmp_path: Path) -> None:
    one = builders.lora_adapter(tmp_path / "one", llama, rank=2, alpha=4, targets=["q_proj"])
    two = builders.lora_adapter(tmp_path / "two", llama, rank=8, alpha=1, targets=["v_proj"])
    pool = pool_of(llama, one=one, two=two)
    assert {name.split(".")[-2] for name in pool.names} == {"q_proj", "v_proj"}
    deltas = pool.deltas("model.layers.0.self_attn.q_proj.weight")
    assert deltas[0].any()
    assert not deltas[1].any()
    assert pool.select(["two"]).names == pool.names, "every merge must write the same tensors"


def test_adapter_beside_a_whole_expert(llama: Path, tmp_path: Path) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama)
    whole = builders.llama(tmp_path / "whole", like=llama, seed=5)
    pool = pool_of(llama, lora=adapter, whole=whole)
    assert set(pool.names) == set(pool.base)
    assert not pool.deltas("lm_head.weight")[0].any()
    assert pool.deltas("lm_head.weight")[1].any()


def test_factors_in_half_precision(llama: Path, tmp_path: Path) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama)
    file = adapter / "adapter_model.safetensors"
    save_file({name: t.bfloat16() for name, t in load_file(file).items()}, file)
    pool = pool_of(llama, lora=adapter)
    expected = merged_by_peft(llama, adapter)
    for name in pool.names:
        torch.testing.assert_close(pool.expert_weights("lora")[name], expected[name])


def test_identity_counts_scale_but_not_where_the_base_lay(llama: Path, tmp_path: Path) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama)
    (before,) = pool_of(llama, lora=adapter).identities
    edit(adapter, base_model_name_or_path="elsewhere")
    assert pool_of(llama, lora=adapter).identities == (before,)
    edit(adapter, lora_alpha=9)
    assert pool_of(llama, lora=adapter).identities != (before,)


def test_another_name_of_the_base_only_warns(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama)
    edit(adapter, base_model_name_or_path="org/other")
    with caplog.at_level(logging.WARNING):
        pool_of(llama, lora=adapter)
    assert "was trained on 'org/other'" in caplog.text


def test_the_same_base_elsewhere_is_the_base(
    llama: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", llama)
    (tmp_path / "link").symlink_to(llama)
    shutil.copytree(llama, tmp_path / "copy")
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    zoo.add(llama, "base")
    with caplog.at_level(logging.WARNING):
        for named in (tmp_path / "link", tmp_path / "copy", f"zoo:{zoo.directory}/base"):
            edit(adapter, base_model_name_or_path=str(named))
            pool_of(llama, lora=adapter)
    assert "was trained on" not in caplog.text


class TestRefusals:
    @pytest.fixture
    def adapter(self, llama: Path, tmp_path: Path) -> Path:
        return builders.lora_adapter(tmp_path / "adapter", llama)

    @pytest.mark.parametrize(
        ("changes", "message"),
        [
            ({"peft_type": None}, "peft_type None names no kind of adapter"),
            ({"peft_type": "IA3"}, r"cannot be merged by peft|lacks 4 tensors"),
            ({"peft_type": "NEW"}, r"cannot be merged by peft .*NEW"),
            ({"lora_bias": True}, "lacks 4 tensors that its adapter_config.json asks for"),
            ({"layer_replication": [[0, 2], [1, 2]]}, r"lacks \d+ tensors"),
            ({"alora_invocation_tokens": [1]}, "aLoRA does not support merging"),
            ({"init_lora_weights": "corda"}, "init_lora_weights='corda' changed the base's own"),
            ({"task_type": "SEQ_CLS"}, "task_type 'SEQ_CLS' has a head of its own"),
            ({"r": 3}, r"factors of .*q_proj.* have shapes .* says rank 3"),
        ],
    )
    def test_options(
        self, llama: Path, adapter: Path, changes: dict[str, Any], message: str
    ) -> None:
        edit(adapter, **changes)
        with pytest.raises(CheckpointError, match=message):
            pool_of(llama, lora=adapter)

    def test_broken_configuration(self, llama: Path, adapter: Path) -> None:
        (adapter / "adapter_config.json").write_text("[1")
        with pytest.raises(CheckpointError, match=r"adapter_config\.json is no valid JSON"):
            pool_of(llama, lora=adapter)

    def test_base_of_another_size(self, adapter: Path, tmp_path: Path) -> None:
        wide = builders.llama(tmp_path / "wide", hidden_size=64)
        with pytest.raises(
            CheckpointError, match=r"B @ A of .*q_proj.* has shape \(32, 32\), .*another base"
        ):
            pool_of(wide, lora=adapter)

    def test_base_of_another_architecture(self, adapter: Path, tmp_path: Path) -> None:
        neox = builders.gpt_neox(tmp_path / "neox")
        with pytest.raises(
            CheckpointError, match=r"targets 4 tensors that the base .* lacks: model\.layers\.0"
        ):
            pool_of(neox, lora=adapter)

    def test_base_with_fewer_layers(self, adapter: Path, tmp_path: Path) -> None:
        short = builders.llama(tmp_path / "short", num_hidden_layers=1)
        with pytest.raises(CheckpointError, match=r"targets 2 tensors.*lacks: model\.layers\.1"):
            pool_of(short, lora=adapter)

    def test_whole_module_of_another_shape(self, llama: Path, tmp_path: Path) -> None:
        adapter = builders.lora_adapter(tmp_path / "saved", llama, modules_to_save=["lm_head"])
        large = builders.llama(tmp_path / "large", vocab_size=300)
        with pytest.raises(CheckpointError, match=r"lm_head\.weight has shape \(259, 32\)"):
            pool_of(large, lora=adapter)

    def test_tied_tensors(self, tmp_path: Path) -> None:
        tied = builders.llama(tmp_path / "tied", tie=True)
        untied = builders.llama(tmp_path / "untied")
        adapter = builders.lora_adapter(tmp_path / "adapter", untied, targets=["lm_head"])
        with pytest.raises(CheckpointError, match=r"changes lm_head\.weight, which is tied"):
            pool_of(tied, lora=adapter)
        edit(adapter, ensure_weight_tying=True)  # peft would add it twice
        with pytest.raises(CheckpointError, match=r"changes .*, which is tied"):
            pool_of(tied, lora=adapter)

    def test_prompts(self, llama: Path, tmp_path: Path) -> None:
        config = peft.PromptTuningConfig(task_type="CAUSAL_LM", num_virtual_tokens=4)
        adapter = builders.adapter(tmp_path / "prompt", llama, config)
        with pytest.raises(CheckpointError, match="prompts are no part of the weights"):
            pool_of(llama, prompt=adapter)

    def test_half_a_pair(self, llama: Path, adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        tensors.pop(next(name for name in tensors if "lora_B" in name))
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=r"lora_B of .* is missing; save it again"):
            pool_of(llama, lora=adapter)

    def test_no_factors(self, llama: Path, adapter: Path) -> None:
        save_file({}, adapter / "adapter_model.safetensors")
        with pytest.raises(CheckpointError, match="holds no adapter weights"):
            pool_of(llama, lora=adapter)

    def test_missing_weights(self, llama: Path, adapter: Path) -> None:
        (adapter / "adapter_model.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"expected adapter_model\.safetensors"):
            pool_of(llama, lora=adapter)

    def test_truncated_weights(self, llama: Path, adapter: Path, tmp_path: Path) -> None:
        broken = tmp_path / "broken"
        shutil.copytree(adapter, broken)
        file = broken / "adapter_model.safetensors"
        file.write_bytes(file.read_bytes()[:-4])
        with pytest.raises(CheckpointError, match=r"adapter_model\.safetensors is truncated"):
            pool_of(llama, lora=broken)

    def test_not_a_number(self, llama: Path, adapter: Path) -> None:
        file = adapter / "adapter_model.safetensors"
        tensors = load_file(file)
        next(t for name, t in tensors.items() if "lora_B" in name)[0, 0] = float("nan")
        save_file(tensors, file)
        with pytest.raises(CheckpointError, match=r"expert 'lora' .*\(lora_B\) holds 1 values"):
            pool_of(llama, lora=adapter).check_finite()
