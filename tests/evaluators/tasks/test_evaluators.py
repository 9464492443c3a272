"""The contract of every evaluator, and known answers of each."""

from __future__ import annotations

import copy
import dataclasses
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import f1_score
from tokenizers import normalizers

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.evaluator import Evaluator, ModelInfo
from evaluators.harness.lm_eval_task import LmEvalTask
from evaluators.memorization.canary_auc import CanaryAuc
from evaluators.memorization.exposure import Exposure
from evaluators.memorization.extraction import Extraction
from evaluators.memorization.membership import Membership
from evaluators.panel import Panel
from evaluators.requests import Classified, Classify, Likelihood, Loglikelihood
from evaluators.tasks.classification import Accuracy, log_likelihoods, macro_f1, smoothed
from evaluators.tasks.multiple_choice import MultipleChoice
from evaluators.tasks.perplexity import Perplexity
from evaluators.tasks.question_answering import QuestionAnswering
from evaluators.tasks.retrieval import Retrieval
from evaluators.tasks.sentence_similarity import SentenceSimilarity
from evaluators.tasks.text_to_text import TextToText
from evaluators.tasks.token_classification import TokenClassification
from evaluators.tasks.transcription import Transcription
from evaluators.tasks.visual_choice import VisualChoice
from evaluators.tasks.zero_shot import ZeroShot
from experiments.scoring.racing import ItemTable
from search.normalisation import Term
from search.objective import BoundObjective
from search.racing.pairwise import PairedTest
from tests.evaluators.conftest import (
    PAIRS,
    QUERIES,
    QUESTIONS,
    SENTENCES,
    TURNED,
    asked_of_images,
    sentence,
    sounds,
)
from tests.evaluators.memorization import conftest as memorization

WriteLines = Callable[..., str]
TEXTS = [{"text": sentence(i, 4 + 3 * i)} for i in range(6)]
CHOICES = [
    {"question": sentence(i, 5), "choices": ["fox", "lazy dog", "é"], "label": i % 3}
    for i in range(7)
]
CANARIES = [memorization.canary_line(i) for i in range(6)]
MEMORIZATION = ["exposure", "canary_auc", "extraction", "membership"]
LABELLED = [{"text": sentence(i, 3 + i), "label": i % 3} for i in range(8)]


def harness_task(data: str) -> dict[str, Any]:
    return {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {"test": data}},
        "output_type": "multiple_choice",
        "test_split": "test",
        "doc_to_text": "{{question}}",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
    }


def pictures(path: Path, count: int = 6) -> str:
    draw = np.random.default_rng(0)
    images = draw.integers(0, 255, (count, 12, 12, 3)).astype(np.uint8)
    np.savez(path / "images.npz", images=images, labels=np.arange(count) % 4)
    return str(path / "images.npz")


