"""Items drawn for the panels of a search, from files and from lm-eval's tasks."""

from __future__ import annotations

import csv
import json
from collections import Counter
from pathlib import Path
from random import Random
from typing import Any

import pyarrow as pa
import pyarrow.parquet
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from evaluators.evaluator import ModelInfo
from evaluators.harness.lm_eval_task import LmEvalTask
from evaluators.tasks.data import columns
from evaluators.tasks.multiple_choice import MultipleChoice
from evaluators.tasks.splits import PANELS, ItemDraw, ordered
from tests import builders


@pytest.fixture(scope="module")
def model() -> ModelInfo:
    return ModelInfo(builders.byte_tokenizer(), None, 128)


@settings(max_examples=60, deadline=None)
@given(st.lists(st.integers(1, 60), min_size=1, max_size=6), st.integers(0, 9), st.data())
def test_sorted_labels_are_shared_out_in_proportion_and_order_does_not_matter(
    sizes: list[int], seed: int, data: st.DataObject
) -> None:
    labels = [label for label, size in enumerate(sizes) for _ in range(size)]  # sorted, skewed
    digests = [f"item {i}" for i in range(len(labels))]
    order = ordered(digests, labels, seed)
    assert sorted(order) == list(range(len(labels))), "every item once"
    start = data.draw(st.integers(0, len(order) - 1))
    stop = data.draw(st.integers(start + 1, len(order)))
    found = Counter(labels[i] for i in order[start:stop])
    for label, size in enumerate(sizes):
        fair = size * (stop - start) / len(order)
        # n_l t of the label lie before t, within one; as n moves by one of each label, so does t
        assert abs(found[label] - fair) <= 2 + 2 * len(sizes) * size / len(order)
    other = list(range(len(labels)))
    Random(seed).shuffle(other)
    again = ordered([digests[i] for i in other], [labels[i] for i in other], seed)
    assert [digests[other[i]] for i in again] == [digests[i] for i in order]
    if len(labels) > 20:
        assert ordered(digests, labels, seed + 1) != order


def test_equal_items_stand_on_one_panel_and_rare_labels_anywhere() -> None:
    order = ordered(["same"] * 5 + [f"{i}" for i in range(95)], [0] * 100, 0)
    assert len(order) == 96
    own = ordered([f"{i}" for i in range(400)], list(range(400)), 0)  # each a label of its own
    assert 150 < sum(own[:200]) / 200 < 250


@pytest.mark.parametrize(
    ("found", "asked", "sizes"),
    [
        (5000, {}, (100, 100, 1000)),
        (400, {}, (100, 100, 200)),
        (10, {}, (2, 2, 6)),
        (400, {"held_out": 390}, (5, 5, 390)),
        (400, {"search": 10, "selection": 20, "held_out": 30}, (10, 20, 30)),
    ],
)
def test_parts_are_disjoint_and_of_the_stated_sizes(
    found: int, asked: dict[str, int], sizes: tuple[int, ...]
) -> None:
    parts = [range(found)[ItemDraw(panel, **asked).part(found, "it")] for panel in PANELS]
    assert tuple(map(len, parts)) == sizes
    assert len({i for part in parts for i in part}) == sum(sizes)


@pytest.mark.parametrize(("found", "asked"), [(3, {}), (100, {"search": 100})])
def test_too_few_items_are_refused(found: int, asked: dict[str, int]) -> None:
    with pytest.raises(ValueError, match=rf"it has {found} distinct items, .* ask for fewer"):
        ItemDraw("report", **asked).part(found, "it")


@pytest.mark.parametrize("size", [0, -3, "many"])
def test_a_panel_of_no_items_is_refused(size: int) -> None:
    with pytest.raises(
        ValueError, match=f"search must be null or a number of items, got {size!r}"
    ):
        ItemDraw("report", search=size)


def test_jsonl_csv_and_parquet_give_the_same_items(model: ModelInfo, tmp_path: Path) -> None:
    rows = [
        {"question": f'q {i}, "so"\nto speak', "choices": ["fox", "dog"], "answer": "fox"}
        for i in range(12)
    ]
    (tmp_path / "a.jsonl").write_text("\n".join(map(json.dumps, rows)), encoding="utf-8-sig")
    pyarrow.parquet.write_table(pa.Table.from_pylist(rows), tmp_path / "a.parquet")
    with (tmp_path / "a.csv").open("w", newline="", encoding="utf-8-sig") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows({**row, "choices": json.dumps(row["choices"])} for row in rows)
    contents = set()
    assert columns(tmp_path / "a.jsonl") == columns(tmp_path / "a.csv") == list(rows[0])
    for kind in ("jsonl", "csv", "parquet"):
        path = str(tmp_path / f"a.{kind}")
        task = MultipleChoice(model, data=path, label_field="answer", take=ItemDraw("search"))
        contents.add(task.items.content)
    assert len(contents) == 1


