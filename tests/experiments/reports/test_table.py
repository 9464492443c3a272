from __future__ import annotations

import doctest

import pytest

import experiments.reports.table
from experiments.reports.table import table, verdict
from tests.experiments.run_directories import build_summary

GOLDEN = """\
Scores on held-out items

                            code/bits_per_byte   prose/bits_per_byte   questions/acc   fitness
better                                   lower                 lower          higher    higher
-----------------------------------------------------------------------------------------------
base                                    2.5080                2.5080          0.2300   -0.0200
expert code                             2.1680*               2.3680          0.3350    0.5800
expert prose                            2.3680                2.1680          0.3350    0.5800
static uniform average                  2.2600                2.2600          0.4160    0.6000
static ties                             2.2280                2.2280          0.4400    0.6800
static task arithmetic 0.4              2.2120                2.2120          0.4520    0.7200
-----------------------------------------------------------------------------------------------
evolved                                 2.1880                2.1480*         0.5000*   0.8800*

The evolved merge beats every static merge on held-out data with fitness 0.8800 against 0.7200 \
of task arithmetic 0.4 (+0.1600); 1 of 4 static merges failed (slerp: weights sum to zero)."""


def model(summary: dict, name: str) -> dict:
    return next(each for each in summary["models"] if each["name"] == name)


def test_table_is_exactly_this():
    summary = build_summary(experts=("code", "prose"))
    model(summary, "evolved")["report"]["scores"]["code/bits_per_byte"] = 2.188
    assert table(summary) == GOLDEN


def test_table_is_ascii_for_any_terminal():
    assert table(build_summary()).isascii()


def test_order_of_the_summary_does_not_matter_for_the_last_rows():
    summary = build_summary(experts=("code", "prose"))
    model(summary, "evolved")["report"]["scores"]["code/bits_per_byte"] = 2.188
    base, *others = summary["models"]
    experts = [each for each in others if each["kind"] == "expert"]
    rest = [each for each in others if each["kind"] != "expert"]
    summary["models"] = [*rest[::-1], base, *experts]
    assert table(summary) == GOLDEN


def test_what_was_not_read_has_no_row_and_a_remedy():
    summary = build_summary(experts=("code", "prose"))
    for name in ("uniform average", "ties"):
        model(summary, name)["report"] = None
    assert verdict(summary).text.endswith(
        "; 1 of 4 static merges failed (slerp: weights sum to zero); 2 of 4 were not read there "
        "(baselines.report=all reads them)."
    )
    assert verdict(summary).wins
    rows = [line[:19].strip() for line in table(summary).splitlines()]
    assert [row for row in rows if row.startswith("static")] == ["static task arithme"]


def test_failed_merges_are_named_with_the_reason_that_they_share():
    summary = build_summary()
    failures = {
        "uniform average": "a task has no items: choose others",
        "ties": "Ties merges exactly 2 experts, 3 given: select other experts",
        "slerp": "Slerp merges exactly 2 experts, 3 given: select other experts",
    }
    for name, failure in failures.items():
        cell = {"fitness": None, "scores": {}, "failure": failure}
        model(summary, name).update(search=cell, report=cell)
    assert verdict(summary).text.endswith(
        "; 3 of 4 static merges failed (uniform average: a task has no items; ties, slerp: merges "
        "exactly 2 experts, 3 given)."
    )


def test_the_best_static_merge_is_not_chosen_by_what_it_is_compared_on():
    summary = build_summary()
    model(summary, "ties")["report"]["fitness"] = [0.9]  # lucky on the held-out items
    found = verdict(summary)
    assert found.wins is False
    assert "beats task arithmetic 0.4, the best static merge on the search items" in found.text
    assert "0.8800 against 0.7200 (+0.1600), but does not beat ties" in found.text
    for name in ("uniform average", "ties", "task arithmetic 0.4"):  # search items are private
        model(summary, name)["search"] = {"fitness": None, "scores": {}, "failure": "private"}
    assert "loses to ties, the best static merge there, on held-out" in verdict(summary).text


def test_a_loss_is_said_as_plainly_as_a_win():
    summary = build_summary()
    model(summary, "evolved")["report"]["fitness"] = [0.7]
    found = verdict(summary)
    assert found.wins is False
    assert (
        "loses to task arithmetic 0.4, the best static merge on the search items, on held-out "
        "data with fitness 0.7000 against 0.7200" in found.text
    )
    assert "(-0.0200)" in found.text
    model(summary, "ties")["report"]["fitness"] = [0.71]
    assert "(-0.0200), and does not beat ties" in verdict(summary).text


def test_a_draw_is_not_a_win():
    summary = build_summary()
    model(summary, "evolved")["report"]["fitness"] = [0.72]
    model(summary, "task arithmetic 0.4")["report"]["fitness"] = [0.72]
    found = verdict(summary)
    assert found.wins is False
    assert "only equals task arithmetic 0.4, the best static merge on" in found.text


def test_negative_fitness_is_compared_rightly():
    summary = build_summary()
    for name, fitness in [("evolved", -0.1), ("ties", -0.4), ("uniform average", -0.3)]:
        model(summary, name)["report"]["fitness"] = [fitness]
    model(summary, "task arithmetic 0.4")["report"]["fitness"] = [-0.2]
    assert "beats every static merge" in verdict(summary).text
    assert "-0.1000 against -0.2000 of task arithmetic 0.4 (+0.1000)" in verdict(summary).text


def test_without_held_out_items_the_data_is_named():
    summary = build_summary()
    for each in summary["models"]:
        each["report"] = None
    text = table(summary)
    assert text.startswith("Scores on search items (there are no held-out items)")
    assert "on the search items, which chose it, with fitness 0.9000" in text


def test_without_a_held_out_score_of_its_own_nothing_is_claimed():
    summary = build_summary()
    model(summary, "evolved")["report"] = {"fitness": None, "scores": {}, "failure": "too long"}
    assert verdict(summary).wins is None
    assert verdict(summary).text == "The evolved merge has no score on held-out data: too long."


def test_without_static_merges_nothing_is_claimed():
    summary = build_summary()
    summary["models"] = [each for each in summary["models"] if each["kind"] != "static"]
    assert verdict(summary).wins is None
    assert "no static merge to be compared with." in verdict(summary).text


def test_several_objectives_are_compared_by_dominance():
    summary = build_summary(objectives=2)
    assert "dominates 3 of 3 static merges on held-out data;" in verdict(summary).text
    assert verdict(summary).wins is True
    model(summary, "ties")["report"]["fitness"] = [0.5, 0.99]
    assert "dominates 2 of 3 static merges on held-out data (not ties);" in verdict(summary).text
    assert verdict(summary).wins is False
    assert "0.8800 0.8600" in table(summary)


@pytest.mark.parametrize("seconds", [0.0, 99.4, 99.6, 5969.0, 5971.0, 47 * 3600.0, 49 * 3600.0])
def test_durations_have_at_most_four_characters_of_number(seconds):
    assert len(experiments.reports.table.duration(seconds).split()[0]) <= 4


def test_examples_run():
    assert doctest.testmod(experiments.reports.table).failed == 0


@pytest.mark.parametrize(
    ("ends", "said"),
    [([None, "code"], "fitness 0 is the base"), (None, "fitness 1 is each task's best expert")],
)
def test_the_title_says_where_a_fitness_has_its_unit(ends: list[str | None] | None, said: str):
    summary = {**build_summary(), "terms": [{"base": 0.0, "span": 0.8, "ends": ends}]}
    assert f" ({said} on the search items)\n" in table(summary)