@pytest.fixture(
    params=[
        "perplexity",
        "multiple_choice",
        "text",
        "images",
        "tokens",
        "spans",
        "similarity",
        "retrieval",
        "zero_shot",
        "text_to_text",
        "transcription",
        "visual_choice",
        "lm_eval",
        *MEMORIZATION,
    ]
)
def case(
    request: pytest.FixtureRequest, write_lines: WriteLines, tmp_path: Path
) -> tuple[Evaluator, Resident]:
    """An evaluator, and a model it can ask."""
    kind = request.param
    fixture = {
        **{"text": "bert", "images": "vit", "tokens": "heads", "spans": "heads"},
        **dict.fromkeys(("similarity", "retrieval"), "embedder"),
        **{"zero_shot": "clip", "text_to_text": "t5", "transcription": "whisper"},
        "visual_choice": "llava",
    }
    resident: Resident = request.getfixturevalue(fixture.get(kind, "llama"))
    info = resident.info
    build: dict[str, Callable[[], Evaluator]] = {
        "perplexity": lambda: Perplexity(info, data=write_lines(TEXTS)),
        "multiple_choice": lambda: MultipleChoice(info, data=write_lines(CHOICES)),
        "text": lambda: Accuracy(info, data=write_lines(LABELLED), head="sentiment"),
        "images": lambda: Accuracy(info, data=pictures(tmp_path), head="digits"),
        "tokens": lambda: TokenClassification(info, data=write_lines(SENTENCES), head="tokens"),
        "spans": lambda: QuestionAnswering(info, data=write_lines(QUESTIONS), head="spans"),
        "similarity": lambda: SentenceSimilarity(info, data=write_lines(PAIRS)),
        "retrieval": lambda: Retrieval(info, data=write_lines(QUERIES)),
        "zero_shot": lambda: ZeroShot(info, data=pictures(tmp_path), classes=list("abcd")),
        "text_to_text": lambda: TextToText(info, data=write_lines(TURNED), max_new_tokens=3),
        "transcription": lambda: Transcription(
            info, data=write_lines(sounds(tmp_path, count=5)), max_new_tokens=3
        ),
        "visual_choice": lambda: VisualChoice(
            info, data=write_lines(asked_of_images(tmp_path, 5))
        ),
        "lm_eval": lambda: LmEvalTask(info, task=harness_task(write_lines(CHOICES))),
        "exposure": lambda: Exposure(info, data=write_lines(CANARIES)),
        "canary_auc": lambda: CanaryAuc(info, data=write_lines(CANARIES)),
        "extraction": lambda: Extraction(info, data=write_lines(CANARIES), samples=2),
        "membership": lambda: Membership(info, data=write_lines(memorization.TEXTS)),
    }
    return build[kind](), resident


def _compares(evaluator: Evaluator, metric: str) -> bool:
    """Whether an item's case rests on the others, which racing refuses."""
    rests = ("macro_f1", "entity_f1", "spearman", "smooth_accuracy")
    return isinstance(evaluator, Membership) or metric in rests


class TestContract:
    def test_is_an_evaluator(self, case: tuple[Evaluator, Resident]) -> None:
        assert isinstance(case[0], Evaluator)

    def test_scores_are_the_declared_metrics(self, case: tuple[Evaluator, Resident]) -> None:
        evaluator, resident = case
        scores = evaluator.score(Engine(resident).run(evaluator.items.requests))
        assert set(scores) == set(evaluator.metrics)
        assert all(math.isfinite(score.value) for score in scores.values())
        main = scores[next(iter(evaluator.metrics))]
        assert main.cases is not None

    def test_cases_have_one_number_per_item(self, case: tuple[Evaluator, Resident]) -> None:
        evaluator, resident = case
        for score in evaluator.score(Engine(resident).run(evaluator.items.requests)).values():
            if score.cases is not None:
                assert score.cases.shape == (len(evaluator.items),)
                assert score.cases.dtype == np.float64
                assert score.cases.mean() == pytest.approx(score.value, rel=1e-9)

    def test_twice_the_same(self, case: tuple[Evaluator, Resident]) -> None:
        evaluator, resident = case
        engine = Engine(resident)
        first = evaluator.score(engine.run(evaluator.items.requests))
        second = evaluator.score(engine.run(evaluator.items.requests))
        for metric, score in first.items():
            assert score.value == second[metric].value
            if score.cases is not None:
                assert np.array_equal(score.cases, second[metric].cases)

    def test_requests_are_the_same_objects(self, case: tuple[Evaluator, Resident]) -> None:
        assert case[0].items.requests is case[0].items.requests

    def test_items_differ(self, case: tuple[Evaluator, Resident]) -> None:
        assert len(set(case[0].items.digests)) == len(case[0].items)

    def test_a_subset_is_the_full_one_restricted(self, case: tuple[Evaluator, Resident]) -> None:
        evaluator, resident = case
        places = [4, 0, 3]
        part = evaluator.subset(places)
        each = len(evaluator.items.requests) // len(evaluator.items)
        kept = [place * each + i for place in places for i in range(each)]
        assert part.items.digests == tuple(evaluator.items.digests[i] for i in places)
        for mine, number in zip(part.items.requests, kept, strict=True):
            assert mine is evaluator.items.requests[number]  # nothing is tokenised again
        responses = Engine(resident).run(evaluator.items.requests)
        whole = evaluator.score(responses)
        scores = part.score([responses[number] for number in kept])
        asked = part.score(Engine(resident).run(part.items.requests))
        assert list(scores) == list(whole) == list(part.metrics)
        for metric, score in scores.items():
            assert asked[metric].value == pytest.approx(score.value, rel=1e-5)
            cases = whole[metric].cases
            if cases is not None and not _compares(evaluator, metric):
                assert score.cases is not None
                assert np.array_equal(score.cases, cases[places])
        for metric, score in evaluator.score(responses).items():
            assert score.value == whole[metric].value

    def test_places_of_a_subset_are_checked(self, case: tuple[Evaluator, Resident]) -> None:
        evaluator, count = case[0], len(case[0].items)
        with pytest.raises(ValueError, match=r"a subset of .* needs at least one item"):
            evaluator.subset([])
        for outside in (-1, count):
            with pytest.raises(ValueError, match=rf"0 to {count - 1}, a subset names {outside}"):
                evaluator.subset([0, outside])
        with pytest.raises(ValueError, match=r"a subset of .* names item 2 more than once"):
            evaluator.subset([2, 1, 2])

    def test_leaves_weights_mode_and_noise_alone(self, case: tuple[Evaluator, Resident]) -> None:
        evaluator, resident = case
        torch.manual_seed(3)
        noise = torch.get_rng_state()
        weights = {n: t.clone() for n, t in resident.module.state_dict().items()}
        evaluator.score(Engine(resident).run(evaluator.items.requests))
        assert torch.equal(torch.get_rng_state(), noise)
        assert not resident.module.training
        assert all(torch.equal(t, weights[n]) for n, t in resident.module.state_dict().items())


