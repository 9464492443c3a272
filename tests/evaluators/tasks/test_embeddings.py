"""Evaluators that compare embeddings of texts."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from scipy import stats
from sklearn.metrics import ndcg_score
from torch import Tensor
from torch.nn.functional import normalize
from transformers import AutoModel, AutoTokenizer

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.requests import Gallery, Match, Matched
from evaluators.sentences import SentenceModules
from evaluators.tasks.corpus_scores import rank_correlation
from evaluators.tasks.retrieval import Retrieval
from evaluators.tasks.sentence_similarity import SentenceSimilarity
from experiments.experts.sentences.prepare import PACKAGE
from merging.checkpoints.experts import ExpertPool
from merging.saving.save import save_model
from tests.evaluators.conftest import PAIRS, QUERIES, language_resident, sentence

WriteLines = Callable[..., str]


def vectors(directory: Path, texts: Sequence[str]) -> Tensor:
    """Written out for the one directory of `builders.sentence_encoder`; one text at a time."""
    model, tokenizer = (
        AutoModel.from_pretrained(directory),
        AutoTokenizer.from_pretrained(directory),
    )
    dense = load_file(directory / "2_Dense" / "model.safetensors")
    rows = []
    for text in texts:
        encoded = tokenizer(text.lower(), truncation=True, max_length=64, return_tensors="pt")
        with torch.no_grad():
            hidden = model(**encoded).last_hidden_state[0]
        pooled = torch.cat([hidden.max(0).values, hidden.mean(0)])
        rows.append(torch.tanh(dense["linear.weight"] @ pooled + dense["linear.bias"]))
    return normalize(torch.stack(rows), dim=-1)


def test_similarities_follow_the_directory(
    sentence_pool: ExpertPool, embedder: Resident, write_lines: WriteLines
) -> None:
    """Pooling, dense layer, lower case and length are those of the files; scipy correlates."""
    rows = [*PAIRS, {"text1": "The QUICK fox", "text2": sentence(2, 40), "score": 3.5}]
    evaluator = SentenceSimilarity(embedder.info, data=write_lines(rows))
    responses = Engine(embedder, batch_tokens=100).run(evaluator.items.requests)
    first, second = (
        vectors(sentence_pool.base.path, [row[field] for row in rows])
        for field in ("text1", "text2")
    )
    expected = (first * second).sum(-1).numpy()
    found = [r.similarities[0] for r in responses if isinstance(r, Matched)]
    assert found == pytest.approx(expected, abs=1e-5)
    assert np.ptp(expected) > 0.1
    wanted = stats.spearmanr(expected, [row["score"] for row in rows]).statistic
    assert evaluator.score(responses)["spearman"].value == pytest.approx(wanted)


def test_documents_are_ranked_as_sklearn_ranks_them(
    sentence_pool: ExpertPool, embedder: Resident, write_lines: WriteLines
) -> None:
    """The queries have their prompt, the documents are those of all lines."""
    rows = [
        {**row, "documents": {row["documents"][0]: 2, row["documents"][1]: 1}} for row in QUERIES
    ]
    evaluator = Retrieval(embedder.info, data=write_lines(rows), depth=5, take="2:9")
    scores = evaluator.score(Engine(embedder).run(evaluator.items.requests))
    documents = list(dict.fromkeys(text for row in rows for text in row["documents"]))
    queries = vectors(sentence_pool.base.path, ["query: " + row["query"] for row in rows[2:9]])
    similarities = (queries @ vectors(sentence_pool.base.path, documents).T).numpy()
    grades = np.array([[row["documents"].get(text, 0) for text in documents] for row in rows[2:9]])
    gains = [
        ndcg_score(grades[i : i + 1], similarities[i : i + 1], k=5, ignore_ties=True)
        for i in range(7)
    ]
    assert scores["ndcg"].cases == pytest.approx(gains)
    assert 0 < scores["ndcg"].value < 1
    top = np.argsort(-similarities, axis=1)[:, :5]
    shares = [(grades[i, top[i]] > 0).sum() / (grades[i] > 0).sum() for i in range(7)]
    assert scores["recall"].cases == pytest.approx(shares)


def test_documents_of_a_corpus_are_named_by_their_ids(
    embedder: Resident, write_lines: WriteLines
) -> None:
    corpus = write_lines(
        [{"id": i, "title": "box", "text": sentence(i, 5)} for i in range(6)], "corpus.jsonl"
    )
    rows = [{"query": sentence(i, 3), "documents": [str(i)]} for i in range(4)]
    evaluator = Retrieval(embedder.info, data=write_lines(rows), corpus=corpus, depth=2)
    answers = [Matched(np.array([0, 0, 1.0, 0, 2.0, 0])) for _ in rows]
    scores = evaluator.score(answers)
    assert scores["ndcg"].cases == pytest.approx([0, 0, 1 / np.log2(3), 0])
    assert scores["recall"].cases == pytest.approx([0, 0, 1, 0])
    gone = write_lines([{"query": "fox", "documents": "9"}], "gone.jsonl")
    with pytest.raises(ValueError, match="document '9' is not in the corpus"):
        Retrieval(embedder.info, data=gone, corpus=corpus)


def test_documents_of_a_table_are_json(embedder: Resident, tmp_path: Path) -> None:
    table = tmp_path / "data.csv"
    table.write_text(
        'query,documents\nfox,"[""a"", ""b""]"\nbox,"{""c"": 2, ""a"": 1}"\ndog,1 [d]\n'
    )
    targets = Retrieval(embedder.info, data=str(table)).items.targets
    assert [one.places for one in targets] == [(0, 1), (2, 0), (3,)]


@pytest.mark.parametrize("ties", [False, True])
def test_cases_of_a_correlation_have_its_spread(ties: bool) -> None:
    """Their standard error against the spread of rho over samples; their mean is rho."""
    draw = np.random.default_rng(0)

    def sample() -> tuple[Any, Any]:
        x = draw.normal(size=200)
        y = 0.7 * x + 0.7 * draw.normal(size=200)
        return x, np.round(2 * y) if ties else y

    scores = [rank_correlation(*sample()) for _ in range(400)]
    errors = [np.std(s.cases) / np.sqrt(200) for s in scores if s.cases is not None]
    assert np.mean(errors) == pytest.approx(np.std([s.value for s in scores]), rel=0.08)
    assert all(s.cases is not None and np.isclose(s.cases.mean(), s.value) for s in scores[:9])


def test_equal_texts_are_embedded_once(embedder: Resident, write_lines: WriteLines) -> None:
    seen = 0

    def count(_: Any, arguments: tuple[Tensor, ...], output: Tensor) -> None:
        nonlocal seen
        seen += len(output)

    evaluator = Retrieval(embedder.info, data=write_lines(QUERIES))
    engine = Engine(embedder)
    engine.run(evaluator.items.requests)  # the first looks whether rows may be padded
    embedder.module.pooler.register_forward_hook(count)
    engine.run(evaluator.items.requests)
    assert seen == len(QUERIES) + len(QUERIES) + 1  # neighbours share a document


@pytest.mark.parametrize("name", ["llama", "short"])
@pytest.mark.parametrize(
    "pooling", ["cls", "max", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"]
)
def test_poolings_of_decoders(checkpoints: Path, name: str, pooling: str) -> None:
    """Hidden states of the model below the language head, written out for each text alone."""
    resident = language_resident(checkpoints / name)
    modules = SentenceModules((pooling,), similarity="dot")
    texts = [torch.tensor(resident.info.tokenizer.encode(sentence(i, 2 + i))) for i in range(3)]
    rows = [{"input_ids": text} for text in texts]
    (answer,) = Engine(resident).run([Match(rows[0], Gallery((rows[1], rows[2])), modules)])
    pooled = []
    for text in texts:
        hidden = resident.module.model(text[None]).last_hidden_state[0]
        weights = torch.arange(1, len(text) + 1)[:, None]
        pooled.append(
            {
                "cls": hidden[0],
                "max": hidden.max(0).values,
                "mean_sqrt_len_tokens": hidden.sum(0) / len(text) ** 0.5,
                "weightedmean": (weights * hidden).sum(0) / weights.sum(),
                "lasttoken": hidden[-1],
            }[pooling]
        )
    assert isinstance(answer, Matched)
    expected = [float(pooled[0] @ other) for other in pooled[1:]]
    assert answer.similarities == pytest.approx(expected, rel=1e-4)


def test_a_merge_of_sentence_encoders_is_saved_whole(
    sentence_pool: ExpertPool, tmp_path: Path, write_lines: WriteLines
) -> None:
    """The saved directory gives the similarities that the candidate had."""
    weights = sentence_pool.expert_weights("expert")
    resident = Resident.from_pool(sentence_pool, device="cpu", dtype=torch.float32)
    resident.write(weights)
    evaluator = SentenceSimilarity(resident.info, data=write_lines(PAIRS))
    found = Engine(resident).run(evaluator.items.requests)
    save_model(sentence_pool, weights, tmp_path / "out")
    first, second = (
        vectors(tmp_path / "out", [row[field] for row in PAIRS]) for field in ("text1", "text2")
    )
    for answer, expected in zip(found, (first * second).sum(-1), strict=True):
        assert isinstance(answer, Matched)
        assert answer.similarities[0] == pytest.approx(float(expected), abs=1e-5)


def test_modules_that_are_not_known_are_refused(embedder: Resident, tmp_path: Path) -> None:
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.BoW"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    with pytest.raises(ValueError, match="names a module BoW"):
        SentenceModules.read(tmp_path)
    listed[0]["type"] = "sentence_transformers.models.Pooling"
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "config.json").write_text('{"pooling_mode": "attention"}')
    with pytest.raises(ValueError, match="pools by attention"):
        SentenceModules.read(tmp_path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("cls_token", "cls"),
        ("max_tokens", "max"),
        ("mean_tokens", "mean"),
        ("mean_sqrt_len_tokens", "mean_sqrt_len_tokens"),
        ("weightedmean_tokens", "weightedmean"),
        ("lasttoken", "lasttoken"),
    ],
)
def test_poolings_have_older_names(tmp_path: Path, old: str, new: str) -> None:
    """Those of sentence-transformers' files before ``pooling_mode``."""
    listed = [{"idx": 0, "name": "0", "path": "", "type": "sentence_transformers.models.Pooling"}]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "config.json").write_text(json.dumps({f"pooling_mode_{old}": True}))
    assert SentenceModules.read(tmp_path).poolings == (new,)


