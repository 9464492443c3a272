"""Tiny real checkpoints on disk: 2 layers, hidden 32, a byte-level tokenizer; no download."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
import transformers
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import PreTrainedModel, PreTrainedTokenizerFast

VOCAB = 259  # three special tokens and 256 bytes
_SIZE: dict[str, Any] = {"num_hidden_layers": 2, "hidden_size": 32, "num_attention_heads": 4}
_TEXT: dict[str, Any] = {"vocab_size": VOCAB, "max_position_embeddings": 512}
_ENDS: dict[str, Any] = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}


def byte_tokenizer(*, classify: bool = False) -> PreTrainedTokenizerFast:
    """One token per byte, ids 3..258; with `classify`, ``<s> text </s>`` as BERT wants it."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: i for i, token in enumerate(["<pad>", "<s>", "</s>", *alphabet])}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    if classify:
        raw.post_processor = processors.TemplateProcessing(
            single="<s> $A </s>", special_tokens=[("<s>", 1), ("</s>", 2)]
        )
    return PreTrainedTokenizerFast(
        tokenizer_object=raw, pad_token="<pad>", bos_token="<s>", eos_token="</s>"
    )


def perturb(model: PreTrainedModel, *, seed: int, scale: float) -> PreTrainedModel:
    """Adds seeded noise of standard deviation `scale` to every float parameter, in place."""
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in model.parameters():
            step = torch.randn(parameter.shape, generator=noise)
            parameter.copy_(parameter.float() + scale * step)
    return model


def save(
    model: PreTrainedModel,
    path: Path,
    *,
    like: Path | None = None,
    seed: int = 0,
    scale: float = 0.02,
    dtype: torch.dtype = torch.float32,
    shards: bool = False,
    classify: bool = False,
) -> Path:
    """Saves `model` (or, with `like`, that checkpoint plus noise of `seed`) with its tokenizer."""
    if like is not None:
        model = perturb(type(model).from_pretrained(like), seed=seed, scale=scale)
    model = model.to(dtype)
    model.save_pretrained(path, max_shard_size="40KB" if shards else "5GB")
    if hasattr(model.config, "vocab_size"):
        byte_tokenizer(classify=classify).save_pretrained(path)
    return path


def llama(path: Path, *, seed: int = 0, tie: bool = False, **options: Any) -> Path:
    """`options` go to `save`, the rest of this file likewise; sizes may be overridden."""
    config, options = _split(options, transformers.LlamaConfig)
    config = {
        **_SIZE,
        **_TEXT,
        **_ENDS,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
    } | config
    torch.manual_seed(seed)
    model = transformers.LlamaForCausalLM(
        transformers.LlamaConfig(**config, tie_word_embeddings=tie)
    )
    return save(model, path, seed=seed, **options)


def qwen2(path: Path, *, seed: int = 0, tie: bool = True, **options: Any) -> Path:
    config, options = _split(options, transformers.Qwen2Config)
    config = {
        **_SIZE,
        **_TEXT,
        **_ENDS,
        "intermediate_size": 64,
        "num_key_value_heads": 2,
    } | config
    torch.manual_seed(seed)
    model = transformers.Qwen2ForCausalLM(
        transformers.Qwen2Config(**config, tie_word_embeddings=tie)
    )
    return save(model, path, seed=seed, **options)


def gpt_neox(path: Path, *, seed: int = 0, **options: Any) -> Path:
    config, options = _split(options, transformers.GPTNeoXConfig)
    config = {**_SIZE, **_TEXT, **_ENDS, "intermediate_size": 64} | config
    torch.manual_seed(seed)
    model = transformers.GPTNeoXForCausalLM(transformers.GPTNeoXConfig(**config))
    return save(model, path, seed=seed, **options)


def gpt2(path: Path, *, seed: int = 0, **options: Any) -> Path:
    """The one whose linear layers are stored transposed (Conv1D)."""
    config, options = _split(options, transformers.GPT2Config)
    sizes = {"n_layer": 2, "n_embd": 32, "n_head": 4, "vocab_size": VOCAB, "n_positions": 512}
    torch.manual_seed(seed)
    model = transformers.GPT2LMHeadModel(transformers.GPT2Config(**sizes | _ENDS | config))
    return save(model, path, seed=seed, **options)


def bert_classifier(
    path: Path, *, num_labels: int = 2, seed: int = 0, kind: str = "classifier", **options: Any
) -> Path:
    """`kind`: ``classifier``, ``encoder`` (no head), ``masked`` (language-model head), or a head
    over ``tokens`` or ``spans``."""
    config, options = _split(options, transformers.BertConfig)
    config = {**_SIZE, **_TEXT, **_ENDS, "intermediate_size": 64} | config
    torch.manual_seed(seed)
    built = transformers.BertConfig(**config, num_labels=num_labels)
    kinds: dict[str, Any] = {
        "classifier": transformers.BertForSequenceClassification,
        "encoder": transformers.BertModel,
        "masked": transformers.BertForMaskedLM,
        "tokens": transformers.BertForTokenClassification,
        "spans": transformers.BertForQuestionAnswering,
    }
    like = options.pop("like", None)
    model = kinds[kind](built)
    if like is not None:  # the base's encoder with noise; the head is new
        encoder = transformers.BertModel.from_pretrained(
            like, add_pooling_layer=kind in ("classifier", "encoder")
        ).to(torch.float32)
        model.base_model.load_state_dict(encoder.state_dict())
        perturb(model, seed=seed, scale=options.pop("scale", 0.02))
    return save(model, path, classify=True, **options)


