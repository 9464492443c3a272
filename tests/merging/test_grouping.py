import json
import re
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import transformers
from torch import nn

from merging.grouping import (
    REST,
    BlockKind,
    Grouping,
    Layers,
    PerTensor,
    Slices,
    Whole,
    describe,
    from_description,
    kind,
    layer_of,
)

_TEXT: dict[str, Any] = {
    "num_hidden_layers": 3,
    "hidden_size": 32,
    "num_attention_heads": 4,
    "intermediate_size": 64,
    "vocab_size": 50,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_IMAGE = {key: value for key, value in _TEXT.items() if "token" not in key and "vocab" not in key}
_ENDS: dict[str, Any] = {"bos_token_id": 1, "eos_token_id": 2}
_T5: dict[str, Any] = {
    "d_model": 32,
    "d_ff": 64,
    "d_kv": 8,
    "num_heads": 4,
    "vocab_size": 50,
    "num_layers": 3,
}


@dataclass(frozen=True)
class Architecture:
    """What a person says of a model: the stacks of layers, and what is inside one layer."""

    cls: type[Any]
    config: Any
    stacks: dict[str, str]  # path -> label
    attention: str
    mlp: str
    rest: str  # of the layers
    layers: int = 3


_GATED = "mlp.gate_proj mlp.up_proj mlp.down_proj"
_FOUR = "self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.o_proj"
_PRE_NORMS = "input_layernorm post_attention_layernorm"
_T5_ATTENTION = " ".join(
    f"layer.{i}.{name}.{part}"
    for i, name in ((0, "SelfAttention"), (1, "EncDecAttention"))
    for part in ("q", "k", "v", "o")
)
ARCHITECTURES = {
    "llama": Architecture(
        transformers.LlamaForCausalLM,
        transformers.LlamaConfig(**_TEXT, num_key_value_heads=2),
        {"model.layers": "layers"},
        attention=_FOUR,
        mlp=_GATED,
        rest=_PRE_NORMS,
    ),
    "qwen2": Architecture(
        transformers.Qwen2ForCausalLM,
        transformers.Qwen2Config(**_TEXT, num_key_value_heads=2),
        {"model.layers": "layers"},
        attention=_FOUR,
        mlp=_GATED,
        rest=_PRE_NORMS,
    ),
    "gpt_neox": Architecture(
        transformers.GPTNeoXForCausalLM,
        transformers.GPTNeoXConfig(**_TEXT),
        {"gpt_neox.layers": "layers"},
        attention="attention.query_key_value attention.dense",
        mlp="mlp.dense_h_to_4h mlp.dense_4h_to_h",
        rest=_PRE_NORMS,
    ),
    "bert": Architecture(
        transformers.BertForSequenceClassification,
        transformers.BertConfig(**_TEXT),
        {"bert.encoder.layer": "layer"},
        attention="attention.self.query attention.self.key attention.self.value "
        "attention.output.dense",
        mlp="intermediate.dense output.dense",
        rest="attention.output.LayerNorm output.LayerNorm",
    ),
    "vit": Architecture(
        transformers.ViTForImageClassification,
        transformers.ViTConfig(**_IMAGE, image_size=8, patch_size=4),
        {"vit.layers": "layers"},
        attention="attention.q_proj attention.k_proj attention.v_proj attention.o_proj",
        mlp="mlp.fc1 mlp.fc2",
        rest="layernorm_before layernorm_after",
    ),
    "gpt2": Architecture(
        transformers.GPT2LMHeadModel,
        transformers.GPT2Config(n_layer=3, n_embd=32, n_head=4, vocab_size=50, **_ENDS),
        {"transformer.h": "h"},
        attention="attn.c_attn attn.c_proj",
        mlp="mlp.c_fc mlp.c_proj",
        rest="ln_1 ln_2",
    ),
    "t5": Architecture(
        transformers.T5ForConditionalGeneration,
        transformers.T5Config(**_T5, feed_forward_proj="gated-gelu"),
        {"encoder.block": "encoder.block", "decoder.block": "decoder.block"},
        attention=f"{_T5_ATTENTION} layer.0.SelfAttention.relative_attention_bias",
        mlp=" ".join(
            f"layer.{i}.DenseReluDense.w{w}" for i in (1, 2) for w in ("i_0", "i_1", "o")
        ),
        rest="layer.0.layer_norm layer.1.layer_norm layer.2.layer_norm",
    ),
    "qwen3": Architecture(
        transformers.Qwen3ForCausalLM,
        transformers.Qwen3Config(**_TEXT, num_key_value_heads=2, head_dim=8),
        {"model.layers": "layers"},
        attention=_FOUR,
        mlp=_GATED,
        rest=f"{_PRE_NORMS} self_attn.q_norm self_attn.k_norm",
    ),
    "gemma2": Architecture(
        transformers.Gemma2ForCausalLM,
        transformers.Gemma2Config(**_TEXT, num_key_value_heads=2, head_dim=8),
        {"model.layers": "layers"},
        attention=_FOUR,
        mlp=_GATED,
        rest=f"{_PRE_NORMS} pre_feedforward_layernorm post_feedforward_layernorm",
    ),
    "mixtral": Architecture(
        transformers.MixtralForCausalLM,
        transformers.MixtralConfig(**_TEXT, num_key_value_heads=2),
        {"model.layers": "layers"},
        attention=_FOUR,
        mlp="mlp.gate mlp.experts.gate_up_proj mlp.experts.down_proj",
        rest=_PRE_NORMS,
    ),
    "opt": Architecture(  # its final norm stands before the layers
        transformers.OPTForCausalLM,
        transformers.OPTConfig(
            hidden_size=32,
            word_embed_proj_dim=32,
            ffn_dim=64,
            num_hidden_layers=3,
            num_attention_heads=4,
            vocab_size=50,
        ),
        {"model.decoder.layers": "layers"},
        attention="self_attn.q_proj self_attn.k_proj self_attn.v_proj self_attn.out_proj",
        mlp="fc1 fc2",
        rest="self_attn_layer_norm final_layer_norm",
    ),
    "distilbert": Architecture(
        transformers.DistilBertForSequenceClassification,
        transformers.DistilBertConfig(dim=32, n_layers=3, n_heads=4, hidden_dim=64, vocab_size=50),
        {"distilbert.transformer.layer": "layer"},
        attention="attention.q_lin attention.k_lin attention.v_lin attention.out_lin",
        mlp="ffn.lin1 ffn.lin2",
        rest="sa_layer_norm output_layer_norm",
    ),
}


def names_of(architecture: Architecture) -> tuple[str, ...]:
    with torch.device("meta"):
        module: nn.Module = architecture.cls(architecture.config)
    return tuple(module.state_dict())


def split(name: str, architecture: Architecture) -> tuple[str, int, str] | None:
    """(stack, index, module inside the layer) by plain prefixes; None outside the layers."""
    for stack in architecture.stacks:
        if name.startswith(f"{stack}."):
            index, _, inside = name.removeprefix(f"{stack}.").partition(".")
            return stack, int(index), re.sub(r"\.(weight|bias)$", "", inside)
    return None


@pytest.fixture(params=ARCHITECTURES, scope="module")
def case(request: pytest.FixtureRequest) -> tuple[Architecture, tuple[str, ...]]:
    architecture = ARCHITECTURES[request.param]
    return architecture, names_of(architecture)


Case = tuple[Architecture, tuple[str, ...]]


class TestArchitectures:
    def test_kind_is_what_a_person_says(self, case: Case) -> None:
        architecture, names = case
        said = {
            module: label
            for label in ("attention", "mlp", "rest")
            for module in getattr(architecture, label).split()
        }
        met = set()
        for name in names:
            place = split(name, architecture)
            if place is None:
                assert kind(name) == REST, name
            else:
                met.add(place[2])
                assert kind(name) == said[place[2]], name
        assert met == set(said)

    def test_block_kind_uses_the_three_kinds(self, case: Case) -> None:
        _, names = case
        groups = BlockKind().assign(names)
        assert tuple(groups) == names
        assert set(groups.values()) == {"attention", "mlp", "rest"}

    def test_layer_of_finds_stack_and_index(self, case: Case) -> None:
        architecture, names = case
        for name in names:
            place = split(name, architecture)
            assert layer_of(name) == (None if place is None else place[:2])

    @pytest.mark.parametrize(
        ("every", "spans"),
        [(1, ["0", "1", "2"]), (2, ["0-1", "0-1", "2"]), (3, ["0-2"] * 3), (7, ["0-2"] * 3)],
    )
    def test_layers_are_labelled_by_their_span(
        self, case: Case, every: int, spans: list[str]
    ) -> None:
        architecture, names = case
        groups = Layers(every=every).assign(names)
        assert tuple(groups) == names
        for name, group in groups.items():
            place = split(name, architecture)
            if place is None:
                assert group == REST
            else:
                assert group == f"{architecture.stacks[place[0]]}.{spans[place[1]]}"

    def test_layers_by_kind_splits_each_layer(self, case: Case) -> None:
        architecture, names = case
        groups = Layers(by_kind=True).assign(names)
        for name, group in groups.items():
            place = split(name, architecture)
            if place is None:
                assert group == REST
            else:
                label = f"{architecture.stacks[place[0]]}.{place[1]}"
                assert group == f"{label}.{kind(name)}"
        assert len(set(groups.values())) == 1 + 3 * architecture.layers * len(architecture.stacks)


def test_encoders_without_head_group_as_inside_their_classifier() -> None:
    for name in ("bert", "vit"):
        architecture = ARCHITECTURES[name]
        names = names_of(architecture)
        prefix = architecture.cls.base_model_prefix + "."
        inside = [n for n in names if n.startswith(prefix)]
        for grouping in (BlockKind(), Layers(2), Layers(by_kind=True)):
            whole = grouping.assign(inside)
            bare = grouping.assign([n.removeprefix(prefix) for n in inside])
            assert list(bare.values()) == list(whole.values())


def test_two_stacks_of_one_name_are_told_apart() -> None:
    names = ("text.encoder.layers.0.a", "vision.encoder.layers.0.a", "head")
    assert list(Layers().assign(names).values()) == [
        "text.encoder.layers.0",
        "vision.encoder.layers.0",
        "rest",
    ]


def test_layers_spans_end_at_the_last_layer_of_their_own_stack() -> None:
    names = [f"encoder.block.{i}.w" for i in range(5)] + ["decoder.block.0.w"]
    assert list(dict.fromkeys(Layers(every=4).assign(names).values())) == [
        "encoder.block.0-3",
        "encoder.block.4",
        "decoder.block.0",
    ]


def test_ten_and_more_layers_are_ordered_by_number() -> None:
    groups = Layers(every=4).assign([f"h.{i}.w" for i in range(12)])
    assert list(dict.fromkeys(groups.values())) == ["h.0-3", "h.4-7", "h.8-11"]


def test_slices_take_along_what_lies_beside_them() -> None:
    """mergekit's rule: embeddings with the first slice, last norm and head with the last."""
    names = ["embed.w", *(f"layers.{i}.{part}.w" for i in range(3) for part in "ab"), "norm.b.w"]
    groups = ["layers.0-1", *["layers.0-1"] * 4, *["layers.2"] * 2, "layers.2"]
    assert list(Slices(2).assign(names).values()) == groups
    parts = ["rest", *["a", "rest"] * 3, "rest"]
    by_part = [f"{group}.{part}" for group, part in zip(groups, parts, strict=True)]
    assert list(Slices(2, ["a."]).assign(names).values()) == [
        b.replace(".a", ".a.") for b in by_part
    ]
    assert set(Slices(None, ["a."]).assign(names).values()) == {"model.rest", "model.a."}


def test_whole_and_per_tensor() -> None:
    names = ("a.weight", "b.weight")
    assert Whole().assign(names) == {"a.weight": "model", "b.weight": "model"}
    assert PerTensor().assign(names) == {"a.weight": "a.weight", "b.weight": "b.weight"}


@pytest.mark.parametrize("every", [0, -1, 1.5, "2"])
def test_every_must_be_a_number_of_layers(every: Any) -> None:
    with pytest.raises(ValueError, match=r"grouping: every is .*, it must be a whole number"):
        Layers(every=every)


@pytest.mark.parametrize(
    "grouping",
    [Whole(), Layers(), Layers(3, by_kind=True), Slices(2, ["mlp"]), BlockKind(), PerTensor()],
)
def test_description_is_read_back(grouping: Grouping) -> None:
    assert from_description(json.loads(json.dumps(describe(grouping)))) == grouping


@pytest.mark.parametrize(
    ("description", "message"),
    [
        (
            {"kind": "Stripes"},
            r"recipe: unknown grouping 'Stripes', expected one of \['BlockKind'",
        ),
        ({}, "recipe: unknown grouping None"),
        ({"kind": "Layers", "each": 2}, r"recipe: grouping Layers: .*'each'"),
        ({"kind": "Layers", "every": 0}, "every is 0"),
    ],
)
def test_wrong_description_is_refused(description: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        from_description(description)