def test_a_prompt_that_is_not_pooled_is_refused() -> None:
    modules = SentenceModules(prompts={"query": "q: "}, prompt_pooled=False)
    assert modules.prompt("document") == ""
    with pytest.raises(ValueError, match="would be pooled"):
        modules.prompt("query")


def test_all_minilm_gives_the_vectors_of_its_card(write_lines: WriteLines, tmp_path: Path) -> None:
    """By the transformers code of its card; merged with itself it is saved whole."""
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or not spec.submodule_search_locations:
        pytest.skip(f"needs the package {PACKAGE}")
    directory = Path(spec.submodule_search_locations[0]) / "model"
    pool = ExpertPool.open(str(directory), {"same": str(directory)})
    save_model(pool, pool.expert_weights("same"), tmp_path / "out")
    resident = Resident.from_pool(
        ExpertPool.open(str(tmp_path / "out"), {"same": str(directory)}),
        device="cpu",
        dtype=torch.float32,
    )
    texts = ["This is an example sentence", "Each sentence is converted", "The sky is blue " * 90]
    rows = [{"text1": texts[i - 1], "text2": texts[i], "score": i} for i in range(3)]
    evaluator = SentenceSimilarity(resident.info, data=write_lines(rows))
    found = Engine(resident).run(evaluator.items.requests)
    tokenizer, model = (
        AutoTokenizer.from_pretrained(directory),
        AutoModel.from_pretrained(directory),
    )
    encoded = tokenizer(texts, padding=True, truncation=True, max_length=256, return_tensors="pt")
    with torch.no_grad():
        output = model(**encoded)
    mask = encoded["attention_mask"].unsqueeze(-1).float()
    pooled = normalize((output[0] * mask).sum(1) / mask.sum(1), dim=1)
    for i, answer in enumerate(found):
        assert isinstance(answer, Matched)
        assert answer.similarities[0] == pytest.approx(float(pooled[i - 1] @ pooled[i]), abs=1e-5)
