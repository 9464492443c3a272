"""The quickstart's text, splits, tokenizer, training and cache, on tiny sizes."""

from __future__ import annotations

import ast
import json
import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from lm_eval.tasks import TaskManager
from transformers import AutoModelForCausalLM, AutoTokenizer

from experiments.experts.quickstart import corpus, prepare, training
from experiments.experts.quickstart.corpus import DOMAINS, EVALUATION_SPLITS, Document
from experiments.experts.quickstart.prepare import QuickstartSettings, Training
from experiments.experts.quickstart.tasks import HeldOut, SplitSize
from experiments.experts.quickstart.tokenizer import VOCABULARY_SIZE, byte_tokenizer
from experiments.experts.quickstart.training import ModelSize, Stream
from experiments.experts.training.loop import Schedule

SOURCE = '''# A comment.
"""Module docstring."""


def double(x):
    """Return twice the number.

    It takes any number, and it gives back a number of the same kind, every time.
    """
    return 2 * x  # kept
'''

WORDS = ("brown", "clever", "distant", "early", "famous", "gentle", "hollow")
SENTENCE = "The {} and {} and {} fox number {} jumps over dogs while others look on.\n"
TINY = QuickstartSettings(
    size=ModelSize(hidden=16, intermediate=24, layers=2, heads=2, context=64),
    base=Schedule(steps=3, batch=4),
    experts={d: Training(domain=d, steps=2, batch=2) for d in DOMAINS},
    held_out=HeldOut(
        search=SplitSize(2, 6, 4),
        selection=SplitSize(1, 4, 4),
        report=SplitSize(3, 8, 5),
        chunk_bytes=60,
        context_bytes=30,
        continuation_bytes=8,
    ),
)


def document(name: str, lines: int = 40) -> Document:
    """A document of different lines of which no two documents share one."""
    a, b, c = (random.Random(f"{name}{place}").choices(WORDS, k=lines) for place in range(3))
    text = "".join(SENTENCE.format(a[i], b[i], c[i], f"{name}-{i}") for i in range(lines))
    return Document(name, text)


@pytest.fixture
def small_corpus(monkeypatch: pytest.MonkeyPatch) -> None:
    texts = {d: [document(f"{d}/{i}") for i in range(12)] for d in DOMAINS}
    monkeypatch.setattr(corpus, "read_domains", lambda: texts)


def test_code_and_prose_of_one_source_are_apart() -> None:
    tree = ast.parse(SOURCE)
    assert corpus.code_of(SOURCE, tree) == "def double(x):\n\n    return 2 * x  # kept\n"
    prose = corpus.prose_of(corpus.docstrings_of(tree))
    assert prose.startswith("It takes any number")
    assert "return" not in prose


def test_prose_leaves_examples_and_tables_out() -> None:
    text = (
        "Words make a sentence that goes on for long enough, as here.\n\n>>> f(1)\n1\n\n"
        "| 1 | 2 | 3 |------------------------------------------|\n"
    )
    expected = "Words make a sentence that goes on for long enough, as here.\n"
    assert corpus.prose_of(text) == expected


def test_headers_lose_comments_and_text_outside_ascii() -> None:
    text = "/* a\nlicence */\n#pragma once\n  // note\n\n\n\nint a; // kept\nauto u = 'µ';\n"
    assert corpus.header_of(text) == "#pragma once\n\nint a; // kept\n"


def test_long_lines_that_documents_share_are_removed() -> None:
    licence = "Licensed to everyone who reads this line.\n"
    a, b = document("a"), document("b")
    found = corpus.without_boilerplate(
        [Document("a", licence + a.text), Document("b", b.text + licence), Document("c", licence)]
    )
    assert found == [a, b]


def test_splits_share_no_document_and_depend_on_names_and_seed_alone() -> None:
    documents = [document(f"file{i}") for i in range(30)]
    counts = {"search": 5, "report": 9}
    one, again, other = (
        corpus.split_documents(order, domain="code", seed=seed, held_out=counts)
        for order, seed in ((documents, 0), (documents[::-1], 0), (documents, 1))
    )
    assert one == again != other
    assert {split: len(dealt) for split, dealt in one.held_out.items()} == counts
    dealt = [*one.train, *one.held_out["search"], *one.held_out["report"]]
    assert sorted(d.name for d in dealt) == sorted(d.name for d in documents)


