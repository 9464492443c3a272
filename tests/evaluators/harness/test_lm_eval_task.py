"""lm-eval tasks against lm-eval's own evaluate with its Hugging Face model."""

from __future__ import annotations

import builtins
import copy
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import lm_eval
import numpy as np
import pytest
import torch
import yaml
from lm_eval.models.huggingface import HFLM
from lm_eval.tasks import TaskManager
from transformers import (
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
    PreTrainedTokenizerFast,
)

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.evaluator import ModelInfo
from evaluators.harness.encoding import RequestEncoder
from evaluators.harness.lm_eval_task import LmEvalTask
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, Generate, Generated, Likelihood
from tests import builders
from tests.evaluators.conftest import kick, opened, sentence

WriteLines = Callable[..., str]
ROWS = [
    {
        "question": sentence(i, 4 + i % 5) + " " * (i % 2),
        "choices": ["fox", "lazy dog", "é", "ox"][: 2 + i % 3],
        "label": i % 2,
        "text": sentence(i, 3 + 4 * i),
        "answer": "e",
    }
    for i in range(12)
]


SHOTS = [{**row, "question": f"example {i}"} for i, row in enumerate(ROWS[:5])]


def config(data: str, **changes: Any) -> dict[str, Any]:
    return {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
        **changes,
    }


def kinds(data: str) -> dict[str, dict[str, Any]]:
    """One task for every kind of output, and the awkward ones of each."""
    both = {"aggregation": "mean", "higher_is_better": True}
    generate = {
        "output_type": "generate_until",
        "doc_to_choice": None,
        "doc_to_target": "{{answer}}",
        "generation_kwargs": {"until": ["\n", "qq"], "max_gen_toks": 6, "do_sample": False},
        "metric_list": [{"metric": "exact_match", **both}],
    }
    return {
        "multiple_choice": config(
            data, metric_list=[{"metric": m, **both} for m in ("acc", "acc_norm", "acc_bytes")]
        ),
        "few_shot": config(data, num_fewshot=2, fewshot_config={"samples": SHOTS}),
        "empty_context": config(data, doc_to_text=""),
        "mutual_information": config(data, metric_list=[{"metric": "acc_mutual_info", **both}]),
        "f1": config(
            data,
            doc_to_choice=["fox", "ox"],
            metric_list=[{"metric": "f1", "aggregation": "f1", "higher_is_better": True}],
        ),
        "loglikelihood": config(
            data,
            output_type="loglikelihood",
            doc_to_choice=None,
            doc_to_target=" {{answer}}",
            metric_list=[
                {"metric": "perplexity", "aggregation": "perplexity", "higher_is_better": False},
                {"metric": "acc", **both},
            ],
        ),
        "rolling": config(
            data,
            output_type="loglikelihood_rolling",
            doc_to_text="",
            doc_to_choice=None,
            doc_to_target="{{text}}",
            metric_list=[
                {"metric": "word_perplexity"},
                {"metric": "byte_perplexity"},
                {"metric": "bits_per_byte"},
            ],
        ),
        "generate": config(data, **generate),
        "filters": config(
            data,
            **generate,
            filter_list=[
                {
                    "name": name,
                    "filter": [
                        {"function": "regex", "regex_pattern": pattern},
                        {"function": "take_first"},
                    ],
                }
                for name, pattern in (("strict", "^(.)"), ("loose", "([a-z])"))
            ],
        ),
    }


def theirs(resident: Resident, task: dict[str, Any]) -> dict[str, float]:
    """Scores of lm-eval's own loop and model; names as ours."""
    lm = HFLM(
        pretrained=resident.module,
        tokenizer=resident.info.tokenizer,
        batch_size=4,
        max_length=resident.info.max_length,
        device="cpu",
    )
    loaded = TaskManager(include_defaults=False).load([copy.deepcopy(task)])
    for each in loaded["tasks"].values():
        if each.config.num_fewshot is None:
            each.set_config(key="num_fewshot", value=0)
        each.set_fewshot_seed(seed=1234)
    results = lm_eval.evaluate(lm, loaded, bootstrap_iters=0, log_samples=False)
    found = {
        key: value
        for key, value in results["results"]["toy"].items()
        if "," in key and "stderr" not in key
    }
    filters = {key.split(",")[1] for key in found}
    return {
        key.split(",")[0] if len(filters) == 1 else key.replace(",", "@"): value
        for key, value in found.items()
    }


