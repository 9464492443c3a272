"""Private searches through the command line: noisy files, one spend, a budget that holds."""

from __future__ import annotations

import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra import compose, initialize_config_module
from hydra.errors import InstantiationException
from omegaconf import DictConfig, OmegaConf

from evaluators.items import ItemSet, TaskItem, on_subset
from evaluators.memorization.membership import Membership
from evaluators.panel import Panel
from experiments.runs.errors import UserError
from experiments.runs.files import read_lines
from experiments.runs.starts import others
from experiments.searches.private_key import KEY_FILE, open_noise, seeded_noise
from experiments.searches.tracking import DeferredTracker
from experiments.setup.common_items import PoissonItems
from experiments.setup.parts import SearchParts
from experiments.setup.private_checks import check_items, check_privacy
from experiments.suites.shared_references import share
from merging.checkpoints.mechanisms import (
    DiscreteGaussianMechanism,
    Mechanism,
    PureEpsilon,
    SparseVector,
)
from merging.privacy import accounting
from merging.privacy.composition import Price
from search.loop.history import Record
from search.privacy.private_budget import STOP
from search.privacy.private_noise import SCALE, SecretNoise
from tests.experiments.local import environment, evomerge, overrides, write_texts
from tests.experiments.refusals import Shell

PRIVATE = ["in_hull=null", "baselines=none", "evaluator@report_on=none", "privacy.data=letters"]
ES = ["strategy=mergevolve", "noise=rows", "strategy.popsize=4", "initial=average"]
MEANS = [*ES, "privacy=means", *PRIVATE, "privacy.epsilon=10", "privacy.clip=8"]
DESCENT = [
    *("strategy=dp_zo", "noise=rows", "initial=average", "strategy.phi=0.1"),
    *("privacy=differences", "choose=last", "privacy.epsilon=9", "privacy.reading_clip=8"),
    *("sampling=poisson", "common_items=0.5"),
    *PRIVATE,
]


def options(root: Path, data: Path, *more: str) -> list[str]:
    """The world's options without held-out items, and with more search items than it has."""
    own = {each.partition("=")[0] for each in more}
    common = [
        each
        for each in overrides(root)
        if each.partition("=")[0] not in own and not each.startswith("report_on")
    ]
    if "evaluator@select_on=none" in more:
        common = [each for each in common if not each.startswith("select_on")]
    return [*common, f"search_on.text.data={data}", *more]


@pytest.fixture
def items(tmp_path: Path) -> Path:
    return write_texts(tmp_path / "many.jsonl", first=500, count=12)


def search(shell: Shell, out: str, line: list[str]) -> Path:
    ended = shell.run("search", *line, f"out={out}")
    assert ended.code == 0, ended.stderr
    return shell.cwd / out


def spend_of(run: Path) -> dict[str, Any]:
    recipe = json.loads((run / "recipe.json").read_text())
    (spend,) = [each for each in recipe["privacy"]["spends"] if each["dataset"] == "letters"]
    return dict(spend)


def interrupted(whole: Path, key: str, to: Path, candidates: int) -> None:
    """A copy as if its process had died after so many candidates, with the key that it had."""
    to.mkdir()
    for name in ("config.yaml", "environment.json"):
        shutil.copy(whole / name, to / name)
    lines = (whole / "history.jsonl").read_text().splitlines(keepends=True)
    (to / "history.jsonl").write_text("".join(lines[:candidates]))
    timing = [json.dumps({"id": i, "seconds": 0.1, "at": 0.0}) + "\n" for i in range(candidates)]
    (to / "timing.jsonl").write_text("".join(timing))
    (to / KEY_FILE).write_text(key)
    (to / KEY_FILE).chmod(0o600)