def test_too_little_text_is_refused() -> None:
    documents = [document("a"), document("b")]
    with pytest.raises(ValueError, match=r"'code' has 2 documents .* more than the 2 that are"):
        corpus.split_documents(documents, domain="code", seed=0, held_out={"report": 2})
    with pytest.raises(ValueError, match="expected 1000 pieces of 60 bytes in this split"):
        corpus.chunks(documents, count=1000, size=60, seed=0)
    with pytest.raises(ValueError, match="expected 4 different continuations, found 1"):
        corpus.choices(
            [Document("a", "abcdefgh" * 9)], count=1, context=30, continuation=8, seed=0
        )


def test_chunks_are_different_and_start_where_a_line_starts() -> None:
    documents = [document("a"), document("b"), document("a")]
    found = corpus.chunks(documents, count=20, size=60, seed=3)
    assert len(set(found)) == 20
    assert {len(chunk) for chunk in found} == {60}
    assert all(chunk.startswith("The ") for chunk in found)
    assert found == corpus.chunks(documents, count=20, size=60, seed=3)


def test_chunks_are_spread_over_long_and_short_documents() -> None:
    documents = [document("long", 400), document("b"), document("c")]
    found = corpus.chunks(documents, count=12, size=60, seed=0)
    assert [sum(chunk in d.text for chunk in found) for d in documents] == [4, 4, 4]


def test_questions_have_one_true_answer_that_starts_inside_a_word() -> None:
    documents = [document("a", 90), document("b", 90)]
    text = documents[0].text + documents[1].text
    found = corpus.choices(documents, count=12, context=30, continuation=8, seed=1)
    for question in found:
        assert len(question.context) == 30
        assert len(set(question.choices)) == 4
        assert {len(choice) for choice in question.choices} == {8}
        true = question.choices[question.label]
        assert question.context + true in text
        assert question.context[-1].isalpha()
        assert true[0].isalpha()
    assert len({question.label for question in found}) > 1


def test_tokenizer_gives_one_token_per_byte() -> None:
    tokenizer = byte_tokenizer(64)
    text = "a\n  µ€ {x}"
    tokens = tokenizer(text)["input_ids"]
    assert len(tokens) == len(text.encode())
    assert tokenizer.decode(tokens) == text
    assert len(tokenizer) == VOCABULARY_SIZE
    assert tokenizer.encode("ab") + tokenizer.encode(" c") == tokenizer.encode("ab c")


def test_stream_agrees_with_the_tokenizer_and_draws_lines() -> None:
    documents = [document("a"), document("b")]
    stream = Stream.of(documents, window=32)
    tokenizer = byte_tokenizer(32)
    whole = "".join(f"{d.text}</s>" for d in documents)
    assert tokenizer.decode(stream.tokens) == whole
    windows = stream.windows(50, 32, torch.Generator().manual_seed(0))
    texts = [tokenizer.decode(window) for window in windows]
    assert all(text.removeprefix("<s>").startswith(("The ", "</s>")) for text in texts)
    assert 10 < sum(text.startswith("<s>") for text in texts) < 40
    with pytest.raises(ValueError, match="training text of 8 tokens, expected at least 32"):
        Stream.of([Document("a", "Too few")], window=32)


def test_schedule_rises_and_falls() -> None:
    schedule = Schedule(steps=100, learning_rate=1.0, final=0.1, warmup=0.1)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == 1.0
    assert rates[9:] == sorted(rates[9:], reverse=True)
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_training_is_deterministic_lowers_the_loss_and_leaves_global_randomness_alone() -> None:
    stream = {"a": Stream.of([document("a", 200)], window=64)}
    state = torch.random.get_rng_state()
    losses: list[list[float]] = []
    for _ in range(2):
        model = training.new_model(TINY.size, seed=1)
        losses.append([])
        schedule = Schedule(steps=12, batch=4, learning_rate=1e-2)
        training.train(model, stream, schedule, seed=1, label="base", on_step=losses[-1].append)
    assert losses[0] == losses[1]
    assert losses[0][-1] < losses[0][0] - 1
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training


def test_shares_of_a_batch_go_round() -> None:
    shares = [training.shares_of(8, 3, step) for step in range(3)]
    assert all(sum(share) == 8 for share in shares)
    assert [sum(place) for place in zip(*shares, strict=True)] == [8, 8, 8]