@pytest.mark.parametrize("kind", list(kinds("")))
def test_scores_equal_lm_evals_also_after_a_change(
    short: Resident, write_lines: WriteLines, kind: str
) -> None:
    """48 tokens: several windows in rolling, cut prompts in few-shot."""
    task = kinds(write_lines(ROWS))[kind]
    evaluator = LmEvalTask(short.info, task=task)
    engine = Engine(short, batch_tokens=500)
    seen = []
    for seed in (0, 1):
        kick(short, seed=seed, scale=0.3)
        scores = evaluator.score(engine.run(evaluator.items.requests))
        expected = theirs(short, task)
        assert set(scores) == set(expected) == set(evaluator.metrics)
        for metric, value in expected.items():
            assert scores[metric].value == pytest.approx(value, rel=1e-5), metric
        seen.append([score.value for score in scores.values()])
        for score in scores.values():
            if score.cases is not None:
                assert score.cases.mean() == pytest.approx(score.value)
    if kind in ("rolling", "loglikelihood"):
        assert seen[0] != seen[1]


@pytest.mark.parametrize("kind", list(kinds("")))
def test_a_subset_scores_as_the_task_on_these_items_alone(
    short: Resident, write_lines: WriteLines, kind: str
) -> None:
    """few_shot apart: a task of other items takes its examples from these."""
    task = kinds(write_lines(ROWS))[kind]
    evaluator, engine = LmEvalTask(short.info, task=task), Engine(short)
    kick(short, seed=2, scale=0.3)
    part = evaluator.subset([1, 2, 3])
    scores = part.score(engine.run(part.items.requests))
    if kind != "few_shot":
        alone = LmEvalTask(short.info, task=task, take="1:4")
        expected = alone.score(engine.run(alone.items.requests))
        assert len(part.items.requests) == len(alone.items.requests)
        assert part.items.digests == alone.items.digests
        for metric, score in expected.items():
            assert scores[metric].value == pytest.approx(score.value, rel=1e-5), metric
    for metric, score in evaluator.score(engine.run(evaluator.items.requests)).items():
        if score.cases is not None:
            assert scores[metric].cases == pytest.approx(score.cases[1:4], rel=1e-5), metric
    turned = evaluator.subset([3, 0])
    for metric, score in turned.score(engine.run(turned.items.requests)).items():
        if score.cases is not None and (cases := scores[metric].cases) is not None:
            assert score.cases[0] == pytest.approx(cases[2], rel=1e-5), metric


def test_answers_equal_lm_evals_text_by_text(llama: Resident, write_lines: WriteLines) -> None:
    task = kinds(write_lines(ROWS))["generate"]
    evaluator = LmEvalTask(llama.info, task=task)
    answers = Engine(llama).run(evaluator.items.requests)
    lm = HFLM(pretrained=llama.module, tokenizer=llama.info.tokenizer, batch_size=5, device="cpu")
    instances = [each for document in evaluator.items.targets for each in document.instances]
    expected = lm.generate_until(instances, disable_tqdm=True)
    assert [each.text for each in answers if isinstance(each, Generated)] == expected


def says(*tokens: int) -> Resident:
    """A model that says one token behind the other, whatever stood before."""
    tokenizer = builders.byte_tokenizer()
    tokenizer.add_special_tokens({"additional_special_tokens": ["<|im_end|>"]})
    size = 264  # one dimension for each token
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=size,
        intermediate_size=8,
        num_hidden_layers=1,
        num_attention_heads=4,
        bos_token_id=1,
        eos_token_id=2,
    )
    module = LlamaForCausalLM(config)
    layer = module.model.layers[0]
    with torch.no_grad():
        module.model.embed_tokens.weight.copy_(torch.eye(size))
        layer.self_attn.o_proj.weight.zero_()
        layer.mlp.down_proj.weight.zero_()
        module.lm_head.weight.zero_()
        for before, after in pairwise(tokens):
            module.lm_head.weight[after, before] = 1
    return Resident(module, tokenizer=tokenizer)