@pytest.mark.parametrize(("answer", "label"), [(1, 1), ("dog", 1), ("B", 1), ("A", 0)])
def test_answers_by_index_text_or_letter(
    model: ModelInfo, tmp_path: Path, answer: int | str, label: int
) -> None:
    row = {"question": "what?", "choices": ["fox", "dog"], "answer": answer}
    (tmp_path / "a.jsonl").write_text(json.dumps(row))
    task = MultipleChoice(model, data=str(tmp_path / "a.jsonl"), label_field="answer")
    assert [target.label for target in task.items.targets] == [label]


@pytest.mark.parametrize(
    ("choices", "answer", "label"),
    [("fox,dog", 1, 1), ("1,2", 1, None), ("0,2", 0, 0), ("3,4,5", 4, 1), ("3,4,5", 1, 1)],
)
def test_a_number_in_csv_is_index_or_text_where_it_cannot_be_both(
    model: ModelInfo, tmp_path: Path, choices: str, answer: int, label: int | None
) -> None:
    with (tmp_path / "a.csv").open("w", newline="") as file:
        listed = json.dumps(choices.split(","))
        csv.writer(file).writerows([("question", "choices", "answer"), ("what?", listed, answer)])
    options = {"data": str(tmp_path / "a.csv"), "label_field": "answer"}
    if label is None:
        with pytest.raises(
            ValueError, match=r"answer 1 is an index .* and one of them: write a l"
        ):
            MultipleChoice(model, **options)
        return
    assert [each.label for each in MultipleChoice(model, **options).items.targets] == [label]


def lm_eval_task(root: Path, splits: tuple[str, ...], **more: Any) -> dict[str, Any]:
    """A task whose items name their split."""
    for split in splits:
        rows = [{"q": f"{split} {i}", "c": ["fox", "ox"], "a": i // 20} for i in range(40)]
        (root / f"{split}.jsonl").write_text("\n".join(map(json.dumps, rows)))
    return {
        "task": "toy",
        "dataset_path": "json",
        "dataset_kwargs": {"data_files": {s: str(root / f"{s}.jsonl") for s in splits}},
        **{f"{split}_split": split for split in splits},
        "output_type": "multiple_choice",
        "doc_to_text": "{{q}}",
        "doc_to_choice": "{{c}}",
        "doc_to_target": "a",
        **more,
    }


@pytest.mark.parametrize(
    ("splits", "counts"),
    [
        (("test",), (10, 10, 20)),
        (("validation",), (10, 10, 20)),
        (("validation", "test"), (20, 20, 40)),
    ],
)
def test_lm_eval_splits_are_used_as_they_are_meant(
    model: ModelInfo, tmp_path: Path, splits: tuple[str, ...], counts: tuple[int, ...]
) -> None:
    task = lm_eval_task(tmp_path, splits)
    panels = [LmEvalTask(model, task=task, take=ItemDraw(panel)) for panel in PANELS]
    docs = [[target.doc for target in panel.items.targets] for panel in panels]
    assert tuple(map(len, docs)) == counts
    questions = [{doc["q"] for doc in own} for own in docs]
    assert len(set.union(*questions)) == sum(counts), "disjoint"
    origins = [{question.split()[0] for question in own} for own in questions]
    assert origins == [{splits[0]}, {splits[0]}, {splits[-1]}]
    for own in docs:  # the file is sorted by label
        assert abs(sum(doc["a"] for doc in own) - len(own) / 2) <= 2
    assert [panel.items.found for panel in panels] == [40, 40, 40]


@pytest.mark.parametrize("splits", [("test",), ("validation", "test")])
def test_few_shot_examples_stand_on_no_panel(
    model: ModelInfo, tmp_path: Path, splits: tuple[str, ...]
) -> None:
    task = lm_eval_task(tmp_path, splits, num_fewshot=2)
    asked, shown = set(), set()
    for panel in PANELS:
        for target in LmEvalTask(model, task=task, take=ItemDraw(panel)).items.targets:
            asked.add(target.doc["q"])
            for instance in target.instances:
                *examples, last = instance.args[0].split("\n\n")
                assert last == target.doc["q"]
                shown |= {example.rpartition(" ")[0] for example in examples}
    assert len(shown) == 2
    assert not shown & asked
