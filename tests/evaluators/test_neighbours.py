"""One item replaced by another: no other item's requests and scores move, or it is refused."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from omegaconf import OmegaConf

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.evaluator import Evaluator, ModelInfo
from evaluators.harness.lm_eval_task import LmEvalTask
from evaluators.items import TaskItem
from evaluators.memorization.canary_auc import CanaryAuc
from evaluators.memorization.exposure import Exposure
from evaluators.memorization.extraction import Extraction
from evaluators.memorization.membership import Membership
from evaluators.panel import Panel
from evaluators.requests import Classify, Generate, Loglikelihood, Request, TokenStatistics
from evaluators.tasks.classification import Accuracy
from evaluators.tasks.multiple_choice import MultipleChoice
from evaluators.tasks.perplexity import Perplexity
from experiments.setup.assemble import open_engine
from experiments.setup.private_checks import check_items, check_shown
from tests.evaluators.conftest import kick, language_resident
from tests.evaluators.engine.test_likelihood import random_requests
from tests.evaluators.engine.test_population import random_deltas
from tests.evaluators.harness.test_lm_eval_task import ROWS, SHOTS, config, kinds
from tests.evaluators.memorization import conftest as memorization
from tests.evaluators.tasks.test_evaluators import CHOICES, LABELLED, TEXTS

WriteLines = Callable[..., str]
CHANGED = 2  # place of the item that is replaced
MEMORIZATION = {"exposure": Exposure, "canary_auc": CanaryAuc, "extraction": Extraction}
HARNESS = [f"lm_eval {kind}" for kind in kinds("") if kind != "empty_context"]  # items are alike
OWN_SHOTS = ["lm_eval own split", "lm_eval part of it", "lm_eval same file"]


def neighbouring(rows: list[dict[str, Any]], **other: Any) -> list[list[dict[str, Any]]]:
    """The rows, and the rows with one replaced by another of as many bytes."""
    mirrored = {k: v[::-1] if isinstance(v, str | list) else v for k, v in rows[CHANGED].items()}
    return [rows, [{**mirrored, **other} if i == CHANGED else r for i, r in enumerate(rows)]]


def pictures(path: Path) -> list[str]:
    draw, files = np.random.default_rng(0), []
    images = draw.integers(0, 255, (6, 12, 12, 3)).astype(np.uint8)
    for name in ("one", "other"):
        np.savez(path / f"{name}.npz", images=images, labels=np.arange(6) % 4)
        files.append(str(path / f"{name}.npz"))
        images[CHANGED] = 255 - images[CHANGED]
    return files


def harness(info: ModelInfo, kind: str, data: str, public: str) -> Evaluator:
    files, more, options = {"test": data}, dict[str, Any](), dict[str, Any]()
    if kind in kinds(data):
        return LmEvalTask(info, task=kinds(data)[kind])
    if kind == "part of it":
        options["take"] = "0:9"
    if kind in ("same file", "another split"):
        files["train"] = data if kind == "same file" else public
        more["training_split"] = "train"
    task = config(data, num_fewshot=2, dataset_kwargs={"data_files": files}, **more)
    return LmEvalTask(info, task=task, **options)


@pytest.fixture(
    params=[
        *("perplexity", "multiple_choice", "text", "images", "membership", *MEMORIZATION),
        *(*HARNESS, "lm_eval another split", *OWN_SHOTS),
    ]
)
def pair(
    request: pytest.FixtureRequest, write_lines: WriteLines, tmp_path: Path
) -> tuple[str, list[Evaluator], Resident]:
    """A kind of evaluator, on neighbouring data."""
    kind = request.param
    fixture = {"text": "bert", "images": "vit"}.get(kind, "llama")
    resident: Resident = request.getfixturevalue(fixture)
    info = resident.info
    canaries = [memorization.canary_line(i) for i in range(6)]
    other = memorization.canary_line(99)
    rows: dict[str, list[list[dict[str, Any]]]] = {
        "perplexity": neighbouring(TEXTS),
        "multiple_choice": neighbouring(CHOICES),
        "text": neighbouring(LABELLED),
        "membership": neighbouring(memorization.TEXTS),
        **dict.fromkeys(MEMORIZATION, neighbouring(canaries, **other)),
    }
    if kind == "images":
        return kind, [Accuracy(info, data=f, head="digits") for f in pictures(tmp_path)], resident
    both = enumerate(rows.get(kind, neighbouring(ROWS)))
    data = [write_lines(each, f"{number}.jsonl") for number, each in both]
    examples = [{**row, "question": f"example {i}"} for i, row in enumerate(ROWS)]
    public = write_lines(examples, "public.jsonl")
    build: dict[str, Callable[[str], Evaluator]] = {
        "perplexity": lambda file: Perplexity(info, data=file),
        "multiple_choice": lambda file: MultipleChoice(info, data=file),
        "text": lambda file: Accuracy(info, data=file, head="sentiment"),
        "membership": lambda file: Membership(info, data=file),
        **{name: lambda file, c=c: c(info, data=file) for name, c in MEMORIZATION.items()},
    }
    default = lambda file: harness(info, kind.removeprefix("lm_eval "), file, public)  # noqa: E731
    return kind, [build.get(kind, default)(file) for file in data], resident


def asked(item: TaskItem[Any]) -> list[Any]:
    """An item's requests as values that can be compared."""
    return [
        {name: tensor.tolist() for name, tensor in request.inputs.items()}
        if isinstance(request, Classify)
        else request
        for request in item.requests
    ]


