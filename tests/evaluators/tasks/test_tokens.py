"""Evaluators that read heads over tokens: labels of words, spans that answer a question."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.panel import Panel
from evaluators.requests import Classified
from evaluators.tasks.classification import Accuracy
from evaluators.tasks.question_answering import QuestionAnswering, best_span, exact, word_f1
from evaluators.tasks.sentence_similarity import SentenceSimilarity
from evaluators.tasks.token_classification import TokenClassification, _apart, entities
from experiments.setup.private_checks import check_private_panels
from experiments.setup.racing_checks import _item_by_item, _made_up, bound_on_made_up
from merging.checkpoints.experts import ExpertPool
from search.objective import WeightedMean
from search.privacy.private_fitness import Shares
from tests.evaluators.conftest import QUESTIONS, SENTENCES, sentence
from tests.evaluators.tasks.test_embeddings import PAIRS
from tests.evaluators.tasks.test_evaluators import LABELLED

WriteLines = Callable[..., str]


@pytest.fixture
def pool(token_heads: ExpertPool) -> ExpertPool:
    return token_heads


def expert(pool: ExpertPool, name: str) -> Any:
    """The expert's model around the base's encoder, by transformers alone."""
    from transformers import (
        AutoModel,
        AutoModelForQuestionAnswering,
        AutoModelForTokenClassification,
    )

    kind = {"tokens": AutoModelForTokenClassification, "spans": AutoModelForQuestionAnswering}
    model = kind[name].from_pretrained(pool.sources[name]).eval()
    base = AutoModel.from_pretrained(pool.base.path, add_pooling_layer=False)
    model.base_model.load_state_dict(base.state_dict())
    return model


def test_words_get_the_labels_that_transformers_gives(
    pool: ExpertPool, heads: Resident, write_lines: WriteLines
) -> None:
    evaluator = TokenClassification(heads.info, data=write_lines(SENTENCES), head="tokens")
    scores = evaluator.score(Engine(heads).run(evaluator.items.requests))
    model = expert(pool, "tokens")
    wanted, answers = [], []
    for one in SENTENCES:
        # as words stand in texts, for a tokenizer that knows them by the space before them
        encoded = heads.info.tokenizer(
            [f" {word}" for word in one["tokens"]], is_split_into_words=True, return_tensors="pt"
        )
        with torch.no_grad():
            logits = model(**encoded).logits[0]
        words = encoded.word_ids()
        wanted += one["tags"]
        answers += [int(logits[words.index(i)].argmax()) for i in range(len(one["tags"]))]
    assert len(set(answers)) > 1
    assert scores["accuracy"].value == pytest.approx(accuracy_score(wanted, answers))
    assert scores["macro_f1"].value == pytest.approx(f1_score(wanted, answers, average="macro"))


def test_words_are_told_apart_by_what_a_tokenizer_does(heads: Resident) -> None:
    raw = Tokenizer(models.WordLevel({"a": 0, "b": 1}, unk_token="a"))
    raw.pre_tokenizer = pre_tokenizers.Whitespace()
    assert _apart(["a", "b"], PreTrainedTokenizerFast(tokenizer_object=raw)) == ["a", "b"]
    assert _apart(["a", "b"], heads.info.tokenizer) == [" a", " b"]


@pytest.mark.parametrize(
    ("written", "answers"),
    [("1.50", ["1.50"]), ("1e3", ["1e3"]), ("null", ["null"]), ('["1", "b"]', ["1", "b"])],
)
def test_answers_are_texts_unless_they_are_lists(
    heads: Resident, write_lines: WriteLines, written: str, answers: list[str]
) -> None:
    data = write_lines([{"question": "who", "context": "fox", "answers": written}])
    evaluator = QuestionAnswering(heads.info, data=data, head="spans")
    assert list(evaluator.items.targets[0].answers) == answers


def test_spans_are_those_that_transformers_gives(
    pool: ExpertPool, heads: Resident, write_lines: WriteLines
) -> None:
    """One window each; every pair of tokens is tried."""
    evaluator = QuestionAnswering(heads.info, data=write_lines(QUESTIONS), head="spans")
    scores = evaluator.score(Engine(heads).run(evaluator.items.requests))
    model, answers = expert(pool, "spans"), []
    for one in QUESTIONS:
        encoded = heads.info.tokenizer(
            one["question"], one["context"], return_offsets_mapping=True, return_tensors="pt"
        )
        offsets = encoded.pop("offset_mapping")[0].tolist()
        with torch.no_grad():
            output = model(**encoded)
        start, end = output.start_logits[0], output.end_logits[0]
        places = [i for i, each in enumerate(encoded.sequence_ids()) if each == 1]
        pairs = [(i, j) for i in places for j in places if i <= j < i + 30]
        i, j = max(pairs, key=lambda pair: float(start[pair[0]] + end[pair[1]]))
        answers.append(one["context"][offsets[i][0] : offsets[j][1]])
    pairs = [(answer, one["answers"]) for answer, one in zip(answers, QUESTIONS, strict=True)]
    assert scores["f1"].cases == pytest.approx([word_f1(*pair) for pair in pairs])
    assert scores["exact_match"].cases == pytest.approx([exact(*pair) for pair in pairs])


def test_long_contexts_are_read_in_windows(heads: Resident, write_lines: WriteLines) -> None:
    """The answer is found wherever it lies: the largest sum of any window counts."""
    asked = {"question": "who", "context": sentence(3, 60), "answers": ["wizards"]}
    place = asked["context"].rindex("wizards")
    evaluator = QuestionAnswering(
        heads.info, data=write_lines([asked]), head="spans", window=64, stride=16
    )
    windows = evaluator.items.targets[0].windows
    assert len(windows) > 3
    answers = []
    for offsets in windows:
        logits = np.full((len(offsets), 2), -1.0)
        for i, one in enumerate(offsets):
            if one is not None and one[0] == place:
                logits[i, 0] = 5
            if one is not None and one[1] == place + len("wizards"):
                logits[i, 1] = 5
        logits[0] = 9  # no place for an answer, and there is always one
        answers.append(Classified(logits))
    scores = evaluator.score(answers)
    assert (scores["f1"].value, scores["exact_match"].value) == (1.0, 1.0)


def test_a_model_may_find_no_answer_where_there_may_be_none(
    heads: Resident, write_lines: WriteLines
) -> None:
    rows = [
        {
            "question": "who",
            "context": "fox dog",
            "answers": {"text": ["fox"], "answer_start": [0]},
        },
        {"question": "why", "context": "ox dog", "answers": {"text": [], "answer_start": []}},
    ]
    evaluator = QuestionAnswering(heads.info, data=write_lines(rows), head="spans")
    answers = []
    for item in evaluator.items:
        logits = np.zeros((len(item.target.windows[0]), 2))
        logits[0] = 1
        answers.append(Classified(logits))
    assert evaluator.score(answers)["exact_match"].cases == pytest.approx([0, 1])


def test_the_best_span_is_the_best_of_all() -> None:
    draw = np.random.default_rng(0)
    for _ in range(20):
        logits, allowed = draw.normal(size=(9, 2)), draw.random(9) < 0.7
        allowed[4] = True
        longest = int(draw.integers(1, 9))
        found = best_span(logits, allowed.tolist(), longest)
        places = np.flatnonzero(allowed)
        expected = max(
            (logits[i, 0] + logits[j, 1], i, j)
            for i in places
            for j in places
            if i <= j < i + longest
        )
        assert found == pytest.approx(expected)


@pytest.mark.parametrize(
    ("answer", "wanted", "f1", "equal"),
    [
        ("the Eiffel Tower!", "eiffel tower", 1.0, 1.0),
        ("in Paris, France", "Paris", 2 * (1 / 3) / (4 / 3), 0.0),
        ("a b b", "b b c", 2 * 2 / (2 + 3), 0.0),  # "a" is an article
        ("the", "", 1.0, 1.0),
        ("fox", "", 0.0, 0.0),
    ],
)
def test_answers_are_compared_as_squad_does(
    answer: str, wanted: str, f1: float, equal: float
) -> None:
    assert word_f1(answer, wanted) == pytest.approx(f1)
    assert exact(answer, wanted) == equal


def test_entities_are_those_of_conlleval() -> None:
    assert entities(["O", "B-A", "I-A", "I-B", "E-B", "S-A", "B-A"]) == {
        ("A", 1, 3),
        ("B", 3, 5),
        ("A", 5, 6),
        ("A", 6, 7),
    }


def test_entity_f1_and_its_cases(heads: Resident, write_lines: WriteLines) -> None:
    """2 entities right of 3 found and 4 wanted; the interval holds over resampled items."""
    info = heads.info
    object.__setattr__(info, "classes", {**info.classes, "tokens": ("O", "B-X", "I-X")})
    rows = [
        {"tokens": ["fox"] * 4, "tags": ["B-X", "I-X", "O", "B-X"]},
        {"tokens": ["box"] * 3, "tags": ["B-X", "B-X", "O"]},
        {"tokens": ["dog"] * 2, "tags": ["O", -100]},
    ]
    evaluator = TokenClassification(info, data=write_lines(rows), head="tokens")
    assert len(evaluator.items.targets[2]) == 1
    answers = [[1, 2, 0, 0], [1, 0, 0], [1]]
    scores = evaluator.score([Classified(np.eye(3)[row]) for row in answers])
    score = scores["entity_f1"]
    assert score.value == pytest.approx(2 * 2 / (3 + 4))
    assert score.cases is not None
    assert score.cases.mean() == pytest.approx(score.value)
    assert score.interval is not None
    assert score.interval[0] < score.value < score.interval[1]
    assert scores["accuracy"].value == pytest.approx(5 / 8)


def test_spread_of_f1_over_items_is_that_of_its_cases() -> None:
    """Against the bootstrap: the delta method's standard error."""
    from evaluators.tasks.corpus_scores import ratio_score

    draw = np.random.default_rng(0)
    wholes = draw.integers(1, 9, (300, 2)).astype(float)
    counts = draw.binomial(wholes.astype(int), (0.7, 0.4)).astype(float)
    score = ratio_score(counts, wholes)
    again = []
    for _ in range(2000):
        rows = draw.integers(0, 300, 300)
        again.append((counts[rows].sum(0) / wholes[rows].sum(0)).mean())
    assert score.cases is not None
    assert score.cases.std() / np.sqrt(300) == pytest.approx(np.std(again), rel=0.06)