def test_every_search_on_the_same_items_tells_of_the_others_and_none_of_itself(
    shell: Shell, world: Path, items: Path, monkeypatch: pytest.MonkeyPatch, keep_key: list[str]
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(shell.cwd / "state"))
    more = ["evaluator@select_on=none", "budget.evaluations=5", "save_model=false", "runs=runs"]
    line = options(world, items, *MEANS, *more)
    ended = shell.run("search", "-m", *line, "seed=0,1")  # every job of a sweep is a start
    assert ended.code == 0, ended.stderr
    first, second = sorted(shell.cwd.glob("runs/*-s[01]-*"))
    lines = others("letters", {})
    assert lines == [Price(10.0, 1e-5)] * 2, "the budget, not what was spent of it in the end"
    told = "of this search alone; 1 other run on letters, kept or thrown away, adds (ε, δ) = ("
    words = json.loads((second / "recipe.json").read_text())["privacy"]["words"]
    assert f"This is {told}10, 1e-05)." in words
    assert told in (second / "report.html").read_text()
    assert f"{told}10, 1e-05)" in shell.run("check", *line).stdout, "a finished run's own start"
    ended = shell.run("check", *line, "seed=2")
    assert "2 other runs on letters, kept or thrown away, add up to (ε, δ) = (20," in ended.stdout
    assert others("letters", {}) == lines, "a check is no start"
    stopped = shell.cwd / "stopped"
    interrupted(first, keep_key[0], stopped, 2)
    ended = shell.run("check", *line, "out=stopped")
    assert f"{told}10, 1e-05)" in ended.stdout, "its own start is none of the others"
    search(shell, stopped.name, line)
    assert len(others("letters", {})) == 2, "a start that goes on is no new one"