def test_perplexity_of_a_uniform_model(llama: Resident, write_lines: WriteLines) -> None:
    """259 equal tokens, one for each byte: log2 259 bits per byte, perplexity 259."""
    llama.write({"lm_head.weight": torch.zeros(259, 32)})
    evaluator = Perplexity(llama.info, data=write_lines(TEXTS))
    scores = evaluator.score(Engine(llama).run(evaluator.items.requests))
    assert scores["bits_per_byte"].value == pytest.approx(math.log2(259), rel=1e-6)
    assert scores["perplexity"].value == pytest.approx(259, rel=1e-6)
    sizes = np.array([len(text["text"]) for text in TEXTS])
    expected = math.log2(259) * sizes / sizes.mean()
    assert scores["bits_per_byte"].cases == pytest.approx(expected, rel=1e-6)


def test_perplexity_is_weighted_by_tokens(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines([{"text": "ab"}, {"text": "cdéf"}])  # 2 and 5 bytes
    evaluator = Perplexity(llama.info, data=data)
    scores = evaluator.score([Likelihood(-2.0, False), Likelihood(-10.0, False)])
    assert scores["perplexity"].value == pytest.approx(math.exp(12 / 7))
    assert scores["bits_per_byte"].value == pytest.approx(12 / 7 / math.log(2))
    parts = np.array([2, 10]) / 3.5 / math.log(2)  # bits over the mean bytes
    assert scores["bits_per_byte"].cases == pytest.approx(parts)


def test_a_race_keeps_the_best_where_gains_vary_with_length(
    llama: Resident, write_lines: WriteLines
) -> None:
    """Candidates that are better on long or on short documents, and equal on all their bytes."""
    rng = np.random.default_rng(5)
    sizes = np.exp(rng.normal(4, 1, 200)).round().clip(4, 500).astype(int)
    texts = [{"text": "".join(map(chr, rng.integers(97, 123, size)))} for size in sizes]
    evaluator = Perplexity(llama.info, data=write_lines(texts))
    term = Term("text", "text/bits_per_byte", -1.0)
    table = ItemTable(Panel("search", {"text": evaluator}), BoundObjective((term,), (1.0,)))
    assert len(evaluator.items.requests) == 200
    far = np.log(sizes) - np.average(np.log(sizes), weights=sizes)
    races, lost, asked = 120, 0, 0
    for seed in range(races):
        rates = 2 + rng.normal(0, 0.3, 200) + rng.normal(0, 0.1, (4, 1)) * far
        rates = rates + 0.1 * rng.normal(size=(4, 200))  # bits per byte of each document
        scores = [
            evaluator.score([Likelihood(-bits * math.log(2), False) for bits in of_one * sizes])
            for of_one in rates
        ]
        values = [score["bits_per_byte"].value for score in scores]
        cases = np.stack([-c for s in scores if (c := s["bits_per_byte"].cases) is not None])
        race = PairedTest().race(4, seed, [], table.strata, 0, table.sizes)
        staying = [0, 1, 2, 3]
        for stage, places in enumerate(race.stages[:-1]):
            staying = race.staying(stage, {n: cases[n][places] for n in staying})
        lost += int(np.argmin(values)) not in staying
        asked += len(staying)
    assert lost / races <= 0.05
    assert asked < 0.8 * 4 * races  # it drops others


@pytest.mark.parametrize(("window", "context"), [(None, 1), (20, 1), (20, 10), (7, 6)])
def test_windows_score_every_token_once(
    short: Resident, write_lines: WriteLines, window: int | None, context: int
) -> None:
    data = write_lines([{"text": sentence(1, 40)}])
    evaluator = Perplexity(short.info, data=data, window=window, context=context)
    requests = list(evaluator.items.requests)
    scored = [token for request in requests for token in request.continuation]
    assert scored == short.info.tokenizer.encode(sentence(1, 40))
    assert requests[0].context == (1,)  # beginning of text
    for request in requests[1:]:
        assert len(request.context) >= context
        assert len(request.context) + len(request.continuation) == (window or 48) + 1


def test_perplexity_of_a_subset_counts_the_windows_of_its_documents(
    short: Resident, write_lines: WriteLines
) -> None:
    data = write_lines(TEXTS)
    alone = [Perplexity(short.info, data=data, window=20, take=f"{i}:{i + 1}") for i in range(6)]
    part = Perplexity(short.info, data=data, window=20).subset([5, 0])
    requests = [*alone[5].items.requests, *alone[0].items.requests]
    assert list(part.items.requests) == requests
    assert len(alone[5].items.requests) > 2
    answers = [Likelihood(-0.5 - 0.1 * i, False) for i in range(len(requests))]
    scores, total = part.score(answers), -sum(answer.total for answer in answers)
    tokens = sum(len(request.continuation) for request in requests)
    size = sum(len(TEXTS[i]["text"].encode()) for i in (5, 0))
    assert scores["perplexity"].value == pytest.approx(math.exp(total / tokens))
    assert scores["bits_per_byte"].value == pytest.approx(total / math.log(2) / size)
    assert scores["bits_per_byte"].cases is not None
    last = -sum(answer.total for answer in answers[len(alone[5].items.requests) :])
    expected = last / math.log(2) / np.mean([len(text["text"]) for text in TEXTS])
    assert scores["bits_per_byte"].cases[1] == pytest.approx(expected)


def test_metrics_of_all_items_are_computed_on_the_subset(
    bert: Resident, llama: Resident, write_lines: WriteLines
) -> None:
    data = write_lines(LABELLED)
    labels = np.array([int(row["label"]) for row in LABELLED])
    draw, places = np.random.default_rng(1), [6, 1, 2, 3]
    logits = draw.normal(size=(8, 3))
    part = Accuracy(bert.info, data=data, head="topic").subset(places)
    scores = part.score([Classified(logits[place]) for place in places])
    expected = f1_score(labels[places], logits[places].argmax(axis=1), average="macro")
    assert scores["macro_f1"].value == pytest.approx(expected)
    assert scores["accuracy"].value == (labels == logits.argmax(axis=1))[places].mean()
    quiz = [{**row, "choices": row["choices"][: 2 + i % 2]} for i, row in enumerate(CHOICES)]
    quiz = [{**row, "label": 1} for row in quiz]  # questions with 2 and with 3 answers
    asked = MultipleChoice(llama.info, data=write_lines(quiz, "quiz.jsonl")).subset([3, 0])
    totals = [-3.0, -1.0, -2.0, -1.0, -2.0]
    scores = asked.score([Likelihood(total, False) for total in totals])
    assert scores["acc"].cases == pytest.approx([1, 0])


def test_text_file_is_one_document(llama: Resident, tmp_path: Path) -> None:
    (tmp_path / "book.test.txt").write_text("one\n\ntwo\n")
    data = str(tmp_path / "book.{split}.txt")
    evaluator = Perplexity(llama.info, data=data, split="test")
    assert len(evaluator.items) == 1
    assert len(evaluator.items.requests[0].continuation) == 9
    assert evaluator.items.source.endswith("book.test.txt[0:1]")


def test_take_and_max_items_choose_documents(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines(TEXTS)
    everything = Perplexity(llama.info, data=data)
    some = Perplexity(llama.info, data=data, take="2:5", max_items=2)
    assert some.items.digests == everything.items.digests[2:4]
    assert some.items.source.endswith("[2:4]")


def test_multiple_choice_known_answer(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines(
        [
            {"question": "q1", "choices": ["a", "bbbb"], "label": 1},
            {"question": "q2", "choices": ["a", "b", "c"], "label": 2},
        ]
    )
    evaluator = MultipleChoice(llama.info, data=data)
    answers = [Likelihood(total, False) for total in (-2.0, -4.0, -1.0, -2.0, -3.0)]
    scores = evaluator.score(answers)
    assert scores["acc"].value == 0.0
    assert scores["acc_norm"].value == 0.5  # -4 / 4 characters beats -2 / 1 character
    assert scores["acc_norm"].cases == pytest.approx([1, 0])
    first = evaluator.items.requests[0]
    assert first == Loglikelihood(
        tuple(llama.info.tokenizer.encode("q1")), tuple(llama.info.tokenizer.encode(" a"))
    )


def test_multiple_choice_is_lm_evals_on_every_alphabet(
    llama: Resident, write_lines: WriteLines
) -> None:
    """Answers of one to three bytes a character, whose order by either length differs."""
    rows = [
        {
            "question": sentence(i, 3),
            "choices": ["é" * (1 + i % 5), "ox" * 3, "語語"],
            "label": i % 3,
        }
        for i in range(9)
    ]
    data, kinds = write_lines(rows), ("acc", "acc_norm", "acc_bytes")
    listed = [{"metric": m, "aggregation": "mean", "higher_is_better": True} for m in kinds]
    theirs = LmEvalTask(llama.info, task={**harness_task(data), "metric_list": listed})
    ours = MultipleChoice(llama.info, data=data)
    draw, differ = np.random.default_rng(0), False
    for _ in range(9):
        answers = [Likelihood(float(-draw.exponential(9)), False) for _ in range(27)]
        expected, scores = theirs.score(answers), ours.score(answers)
        assert list(scores) == list(kinds)
        for metric in kinds:
            assert scores[metric].cases == pytest.approx(expected[metric].cases)
        differ |= scores["acc_norm"].value != scores["acc_bytes"].value
    assert differ


def test_a_text_that_leaves_no_token_is_named(llama: Resident, write_lines: WriteLines) -> None:
    tokenizer = copy.deepcopy(llama.info.tokenizer)
    tokenizer.backend_tokenizer.normalizer = normalizers.Replace("\u200b", "")
    info = dataclasses.replace(llama.info, tokenizer=tokenizer)
    data = write_lines([{"text": "a", "member": True}, {"text": "\u200b", "member": False}])
    for build in (Perplexity, Membership):
        with pytest.raises(ValueError, match=r"data\.jsonl line 2: the tokenizer leaves no token"):
            build(info, data=data)
    quiz = write_lines([{"question": "q", "choices": ["a", "\u200b"], "label": 0}], "quiz.jsonl")
    with pytest.raises(ValueError, match=r"quiz\.jsonl line 1: an answer has no token"):
        MultipleChoice(info, data=quiz, delimiter="")


def test_accuracy_reads_each_tasks_own_head(bert: Resident, write_lines: WriteLines) -> None:
    data = write_lines(LABELLED)
    for head in ("sentiment", "topic"):
        evaluator = Accuracy(bert.info, data=data, head=head)
        scores = evaluator.score(Engine(bert).run(evaluator.items.requests))
        right = []
        for row in LABELLED:
            inputs = bert.info.tokenizer(row["text"], return_tensors="pt")
            with torch.no_grad():
                answer = bert.classifiers[head](**inputs).logits.argmax()
            right.append(float(answer == row["label"]))
        assert scores["accuracy"].cases == pytest.approx(right)


def test_macro_f1_equals_sklearn() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        labels, answers = draw.integers(0, 5, 12), draw.integers(0, 5, 12)
        expected = f1_score(labels, answers, average="macro")
        assert macro_f1(labels, answers) == pytest.approx(expected)
        with_all = f1_score(labels, answers, average="macro", labels=range(7), zero_division=0)
        assert macro_f1(labels, answers, range(7)) == pytest.approx(with_all)


def test_classification_known_answer(bert: Resident, write_lines: WriteLines) -> None:
    evaluator = Accuracy(bert.info, data=write_lines(LABELLED[:3]), head="topic")
    logits = np.eye(3)[[0, 1, 1]]
    scores = evaluator.score([Classified(row) for row in logits])
    assert scores["accuracy"].value == pytest.approx(2 / 3)
    assert scores["macro_f1"].value == pytest.approx((1 + 2 / 3 + 0) / 3)


def test_log_likelihood_equals_torch_and_survives_large_logits() -> None:
    draw = np.random.default_rng(0)
    logits, labels = draw.normal(0, 5, (40, 4)), draw.integers(0, 4, 40)
    expected = torch.log_softmax(torch.from_numpy(logits), 1)[torch.arange(40), labels].numpy()
    np.testing.assert_allclose(log_likelihoods(list(logits), labels), expected, rtol=1e-12)
    far = log_likelihoods([np.array([-2e4, 2e4])], np.array([0]))
    assert far == pytest.approx([-4e4])


def test_smooth_accuracy_does_not_depend_on_how_sure_a_model_is() -> None:
    draw = np.random.default_rng(0)
    labels = draw.integers(0, 4, 4000)
    logits = draw.normal(0, 1, (4000, 4)) + 2 * np.eye(4)[labels]
    smooth = smoothed(list(logits), labels)
    np.testing.assert_allclose(smoothed(list(9 * logits), labels), smooth, rtol=1e-9)
    right = logits.argmax(1) == labels
    assert ((smooth > 0.5) == right).all()
    assert smooth.mean() == pytest.approx(right.mean(), abs=0.05)
    counts, kernels = (each.reshape(50, 80).mean(1).std() for each in (right, smooth))
    assert kernels < 0.9 * counts  # of 80 items it varies less
    assert smoothed([np.zeros(2)], np.array([0])).tolist() == [0.5]


def test_log_likelihood_sees_what_accuracy_does_not(
    bert: Resident, write_lines: WriteLines
) -> None:
    evaluator = Accuracy(bert.info, data=write_lines(LABELLED[:2]), head="topic")
    faint, sure = (
        evaluator.score([Classified(step * np.eye(3)[i]) for i in range(2)]) for step in (0.1, 3)
    )
    assert faint["accuracy"].value == sure["accuracy"].value == 1
    one = math.log(math.exp(0.1) / (2 + math.exp(0.1)))
    assert faint["log_likelihood"].cases == pytest.approx([one, one])
    assert faint["log_likelihood"].value < sure["log_likelihood"].value < 0
    assert evaluator.metrics["log_likelihood"] == "maximize"
    assert next(iter(evaluator.metrics)) == "accuracy"


def test_text_pairs_and_long_texts(bert: Resident, write_lines: WriteLines) -> None:
    data = write_lines(
        [{"a": "one", "b": "two", "label": 0}, {"a": "x" * 600, "b": "y", "label": 1}]
    )
    evaluator = Accuracy(bert.info, data=data, head="topic", text_field="a", pair_field="b")
    first, second = evaluator.items.requests
    assert isinstance(first, Classify)
    assert isinstance(second, Classify)
    assert len(first.inputs["input_ids"]) > len("one")
    assert len(second.inputs["input_ids"]) == bert.info.max_length


def test_images_from_files_equal_images_from_arrays(
    vit: Resident, write_lines: WriteLines, tmp_path: Path
) -> None:
    from PIL import Image

    arrays = Accuracy(vit.info, data=pictures(tmp_path), head="digits")
    with np.load(tmp_path / "images.npz") as file:
        images, labels = file["images"], file["labels"]
    rows = []
    for i, (image, label) in enumerate(zip(images, labels, strict=True)):
        Image.fromarray(image).save(tmp_path / f"{i}.png")
        rows.append({"picture": f"{i}.png", "label": int(label)})
    files = Accuracy(vit.info, data=write_lines(rows), head="digits", image_field="picture")
    assert files.items.digests == arrays.items.digests
    for a, b in zip(files.items.requests, arrays.items.requests, strict=True):
        assert torch.equal(a.inputs["pixel_values"], b.inputs["pixel_values"])


BAD_LINES = [
    ([{"text": "a"}, {"txt": "b"}], r"data\.jsonl line 2: no field 'text'; it has txt"),
    ([{"text": 5}], r"line 1: field 'text' must be str, got 5"),
    ([{"text": " "}], r"line 1: field 'text' is empty"),
]


@pytest.mark.parametrize(("rows", "message"), BAD_LINES)
def test_bad_documents_are_named(
    llama: Resident, write_lines: WriteLines, rows: list[Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        Perplexity(llama.info, data=write_lines(rows))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"label": 3}, r"line 1: label 3 is no index into its 3 choices, and none"),
        ({"label": -1}, r"line 1: label -1 is no index into its 3 choices"),
        ({"label": True}, r"line 1: field 'label' must be int or str, got True"),
        ({"choices": ["a"]}, r"line 1: field 'choices' must be a list of at least two texts"),
        ({"question": None}, r"line 1: field 'question' must be str, got None"),
    ],
)
def test_bad_choices_are_named(
    llama: Resident, write_lines: WriteLines, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        MultipleChoice(llama.info, data=write_lines([CHOICES[0] | row]))


def test_bad_files_are_named(llama: Resident, tmp_path: Path) -> None:
    def read(name: str, content: bytes, **options: Any) -> None:
        (tmp_path / name).write_bytes(content)
        Perplexity(llama.info, data=str(tmp_path / name), **options)

    with pytest.raises(ValueError, match=r"data file .*none\.jsonl does not exist"):
        Perplexity(llama.info, data=str(tmp_path / "none.jsonl"))
    with pytest.raises(ValueError, match=r"data file .*a\.jsonl is empty"):
        read("a.jsonl", b"\n \n")
    with pytest.raises(ValueError, match=r"b\.jsonl line 2 is not JSON"):
        read("b.jsonl", b'{"text": "a"}\n{"text"')
    with pytest.raises(ValueError, match=r"c\.jsonl line 1 is no JSON object"):
        read("c.jsonl", b"[1]\n")
    with pytest.raises(ValueError, match=r"d\.txt is not UTF-8"):
        read("d.txt", b"\xff\xfe")
    with pytest.raises(ValueError, match=r"write \{split\} into the file's name"):
        read("e.txt", b"text", split="search")
    with pytest.raises(ValueError, match=r"take must read start:stop, for example 0:200, got '5'"):
        read("e.txt", b"text", take="5")
    with pytest.raises(ValueError, match="take 0:2 does not fit its 1 items"):
        read("e.txt", b"text", take="0:2")
    with pytest.raises(ValueError, match="max_items must be at least 1, got 0"):
        read("e.txt", b"text", max_items=0)
    with pytest.raises(ValueError, match="window must be 2 to 512 tokens, what the model takes"):
        read("e.txt", b"text", window=513)
    with pytest.raises(ValueError, match="context must be 1 to 9 tokens, got 10"):
        read("e.txt", b"text", window=10, context=10)


def test_the_wrong_kind_of_model_is_refused(
    bert: Resident, llama: Resident, write_lines: WriteLines
) -> None:
    with pytest.raises(ValueError, match=r"perplexity on data\.jsonl needs a causal language"):
        Perplexity(bert.info, data=write_lines(TEXTS))
    with pytest.raises(ValueError, match=r"no expert 'topic' with a head; no expert of this pool"):
        Accuracy(llama.info, data=write_lines(LABELLED), head="topic")
    with pytest.raises(ValueError, match=r"no expert 'topics' with a head; these have one: senti"):
        Accuracy(bert.info, data=write_lines(LABELLED), head="topics")
    blind = ModelInfo(None, None, 512)
    with pytest.raises(ValueError, match="needs a tokenizer, and the base's directory has none"):
        Perplexity(blind, data=write_lines(TEXTS))


def test_label_beyond_the_heads_classes_is_refused(
    bert: Resident, write_lines: WriteLines
) -> None:
    rows = [LABELLED[0], LABELLED[1] | {"label": 3}]
    with pytest.raises(ValueError, match="item 1: label 3 is none of the 3 classes of head 'topi"):
        Accuracy(bert.info, data=write_lines(rows), head="topic")
    info = dataclasses.replace(bert.info, classes={"topic": ("only",)})
    with pytest.raises(ValueError, match="head 'topic' has one class"):
        Accuracy(info, data=write_lines(rows), head="topic")


def test_bad_image_files_are_named(vit: Resident, write_lines: WriteLines, tmp_path: Path) -> None:
    path = str(tmp_path / "bad.npz")
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8))
    with pytest.raises(ValueError, match=r"bad\.npz: no array labels; it has \['images'\]"):
        Accuracy(vit.info, data=path, head="digits")
    np.savez(path, images=np.zeros((2, 8, 8, 3), np.uint8), labels=np.zeros(3, int))
    with pytest.raises(ValueError, match=r"images must be .* got \(2, 8, 8, 3\) and \(3,\)"):
        Accuracy(vit.info, data=path, head="digits")
    np.savez(path, images=np.zeros((0, 8, 8, 3), np.uint8), labels=np.zeros(0, int))
    with pytest.raises(ValueError, match=r"data file .*bad\.npz is empty"):
        Accuracy(vit.info, data=path, head="digits")
    data = write_lines([{"image": "gone.png", "label": 0}])
    with pytest.raises(ValueError, match=r"line 1: image file .*gone\.png does not exist"):
        Accuracy(vit.info, data=data, head="digits", image_field="image")


def test_answer_longer_than_the_model_is_refused(short: Resident, write_lines: WriteLines) -> None:
    row = {"question": "q", "choices": ["a", "b" * 60], "label": 0}
    with pytest.raises(ValueError, match="an answer has 61 tokens, the model takes 48"):
        MultipleChoice(short.info, data=write_lines([row]))