def touched(evaluators: list[Evaluator], resident: Resident, *, own: bool) -> set[str]:
    """What of the other items differs: their requests, or cases; `own`: said to be their own."""
    one, other = (list(evaluator.items) for evaluator in evaluators)
    assert len(one) == len(other)
    common = [place for place in range(len(one)) if place != CHANGED]
    assert asked(one[CHANGED]) != asked(other[CHANGED])
    found = {"requests" for place in common if asked(one[place]) != asked(other[place])}
    engine = Engine(resident, batch_tokens=1)
    scores = [each.score(engine.run(each.items.requests)) for each in evaluators]
    for metric, score in scores[0].items():
        if own and not score.own_cases:
            continue
        cases = [score.cases, scores[1][metric].cases]
        if cases[0] is not None and cases[1] is not None:
            same = np.array_equal(cases[0][common], cases[1][common])
            found |= set() if same else {metric if score.own_cases else "compared"}
    return found


def test_an_item_touches_its_own_score_alone_or_is_refused(
    pair: tuple[str, list[Evaluator], Resident],
) -> None:
    kind, evaluators, resident = pair
    with torch.random.fork_rng():
        moved = touched(evaluators, resident, own=kind != "membership")
    panel = Panel("search", {"it": evaluators[0]})
    if kind in OWN_SHOTS:
        assert "requests" in moved
        with pytest.raises(
            ValueError, match=r"'it' shows private items as examples .*: set num_fewshot=0, or th"
        ):
            check_shown([panel], [panel])
        check_shown([], [panel])  # public items may
    elif kind == "membership":
        assert moved
        with pytest.raises(ValueError, match="membership inference compares its texts"):
            check_items(panel, 1e-5)
    else:
        assert moved <= {"compared"}, "metrics that say so are refused"
        check_items(panel, 1e-5)
        check_shown([panel], [panel])


def test_a_panel_that_shows_anothers_private_items_is_refused(
    llama: Resident, write_lines: WriteLines
) -> None:
    private, own = write_lines(ROWS, "private.jsonl"), write_lines(ROWS[::-1])
    files = {"data_files": {"test": own, "train": private}}
    task = config(own, num_fewshot=1, training_split="train", dataset_kwargs=files)
    report = Panel("report", {"seen": LmEvalTask(llama.info, task=task)})
    search = Panel("search", {"it": MultipleChoice(llama.info, data=private)})
    with pytest.raises(ValueError, match="report task 'seen' shows private items as examples"):
        check_shown([search], [search, report])


def test_a_record_that_two_tasks_read_is_refused(llama: Resident, write_lines: WriteLines) -> None:
    data, other = write_lines(ROWS), write_lines(TEXTS, "other.jsonl")
    task = LmEvalTask(llama.info, task=config(data))
    for second in (
        Perplexity(llama.info, data=data),
        Perplexity(llama.info, data=data, field="question"),
    ):
        with pytest.raises(ValueError, match=r"tasks 'a' and 'b' both read .*of which a record"):
            check_items(Panel("search", {"a": task, "b": second}), 1e-5)
    check_items(Panel("search", {"a": task, "b": Perplexity(llama.info, data=other)}), 1e-5)


