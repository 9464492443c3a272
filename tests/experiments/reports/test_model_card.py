from __future__ import annotations

import inspect
import re

import numpy as np
import pytest
import yaml
from huggingface_hub import ModelCard

from experiments.reports.card_head import HeldOutFacts, Parents
from experiments.reports.model_card import model_card, static_card
from experiments.runs.sources import looks_like_hub_id
from experiments.searches.published import interval
from merging.plans import plan_from_description
from tests.experiments.run_directories import build_recipe, build_summary


def head_of(card: str) -> dict:
    _, head, _ = card.split("---\n", 2)
    return yaml.safe_load(head)


def section(card: str, title: str) -> str:
    return card.split(f"## {title}\n\n", 1)[1].split("\n\n## ", 1)[0]


def test_head_is_what_the_hub_reads():
    assert head_of(model_card(build_summary(), build_recipe())) == {
        "library_name": "transformers",
        "tags": ["merge", "evomerge", "task_arithmetic"],
        "base_model": [
            "hub-org/base-model", "hub-org/code", "hub-org/prose", "hub-org/config",
        ],
        "base_model_relation": "merge",
    }  # fmt: skip


def test_local_directories_are_not_named_as_base_models(tmp_path, monkeypatch):
    (tmp_path / "experts" / "code").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    recipe = build_recipe()
    recipe["base"]["source"] = "/models/base"
    recipe["experts"]["code"]["source"] = "experts/code"
    recipe["experts"]["prose"]["source"] = "./prose"
    recipe["experts"]["config"]["source"] = "~/hub/models--org--cfg/snapshots/0a1b2c"
    card = static_card(recipe)
    assert head_of(card)["base_model"] == ["org/cfg"]
    assert "not among `base_model`: base, code, prose." in section(card, "Lineage")


def test_head_says_what_all_parents_say(tmp_path):
    folders = [tmp_path / name for name in "abc"]
    for folder, data in zip(folders, ("squad", "[squad, org/b]", "org/b"), strict=True):
        folder.mkdir()
        head = f"---\nlicense: mit\ndatasets: {data}\n---\n# A model\n"
        (folder / "README.md").write_text(head)
    head = head_of(static_card(build_recipe(), Parents.in_folders(folders)))
    assert (head["license"], head["datasets"]) == ("mit", ["squad", "org/b"])
    (folders[2] / "README.md").write_text("# No head")
    assert Parents.in_folders(folders) == Parents(None, ("squad", "org/b"))
    (folders[2] / "config.json").write_text('{"license": "mit"}')
    (folders[1] / "README.md").write_text("---\n: [broken\n---\n")
    assert Parents.in_folders(folders) == Parents(None, ("squad",))


def test_index_lists_every_held_out_score_with_its_interval():
    held_out = HeldOutFacts(
        {"questions": "multiple-choice", "code": "text-generation"},
        datasets={"questions": ("org/arc", "easy")},
        intervals={"questions/acc": (0.41234567, 0.6)},
        items={"questions": 60},
    )
    card = ModelCard(model_card(build_summary(), build_recipe(), held_out=held_out))
    results = {each.metric_name: each for each in card.data.eval_results}
    assert list(results)[-1] == "questions/acc"
    assert len(results) == 2, "the Hub has no name for what the others ask"
    acc = results["questions/acc"]
    assert (acc.dataset_type, acc.dataset_config, acc.metric_type) == ("org/arc", "easy", "acc")
    assert acc.task_type == "multiple-choice"
    assert (acc.metric_value, acc.metric_args) == (
        0.5, {"items": 60, "interval_95": [0.4123, 0.6]},
    )  # fmt: skip
    assert results["code/bits_per_byte"].metric_args is None
    assert card.data.datasets == ["org/arc"]


def test_intervals_keep_to_the_bounds_of_a_metric():
    few = np.array([0.999, 0.4, 0.99])
    assert interval(few, "maximize")[1] == 1.0 < interval(few, "minimize")[1]
    assert interval(np.array([0.001, 0.6, 0.01]), "minimize")[0] == 0.0
    assert interval(-few, "maximize")[1] <= 0.0
    assert interval(-few / few, "maximize") is None


