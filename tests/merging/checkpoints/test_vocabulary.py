"""Experts with other tokens: rows are moved by token, checked token by token."""

import json
import logging
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.token_files import united
from merging.grouping import Whole
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan
from merging.recipe import Recipe, RecipeError
from merging.saving.rebuild import rebuild
from merging.saving.save import save_model
from merging.weights import CheckpointError
from tests import builders

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
TEMPLATE = "{% for m in messages %}<|im_start|>{{ m.content }}<|im_end|>{% endfor %}"


def tokenizer(
    pieces: list[str], merges: list[tuple[str, str]], added: list[str], **options: Any
) -> Any:
    """Bytes and more `pieces` in this order of ids, then added tokens."""
    vocab = {token: i for i, token in enumerate(pieces)}
    raw = Tokenizer(models.BPE(vocab=vocab, merges=merges))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    options = {"eos_token": "</s>", "bos_token": "<s>"} | options
    made = transformers.PreTrainedTokenizerFast(tokenizer_object=raw, **options)
    made.add_tokens([AddedToken(token, special=True, normalized=False) for token in added])
    return made


BYTES = sorted(pre_tokenizers.ByteLevel.alphabet())
TOKENIZERS: dict[str, tuple[Any, int]] = {  # and rows of the embedding
    "base": (tokenizer(["<s>", "</s>", *BYTES], [], []), 261),
    "chat": (
        tokenizer(
            ["<s>", "</s>", *BYTES],
            [],
            ["<|im_start|>", "<|im_end|>"],
            eos_token="<|im_end|>",
            pad_token="<|im_start|>",
            chat_template=TEMPLATE,
        ),
        260,
    ),
    "words": (
        tokenizer(
            ["</s>", *BYTES[::-1], "<s>", "th", "the"],
            [("t", "h"), ("th", "e")],
            ["<|im_end|>", "<|rare|>"],
        ),
        270,
    ),
}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_in(tmp_path_factory.mktemp("untied"), tie=False)


