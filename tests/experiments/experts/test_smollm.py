"""Experts of a language model: a GGUF file read once, tasks cut honestly, adapters that learn."""

from __future__ import annotations

import json
import os
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.nn.functional import log_softmax
from transformers import AutoModelForCausalLM, AutoTokenizer

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.harness.lm_eval_task import LmEvalTask
from experiments.experts.quickstart.corpus import Document
from experiments.experts.sentences.sentences import EVALUATION_SPLITS
from experiments.experts.smollm import model as packaged
from experiments.experts.smollm import prepare, source, tasks, training
from experiments.experts.smollm.prepare import SmollmSettings
from experiments.experts.smollm.tasks import CHOICES, TASKS, Cut, PromptedAnswer
from experiments.experts.training.language_model import Lora, open_model
from experiments.experts.training.loop import Schedule
from experiments.runs.sources import Sources
from merging.checkpoints import single_files
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.weights import CheckpointError
from tests import builders
from tests.experiments.local import evomerge

SMALL_CUT = Cut(sentence=60, problem=90, chunk=40, texts=6, documents=2)
TINY = SmollmSettings(
    Schedule(steps=2, batch=4), Lora(2, 4, 0.0, ("q_proj", "up_proj")), SMALL_CUT, dtype="float32"
)
REAL = [os.environ.get(name) for name in ("EVOMERGE_SENTENCES", "EVOMERGE_GSM8K")]


def write_gguf(path: Path, model: Any, *, without: str = "") -> Path:
    """Writes a Llama as llama.cpp does: rotated heads interleaved, matrices of the MLP in Q4_1."""
    gguf = pytest.importorskip("gguf", reason=packaged.INSTALL)
    config, quant = model.config, gguf.GGMLQuantizationType.Q4_1
    out = gguf.GGUFWriter(path, "llama")
    out.add_block_count(config.num_hidden_layers)
    out.add_context_length(config.max_position_embeddings)
    out.add_embedding_length(config.hidden_size)
    out.add_feed_forward_length(config.intermediate_size)
    out.add_head_count(config.num_attention_heads)
    out.add_head_count_kv(config.num_key_value_heads)
    out.add_layer_norm_rms_eps(config.rms_norm_eps)
    out.add_rope_freq_base(config.rope_parameters["rope_theta"])
    out.add_vocab_size(config.vocab_size)
    vocab = builders.byte_tokenizer().get_vocab()
    tokens = [*sorted(vocab, key=lambda token: vocab[token]), "12"]
    out.add_tokenizer_model("gpt2")
    out.add_tokenizer_pre("smollm")
    out.add_token_list(tokens)
    out.add_token_types([3] * 3 + [1] * (len(tokens) - 3))
    out.add_token_merges(["1 2"])
    out.add_bos_token_id(1)
    out.add_eos_token_id(2)

    def rotated(weight: Any, heads: int) -> Any:
        return weight.reshape(heads, 2, -1, weight.shape[1]).swapaxes(1, 2).reshape(weight.shape)

    state = {name: tensor.numpy() for name, tensor in model.state_dict().items()}
    out.add_tensor("token_embd.weight", state["model.embed_tokens.weight"])
    out.add_tensor("output_norm.weight", state["model.norm.weight"])
    parts = {"attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj"}
    parts |= {"attn_v": "self_attn.v_proj", "attn_output": "self_attn.o_proj"}
    parts |= {"attn_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm"}
    parts |= {f"ffn_{part}": f"mlp.{part}_proj" for part in ("gate", "up", "down")}
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for layer in range(config.num_hidden_layers):
        for short, long in parts.items():
            weight = state[f"model.layers.{layer}.{long}.weight"]
            name = f"blk.{layer}.{short}.weight"
            if name == without:
                continue
            if long.startswith("mlp"):
                out.add_tensor(name, gguf.quantize(weight, quant), raw_dtype=quant)
            else:
                out.add_tensor(name, rotated(weight, heads[short]) if short in heads else weight)
    out.write_header_to_file()
    out.write_kv_data_to_file()
    out.write_tensors_to_file()
    out.close()
    return path