def sentence_encoder(path: Path, *, like: Path | None = None, seed: int = 0) -> Path:
    """BERT as sentence-transformers saves it, with a dense layer behind the mean of all tokens."""
    bert_classifier(path, kind="encoder", scale=0.2, seed=seed)
    if like is not None:
        save(transformers.BertModel.from_pretrained(like), path, like=like, seed=seed, scale=0.05)
    kinds = {
        "": "Transformer",
        "1_Pooling": "Pooling",
        "2_Dense": "Dense",
        "3_Normalize": "Normalize",
    }
    modules = [
        {"idx": i, "name": str(i), "path": folder, "type": f"sentence_transformers.models.{kind}"}
        for i, (folder, kind) in enumerate(kinds.items())
    ]
    for folder in kinds:
        (path / folder).mkdir(exist_ok=True)
    noise = torch.Generator().manual_seed(7)
    weight = {"linear.weight": torch.randn(16, 64, generator=noise), "linear.bias": torch.ones(16)}
    safetensors.torch.save_file(weight, path / "2_Dense" / "model.safetensors")
    settings: dict[str, Any] = {
        "modules.json": modules,
        "1_Pooling/config.json": {
            "word_embedding_dimension": 32,
            "pooling_mode_cls_token": False,
            "pooling_mode_mean_tokens": True,
            "pooling_mode_max_tokens": True,
        },
        "2_Dense/config.json": {
            "in_features": 64,
            "out_features": 16,
            "bias": True,
            "activation_function": "torch.nn.modules.activation.Tanh",
        },
        "sentence_bert_config.json": {"max_seq_length": 64, "do_lower_case": True},
        "config_sentence_transformers.json": {
            "prompts": {"query": "query: ", "document": ""},
            "similarity_fn_name": "cosine",
        },
    }
    for name, content in settings.items():
        (path / name).write_text(json.dumps(content))
    return path


def vit_classifier(
    path: Path, *, num_labels: int = 2, seed: int = 0, encoder: bool = False, **options: Any
) -> Path:
    """8 x 8 pixels in four patches, with an image processor."""
    config, options = _split(options, transformers.ViTConfig)
    sizes = {**_SIZE, "intermediate_size": 64, "image_size": 8, "patch_size": 4} | config
    torch.manual_seed(seed)
    built = transformers.ViTConfig(**sizes, num_labels=num_labels)
    like = options.pop("like", None)
    model = (
        transformers.ViTModel(built) if encoder else transformers.ViTForImageClassification(built)
    )
    if like is not None:
        source = transformers.ViTModel.from_pretrained(like, add_pooling_layer=encoder)
        model.base_model.load_state_dict(source.to(torch.float32).state_dict())
        perturb(model, seed=seed, scale=options.pop("scale", 0.02))
    save(model, path, **options)
    transformers.ViTImageProcessor(size={"height": 8, "width": 8}).save_pretrained(path)
    return path


def clip(path: Path, *, like: Path | None = None, kind: str = "clip", **options: Any) -> Path:
    """Texts of 24 tokens and images of 8 x 8 pixels; `kind`: ``clip`` or ``siglip``."""
    text = {**_SIZE, **_TEXT, **_ENDS, "intermediate_size": 64, "max_position_embeddings": 24}
    image = {**_SIZE, "intermediate_size": 64, "image_size": 8, "patch_size": 4}
    torch.manual_seed(0)
    model: Any
    if kind == "clip":
        shape: dict[str, Any] = {"projection_dim": 16}
        model = transformers.CLIPModel(
            transformers.CLIPConfig(text_config=text | shape, vision_config=image | shape, **shape)
        )
    else:
        model = transformers.SiglipModel(
            transformers.SiglipConfig(text_config=text, vision_config=image)
        )
    save(perturb(model, seed=0, scale=0.1), path, like=like, **options)
    byte_tokenizer(classify=True).save_pretrained(path)
    size = {"height": 8, "width": 8}
    processor = transformers.CLIPImageProcessor(size=size, crop_size=size)
    processor.save_pretrained(path)
    return path