@pytest.fixture(scope="module")
def tied(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return models_in(tmp_path_factory.mktemp("tied"), tie=True)


def models_in(root: Path, *, tie: bool) -> Path:
    for seed, (name, (made, size)) in enumerate(TOKENIZERS.items()):
        builders.llama(root / name, seed=seed, tie=tie, vocab_size=size, bos_token_id=0)
        for file in root.glob(f"{name}/tokenizer*"):
            file.unlink()
        made.save_pretrained(root / name)
    return root


def pool_of(folder: Path, rule: str, *experts: str) -> ExpertPool:
    named = {name: str(folder / name) for name in experts or ("chat", "words")}
    return ExpertPool.open(str(folder / "base"), named, vocabulary=rule)


@pytest.mark.parametrize("heads", ["tied", "folder"])
def test_union_token_by_token(request: pytest.FixtureRequest, heads: str) -> None:
    folder: Path = request.getfixturevalue(heads)
    pool = pool_of(folder, "union")
    ids = pool.base.tokenizer().get_vocab()
    assert set(ids) == {token for made, _ in TOKENIZERS.values() for token in made.get_vocab()}
    base = TOKENIZERS["base"][0].get_vocab()
    assert {token: ids[token] for token in base} == base
    new = ["<|im_end|>", "<|im_start|>", "th", "the", "<|rare|>"]
    assert [ids[token] for token in new] == [258, 259, 260, 261, 262]
    states = {name: load_file(folder / name / "model.safetensors") for name in TOKENIZERS}
    for tensor in [EMBEDDING, HEAD] if HEAD in pool.base else [EMBEDDING]:
        given = pool.base[tensor]
        own = {name: pool.expert_weights(name)[tensor] for name in pool.experts}
        assert given.shape == (263, 32)
        for token, i in ids.items():
            rows = {}
            for name, (made, size) in TOKENIZERS.items():
                row = made.get_vocab().get(token, size)
                rows[name] = states[name][tensor][row] if row < size else None
            others = [row for row in (rows["chat"], rows["words"]) if row is not None]
            of_base = torch.stack(others).mean(0) if rows["base"] is None else rows["base"]
            torch.testing.assert_close(given[i], of_base, rtol=1e-6, atol=1e-8)
            for name, merged in own.items():
                expected = given[i] if rows[name] is None else rows[name]
                assert torch.equal(merged[i], expected), (token, name)


def test_rows_of_the_base_are_kept_and_others_are_left_out_by_name(
    folder: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING):
        pool = pool_of(folder, "base", "words")
    assert "'words' has 4 tokens that the base lacks, which are left out ('th', 'the'" in (
        caplog.text
    )
    state = load_file(folder / "words" / "model.safetensors")
    ids = TOKENIZERS["words"][0].get_vocab()
    own, base = pool.expert_weights("words")[EMBEDDING], pool.base[EMBEDDING]
    assert own.shape == (261, 32)
    for token, i in TOKENIZERS["base"][0].get_vocab().items():
        assert torch.equal(own[i], state[EMBEDDING][ids[token]])
    assert torch.equal(own[258:], base[258:]), "padding says nothing"


def test_a_merge_is_saved_with_its_tokenizer_and_rebuilt(tied: Path, tmp_path: Path) -> None:
    pool = pool_of(tied, "union")
    table = {"weight": {"chat": 0.5, "words": 0.25}, "scale": 1.0}
    plan = MergePlan(TaskArithmetic(), Whole(), pool.expert_names, {"model": table})
    save_model(pool, plan.weights(pool), tmp_path / "out")
    recipe = Recipe.from_json(json.loads(json.dumps(Recipe.of(pool, plan).to_json())))
    rebuild(recipe, recipe.open_pool(), tmp_path / "again")
    for file in sorted((tmp_path / "out").iterdir()):
        assert file.read_bytes() == (tmp_path / "again" / file.name).read_bytes(), file.name
    made = transformers.AutoTokenizer.from_pretrained(tmp_path / "out")
    model = transformers.AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert model.config.vocab_size == 263 == len(model.get_input_embeddings().weight)
    assert made.get_vocab() == pool.base.tokenizer().get_vocab()
    assert made.convert_ids_to_tokens(made("the</s>")["input_ids"]) == ["the", "</s>"]
    assert made.decode(made("of the day <|im_end|>")["input_ids"]) == "of the day <|im_end|>"
    assert made.apply_chat_template([{"content": "hi"}], tokenize=False) == (
        "<|im_start|>hi<|im_end|>"
    )
    assert (made.pad_token, made.bos_token, made.eos_token) == (
        "<|im_start|>",
        "<s>",
        "<|im_end|>",
    )
    assert model.generation_config.eos_token_id == [2, 258]
    embedding = model.state_dict()[EMBEDDING]
    torch.testing.assert_close(embedding, plan.weights(pool)[EMBEDDING])


def test_a_recipe_knows_the_tokenizers(folder: Path, tmp_path: Path) -> None:
    pool = pool_of(folder, "union")
    table = {"weight": {"chat": 0.5, "words": 0.25}, "scale": 1.0}
    recipe = Recipe.of(
        pool, MergePlan(TaskArithmetic(), Whole(), pool.expert_names, {"model": table})
    )
    file = folder / "chat" / "tokenizer.json"
    before = file.read_text()
    try:
        file.write_text(before.replace("<|im_start|>", "<|start|>"))
        with pytest.raises(RecipeError, match="tokenizers of base and experts are not those"):
            recipe.open_pool()
    finally:
        file.write_text(before)


def test_equal_tokens_change_nothing(folder: Path, tmp_path: Path) -> None:
    builders.llama(tmp_path / "own", like=folder / "base", seed=4)
    for file in folder.glob("base/tokenizer*"):
        (tmp_path / "own" / file.name).write_bytes(file.read_bytes())
    plain = ExpertPool.open(str(folder / "base"), {"own": str(tmp_path / "own")})
    united = ExpertPool.open(
        str(folder / "base"), {"own": str(tmp_path / "own")}, vocabulary="union"
    )
    assert united.base.rows is None
    assert torch.equal(plain.deltas(EMBEDDING), united.deltas(EMBEDDING))


def test_adapter_on_a_united_base(folder: Path, tmp_path: Path) -> None:
    adapter = builders.lora_adapter(tmp_path / "adapter", folder / "base")
    sources = {"words": str(folder / "words"), "lora": str(adapter)}
    pool = ExpertPool.open(str(folder / "base"), sources, vocabulary="union")
    assert not pool.deltas(EMBEDDING)[1].any()
    assert pool.deltas("model.layers.0.self_attn.q_proj.weight")[1].any()


def model_of(path: Path, added: list[str], size: int, **options: Any) -> str:
    """A Llama of 258 tokens, of `added` ones, and of any number of rows."""
    builders.llama(path, vocab_size=size, bos_token_id=0, seed=size)
    for file in path.glob("tokenizer*"):
        file.unlink()
    tokenizer(["<s>", "</s>", *BYTES], [], added, **options).save_pretrained(path)
    return str(path)


@pytest.mark.parametrize("more", [[], ["<new>"]])
def test_a_token_of_the_base_without_a_row(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, more: list[str]
) -> None:
    """Its row is the expert's under union; under base it is left out by name."""
    base = model_of(tmp_path / "base", ["<pad>"], 258)
    expert = model_of(tmp_path / "expert", ["<pad>", *more], 259 + len(more))
    united = ExpertPool.open(base, {"it": expert}, vocabulary="union")
    wanted = load_file(tmp_path / "expert" / "model.safetensors")[EMBEDDING]
    assert torch.equal(united.base[EMBEDDING][258:], wanted[258:])
    assert torch.equal(united.expert_weights("it")[EMBEDDING], wanted)
    kept = ExpertPool.open(base, {"it": expert}, vocabulary="base")
    assert torch.equal(kept.expert_weights("it")[EMBEDDING], wanted[:258])
    assert "which are left out ('<pad>'" in caplog.text


def test_a_special_token_without_a_row_is_no_part_of_a_union(tmp_path: Path) -> None:
    base = model_of(tmp_path / "base", [], 258)
    odd = {"pad_token": "<x>", "eos_token": "<x>", "chat_template": TEMPLATE}
    expert = model_of(tmp_path / "expert", ["<x>"], 258, **odd)
    pool = ExpertPool.open(base, {"it": expert}, vocabulary="union")
    made = pool.base.tokenizer()
    assert (made.pad_token, made.eos_token, len(made)) == (None, "</s>", 258)
    assert made.chat_template == TEMPLATE


def test_what_differs_beside_the_ids_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    base = model_of(tmp_path / "base", [], 258)
    expert = model_of(tmp_path / "expert", ["<x>"], 259, bos_token="<x>")
    ExpertPool.open(base, {"it": expert}, vocabulary="union")
    assert "has bos_token '<x>', the base '<s>'; tokenizer," in caplog.text


def test_equal_tokens_need_no_vocabulary_of_the_model_s_own(tmp_path: Path) -> None:
    base = builders.llava(tmp_path / "base")
    expert = builders.llava(tmp_path / "expert", like=base, seed=1)
    pool = ExpertPool.open(str(base), {"it": str(expert)}, vocabulary="base")
    assert pool.base.rows is None
    assert pool.vocabulary is not None


LETTERS = list("abefhnot")


def pieces_of(kind: str, words: list[str], added: str) -> Tokenizer:
    if kind == "unigram":
        scored = [(word, -2.0 if len(word) == 1 else -3.0) for word in words]
        made = Tokenizer(models.Unigram([("<unk>", 0.0), *scored], unk_id=0))
    else:
        model = models.WordPiece if kind == "wordpiece" else models.WordLevel
        vocab = {word: i for i, word in enumerate(["<unk>", *words])}
        made = Tokenizer(model(vocab, unk_token="<unk>"))
        made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.add_special_tokens([added])
    return made


@pytest.mark.parametrize(
    ("kind", "text", "cut"),
    [
        ("wordpiece", "the a<x> of<y>", ["the", "a", "<x>", "of", "<y>"]),
        ("wordlevel", "the a<x> of<y>", ["the", "a", "<x>", "of", "<y>"]),
        ("unigram", "thea<x>ofb<y>", ["the", "a", "<x>", "of", "b", "<y>"]),
    ],
)
def test_pieces_of_other_kinds_of_tokenizers(kind: str, text: str, cut: list[str]) -> None:
    """Added tokens keep their ids although new pieces stand behind them."""
    base = pieces_of(kind, [*LETTERS, "the"], "<x>")
    expert = pieces_of(kind, [*LETTERS[::-1], "of"], "<y>")
    own = base.get_vocab()
    ids = own | {"of": len(own), "<y>": len(own) + 1}
    contents = [json.loads(each.to_str()) for each in (base, expert)]
    made = Tokenizer.from_str(json.dumps(united(contents[0], contents[1:], ids)))
    assert made.get_vocab() == ids
    assert made.encode(text).tokens == cut


class TestRefusals:
    def test_by_default(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match=r"has 260 vocabulary entries .* has 261"):
            pool_of(folder, "refuse")

    def test_unknown_rule(self, folder: Path) -> None:
        with pytest.raises(CheckpointError, match="vocabulary=all is unknown: expected refuse"):
            pool_of(folder, "all")

    def test_no_tokenizer(self, folder: Path, tmp_path: Path) -> None:
        builders.llama(tmp_path / "bare", vocab_size=300)
        for file in (tmp_path / "bare").glob("tokenizer*"):
            file.unlink()
        with pytest.raises(CheckpointError, match=r"has 300 rows of tokens.* brings no tokenizer"):
            ExpertPool.open(
                str(folder / "base"), {"bare": str(tmp_path / "bare")}, vocabulary="union"
            )
        with pytest.raises(CheckpointError, match=r"base .* brings no tokenizer"):
            ExpertPool.open(
                str(tmp_path / "bare"), {"bare": str(folder / "base")}, vocabulary="union"
            )