def texts_of_both(resident: Resident, task: dict[str, Any]) -> tuple[list[str], list[str]]:
    """The engine's answers in a batch, and those of lm-eval's model one by one."""
    evaluator = LmEvalTask(resident.info, task=task)
    answers = Engine(resident).run(evaluator.items.requests)
    lm = HFLM(
        pretrained=resident.module,
        tokenizer=resident.info.tokenizer,
        max_length=resident.info.max_length,
        device="cpu",
    )
    instances = [each for document in evaluator.items.targets for each in document.instances]
    return [each.text for each in answers if isinstance(each, Generated)], lm.generate_until(
        instances, disable_tqdm=True
    )


def test_a_special_token_is_a_stop_text(write_lines: WriteLines) -> None:
    resident = says(*(resident_ids := builders.byte_tokenizer().encode("=42")), 259, 70, 71, 72)
    task = kinds(write_lines(ROWS[:2]))["generate"] | {"doc_to_text": "="}
    task["generation_kwargs"] = {"until": ["Question:", "<|im_end|>"], "max_gen_toks": 6}
    assert len(resident_ids) == 3
    ours, theirs = texts_of_both(resident, task)
    assert ours == theirs == ["42", "42"]


@pytest.mark.parametrize(("most", "share"), [(2, 1.0), (3, 0.0), (6, 0.0)])
def test_answers_that_were_cut_off_are_counted(
    write_lines: WriteLines, most: int, share: float
) -> None:
    resident = says(*builders.byte_tokenizer().encode("=42"), 259)
    task = kinds(write_lines(ROWS[:2]))["generate"] | {"doc_to_text": "="}
    task["generation_kwargs"] = {"until": ["<|im_end|>"], "max_gen_toks": most}
    evaluator = LmEvalTask(resident.info, task=task)
    answers = Engine(resident).run(evaluator.items.requests)
    assert evaluator.score(answers)["exact_match"].cut_off == share
    of_a_server = evaluator.score([Generated("42")] * 2)["exact_match"]
    assert of_a_server.cut_off is None
    half = evaluator.score([Generated("42", cut_off=True), Generated("42", cut_off=False)])
    assert half["exact_match"].cut_off == 0.5


GENERATION_CONFIGS: list[dict[str, Any]] = [
    {"repetition_penalty": 1.3},
    {"no_repeat_ngram_size": 2, "suppress_tokens": [104, 72]},
    {"bad_words_ids": [[i] for i in range(3, 259, 3)], "begin_suppress_tokens": [72, 104]},
    {"min_new_tokens": 4, "eos_token_id": list(range(60, 120))},
    {"forced_eos_token_id": 5, "min_length": 30, "eos_token_id": list(range(60, 120))},
    {"exponential_decay_length_penalty": [2, 1.5], "encoder_repetition_penalty": 1.5},
    {"sequence_bias": [[[70], 3.0]], "renormalize_logits": True, "max_new_tokens": 7},
    {"num_beams": 3, "length_penalty": 0.3, "no_repeat_ngram_size": 2},
    {"do_sample": True, "temperature": 0.7, "top_k": 3},  # greedy where the task says so
    {"guidance_scale": 1.5},
]


@pytest.mark.parametrize("own", GENERATION_CONFIGS, ids=lambda own: next(iter(own)))
def test_the_models_generation_config_holds_as_in_lm_eval(
    llama: Resident, write_lines: WriteLines, own: dict[str, Any]
) -> None:
    """Rows of many lengths, padded together, against lm-eval's model one by one."""
    kick(llama, seed=3, scale=0.05)
    task = kinds(write_lines(ROWS[:8]))["generate"]
    task["generation_kwargs"] = {"until": ["\n\n", "qq"], "max_gen_toks": 12}
    plain, _ = texts_of_both(llama, task)
    llama.module.generation_config.update(**own)
    ours, theirs = texts_of_both(llama, task)
    assert ours == theirs
    assert ("do_sample" in own) == (ours == plain)