def llava(path: Path, *, like: Path | None = None, **options: Any) -> Path:
    """Images of 8 x 8 pixels are four tokens ``<image>``."""
    image = {**_SIZE, "intermediate_size": 64, "image_size": 8, "patch_size": 4}
    text = {**_SIZE, **_TEXT, **_ENDS, "intermediate_size": 64, "vocab_size": VOCAB + 1}
    torch.manual_seed(0)
    model = transformers.LlavaForConditionalGeneration(
        transformers.LlavaConfig(
            vision_config={"model_type": "clip_vision_model", **image},
            text_config={"model_type": "llama", **text},
            image_token_id=VOCAB,
            vision_feature_layer=-1,
        )
    )
    save(perturb(model, seed=0, scale=0.2), path, like=like, **options)
    tokenizer = byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<image>"]})
    size = {"height": 8, "width": 8}
    transformers.LlavaProcessor(
        image_processor=transformers.CLIPImageProcessor(size=size, crop_size=size),
        tokenizer=tokenizer,
        patch_size=4,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
    ).save_pretrained(path)
    return path


def encoder_decoder(
    path: Path, *, kind: str = "t5", like: Path | None = None, **options: Any
) -> Path:
    """`kind`: ``t5``, ``bart``, or ``whisper`` for sounds of a second at 16 kHz."""
    torch.manual_seed(0)
    model: Any
    sizes = {"d_model": 32, "encoder_layers": 2, "decoder_layers": 2}
    sizes |= dict.fromkeys(("encoder_attention_heads", "decoder_attention_heads"), 4)
    sizes |= dict.fromkeys(("encoder_ffn_dim", "decoder_ffn_dim"), 64)
    ends = {**_ENDS, "decoder_start_token_id": 2, "vocab_size": VOCAB}
    if kind == "t5":
        t5 = {"d_model": 32, "d_kv": 8, "d_ff": 64, "num_layers": 2, "num_heads": 4}
        model = transformers.T5ForConditionalGeneration(
            transformers.T5Config(**t5, **ends | {"decoder_start_token_id": 0})
        )
    elif kind == "bart":
        model = transformers.BartForConditionalGeneration(
            transformers.BartConfig(**sizes, **ends, max_position_embeddings=128)
        )
    else:
        sounds = {"num_mel_bins": 16, "max_source_positions": 50, "max_target_positions": 64}
        model = transformers.WhisperForConditionalGeneration(
            transformers.WhisperConfig(
                **sizes, **ends, **sounds, suppress_tokens=None, begin_suppress_tokens=None
            )
        )
        transformers.WhisperFeatureExtractor(feature_size=16, chunk_length=1).save_pretrained(path)
    save(perturb(model, seed=0, scale=0.2), path, like=like, classify=kind != "whisper", **options)
    return path


def experts_of(
    base: Path, n: int, scale: float = 0.02, *, names: Sequence[str] = ("code", "prose", "maths")
) -> dict[str, str]:
    """Saves `n` noisy copies of the language model `base` beside it; display name -> path."""
    experts = {}
    for i in range(n):
        name = names[i] if i < len(names) else f"expert{i}"
        model = transformers.AutoModelForCausalLM.from_pretrained(base)
        path = save(perturb(model, seed=100 + i, scale=scale), base.parent / f"{base.name}-{name}")
        experts[name] = str(path)
    return experts


def lora_adapter(
    path: Path,
    base: Path,
    *,
    rank: int = 4,
    alpha: float = 8,
    seed: int = 0,
    targets: Sequence[str] | str = ("q_proj", "v_proj"),
    **options: Any,
) -> Path:
    """A PEFT adapter for the language model `base` with random factors, B too; see LoraConfig."""
    import peft  # slow to import, and only these tests need it

    targets = targets if isinstance(targets, str) else list(targets)
    options = {"task_type": "CAUSAL_LM", **options}
    config = peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, **options)
    return adapter(path, base, config, seed=seed)


def adapter(path: Path, base: Path, config: Any, *, seed: int = 0) -> Path:
    """The same of any kind; `config` is peft's."""
    import peft

    model = transformers.AutoModelForCausalLM.from_pretrained(base)
    wrapped = peft.get_peft_model(model, config)
    noise = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
    wrapped.save_pretrained(path)
    return path


def mixtral(path: Path, *, seed: int = 0, **options: Any) -> Path:
    """The one whose experts are stacked: files hold one matrix each, the module one tensor."""
    torch.manual_seed(seed)
    sizes = {**_SIZE, **_TEXT, **_ENDS, "intermediate_size": 64, "num_key_value_heads": 2}
    config = transformers.MixtralConfig(**sizes, num_local_experts=4)
    return save(transformers.MixtralForCausalLM(config), path, seed=seed, **options)


def _split(options: dict[str, Any], config: type) -> tuple[dict[str, Any], dict[str, Any]]:
    """Parts `options` into what `save` takes and what the architecture's config takes."""
    ours = {"like", "scale", "dtype", "shards"}
    rest = {key: value for key, value in options.items() if key not in ours}
    unknown = [key for key in rest if not hasattr(config(), key)]
    if unknown:
        raise TypeError(f"{config.__name__} knows no {unknown}")
    return rest, {key: value for key, value in options.items() if key in ours}