def test_every_kind_of_plan_is_in_the_cards_words():
    kinds = set(re.findall(r'kind == "(\w+)"', inspect.getsource(plan_from_description)))
    assert {"around", "path"} <= kinds
    for kind in kinds - {"coefficients"}:
        assert "- plan: " in static_card({**without_method(), "kind": kind}), kind


def without_method():
    return {k: v for k, v in build_recipe().items() if k not in ("method", "grouping")}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("Qwen/Qwen2.5-0.5B", True),
        ("org/name_1.0", True),
        ("gpt2", False),
        ("a/b/c", False),
        ("../experts", False),
        ("C:\\models\\base", False),
    ],
)
def test_hub_ids_are_told_from_paths(source, expected):
    assert looks_like_hub_id(source) is expected


def test_lineage_names_every_content_hash():
    recipe = build_recipe()
    lineage = section(model_card(build_summary(), recipe), "Lineage")
    assert f"| base |  | hub-org/base-model | {'b' * 12} |" in lineage
    for name, each in recipe["experts"].items():
        assert f"| expert | {name} | {each['source']} | {each['sha256'][:12]} |" in lineage


def test_paths_of_this_machine_are_not_shown():
    recipe = build_recipe()
    recipe["base"]["source"] = "/home/me/.cache/evomerge/quickstart-9a75/base/"
    recipe["experts"]["code"]["source"] = "~/experts/code-7"
    card = model_card(build_summary(), recipe)
    assert f"| base |  | base | {'b' * 12} |" in card
    assert "| expert | code | code-7 | " in card
    assert "/home" not in card
    assert "~" not in card


def test_method_says_what_was_done():
    text = section(model_card(build_summary(), build_recipe()), "Method")
    assert "- method: TaskArithmetic\n" in text
    assert "by: Layers (every 1)\n" in text
    assert "found by Nevergrad(CMA)" in text
    assert "made by: evomerge 0.1.0" in text


def test_scores_are_the_held_out_ones_best_first():
    text = section(model_card(build_summary(), build_recipe()), "Scores")
    assert text.startswith("On held-out items, which the search never saw.")
    rows = [line.split(" | ") for line in text.splitlines() if line.startswith("| ")][2:]
    assert rows[0][0] == "| **evolved**"
    assert rows[0][2:4] == ["0.8800", "2.1480"]
    assert [row[0] for row in rows[-2:]] == ["| base", "| slerp"]


def test_search_scores_are_not_passed_off_as_held_out():
    summary = build_summary()
    for model in summary["models"]:
        model["report"] = None
    text = section(model_card(summary, build_recipe()), "Scores")
    assert text.startswith("On the search items, which chose the winner")
    assert "0.9000" in text


def test_coefficients_have_a_column_per_knob_and_expert():
    recipe = build_recipe(knobs=("weight", "scale"))
    text = section(model_card(build_summary(), recipe), "Coefficients")
    assert text.startswith("| group | weight code | weight prose | weight config | scale |")
    value = recipe["coefficients"]["layers.2"]["weight"]["prose"]
    (line,) = [line for line in text.splitlines() if line.startswith("| layers.2 ")]
    assert line.split(" | ")[2] == f"{value:.3f}"


def test_long_coefficient_tables_are_cut_and_say_so():
    text = section(static_card(build_recipe(groups=290)), "Coefficients")
    assert text.count("\n| ") == 1 + 60
    assert "The first 60 of 290 groups; `recipe.json` has all." in text


def test_names_cannot_break_a_table():
    text = section(static_card(build_recipe(experts=("a|b", "c\nd"))), "Lineage")
    assert "| expert | a\\|b |" in text
    assert "| expert | c d |" in text


def test_no_privacy_record_is_said_in_words():
    assert section(static_card(build_recipe()), "Privacy").startswith(
        "Not private: the experts carry no privacy record"
    )


def test_privacy_record_is_shown():
    words = ["(ε, δ) = (3, 1e-05) per record of data set tickets.", "Nothing else."]
    text = section(static_card(build_recipe() | {"privacy": {"words": words}}), "Privacy")
    assert text.startswith(f"- {words[0]}\n- {words[1]}\n")
    assert "Not private" not in text


def test_static_card_claims_no_scores():
    card = static_card(build_recipe())
    assert "## Scores" not in card
    assert "no score was taken" in card
    assert "evomerge rebuild recipe.json --out DIR" in card