def test_stop_strings_of_the_model_end_its_texts(llama: Resident, write_lines: WriteLines) -> None:
    """With lm-eval's call transformers refuses them, as it is handed no tokenizer."""
    task = kinds(write_lines(ROWS[:3]))["generate"]
    task["generation_kwargs"] = {"until": [], "max_gen_toks": 9}
    requests = LmEvalTask(llama.info, task=task).items.requests
    plain = [str(answer.text) for answer in Engine(llama).run(requests)]  # type: ignore
    end = plain[0][3]
    llama.module.generation_config.stop_strings = [end]
    ended = [str(answer.text) for answer in Engine(llama).run(requests)]  # type: ignore
    assert ended == [text.partition(end)[0] + end * (end in text) for text in plain]
    assert ended != plain


def test_options_of_the_task_go_before_the_models(
    llama: Resident, write_lines: WriteLines
) -> None:
    task = kinds(write_lines(ROWS[:5]))["generate"]
    more = {"repetition_penalty": 1.4, "num_beams": 2}
    task["generation_kwargs"] = {"until": [""], "max_gen_toks": 5}
    ours, theirs = texts_of_both(llama, task)
    assert ours == theirs
    assert all(len(text) <= 1 for text in ours)  # an empty text stops at once
    task["generation_kwargs"] = {"until": [], "max_gen_toks": 9, **more}
    llama.module.generation_config.repetition_penalty = 0.8
    ours, theirs = texts_of_both(llama, task)
    assert ours == theirs


