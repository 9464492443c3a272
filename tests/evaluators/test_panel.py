"""One run for all tasks of a panel; panels that must not share items."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.panel import Panel
from evaluators.requests import EvaluationError, Request, Response
from evaluators.tasks.multiple_choice import MultipleChoice
from evaluators.tasks.perplexity import Perplexity
from tests.evaluators.conftest import sentence
from tests.evaluators.tasks.test_evaluators import CHOICES, TEXTS

WriteLines = Callable[..., str]


class Counting(Engine):
    def run(self, requests: Sequence[Request]) -> list[Response]:
        self.asked = [*getattr(self, "asked", []), requests]
        return super().run(requests)


@pytest.fixture
def panel(llama: Resident, write_lines: WriteLines) -> Panel:
    return Panel(
        "search",
        {
            "code": Perplexity(llama.info, data=write_lines(TEXTS, "code.jsonl")),
            "quiz": MultipleChoice(llama.info, data=write_lines(CHOICES, "quiz.jsonl")),
        },
    )


def test_all_tasks_in_one_run_of_the_same_object(panel: Panel, llama: Resident) -> None:
    engine = Counting(llama)
    scores = panel.evaluate(engine)
    panel.evaluate(engine)
    assert len(engine.asked) == 2
    assert engine.asked[0] is engine.asked[1]
    for task, evaluator in panel.evaluators.items():
        alone = evaluator.score(Engine(llama).run(evaluator.items.requests))
        for metric, score in alone.items():
            assert scores[f"{task}/{metric}"].value == pytest.approx(score.value, rel=1e-5)


def test_names_directions_and_counts(panel: Panel, llama: Resident) -> None:
    assert panel.directions == {
        "code/bits_per_byte": "minimize",
        "code/perplexity": "minimize",
        "quiz/acc": "maximize",
        "quiz/acc_norm": "maximize",
        "quiz/acc_bytes": "maximize",
    }
    assert panel.main == {"code": "code/bits_per_byte", "quiz": "quiz/acc"}
    assert panel.item_count == len(TEXTS) + len(CHOICES)
    assert list(panel.evaluate(Engine(llama))) == list(panel.directions)


def test_a_subset_asks_every_task_a_share_of_its_items(panel: Panel, llama: Resident) -> None:
    part = panel.subset(0.4, 1)
    assert part.item_count == round(0.4 * len(TEXTS)) + round(0.4 * len(CHOICES))
    assert (part.split, part.directions, part.main) == ("search", panel.directions, panel.main)
    scores, whole = part.evaluate(Engine(llama)), panel.evaluate(Engine(llama))
    for task, metric in (("code", "bits_per_byte"), ("quiz", "acc_norm")):
        items = panel.evaluators[task].items.digests
        places = [items.index(item) for item in part.evaluators[task].items.digests]
        assert places == sorted(set(places))
        cases = whole[f"{task}/{metric}"].cases
        assert cases is not None
        assert scores[f"{task}/{metric}"].cases == pytest.approx(cases[places], rel=1e-5)


def test_a_seed_decides_the_subset_and_every_item_has_its_turn(panel: Panel) -> None:
    def drawn(seed: int, share: float = 0.5) -> list[tuple[str, ...]]:
        part = panel.subset(share, seed)
        return [evaluator.items.digests for evaluator in part.evaluators.values()]

    assert drawn(3) == drawn(3) != drawn(4)
    seen = {item for seed in range(20) for items in drawn(seed) for item in items}
    assert len(seen) == panel.item_count
    assert [len(items) for items in drawn(0, 1e-9)] == [1, 1]
    assert panel.subset(1.0, 0).item_count == panel.item_count
    for share in (0.0, 1.5):
        with pytest.raises(ValueError, match=f"share must be above 0 and at most 1, got {share}"):
            panel.subset(share, 0)


def test_a_score_that_is_not_finite_is_a_failure(
    panel: Panel, llama: Resident, monkeypatch: pytest.MonkeyPatch
) -> None:
    quiz = panel.evaluators["quiz"]
    real = quiz.score

    def broken(responses: Sequence[Response]) -> object:
        score = real(responses)["acc"]
        return {"acc": type(score)(np.inf, score.cases)}

    monkeypatch.setattr(quiz, "score", broken)
    with pytest.raises(EvaluationError, match="quiz/acc is inf, no finite score"):
        panel.evaluate(Engine(llama))


def test_the_same_source_is_refused(
    panel: Panel, llama: Resident, write_lines: WriteLines
) -> None:
    again = MultipleChoice(llama.info, data=write_lines(CHOICES, "quiz.jsonl"))
    report = Panel("report", {"exam": again})
    with pytest.raises(
        ValueError,
        match=r"search task 'quiz' and report task 'exam' both read .*quiz\.jsonl\[0:7\]",
    ):
        panel.check_apart(report)


def test_shared_items_are_refused_with_an_example(
    panel: Panel, llama: Resident, write_lines: WriteLines
) -> None:
    rows = [{"text": sentence(50, 9)}, TEXTS[4], TEXTS[2]]
    report = Panel("report", {"prose": Perplexity(llama.info, data=write_lines(rows))})
    with pytest.raises(
        ValueError,
        match=r"search task 'code' and report task 'prose' share 2 of 6 items, for example item 2",
    ):
        panel.check_apart(report)


def test_ranges_of_one_file_may_stand_apart(llama: Resident, write_lines: WriteLines) -> None:
    data = write_lines(TEXTS)

    def panel(take: str) -> Panel:
        return Panel("search", {"code": Perplexity(llama.info, data=data, take=take)})

    panel("0:3").check_apart(panel("3:6"))
    with pytest.raises(ValueError, match="share 1 of 3 items, for example item 2"):
        panel("0:3").check_apart(panel("2:5"))


def test_the_later_panel_loses_what_it_shares(
    panel: Panel, llama: Resident, write_lines: WriteLines
) -> None:
    """No item is in two panels, all others stay in their order, and every pair is counted."""
    rows = [TEXTS[4], {"text": sentence(50, 9)}, TEXTS[2], {"text": sentence(40, 8)}]
    quiz = [*CHOICES[5:], {**CHOICES[0], "question": "asked nowhere else"}]
    later = {
        "prose": Perplexity(llama.info, data=write_lines(rows, "prose.jsonl")),
        "exam": MultipleChoice(llama.info, data=write_lines(quiz, "exam.jsonl")),
        "new": Perplexity(llama.info, data=write_lines([{"text": sentence(30, 7)}], "new.jsonl")),
    }
    before = {task: evaluator.items.digests for task, evaluator in later.items()}
    report = Panel("report", later).without([panel])
    held = {d for evaluator in panel.evaluators.values() for d in evaluator.items.digests}
    for task, evaluator in report.evaluators.items():
        assert list(evaluator.items.digests) == [d for d in before[task] if d not in held]
    assert report.evaluators["new"] is later["new"]
    assert report.dropped == (
        "report task 'prose': 2 of 4 items are search items of 'code' too: dropped",
        "report task 'exam': 2 of 3 items are search items of 'quiz' too: dropped",
    )
    assert report.evaluate(Engine(llama))["exam/acc"].cases.shape == (1,)  # type: ignore[union-attr]
    assert Panel("selection", {"new": later["new"]}).without([panel]).dropped == ()


def test_a_task_that_would_lose_all_is_refused(
    panel: Panel, llama: Resident, write_lines: WriteLines
) -> None:
    again = MultipleChoice(llama.info, data=write_lines(CHOICES, "quiz.jsonl"))
    with pytest.raises(ValueError, match="search task 'quiz' and report task 'exam' both read"):
        Panel("report", {"exam": again}).without([panel])
    copied = Perplexity(llama.info, data=write_lines(TEXTS[3:5], "copied.jsonl"))
    pattern = "report task 'copied': 2 of 2 items are search items of 'code' too, so that none is"
    with pytest.raises(ValueError, match=pattern):
        Panel("report", {"copied": copied}).without([panel])


def test_bad_panels_are_refused(llama: Resident, write_lines: WriteLines) -> None:
    with pytest.raises(ValueError, match="the report panel has no evaluator"):
        Panel("report", {})
    with pytest.raises(ValueError, match="task name 'a/b' must not be empty or contain '/'"):
        Panel("search", {"a/b": Perplexity(llama.info, data=write_lines(TEXTS))})