def test_a_file_is_known_whatever_is_taken_of_it_and_beside_it(
    llama: Resident, write_lines: WriteLines, tmp_path: Path
) -> None:
    info = llama.info
    canaries = write_lines([memorization.canary_line(i) for i in range(6)], "canaries.jsonl")
    one, two = write_lines(ROWS[:4], "one.rows"), write_lines(ROWS[4:], "two.rows")
    every = str(tmp_path / "*.rows")
    in_it = {"data_files": {"test": "directory/test.jsonl"}}
    both = [config("", dataset_kwargs={"data_files": {"test": f}}) for f in ([one, two], every)]
    (tmp_path / "directory").mkdir()
    held = write_lines(ROWS, "directory/test.jsonl")
    train = write_lines(SHOTS, "directory/train.jsonl")
    within = [
        config("", dataset_path=str(tmp_path / "directory"), dataset_kwargs={}),
        config("", dataset_path=str(tmp_path), dataset_kwargs={"data_dir": "directory"}),
        config("", dataset_path=str(tmp_path), dataset_kwargs=in_it),
        config("", dataset_kwargs={"data_dir": str(tmp_path / "directory")}),
    ]
    readers: list[list[Evaluator]] = [
        [
            Exposure(info, data=canaries, references=3),
            CanaryAuc(info, data=canaries, group="A"),
            Extraction(info, data=canaries),
            Perplexity(info, data=canaries),
        ],
        [MultipleChoice(info, data=one), *(LmEvalTask(info, task=task) for task in both)],
        [MultipleChoice(info, data=held), *(LmEvalTask(info, task=task) for task in within)],
    ]
    for readers_of_one in readers:
        for a, b in combinations(readers_of_one, 2):
            with pytest.raises(ValueError, match=r"tasks 'a' and 'b' both read .*of which a rec"):
                check_items(Panel("search", {"a": a, "b": b}), 1e-5)
    shows = config("", num_fewshot=1, training_split="train")
    shows["dataset_kwargs"] = {"data_files": {"test": write_lines(ROWS[::-1]), "train": every}}
    report = Panel("report", {"seen": LmEvalTask(info, task=shows)})
    with pytest.raises(ValueError, match="report task 'seen' shows private items as examples"):
        check_shown([Panel("search", {"it": MultipleChoice(info, data=two)})], [report])
    examples = {**within[0], "num_fewshot": 1, "fewshot_split": "train"}
    panel = Panel("search", {"it": LmEvalTask(info, task=examples)})
    check_shown([panel], [panel])
    private = Panel("search", {"it": MultipleChoice(info, data=train)})
    with pytest.raises(ValueError, match="search task 'it' shows private items as examples"):
        check_shown([private], [panel])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_in_half_precision_no_private_item_changes_anothers_answer(
    checkpoints: Path, dtype: torch.dtype
) -> None:
    """Without `privacy` items share passes and beginnings, and do change one another's."""
    resident = language_resident(checkpoints / "llama")
    kick(resident)
    resident = Resident(resident.module.to(dtype), tokenizer=resident.info.tokenizer)
    shown = tuple(range(40, 70))
    requests = (
        *random_requests(2, 10, 60),
        *(Loglikelihood((*shown, 80 + i), (90, 91 + i)) for i in range(4)),  # one beginning
        Loglikelihood((*shown, 80, 90), (91,)),  # the first one's row
        *(Generate((*shown[: 3 * i], 70 + i), 6) for i in range(4)),
        *(TokenStatistics(tuple(range(50, 60 + 3 * i))) for i in range(3)),
    )
    candidates = [random_deltas(resident, 1)]
    options = {"batch_tokens": 512, "timeout_s": None, "compile": False}
    private = open_engine(OmegaConf.create({**options, "privacy": {"data": "d"}}), resident)
    plain = open_engine(OmegaConf.create(options), resident)

    def answers(engine: Engine, asked: Sequence[Request]) -> list[list[str]]:
        return [list(map(repr, own)) for own in engine.run_population(asked, candidates)]

    def moved(engine: Engine, place: int) -> bool:
        others = [one for number, one in enumerate(requests) if number != place]
        whole = answers(engine, requests)
        left = [[one for i, one in enumerate(own) if i != place] for own in whole]
        return answers(engine, others) != left

    assert not [place for place in (0, 10, 17) if moved(private, place)]
    assert any(moved(plain, place) for place in (0, 10, 17))
    alone = [[own[7]] for own in answers(private, requests)]
    assert answers(private, [requests[7]]) == alone  # as where one item fails