@pytest.mark.usefixtures("small_corpus")
def test_prepared_once_loads_and_its_splits_share_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepare.prepare(tmp_path, TINY, progress=False)
    assert tuple(found.experts) == DOMAINS
    base = AutoModelForCausalLM.from_pretrained(found.base).state_dict()
    for folder in found.experts.values():
        expert = AutoModelForCausalLM.from_pretrained(folder).state_dict()
        assert expert.keys() == base.keys()
        assert all(expert[name].dtype == torch.float32 for name in expert)
        assert any(not torch.equal(expert[name], base[name]) for name in base)
        tokenizer = AutoTokenizer.from_pretrained(folder)
        assert tokenizer("ab\n")["input_ids"] == byte_tokenizer(64)("ab\n")["input_ids"]
        assert tokenizer.model_max_length == 64
    for domain in DOMAINS:
        seen: set[str] = set()
        for split, size in TINY.held_out.sizes().items():
            lines = (found.data / f"{domain}.{split}.jsonl").read_text().splitlines()
            texts = {json.loads(line)["text"] for line in lines}
            assert len(texts) == size.chunks
            assert not texts & seen
            seen |= texts
    monkeypatch.setattr(prepare, "_train_all", None)  # a second call must not train
    monkeypatch.setattr(corpus, "read_domains", None)  # nor cut the text again
    assert prepare.prepare(tmp_path, TINY) == found


@pytest.mark.usefixtures("small_corpus")
def test_tasks_are_read_by_lm_eval(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(prepare, "_train_all", lambda *arguments: None)
    found = prepare.prepare(tmp_path, TINY, progress=False)
    manager = TaskManager(include_path=str(found.tasks), include_defaults=False)
    for split in EVALUATION_SPLITS:
        name = f"quickstart_choice_{split}"
        task = manager.load([name])["tasks"][name]
        task.build_all_requests(limit=None, rank=0, world_size=1)
        lines = (found.data / f"choice.{split}.jsonl").read_text().splitlines()
        assert len(task.instances) == 4 * len(lines)
        first = json.loads(lines[0])
        assert [task.instances[i].args for i in range(4)] == [
            (first["context"], choice) for choice in first["choices"]
        ]
        assert task.doc_to_target(first) == first["label"]
        assert set(task.aggregation()) == {"acc", "acc_norm"}


@pytest.mark.usefixtures("small_corpus")
def test_a_failed_preparation_leaves_nothing_and_the_next_succeeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(*arguments: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(prepare, "_train_all", interrupted)
        with pytest.raises(KeyboardInterrupt):
            prepare.prepare(tmp_path, TINY, progress=False)
    text = [path.name for path in tmp_path.iterdir() if path.is_dir()]
    assert [name.partition("-")[0] for name in text] == ["quickstart_text"]
    assert prepare.prepare(tmp_path, TINY, progress=False).base.is_dir()


@pytest.mark.usefixtures("small_corpus")
def test_another_seed_is_prepared_in_another_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_train_all", lambda *arguments: None)
    pools = [prepare.prepare(tmp_path, TINY, seed=seed) for seed in (0, 1, 0)]
    assert len({pool.base for pool in pools}) == len({pool.data for pool in pools}) == 2


@pytest.mark.usefixtures("small_corpus")
def test_experts_trained_otherwise_are_asked_the_same_items(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_train_all", lambda *arguments: None)
    longer = {name: replace(one, steps=9) for name, one in TINY.experts.items()}
    pools = [
        prepare.prepare(tmp_path, settings) for settings in (TINY, replace(TINY, experts=longer))
    ]
    assert len({pool.base for pool in pools}) == 2
    assert len({pool.data for pool in pools}) == 1


def test_text_longer_than_the_context_is_refused() -> None:
    with pytest.raises(ValueError, match=r"text of 127 bytes does not fit the model.*of 64"):
        QuickstartSettings(TINY.experts, size=ModelSize(context=64))


def test_a_schedule_for_another_domain_is_refused() -> None:
    with pytest.raises(ValueError, match="some for each of code, prose, headers, got poems"):
        QuickstartSettings({"poems": Training(domain="poems", steps=1)})


def test_this_python_has_text_enough() -> None:
    held_out = HeldOut()
    counts = {split: size.documents for split, size in held_out.sizes().items()}
    for domain, documents in corpus.read_domains().items():
        dealt = corpus.split_documents(documents, domain=domain, seed=0, held_out=counts)
        assert sum(len(d.text) for d in dealt.train) > 400_000
        for split, size in held_out.sizes().items():
            own = dealt.held_out[split]
            corpus.chunks(own, count=size.chunks, size=held_out.chunk_bytes, seed=0)
            corpus.choices(
                own,
                count=size.questions,
                context=held_out.context_bytes,
                continuation=held_out.continuation_bytes,
                seed=0,
            )