@pytest.fixture
def keep_key(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The keys that were destroyed, in order."""
    keys: list[str] = []
    unlink = Path.unlink

    def watched(path: Path, missing_ok: bool = False) -> None:
        if path.name == KEY_FILE and path.exists():
            assert path.stat().st_mode & 0o077 == 0, "others can read the key"
            keys.append(path.read_text())
        unlink(path, missing_ok=missing_ok)

    monkeypatch.setattr(Path, "unlink", watched)
    return keys


def test_a_run_leaves_noisy_fitness_and_one_spend_and_stops_in_time(
    shell: Shell, world: Path, items: Path, keep_key: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    true: list[float] = []
    evaluate = Panel.evaluate

    def watched(panel: Panel, engine: Any) -> Any:
        scores = evaluate(panel, engine)
        true.extend(score.value for score in scores.values())
        return scores

    monkeypatch.setattr(Panel, "evaluate", watched)
    more = ["evaluator@select_on=none", "budget.evaluations=1000", "privacy.epsilon=6"]
    line = options(world, items, *[o for o in MEANS if o != "privacy.epsilon=10"], *more)
    run = search(shell, "whole", line)

    summary = json.loads((run / "summary.json").read_text())
    assert summary["stop"] == STOP
    spend = spend_of(run)
    assert 0 < spend["epsilon"] <= 6
    steps = {each["noise_multiplier"]: each["steps"] for each in spend["mechanisms"]}
    assert steps[4 / 2] == (summary["evaluations"] - 5) / 4  # generations of four
    assert steps[4 / np.sqrt(5)] == 1  # the first one scores the centre too
    paid: list[Mechanism] = [
        DiscreteGaussianMechanism(sigma, 1.0, count) for sigma, count in steps.items()
    ]
    assert spend["epsilon"] == accounting.epsilon(paid, 1e-5)
    assert accounting.epsilon([*paid, DiscreteGaussianMechanism(2.0)], 1e-5) > 6

    names = {path.name for path in run.iterdir()}
    assert not names & {KEY_FILE, "timing.jsonl", "cases.jsonl", "references.jsonl"}
    assert len(keep_key) == 1
    text = "".join(
        path.read_text() for path in run.rglob("*") if path.suffix in (".json", ".jsonl", ".html")
    )
    assert len(true) > 10
    for value in true:
        assert f"{value:.6f}"[:7] not in text
    assert all(line["scores"] == {} for line in read_lines(run / "history.jsonl"))
    assert "the privacy budget does not pay" in (run / "report.html").read_text()
    assert "letters" in (run / "report.html").read_text()
    assert "letters" in (run / "model" / "README.md").read_text()
    assert "letters" in (run / "model" / "privacy.json").read_text()

    stopped = shell.cwd / "stopped"
    interrupted(run, keep_key[0], stopped, 7)  # within a generation
    ended = shell.run("search", *[*line, "budget.evaluations=5000"], "out=stopped")
    assert "belongs to another configuration" in ended.stderr  # a raised budget is another run
    resumed = search(shell, stopped.name, line)
    for name in ("history.jsonl", "recipe.json"):
        assert (resumed / name).read_bytes() == (run / name).read_bytes(), name
    assert len(set(keep_key)) == 1

    # a search from where this one ended knows what it had spent
    start = ["strategy=mergevolve", "noise=rows", "strategy.popsize=4", "initial=recipe"]
    start += [f"initial.path={run}/recipe.json", *PRIVATE[:3], *more[:1], "budget.evaluations=4"]
    assert spend_of(search(shell, "onward", options(world, items, *start))) == spend

    interrupted(run, keep_key[0], shell.cwd / "keyless", 5)
    (shell.cwd / "keyless" / KEY_FILE).unlink()
    ended = shell.run("search", *line, "out=keyless")
    assert ended.code == 2
    assert "secret.key is missing, so the noise of the steps" in ended.stderr


def test_dp_zo_with_a_poisson_sample_reads_its_last_centre_once(
    shell: Shell, world: Path, items: Path, keep_key: list[str]
) -> None:
    more = ["evaluator@select_on=none", "budget.evaluations=8"]
    line = options(world, items, *DESCENT, *more)
    shell.refuse("no candidate has a fitness of its own", "search", *line, "choose=second_look")
    run = search(shell, "whole", line)
    history = read_lines(run / "history.jsonl")
    pairs = [line["fitness"][0] for line in history]
    assert pairs[::2] == [-value for value in pairs[1::2]]
    spend, recipe = spend_of(run), json.loads((run / "recipe.json").read_text())
    assert spend["mechanisms"] == [
        {"kind": "discrete_gaussian", "noise_multiplier": 2.0, "sampling_rate": 0.5, "steps": 4},
        {"kind": "pure", "epsilon": 0.5, "count": 1},
    ]
    paid: list[Mechanism] = [DiscreteGaussianMechanism(2.0, 0.5, 4), PureEpsilon(0.5)]
    assert spend["epsilon"] == pytest.approx(accounting.epsilon(paid, 1e-5), rel=1e-9)
    centre = recipe["path"]
    assert centre["own"] is None
    assert len(centre["steps"]) == 4
    interrupted(run, keep_key[0], shell.cwd / "stopped", 3)
    resumed = search(shell, "stopped", line)
    for name in ("history.jsonl", "recipe.json", "summary.json"):
        if name != "summary.json":
            assert (resumed / name).read_bytes() == (run / name).read_bytes(), name
    first, again = (json.loads((d / "summary.json").read_text()) for d in (run, resumed))
    assert first["fitness"] == again["fitness"]
    other = search(shell, "other", line)  # another key: other noise
    assert [x["fitness"] for x in read_lines(other / "history.jsonl")] != [[p] for p in pairs]


def test_a_run_that_stops_by_what_it_saw_states_its_whole_budget(
    shell: Shell, world: Path, items: Path
) -> None:
    line = options(world, items, *MEANS, "evaluator@select_on=none", "budget.target=-1000")
    run = search(shell, "run", line)
    assert json.loads((run / "summary.json").read_text())["stop"] == "target"
    assert (spend_of(run)["epsilon"], spend_of(run)["mechanisms"]) == (10, None)


def test_svt_names_the_winner_on_private_selection_items(
    shell: Shell, world: Path, items: Path
) -> None:
    svt = ["choose=svt", "privacy.svt_epsilon=2", "privacy.svt_margin=-9", "privacy.svt_clip=8"]
    svt += ["budget.evaluations=9", "finalists=3"]
    line = options(world, items, *MEANS, *svt)
    run = search(shell, "run", line)
    answers = read_lines(run / "svt.jsonl")
    assert len(answers) <= 3
    assert not [answer for answer in answers if set(answer) != {"genome", "above"}]
    assert {"kind": "sparse_vector", "epsilon": 2, "count": 1} in spend_of(run)["mechanisms"]
    assert not list(run.glob("se*_cases.jsonl"))
    assert not (run / "finalists.jsonl").exists()
    paid: list[Mechanism] = [
        DiscreteGaussianMechanism(4 / np.sqrt(5)),
        DiscreteGaussianMechanism(2.0),
        SparseVector(2.0),
    ]
    assert spend_of(run)["epsilon"] == pytest.approx(accounting.epsilon(paid, 1e-5), rel=1e-9)


def test_a_seed_protects_nobody_and_a_search_with_one_spends_all(
    shell: Shell, world: Path, items: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(shell.cwd / "state"))
    more = ["evaluator@select_on=none", "budget.evaluations=5", "save_model=false"]
    line = options(world, items, *MEANS, *more)
    seeded = [*line, "privacy.randomness=seed"]
    ledger = json.loads((search(shell, "run", seeded) / "recipe.json").read_text())["privacy"]
    said = "the search on letters, whose noise follows from its public seed"
    assert (ledger["unrecorded"][-1], ledger["private"]) == (said, False)
    assert ledger["data_sets"] == {}, "there is no epsilon to state"
    assert "no other run on letters" in shell.run("check", *seeded, "out=run").stdout
    told = "leaves no guarantee (epsilon is infinite): whoever knows its public seed"
    assert told in shell.run("check", *line, "out=other").stdout


@pytest.fixture(scope="module")
def config() -> DictConfig:
    """A private search as configured, in which nothing is wrong."""
    line = [*MEANS, "evaluator@select_on=none", "objective=raw", "sampling=poisson"]
    with initialize_config_module("conf", version_base="1.3"):
        return compose("search", overrides=[*line, "common_items=0.5"])


PARETO = {"_target_": "search.objective.Pareto", "tasks": None, "normalize": "raw"}
CONSTRAINED = {"_target_": "search.constrained.Constrained", "limits": {"code": {"at_most": 1.0}}}
SCORED = {"_target_": "experiments.setup.initial.Scored", "temperature": 1.0, "scale": 1.0}
TASK = {"text": {"_target_": "evaluators.tasks.perplexity.Perplexity"}}


@pytest.mark.parametrize(
    ("changes", "pattern"),
    [
        ({"privacy.epsilon": 0.1}, r"privacy.epsilon=0.1 does not pay for one step, which costs"),
        ({"privacy.epsilon": -1.0}, "privacy.epsilon must be a finite number above 0, got -1"),
        ({"privacy.delta": 1.0}, "privacy.delta must be above 0 and below 1, got 1"),
        ({"privacy.public": ["search"]}, "privacy.public names 'search': only selection and rep"),
        ({"privacy.data": " "}, "privacy.data must be text that is not empty"),
        ({"privacy.svt_margin": float("nan")}, "privacy.svt_margin must be finite, got nan"),
        ({"objective.normalize": "expert"}, "no reference's score on the private items enters"),
        ({"objective": CONSTRAINED}, "no reference's score on the private items enters: choose"),
        ({"initial": SCORED}, "by scores on the private search items: choose initial=average"),
        ({"budget.seconds": 60.0}, "a time allows depends on the items: set budget.seconds=null"),
        ({"privacy.disjoint_from": "x"}, "must list names of other data sets than .*got .x"),
        ({"timeout_s": 3.0}, "whether time is up depends on the items: set timeout_s=null"),
        ({"asynchronous": True}, "a generation is released as a whole: leave racing= and async"),
        ({"choose": "shrinkage"}, "choose=shrinkage needs every item's score"),
        ({"choose": "last"}, "choose=last is for privacy=differences"),
        ({"choose": "svt"}, "choose=svt needs selection items"),
        (
            {"select_on": TASK},
            r"declare them public with privacy.public=\[selection\], choose=svt",
        ),
        ({"report_on": TASK}, r"declare them public with privacy.public=\[report\], leave them"),
        (
            {"select_on": TASK, "choose": "svt", "privacy.public": ["selection"]},
            "choose=svt is for private selection items, these are public: choose=second_look",
        ),
        ({"backend": {"url": "x"}}, "another program would read the private items and the secret"),
        ({"compile": True, "dtype": "bfloat16"}, "set compile=false, or dtype=float32"),
        ({"in_hull": {"space": {}}}, "companion search inside the hull would read the private"),
        ({"privacy.release": "differences"}, "no candidate has a fitness of its own to be chos"),
        ({"common_items": None}, "sampling=poisson: of how many items"),
        ({"sampling": None}, "a share of fixed size holds changes with every item more or less"),
        ({"privacy": {}}, "sampling=poisson is for private items, whose noise it makes cheaper"),
        (
            {"privacy": {}, "sampling": None, "choose": "svt"},
            "choose=svt is for private items: choose=second_look, or set privacy=",
        ),
    ],
)
def test_what_would_release_more_is_refused(
    config: DictConfig, changes: dict[str, Any], pattern: str
) -> None:
    changed = config.copy()
    OmegaConf.set_struct(changed, False)
    for key, value in changes.items():
        OmegaConf.update(changed, key, value, merge=False)
    with pytest.raises((ValueError, InstantiationException), match=pattern):
        check_privacy(changed, SearchParts.open(changed), 4, 1)


def test_differences_are_of_pairs_and_of_one_number(config: DictConfig) -> None:
    changed = config.copy()
    changed.privacy.release, changed.choose = "differences", "last"
    with pytest.raises(ValueError, match="releases differences of pairs, the strategy asks for 5"):
        check_privacy(changed, SearchParts.open(changed), 5, 1)
    with pytest.raises(ValueError, match="privacy=differences knows one objective"):
        check_privacy(changed, SearchParts.open(changed), 4, 2)
    changed.objective = PARETO
    check_privacy(changed, SearchParts.open(changed), 4, 1)


def test_an_item_may_contribute_once() -> None:
    tasks: Any = {"a": Counted(["x", "y"]), "b": Counted(["z", "y"])}
    with pytest.raises(ValueError, match="search tasks 'a' and 'b' hold one item twice"):
        check_items(Panel("search", tasks), 1e-5)
    check_items(Panel("search", {"a": tasks["a"]}), 1e-5)
    texts: Any = object.__new__(Membership)
    texts.items, texts._attacks = Counted(["x", "y"]).items, ("loss",)
    compared: Any = {"a": texts}
    with pytest.raises(ValueError, match="task 'a': membership inference compares its texts"):
        check_items(Panel("search", compared), 1e-5)


def test_a_delta_that_gives_an_item_away_is_refused() -> None:
    tasks: Any = {"a": Counted([str(number) for number in range(10)])}
    check_items(Panel("search", tasks), 0.09)
    with pytest.raises(ValueError, match="would allow to give one of the 10 search"):
        check_items(Panel("search", tasks), 0.1)


class Told:
    """A tracker that keeps what it is told, in order."""

    def __init__(self) -> None:
        self.told: list[Any] = []

    def start(self, config: Any, run_dir: Path, run_id: str) -> None:
        self.told.append("start")

    def log(self, record: Record, replayed: bool) -> None:
        self.told.append((record.id, record.seconds, replayed))

    def finish(self, summary: Any, files: Any) -> None:
        self.told.append("finish")


def test_trackers_learn_no_times() -> None:
    inner = Told()
    tracker = DeferredTracker(inner)
    tracker.start({}, Path(), "id")
    for number, replayed in enumerate((True, False)):
        tracker.log(Record(number, [0.0], {}, None, seconds=1.5), replayed)
        assert not inner.told, "when it is told is a time as well"
    tracker.finish({}, [])
    unknown = pytest.approx(float("nan"), nan_ok=True)
    assert inner.told == ["start", (0, unknown, True), (1, unknown, False), "finish"]


def test_no_other_runs_scores_are_laid_beside_private_ones(tmp_path: Path) -> None:
    source, run = tmp_path / "source", tmp_path / "run"
    source.mkdir()
    config = OmegaConf.create({"experts": {}, "search_on": {}, "privacy": {"data": "d"}})
    OmegaConf.save(config, source / "config.yaml")
    (source / "references.jsonl").write_text("")
    assert not share(source, run, config)
    assert not run.exists()


class Counted:
    """An evaluator with nothing but items."""

    def __init__(self, names: list[str]) -> None:
        self.metrics = {"acc": "maximize"}
        source = f"{names[0]}.jsonl[0:{len(names)}]"
        self.items = ItemSet(source, tuple(TaskItem(name, (), None) for name in names))

    def subset(self, indices: list[int]) -> Counted:
        return on_subset(self, indices)


def test_every_item_is_sampled_on_its_own_with_the_stated_probability() -> None:
    tasks: Any = {"a": Counted([f"a{i}" for i in range(30)]), "b": Counted(["b0", "b1"])}
    items = PoissonItems(Panel("search", tasks), 0.2, SecretNoise(bytes(16)))
    drawn = []
    for generation in range(1000):
        panel = items.of(generation)
        evaluators = {} if panel is None else panel.evaluators
        digests = {task: part.items.digests for task, part in evaluators.items()}
        drawn.append(
            [f"a{i}" in digests.get("a", ()) for i in range(30)]
            + [f"b{i}" in digests.get("b", ()) for i in range(2)]
        )
    share = np.array(drawn, np.float64)
    np.testing.assert_allclose(share.mean(0), 0.2, atol=4 * np.sqrt(0.16 / 1000))
    counts = share.sum(1)  # independent items: the variance of a binomial
    assert abs(counts.var() / (32 * 0.16) - 1) < 0.2
    assert items.of(7) is items.of(7)
    few = PoissonItems(Panel("search", {"b": tasks["b"]}), 0.01, SecretNoise(bytes(16)))
    assert few.of(0) is None


def test_noise_belongs_to_configuration_and_items(tmp_path: Path) -> None:
    one = open_noise(tmp_path, ["run", "items"], begun=False)
    assert one.laplace(SCALE, 1) == open_noise(tmp_path, ["run", "items"], begun=True).laplace(
        SCALE, 1
    )
    assert one.laplace(SCALE, 1) != open_noise(
        tmp_path, ["run", "other items"], begun=True
    ).laplace(SCALE, 1)
    assert seeded_noise(1, ["a"]).laplace(SCALE, 1) != seeded_noise(2, ["a"]).laplace(SCALE, 1)
    (tmp_path / KEY_FILE).write_text("no key")
    with pytest.raises(UserError, match=r"secret\.key is damaged .*: restore it"):
        open_noise(tmp_path, [], begun=False)
    (tmp_path / KEY_FILE).unlink()
    with pytest.raises(UserError, match=r"secret\.key is missing, so the noise of the steps"):
        open_noise(tmp_path, [], begun=True)


@pytest.mark.slow
def test_killed_at_any_moment_it_releases_the_same_once(world: Path, tmp_path: Path) -> None:
    """SIGKILL as soon as so many lines are there; the key of the first start is that of the last.

    An uninterrupted run with the same key says what has to come out.
    """
    data = write_texts(tmp_path / "many.jsonl", first=500, count=12)
    line = options(world, data, *DESCENT, "evaluator@select_on=none", "budget.evaluations=12")
    killed, whole = tmp_path / "killed", tmp_path / "whole"
    command = [sys.executable, "-m", "experiments.cli", "search", *line, f"out={killed}"]
    kills, key = 0, ""
    for lines in (0, 1, 4, 5, 11):
        process = subprocess.Popen(
            command,
            cwd=tmp_path,
            env=environment(),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        while process.poll() is None and not (
            (killed / KEY_FILE).exists() and _lines(killed / "history.jsonl") >= lines
        ):
            time.sleep(0.001)
        if process.poll() is None:
            key = key or (killed / KEY_FILE).read_text()
            process.send_signal(signal.SIGKILL)
            kills += 1
        process.wait()
    assert kills >= 4
    shutil.copytree(killed, whole)
    for name in ("history.jsonl", "timing.jsonl", "recipe.json"):
        (whole / name).unlink(missing_ok=True)
    assert (killed / KEY_FILE).read_text() == key
    for out in (killed, whole):
        done = evomerge("search", *line, f"out={out}", cwd=tmp_path)
        assert done.returncode == 0, done.stderr
        assert not (out / KEY_FILE).exists()
    for name in ("history.jsonl", "recipe.json"):
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    assert spend_of(killed)["mechanisms"][0]["steps"] == 6


def _lines(path: Path) -> int:
    return path.read_bytes().count(b"\n") if path.exists() else 0


def test_private_items_are_told_from_others_by_a_number_that_needs_the_key(
    shell: Shell, world: Path, items: Path, keep_key: list[str]
) -> None:
    line = options(world, items, *MEANS, "evaluator@select_on=none", "budget.evaluations=6")
    whole = search(shell, "whole", line)
    ingredients = whole / "ingredients.json"
    known = json.loads(ingredients.read_text())["items"]
    assert list(known) == ["private"]
    assert 0 < known["private"] < 1
    interrupted(whole, keep_key[0], shell.cwd / "stopped", 5)
    shutil.copy(ingredients, shell.cwd / "stopped")
    text = items.read_text()
    items.write_text(text.replace("brown", "white", 1))
    ended = shell.run("search", *line, "out=stopped")
    assert ended.code == 2
    assert "begun with another set of private items: what lies there" in ended.messages[-1]
    items.write_text(text)
    assert search(shell, "stopped", line) == shell.cwd / "stopped"
    again = search(shell, "again", line) / "ingredients.json"  # with a key of its own
    assert json.loads(again.read_text())["items"] != known