def test_races_take_what_single_items_give(heads: Resident, write_lines: WriteLines) -> None:
    labels = TokenClassification(heads.info, data=write_lines(SENTENCES), head="tokens")
    spans = QuestionAnswering(heads.info, data=write_lines(QUESTIONS, "q.jsonl"), head="spans")
    classes = heads.info.classes
    assert _item_by_item(labels, "t/accuracy", classes, some=True)
    assert not _item_by_item(labels, "t/macro_f1", classes, some=True)
    assert _item_by_item(labels, "t/macro_f1", classes, some=False)
    assert _item_by_item(spans, "t/f1", classes, some=True)


@pytest.mark.parametrize(
    ("kind", "metric"),
    [
        ("tokens", "accuracy"),
        ("tokens", "macro_f1"),
        ("spans", "f1"),
        ("text", "log_likelihood"),
        ("text", "smooth_accuracy"),
        ("pairs", "spearman"),
    ],
)
def test_private_searches_take_what_single_items_give(
    request: pytest.FixtureRequest, write_lines: WriteLines, kind: str, metric: str
) -> None:
    """In what they take, another item's answer moves no case."""
    fixture = {"text": "bert", "pairs": "embedder"}.get(kind, "heads")
    info = request.getfixturevalue(fixture).info
    evaluator: Any = {
        "tokens": lambda: TokenClassification(info, data=write_lines(SENTENCES), head="tokens"),
        "spans": lambda: QuestionAnswering(info, data=write_lines(QUESTIONS), head="spans"),
        "text": lambda: Accuracy(info, data=write_lines(LABELLED), head="sentiment"),
        "pairs": lambda: SentenceSimilarity(info, data=write_lines(PAIRS)),
    }[kind]()
    panel, objective = Panel("search", {"t": evaluator}), WeightedMean(metrics={"t": metric})
    privacy: Any = SimpleNamespace(public=(), delta=1e-5)
    answers = [_made_up(r, info.classes, n) for n, r in enumerate(evaluator.items.requests)]
    last = evaluator.items.spans[-1]
    others = [
        *answers[: last.start],
        *(_made_up(r, info.classes, 4) for r in evaluator.items.requests[last]),
    ]
    cases = [evaluator.score(each)[metric].cases[:-1] for each in (answers, others)]
    alone = np.array_equal(*cases)
    assert alone == (metric in ("accuracy", "f1", "log_likelihood"))
    if alone:
        check_private_panels(privacy, {"search": panel}, objective, info.classes)
        return
    with pytest.raises(ValueError, match=f"on search items t/{metric} has no score per"):
        check_private_panels(privacy, {"search": panel}, objective, info.classes)
    shares = Shares(
        bound_on_made_up(objective, panel.directions, panel.main), {"t": len(cases[0])}
    )
    with pytest.raises(ValueError, match=f"t/{metric} has no score per item that is the item's"):
        shares.contributions(panel.scores(answers))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"tokens": ["fox"], "tags": [0, 1]}, "1 tokens have 2 tags"),
        ({"tokens": ["fox"], "tags": [3]}, "label 3 is none of the head's"),
        ({"tokens": ["fox"], "tags": [-100]}, "no word has a label that counts"),
        ({"tokens": "fox", "tags": [1]}, "must be a list"),
        ({"tokens": ["fox"] * 300, "tags": [1] * 300}, "the model takes 512"),
        ({"tokens": ["fox", ""], "tags": [1, 1]}, "no token of word ''"),
    ],
)
def test_sentences_that_cannot_be_judged(
    heads: Resident, write_lines: WriteLines, row: dict[str, Any], message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        TokenClassification(heads.info, data=write_lines([row]), head="tokens")


def test_a_head_is_asked_what_it_can_answer(heads: Resident, write_lines: WriteLines) -> None:
    with pytest.raises(ValueError, match="head that classifies tokens, that of expert 'spans'"):
        TokenClassification(heads.info, data=write_lines(SENTENCES), head="spans")
    with pytest.raises(ValueError, match="head that classifies inputs"):
        Accuracy(heads.info, data=write_lines([{"text": "fox", "label": 1}]), head="tokens")
    with pytest.raises(ValueError, match="the question has"):
        QuestionAnswering(
            heads.info, data=write_lines(QUESTIONS), head="spans", window=20, stride=8
        )


def test_saved_heads_open_with_their_classes(pool: ExpertPool, tmp_path: Path) -> None:
    from merging.saving.save import save_model

    save_model(pool, pool.expert_weights("tokens"), tmp_path / "out")
    own = expert(pool, "tokens")
    own.base_model.load_state_dict(
        type(own).from_pretrained(pool.sources["tokens"]).base_model.state_dict()
    )
    saved = type(own).from_pretrained(tmp_path / "out" / "heads" / "tokens")
    assert all(torch.equal(t, own.state_dict()[n]) for n, t in saved.state_dict().items())