def test_nothing_is_prepared_again_for_the_second_candidate(
    llama: Resident, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    data = write_lines(ROWS)
    panel = Panel(
        "search",
        {name: LmEvalTask(llama.info, task=kinds(data)[name]) for name in ("few_shot", "rolling")},
    )
    engine = Engine(llama)
    first = panel.evaluate(engine)
    work: list[str] = []

    def count(owner: Any, name: str) -> None:
        real = getattr(owner, name)

        def counted(*args: Any, **options: Any) -> Any:
            work.append(name)
            return real(*args, **options)

        monkeypatch.setattr(owner, name, counted)

    for name in ("encode", "__call__", "_encode_plus", "apply_chat_template"):
        count(PreTrainedTokenizerBase, name)
    count(PreTrainedTokenizerFast, "_encode_plus")
    count(builtins, "open")
    for name in ("open", "write_text", "write_bytes"):
        count(Path, name)
    count(lm_eval.utils, "apply_template")
    kick(llama, seed=4, scale=0.3)
    second = panel.evaluate(engine)
    assert work == []
    assert first["rolling/bits_per_byte"].value != second["rolling/bits_per_byte"].value


def test_generation_reads_no_file_and_encodes_nothing(
    llama: Resident, write_lines: WriteLines, monkeypatch: pytest.MonkeyPatch
) -> None:
    panel = Panel(
        "search", {"gen": LmEvalTask(llama.info, task=kinds(write_lines(ROWS))["filters"])}
    )
    engine = Engine(llama)
    panel.evaluate(engine)

    def refuse(*_: Any, **__: Any) -> None:
        raise AssertionError("prepared again")

    for owner, name in ((PreTrainedTokenizerFast, "_encode_plus"), (builtins, "open")):
        monkeypatch.setattr(owner, name, refuse)
    panel.evaluate(engine)


def test_directions_and_main_metric(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines(ROWS)
    rolling = LmEvalTask(llama.info, task=kinds(data)["rolling"], metric="bits_per_byte")
    assert list(rolling.metrics) == ["bits_per_byte", "word_perplexity", "byte_perplexity"]
    assert set(rolling.metrics.values()) == {"minimize"}
    filters = LmEvalTask(llama.info, task=kinds(data)["filters"])
    rolling = LmEvalTask(llama.info, task=kinds(data)["rolling"], metric="-byte_perplexity")
    assert next(iter(rolling.metrics)) == "byte_perplexity"
    with pytest.raises(ValueError, match=r"a minus .* asks for a worse exact_match@strict"):
        LmEvalTask(llama.info, task=kinds(data)["filters"], metric="-exact_match@strict")
    assert filters.metrics == {"exact_match@strict": "maximize", "exact_match@loose": "maximize"}
    with pytest.raises(
        ValueError, match="'toy' has no metric 'bpb'; it has word_perplexity, byte"
    ):
        LmEvalTask(llama.info, task=kinds(data)["rolling"], metric="bpb")


def test_a_metric_may_name_the_only_filter_and_a_template_be_left_to_the_tokenizer(
    llama: Resident, write_lines: WriteLines
) -> None:
    task = config(write_lines(ROWS))
    built = LmEvalTask(llama.info, task=task, metric="acc@none", apply_chat_template=None)
    assert next(iter(built.metrics)) == "acc"
    with pytest.raises(ValueError, match="has no metric 'acc@strict'; it has acc"):
        LmEvalTask(llama.info, task=task, metric="acc@strict")
    several = kinds(write_lines(ROWS))["filters"]
    several["filter_list"][1]["name"] = "none"
    built = LmEvalTask(llama.info, task=several, metric="exact_match")
    assert next(iter(built.metrics)) == "exact_match@none"


def test_rolling_cases_are_bits_over_mean_bytes(llama: Resident, write_lines: WriteLines) -> None:
    task = kinds(write_lines([{"text": "ab"}, {"text": "cdé"}]))["rolling"]
    evaluator = LmEvalTask(llama.info, task=task, metric="bits_per_byte")
    scores = evaluator.score([Likelihood(-2.0, False), Likelihood(-8.0, False)])
    score = scores["bits_per_byte"]
    assert score.cases == pytest.approx(np.array([2, 8]) / 3 / np.log(2))
    assert score.value == pytest.approx(10 / 6 / np.log(2))
    assert scores["word_perplexity"].cases is None  # exp of a mean
    part = evaluator.subset([1]).score([Likelihood(-8.0, False)])["bits_per_byte"]
    assert part.cases == pytest.approx(score.cases[1:])
    assert part.value == pytest.approx(2 / np.log(2))


def test_a_metric_that_overflows_is_a_failure(llama: Resident, write_lines: WriteLines) -> None:
    task = kinds(write_lines([{"text": "ab"}]))["rolling"]
    with pytest.raises(
        EvaluationError, match=r"'word_perplexity' .* has no value .*OverflowError"
    ):
        LmEvalTask(llama.info, task=task).score([Likelihood(-1e5, False)])


def test_take_and_limit_carve_items(llama: Resident, write_lines: WriteLines) -> None:
    task = kinds(write_lines(ROWS))["multiple_choice"]
    whole = LmEvalTask(llama.info, task=task)
    parts = [LmEvalTask(llama.info, task=task, take=t) for t in ("0:5", "5:9", "9:")]
    assert [item for part in parts for item in part.items.digests] == list(whole.items.digests)
    assert (
        LmEvalTask(llama.info, task=task, take="5:9", limit=2).items.digests
        == whole.items.digests[5:7]
    )
    Panel("search", {"a": parts[0]}).check_apart(Panel("report", {"a": parts[1]}))
    with pytest.raises(ValueError, match="share 4 of 4 items"):
        Panel("search", {"a": parts[1]}).check_apart(Panel("report", {"a": whole}))
    with pytest.raises(ValueError, match="take 5:13 does not fit its 12 items"):
        LmEvalTask(llama.info, task=task, take="5:13")


def test_few_shot_examples_come_from_the_panels_own_items(
    llama: Resident, write_lines: WriteLines
) -> None:
    rows = [{**row, "question": f"number {i:02d}"} for i, row in enumerate(ROWS)]
    task = config(write_lines(rows), num_fewshot=2)
    evaluator = LmEvalTask(llama.info, task=task, take="4:8")
    for place, document in enumerate(evaluator.items.targets):
        prompt = document.instances[0].args[0]
        shown = [i for i in range(12) if f"number {i:02d}" in prompt]
        assert len(shown) == 3
        assert set(shown) <= {4, 5, 6, 7}
        assert prompt.rstrip("\nAnswer:").endswith(f"number {place + 4:02d}")
    with pytest.raises(
        ValueError, match=r"draws its 2 few-shot examples .* only 2 items are taken"
    ):
        LmEvalTask(llama.info, task=task, take="4:6")


@pytest.mark.parametrize("options", [{}, {"limit": 12}, {"limit": 7}, {"split": "test"}])
def test_no_prompt_shows_its_own_answer(
    llama: Resident, write_lines: WriteLines, options: dict[str, Any]
) -> None:
    """Of a whole split the draws are lm-eval's, but for those that hold the item itself."""
    rows = [{**row, "question": f"number {i:02d}"} for i, row in enumerate(ROWS)]
    task = config(write_lines(rows), num_fewshot=2)
    evaluator = LmEvalTask(llama.info, task=task, **options)
    prompts = [str(document.instances[0].args[0]) for document in evaluator.items.targets]
    for i, prompt in enumerate(prompts):
        assert prompt.count("number") == 3
        assert prompt.count(f"number {i:02d}") == 1
    if len(prompts) == len(ROWS):
        own = TaskManager(include_defaults=False).load([copy.deepcopy(task)])["tasks"]["toy"]
        own.set_fewshot_seed(seed=1234)
        drawn = [str(own.fewshot_context(doc, num_fewshot=2)) for doc in own.eval_docs]
        itself = [drawn[i].count(f"number {i:02d}") > 1 for i in range(len(drawn))]
        assert [one == other for one, other in zip(prompts, drawn, strict=True)] == [
            not shown for shown in itself
        ]
        assert any(itself)


def test_a_chat_template_has_lm_evals_default_turns(
    llama: Resident, write_lines: WriteLines
) -> None:
    task = kinds(write_lines(ROWS[:3]))["few_shot"]
    tokenizer = copy.deepcopy(llama.info.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    info = ModelInfo(tokenizer, None, 512)
    evaluator = LmEvalTask(info, task=task, apply_chat_template=True)
    lm = HFLM(pretrained=llama.module, tokenizer=tokenizer, max_length=512, device="cpu")
    results: Any = lm_eval.simple_evaluate(
        lm,
        tasks=[copy.deepcopy(task)],
        task_manager=TaskManager(include_defaults=False),
        apply_chat_template=True,
        bootstrap_iters=0,
    )
    for document, sample in zip(evaluator.items.targets, results["samples"]["toy"], strict=True):
        assert document.instances[0].args[0] == sample["arguments"][0][0]
        assert str(document.instances[0].args[0]).count("[user]") == 3


def test_another_split_of_the_data(llama: Resident, write_lines: WriteLines) -> None:
    files = {
        "test": write_lines(ROWS[:4], "a.jsonl"),
        "validation": write_lines(ROWS[4:], "b.jsonl"),
    }
    task = config("", dataset_kwargs={"data_files": files})
    search = LmEvalTask(llama.info, task=task, split="validation")
    report = LmEvalTask(llama.info, task=task)
    assert (len(search.items), len(report.items)) == (8, 4)
    Panel("search", {"a": search}).check_apart(Panel("report", {"a": report}))
    with pytest.raises(ValueError, match="'toy' has no split 'train'; its data has test, valid"):
        LmEvalTask(llama.info, task=task, split="train")


def test_task_from_a_yaml_directory_or_file(
    llama: Resident, write_lines: WriteLines, tmp_path: Path
) -> None:
    tasks = tmp_path / "tasks"
    tasks.mkdir()
    task = config(write_lines(ROWS), task="own_task")
    (tasks / "own_task.yaml").write_text(yaml.safe_dump(task))
    inline = LmEvalTask(llama.info, task=task)
    by_name = LmEvalTask(llama.info, task="own_task", include_path=str(tasks))
    by_file = LmEvalTask(llama.info, task=str(tasks / "own_task.yaml"))
    assert by_name.items.requests == by_file.items.requests == inline.items.requests


def test_options_reach_the_prompt(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines(ROWS)
    tokenizer = copy.deepcopy(llama.info.tokenizer)
    tokenizer.chat_template = (
        "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}"
        "{% if add_generation_prompt %}[assistant]{% endif %}"
    )
    info = ModelInfo(tokenizer, None, 512)
    evaluator = LmEvalTask(
        info,
        task=kinds(data)["generate"],
        num_fewshot=1,
        apply_chat_template=True,
        fewshot_as_multiturn=True,
        system_instruction="Be brief.",
        gen_kwargs={"max_gen_toks": 9, "until": ["."], "do_sample": True, "temperature": 0.5},
    )
    request = evaluator.items.requests[0]
    assert isinstance(request, Generate)
    prompt = tokenizer.decode(request.prompt)
    assert prompt.startswith("[system]Be brief.")
    assert prompt.count("[user]") == 2
    assert prompt.endswith("[assistant]")
    assert (request.max_new_tokens, request.stop) == (9, (".", "</s>"))
    assert (request.temperature, request.options) == (0.5, ())
    seeds = {each.seed for each in evaluator.items.requests if isinstance(each, Generate)}
    assert len(seeds) == len(ROWS)


def test_repeats_get_seeds_of_their_own(llama: Resident, write_lines: WriteLines) -> None:
    task = kinds(write_lines(ROWS[:2]))["generate"]
    task |= {
        "repeats": 3,
        "generation_kwargs": {"until": [], "max_gen_toks": 3, "do_sample": True, "temperature": 1},
    }
    evaluator = LmEvalTask(llama.info, task=task)
    requests = [each for each in evaluator.items.requests if isinstance(each, Generate)]
    assert len({each.seed for each in requests}) == 6
    scores = evaluator.score([Generated("e")] * 3 + [Generated("x")] * 3)
    assert scores["exact_match"].cases == pytest.approx([1, 0])
    second = evaluator.subset([1])
    assert list(second.items.requests) == requests[3:]
    assert second.score([Generated("x")] * 3)["exact_match"].value == 0


def test_a_second_beginning_of_text_is_not_added() -> None:
    tokenizer = builders.byte_tokenizer(classify=True)  # adds <s> and </s>
    encoder = RequestEncoder(tokenizer, 512)
    assert encoder.tok_encode("ab") == [1, *encoder.tok_encode("ab", add_special_tokens=False), 2]
    assert encoder.tok_encode("<s>ab")[:2] == encoder.tok_encode("ab")[:2]
    assert encoder.tok_encode("<s>ab").count(1) == 1


BAD_TASKS: list[tuple[dict[str, Any], str]] = [
    ({"test_split": "nope"}, r"cannot build task 'toy' \(KeyError: 'nope'\); check its splits"),
    ({"doc_to_text": "{{gone.deep}}"}, r"cannot build task 'toy' \(UndefinedError: 'gone' is und"),
    ({"output_type": "guess"}, r"cannot build task 'toy' \(ValueError: Got invalid output_type"),
    ({"unsafe_code": True}, "executes code that models write; not supported"),
    ({"doc_to_image": ["text"]}, "shows pictures or sound; not supported"),
    (
        {"metric_list": [{"metric": "acc", "aggregation": "mean", "higher_is_better": None}]},
        "metric 'acc' has no direction; set higher_is_better",
    ),
]


@pytest.mark.parametrize(("changes", "message"), BAD_TASKS)
def test_bad_tasks_are_named(
    llama: Resident, write_lines: WriteLines, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        LmEvalTask(llama.info, task=config(write_lines(ROWS), **changes))


def test_missing_and_empty_data_are_named(llama: Resident, tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match=r"data of lm-eval task 'toy' cannot be read \(Unable to f"
    ):
        LmEvalTask(llama.info, task=config(str(tmp_path / "none.jsonl")))
    (tmp_path / "empty.jsonl").write_text("")
    with pytest.raises(ValueError, match="'toy' reads an empty data file"):
        LmEvalTask(llama.info, task=config(str(tmp_path / "empty.jsonl")))


def test_hub_data_out_of_reach_is_named(llama: Resident, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    task = config("", dataset_path="nobody/nothing-evomerge", dataset_kwargs={})
    with pytest.raises(ValueError, match=r"'toy' cannot be read .*run once with network access"):
        LmEvalTask(llama.info, task=task)


def test_bad_options_are_named(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines(ROWS)
    mc, generate = config(data), kinds(data)["generate"]

    def build(task: dict[str, Any], **options: Any) -> None:
        LmEvalTask(llama.info, task=task, **options)

    with pytest.raises(ValueError, match="needs the key 'task', its name"):
        build({"dataset_path": "json"})
    with pytest.raises(
        ValueError, match="gen_kwargs given, but lm-eval task 'toy' generates noth"
    ):
        build(mc, gen_kwargs={"max_gen_toks": 3})
    with pytest.raises(ValueError, match=r"generation options \{'best_of': 4\} are not supported"):
        build(generate, gen_kwargs={"best_of": 4})
    with pytest.raises(ValueError, match="512 new tokens leave no room for a prompt"):
        build(generate, gen_kwargs={"max_gen_toks": 512})
    with pytest.raises(ValueError, match="apply_chat_template is set, and the tokenizer has none"):
        build(mc, apply_chat_template=True)
    with pytest.raises(ValueError, match="fewshot_as_multiturn needs apply_chat_template"):
        build(mc, fewshot_as_multiturn=True)
    with pytest.raises(ValueError, match="'toy' fixes num_fewshot to 0"):
        build(config(data, num_fewshot=0), num_fewshot=2)
    with pytest.raises(ValueError, match="num_fewshot must be at least 0, got -1"):
        build(mc, num_fewshot=-1)
    with pytest.raises(ValueError, match="limit must be at least 1, got 0"):
        build(mc, limit=0)


def test_a_declared_metric_that_never_comes_is_named(
    llama: Resident, write_lines: WriteLines
) -> None:
    task = config(write_lines(ROWS))
    task["metric_list"] = [
        {"metric": m, "aggregation": "mean", "higher_is_better": True} for m in ("acc", "bleu")
    ]
    evaluator = LmEvalTask(llama.info, task=task)
    answers = [Likelihood(-1.0, False)] * len(evaluator.items.requests)
    with pytest.raises(ValueError, match="'toy' declares metric 'bleu' but gives acc"):
        evaluator.score(answers)


@pytest.fixture
def indexed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A small stand-in for lm-eval's own thousands of tasks, whose reading takes seconds."""
    own = tmp_path / "lm_eval_tasks"
    own.mkdir()
    for name in ("arc_easy", "arc_challenge"):
        (own / f"{name}.yaml").write_text(json.dumps(config("", task=name, tag="ai2_arc")))
    (own / "many.yaml").write_text(json.dumps({"group": "many", "task": ["arc_easy"]}))

    def index(include_path: str | None, *, defaults: bool) -> TaskManager:
        paths = [*([str(own)] if defaults else []), *([include_path] if include_path else [])]
        return TaskManager(include_path=paths or None, include_defaults=False)

    monkeypatch.setattr("evaluators.harness.task_files._index", index)
    return own


def test_unknown_tasks_and_groups_are_named(llama: Resident, indexed: Path) -> None:
    with pytest.raises(
        ValueError,
        match=r"'arc_eazy' among its own and no such file; near it are ar.*; of one of your own",
    ):
        LmEvalTask(llama.info, task="arc_eazy")
    with pytest.raises(ValueError, match=r"'ai2_arc' is a group; .*\(arc_challenge, arc_easy\)"):
        LmEvalTask(llama.info, task="ai2_arc")
    with pytest.raises(ValueError, match="'many' is a group; name its tasks one by one"):
        LmEvalTask(llama.info, task="many")


@pytest.mark.parametrize("kind", ["multiple_choice", "loglikelihood", "generate"])
def test_an_encoder_decoder_scores_as_with_lm_eval(
    bases: Path, write_lines: WriteLines, kind: str
) -> None:
    resident = opened(bases / "t5")
    task = kinds(write_lines(ROWS[:4]))[kind]
    evaluator = LmEvalTask(resident.info, task=task)
    answers = Engine(resident).run(evaluator.items.requests)
    lm = HFLM(
        pretrained=resident.module,
        tokenizer=resident.info.tokenizer,
        backend="seq2seq",
        max_length=resident.info.max_length,
        device="cpu",
    )
    instances = [each for document in evaluator.items.targets for each in document.instances]
    if kind == "generate":
        whole = lm.generate_until(instances, disable_tqdm=True)  # the prompt's length longer
        found = [each.text for each in answers if isinstance(each, Generated)]
        assert all(text.startswith(own) for own, text in zip(found, whole, strict=True))
        assert all(found)
    else:
        totals = [total for total, _ in lm.loglikelihood(instances, disable_tqdm=True)]
        assert [each.total for each in answers if isinstance(each, Likelihood)] == pytest.approx(
            totals, rel=1e-4
        )