def test_a_gguf_file_becomes_a_model_directory_once(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = builders.llama(tmp_path / "base", tie=True, vocab_size=builders.VOCAB + 1)
    original = AutoModelForCausalLM.from_pretrained(base)
    file = write_gguf(tmp_path / "tiny.gguf", original)
    folder = single_files.dequantised(file, tmp_path / "cache")
    state = Checkpoint.open(str(folder)).module(dtype=torch.float32, device="cpu").state_dict()
    for name, tensor in original.state_dict().items():
        if ".mlp." in name:  # a step of Q4_1 is a fifteenth of the range of 32 entries
            assert (state[name] - tensor).abs().max() <= 0.6 * (tensor.max() - tensor.min()) / 15
            assert not torch.equal(state[name], tensor)
        else:
            assert torch.equal(state[name], tensor), name
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert tokenizer.tokenize("a 12") == ["a", "Ġ", "1", "2"]  # digits stay apart
    assert tokenizer.decode(tokenizer("a 12").input_ids) == "a 12"
    monkeypatch.setenv("EVOMERGE_CACHE", str(tmp_path / "cache"))
    assert Checkpoint.open(str(file)).path == folder
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / file.name).symlink_to(file)
    assert Checkpoint.open(str(tmp_path / "alone")).path == folder
    monkeypatch.setattr(single_files, "_convert", None)  # a second call must not read it
    assert single_files.dequantised(file, tmp_path / "cache") == folder


