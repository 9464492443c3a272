"""A search of one's own experts and tasks in one line."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml
from hydra import compose, initialize_config_module
from omegaconf import OmegaConf

from experiments.commands.shorthands import longhand
from experiments.runs.directory import run_identity
from experiments.setup.own_tasks import with_tasks
from tests import builders
from tests.experiments.local import EXPERTS, write_texts
from tests.experiments.refusals import Shell

QUICK = ("tracker=none", "baselines=few", "device=cpu", "finalists=2")


def write_rows(path: Path, rows: list[Mapping[str, Any]]) -> None:
    path.write_text("\n".join(map(json.dumps, rows)) + "\n", encoding="utf-8")


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Base and experts, two tasks as lm-eval writes them, and a table sorted by its answers."""
    root = tmp_path_factory.mktemp("home")
    builders.experts_of(builders.llama(root / "base"), 2, 0.05, names=EXPERTS[:2])
    for name, splits in (("colours", ["test"]), ("sizes", ["validation", "test"])):
        for split in splits:
            rows = [
                {"q": f"{name} {split} {i}", "c": ["fox", "ox"], "a": i % 2} for i in range(20)
            ]
            write_rows(root / f"{name}.{split}.jsonl", rows)
        task = {
            "task": name,
            "dataset_path": "json",
            "dataset_kwargs": {"data_files": {s: str(root / f"{name}.{s}.jsonl") for s in splits}},
            **{f"{split}_split": split for split in splits},
            "output_type": "multiple_choice",
            "doc_to_text": "{{q}}",
            "doc_to_choice": "{{c}}",
            "doc_to_target": "a",
        }
        (root / f"{name}.yaml").write_text(yaml.safe_dump(task))
    write_rows(
        root / "quiz.jsonl",
        [
            {"question": f"what {i}", "choices": ["fox", "dog"], "answer": i // 20}
            for i in range(40)
        ],
    )
    return root


def line(home: Path) -> list[str]:
    return [
        f"base={home}/base",
        f"experts={{code:{home}/base-code,prose:{home}/base-prose}}",
        f"tasks=[{home}/colours.yaml,{{task:{home}/sizes.yaml,weight:2}},{home}/quiz.jsonl]",
        "budget=4",
        *QUICK,
    ]


def test_one_line_searches_and_shows_its_run_when_it_is_given_again(
    shell: Shell, home: Path
) -> None:
    ended = shell.run("search", *line(home))
    assert ended.code == 0, ended.stderr
    rows = [row.split() for row in ended.stdout.splitlines() if "points" in row]
    table = {row[-7]: row[-6:-1] for row in rows[:3]}
    assert table == {
        "colours": ["20", "5", "5", "10", "28.0"],
        "sizes": ["40", "10", "10", "20", "19.8"],
        "quiz": ["40", "10", "10", "20", "19.8"],
    }
    assert "colours, sizes, quiz: too few held-out items to show a difference of 1" in ended.stdout
    (run,) = (shell.cwd / "runs").iterdir()
    summary = json.loads((run / "summary.json").read_text())
    assert summary["evaluations"] == 4
    assert [term["weight"] for term in summary["terms"]] == [0.25, 0.5, 0.25]
    assert summary["items"]["quiz"] | {"points": 0} == {
        **{"found": 40, "search": 10, "selection": 10, "report": 20, "points": 0}
    }
    assert "19.8 points" in (run / "report.html").read_text()
    assert "19.8 points" in (run / "model" / "README.md").read_text()
    again = shell.run("search", *line(home))
    assert "evolved" in again.stdout
    assert "items  " not in again.stdout, "nothing is opened again"
    assert [run] == list((shell.cwd / "runs").iterdir())


def test_texts_beside_questions_need_no_word_on_how_to_judge_them(
    shell: Shell, home: Path
) -> None:
    texts = write_texts(home / "texts.jsonl", first=0, count=16)
    tasks = f"tasks=[{texts},{home}/quiz.jsonl]"
    ended = shell.run("check", *line(home)[:2], *QUICK, tasks, "budget=30")
    assert ended.code == 0, ended.stderr


def test_shorthands_are_swept_as_other_options(shell: Shell, home: Path) -> None:
    tasks = f"tasks=[{home}/colours.yaml],[{home}/quiz.jsonl]"
    ended = shell.run("check", "-m", *line(home)[:2], *QUICK, tasks, "budget=2")
    assert ended.code == 0, ended.stderr
    assert ended.stdout.count("ready\n") == 2
    assert len({row for row in ended.stdout.splitlines() if row.startswith("run  ")}) == 2


def identity(*words: str) -> str:
    with initialize_config_module("conf", version_base="1.3"):
        return run_identity(with_tasks(compose("search", overrides=longhand("search", words))))


def test_short_and_long_form_are_one_run(home: Path) -> None:
    own, quiz = f"experts={{code:{home}/base-code}}", f"{home}/quiz.jsonl"
    tasks = f"tasks=[{{task:{quiz},name:choice,held_out:9}}]"
    short = [f"base={home}/base", own, "budget=7", tasks]
    long = [
        "strategy=auto",
        "experts=local",
        f"experts.base={home}/base",
        f"experts.{own}",
        "budget.evaluations=7",
    ]
    for option, panel in (
        ("search_on", "search"),
        ("select_on", "selection"),
        ("report_on", "report"),
    ):
        draw = f"_target_:evaluators.tasks.splits.ItemDraw,panel:{panel}"
        long += [
            f"evaluator@{option}=multiple_choice",
            f"{option}.choice.data={quiz}",
            f"{option}.choice.label_field=answer",
            f"{option}.choice.take={{{draw},search:null,selection:null,held_out:9,seed:0}}",
        ]
    assert identity(*long) == identity(*short)
    assert identity(*short) != identity(*short, "splits.search=3")


@pytest.mark.parametrize(
    ("words", "long"),
    [
        (["experts=quickstart"], ["experts=quickstart"]),
        (["budget.seconds=9", "budget=5,6"], ["budget.seconds=9", "budget.evaluations=5,6"]),
        (["experts=hub", "base=B"], ["experts=hub", "experts.base=B"]),
        (["experiment=e", "base=B"], ["experiment=e", "experts.base=B"]),
        (["tasks=[t]"], ["strategy=auto", "tasks=[t]"]),
        (["tasks=[t]", "method=ties"], ["tasks=[t]", "method=ties"]),
        (["tasks=[t]", "asynchronous=true"], ["tasks=[t]", "asynchronous=true"]),
        (["tasks=[t]", "common_items=0.5"], ["tasks=[t]", "common_items=0.5"]),
        (["tasks=[t]", "choose=shrinkage"], ["tasks=[t]", "choose=shrinkage"]),
        (["tasks=null", "search_on.a.take=1"], ["tasks=null", "search_on.a.take=1"]),
        (["budget=-5"], ["budget.evaluations=-5"]),
        (["budget=null"], ["budget.evaluations=null"]),
        (["base=~/m,/r=3/m"], ["experts=local", 'experts.base="~/m","/r=3/m"']),
        (
            ["base=${a.b:C}/m", "base=choice(A,B)"],
            ["experts=local", "experts.base=${a.b:C}/m", "experts.base=choice(A,B)"],
        ),
        (
            ["experts={a:~/m,b: /d/run=3,c:'x,y=z'}"],
            ["experts=local", 'experts.experts={a:"~/m",b: "/d/run=3",c:\'x,y=z\'}'],
        ),
        (
            ["tasks=[~/q(1).jsonl,{task:it's.jsonl,columns:{text:a=b}}]", "method=ties"],
            ['tasks=["~/q(1).jsonl",{task:"it\'s.jsonl",columns:{text:"a=b"}}]', "method=ties"],
        ),
        (
            ["experiment=e", "experts={a:A}"],
            ["experts=local", "experiment=e", "experts.experts={a:A}"],
        ),
    ],
)
def test_shorthands(words: list[str], long: list[str]) -> None:
    assert longhand("search", words) == long
    others = longhand("evaluate", words)
    assert [o.partition("=")[0] for o in others] == [w.partition("=")[0] for w in words], "its own"


def test_a_table_is_what_its_columns_say(tmp_path: Path) -> None:
    rows = [{"sentence": "so", "text": "so", "pair": "or", "label": 1}]
    write_rows(tmp_path / "moods.jsonl", rows)

    def kind(more: str = "") -> tuple[str, Any]:
        words = [f"tasks=[{{task:{tmp_path}/moods.jsonl{more}}}]"]
        with initialize_config_module("conf", version_base="1.3"):
            config = with_tasks(compose("evaluate", overrides=[*words, "model=m"]))
        entry = config.report_on.moods
        return entry._target_.rpartition(".")[2], OmegaConf.to_container(entry)

    target, entry = kind()
    assert (target, entry["head"], entry["take"]["panel"]) == ("Accuracy", "moods", "report")
    assert entry["pair_field"] == "pair"
    target, entry = kind(",columns:{text:sentence},search:7")
    assert (target, entry["field"], entry["take"]["search"]) == ("Perplexity", "sentence", 7)


def test_a_metric_of_images_is_judged_by() -> None:
    words = ["base=B", "experts={a:A}", "tasks=[{task:digits.npz,metric:macro_f1}]"]
    with initialize_config_module("conf", version_base="1.3"):
        config = with_tasks(compose("search", overrides=longhand("search", words)))
    assert config.objective.metrics == {"digits": "macro_f1"}


@pytest.mark.parametrize(
    ("tasks", "pattern"),
    [
        ("[gone.jsonl]", "no file gone.jsonl"),
        ("[gone.yaml]", "gone.yaml does not exist"),
        ("[]", "name a task"),
        ("[3]", "3 names no task"),
        ("[{weight:2}]", "names no task"),
        ("[ARRAY]", "array.json holds no JSON object in its first line"),
        ("[EMPTY]", "empty.jsonl names no columns in its first line: write items into it"),
        ("[{task:QUIZ,columns:[question]}]", r"columns \['question'\] of .* names none by its m"),
        ("[{task:arc_easy,columns:{text:a}}]", "arc_easy is no table: leave its columns: out"),
        ("[{task:QUIZ,search:-3}]", "search must be null or a number of items, got -3"),
        ("[QUIZ] splits=3", "splits=3: expected"),
        ("[QUIZ] budget=-5", "budget.evaluations"),
        ("[QUIZ] tasks=[{task:QUIZ}]", "tasks= stands here twice: write one list, in quotes"),
        ("[QUIZ,QUIZ]", "two have the name 'quiz'"),
        (
            "[{task:QUIZ,columns:{text:story}}]",
            "columns question, choices, answer, and story is none",
        ),
        ("[{task:QUIZ,columns:{question:question}}]", "and these make no task: name those"),
        ("[{task:QUIZ,shots:2}]", "quiz.shots: MultipleChoice has no such option"),
        ("[{task:QUIZ,search:40}]", "40 distinct items, which do not suffice for search 40"),
        ("[QUIZ] objective=pareto tasks.0={task:QUIZ,weight:2}", "Pareto takes no weight"),
        ("[QUIZ] evaluator@search_on=none", "and evaluator@search_on=none makes some too"),
        ("[QUIZ] privacy=means privacy.data=d", "one private record decides about others"),
        ("[QUIZ] experts=code:DIR", "the shell has taken the braces"),
    ],
)
def test_what_cannot_be_meant_is_refused(
    shell: Shell, home: Path, idle: None, tasks: str, pattern: str
) -> None:
    (home / "array.json").write_text('[{"text": "a"}]')
    (home / "empty.jsonl").touch()
    for name in ("quiz.jsonl", "array.json", "empty.jsonl"):
        tasks = tasks.replace(name.partition(".")[0].upper(), f"{home}/{name}")
    words = f"tasks={tasks}".split()
    shell.refuse(pattern, "search", *line(home)[:2], *QUICK, *words)