def test_a_gguf_file_that_lacks_tensors_is_refused_by_name(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base", tie=True, vocab_size=builders.VOCAB + 1)
    model = AutoModelForCausalLM.from_pretrained(base)
    file = write_gguf(tmp_path / "part.gguf", model, without="blk.1.ffn_up.weight")
    with pytest.raises(CheckpointError, match=r"lacks 1 tensors .*layers\.1\.mlp\.up_proj"):
        single_files.dequantised(file, tmp_path / "cache")


def test_what_is_no_gguf_file_is_refused_by_name(tmp_path: Path) -> None:
    pytest.importorskip("gguf", reason=packaged.INSTALL)
    (tmp_path / "bad.gguf").write_bytes(b"nothing of the kind")
    with pytest.raises(ValueError, match=r"bad\.gguf cannot be read as a GGUF file"):
        single_files.dequantised(tmp_path / "bad.gguf", tmp_path / "cache")


def write_lines(path: Path, rows: list[dict[str, Any]]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, dict[str, Path]]:
    """Six tiny sources; a tenth of the sentences is too long."""
    for task in CHOICES:
        labels = [*tasks._ANSWERS[task][1], *([0] if task == "banking77" else [])]
        for part, count in (("train", 60), ("valid", 40), ("test", 40)):
            rows = [
                {
                    "text": f"{task} {part} {i} {'x' * 60 * (i % 10 == 9)}",
                    "label": labels[i % len(labels)],
                }
                for i in range(count)
            ]
            write_lines(tmp_path / "texts" / task / f"{part}.jsonl", rows)
    for part, count in (("train", 40), ("test", 10)):
        rows = [
            {"question": f"{part} {i} plus 1?", "answer": f"{i}+1 = <<{i}+1={i + 1}>>{i + 1}"}
            for i in range(count)
        ]
        write_lines(tmp_path / "gsm8k" / f"{part}.jsonl", rows)
    documents = [
        Document(f"d{i}", "".join(f"line {j} of document number {i} here\n" for j in range(40)))
        for i in range(30)
    ]
    monkeypatch.setattr(tasks, "read_domains", lambda: dict.fromkeys(tasks.TEXTS, documents))
    return tasks.source_files(str(tmp_path / "texts"), str(tmp_path / "gsm8k"))


def test_no_text_is_in_two_parts_and_report_comes_from_test(
    files: dict[str, dict[str, Path]],
) -> None:
    read = tasks.read_all(files, SMALL_CUT, seed=0)
    assert tuple(task.name for task in read) == TASKS
    for task in read:
        parts = [[e.prompt or e.answer for e in task.train]]
        parts += [
            [item.get("context", item.get("text")) for item in task.held_out[split]]
            for split in EVALUATION_SPLITS
        ]
        assert min(map(len, parts)) >= 2
        assert len(set().union(*parts)) == sum(map(len, parts)), task.name
        if task.name not in tasks.TEXTS:
            assert all(" test " in text for text in parts[-1])
            assert not any("xxx" in text or "<<" in text for part in parts for text in part)
    banking = next(task for task in read if task.name == "banking77")
    words = {example.answer for example in banking.train}
    assert words == {f" {word}" for word in tasks._ANSWERS["banking77"][1].values()}
    first = banking.held_out["report"][0]
    assert first["choices"][first["label"]] in words
    again = tasks.read_all(files, SMALL_CUT, seed=1)
    assert [t.held_out["search"] for t in again] != [t.held_out["search"] for t in read]


def test_missing_files_are_named(tmp_path: Path, files: dict[str, dict[str, Path]]) -> None:
    with pytest.raises(ValueError, match="EVOMERGE_SENTENCES"):
        tasks.source_files(None, None)
    with pytest.raises(ValueError, match="EVOMERGE_GSM8K"):
        tasks.source_files(str(tmp_path / "texts"), None)
    with pytest.raises(ValueError, match=r"maths.*nowhere.train\.jsonl does not exist"):
        tasks.source_files(str(tmp_path / "texts"), "nowhere")
    with pytest.raises(ValueError, match=r"a, b bring no tasks: .* experts=smollm"):
        source.tasks_dir(Sources("x", {"a": "x/y/a", "b": "x/y/b"}))


def test_only_answers_are_learnt(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    tokenizer = AutoTokenizer.from_pretrained(base)
    model = open_model(base, TINY.lora, seed=0, device=torch.device("cpu"))
    examples = [
        PromptedAnswer("What is it?", " good"),
        PromptedAnswer("", "a text"),
        PromptedAnswer("Is it?", " no"),
    ]
    encoded = [training.encode(tokenizer, example) for example in examples]
    losses = []
    with torch.no_grad():
        for tokens, start in encoded:
            log_probs = log_softmax(model(torch.tensor([tokens])).logits[0], dim=-1)
            learnt = range(start, len(tokens))
            losses.append(-np.mean([float(log_probs[i - 1, tokens[i]]) for i in learnt]))
        found = training.answer_loss(model, encoded)
    assert [len(tokens) - start for tokens, start in encoded] == [5, 6, 3]
    assert float(found) == pytest.approx(np.mean(losses), rel=1e-5)


def test_a_killed_training_goes_on_and_its_tasks_are_lm_eval_s(
    tmp_path: Path, files: dict[str, dict[str, Path]], monkeypatch: pytest.MonkeyPatch
) -> None:
    base = builders.llama(tmp_path / "base")
    trained: list[str] = []
    real = training.train

    def dying(*args: Any, label: str, **options: Any) -> None:
        if label == "trec" and trained.count("trec") == 0:
            trained.append(label)
            raise KeyboardInterrupt
        trained.append(label)
        real(*args, label=label, **options)

    monkeypatch.setattr(training, "train", dying)

    def make() -> Sources:
        return prepare.prepare(
            tmp_path / "cache", base=str(base), files=files, settings=TINY, progress=False
        )

    with pytest.raises(KeyboardInterrupt):
        make()
    pool = make()
    assert make() == pool
    assert trained == ["sst2", "subj", "trec", "trec", *TASKS[3:]]
    opened = ExpertPool.open(pool.base, pool.experts)
    assert any("up_proj" in name for name in opened.names)
    module = AutoModelForCausalLM.from_pretrained(base)
    resident = Resident(module, tokenizer=AutoTokenizer.from_pretrained(base))
    folder = source.tasks_dir(pool)
    for name, metric in (("trec", "acc"), ("maths", "bits_per_byte")):
        task = LmEvalTask(resident.info, task=f"smollm_{name}_search", include_path=folder)
        score = task.score(Engine(resident, batch_tokens=512).run(task.items.requests))[metric]
        assert score.cases is not None
        assert len(score.cases) == len(task.items)


@pytest.mark.slow
@pytest.mark.skipif(None in REAL, reason="EVOMERGE_SENTENCES or EVOMERGE_GSM8K is not set")
def test_trial_of_the_real_model(tmp_path: Path) -> None:
    if None in (find_spec(packaged.PACKAGE), find_spec("gguf")):  # importing it needs llama.cpp
        pytest.skip(packaged.INSTALL)
    cache = Path(os.environ.get("EVOMERGE_CACHE", tmp_path / "cache"))
    ended = evomerge(
        *("search", "experiment=smollm", "fast=true", f"runs={tmp_path}/runs"),
        cwd=tmp_path,
        env={"EVOMERGE_CACHE": str(cache)},
        timeout_s=3600,
    )
    assert ended.returncode == 0, ended.stderr
    page = (tmp_path / "runs" / "smollm" / "RESULTS.md").read_text(encoding="utf-8")
    assert "**A trial" in page
    assert all(name in page for name in ("in-hull CMA", "MERGEvolve", "Model Swarms", *TASKS))
