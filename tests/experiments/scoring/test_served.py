"""backend=completions against a real server: the same numbers as the resident model gives."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from evaluators import tries
from evaluators.engine.engine import Engine
from evaluators.engine.model import Model, ResidentModel
from evaluators.engine.resident import Resident
from evaluators.engine.served import ServedModel
from evaluators.panel import Panel
from evaluators.requests import (
    Classify,
    EvaluationError,
    Generate,
    Generated,
    Likelihood,
    Loglikelihood,
    TransientFailure,
)
from evaluators.tasks.perplexity import Perplexity
from experiments.runs.errors import UserError, explained
from experiments.scoring.backends import completions
from experiments.setup.ingredients import Scorer
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.task_arithmetic import TaskArithmetic
from merging.plan import MergePlan
from merging.saving import save_adapter
from merging.weights import Weights
from tests import builders
from tests.completions_server import Served, serving
from tests.experiments.local import evomerge, overrides, write_texts
from tests.experiments.refusals import Shell

NAMES = ("code", "prose", "maths")


def _ids(text: str) -> tuple[int, ...]:
    return tuple(builders.byte_tokenizer()(text, add_special_tokens=False)["input_ids"])


REQUESTS = (
    Loglikelihood(_ids("the quick"), _ids(" fox")),
    Generate(_ids("over the lazy"), 6),
    Loglikelihood(_ids("x" * 30), _ids("y")),
    Generate(_ids("dog and"), 8, stop=("a",)),
)


@pytest.fixture(scope="module")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("served")
    base = builders.llama(root / "base")
    for seed, name in enumerate(NAMES):
        builders.lora_adapter(root / f"base-{name}", base, rank=2, seed=seed)
    for i, split in enumerate(("search", "selection", "report")):
        write_texts(root / f"{split}.jsonl", first=100 * i)
    return root


@pytest.fixture(scope="module")
def server(world: Path) -> Iterator[tuple[str, Served]]:
    with serving(world / "base") as found:
        yield found


@pytest.fixture
def pool(world: Path) -> ExpertPool:
    return ExpertPool.open(
        str(world / "base"), {name: str(world / f"base-{name}") for name in NAMES}
    )


@pytest.fixture
def resident(pool: ExpertPool) -> Resident:
    return Resident.from_pool(pool, device="cpu", dtype=torch.float32)


def mixture(pool: ExpertPool, *weights: float) -> Weights:
    plan = MergePlan(
        TaskArithmetic(),
        Whole(),
        NAMES,
        {"model": {"weight": dict(zip(NAMES, weights, strict=True)), "scale": 1.0}},
    )
    return plan.weights(pool, dtype=torch.float32)


def served(
    pool: ExpertPool, resident: Resident, url: str, folder: Path, rank: int = 6
) -> ServedModel:
    return completions(
        pool,
        resident.info,
        url=url,
        served_as="base",
        tokenizer=None,
        adapters=str(folder),
        rank=rank,
        largest_error=1e-3,
        batch_size=3,
        concurrent=1,
        timeout_s=30,
        retries=1,
    )


def test_answers_equal_the_resident_model(
    pool: ExpertPool, resident: Resident, server: tuple[str, Served], tmp_path: Path
) -> None:
    local: Model = ResidentModel(resident, Engine(resident))
    remote: Model = served(pool, resident, server[0], tmp_path)
    for weights in (
        {name: pool.base_tensor(name) for name in pool.names},
        mixture(pool, 1.5, -0.5, 0.3),
        mixture(pool, 0.2, 2.0, 1.0),
    ):
        local.write(weights)
        remote.write(weights)
        for mine, theirs in zip(local.run(REQUESTS), remote.run(REQUESTS), strict=True):
            if isinstance(mine, Likelihood):
                assert isinstance(theirs, Likelihood)
                assert theirs.total == pytest.approx(mine.total, abs=1e-4)
                assert theirs.greedy == mine.greedy
            else:
                assert isinstance(mine, Generated)
                assert isinstance(theirs, Generated)
                assert theirs.text == mine.text
    assert sorted(server[1].models) == ["base", server[1].loaded[-1]]  # the one before is gone
    assert len(list(tmp_path.iterdir())) == 1


def test_an_adapter_that_loses_too_much_is_no_candidate(
    pool: ExpertPool, resident: Resident, server: tuple[str, Served], tmp_path: Path
) -> None:
    remote = served(pool, resident, server[0], tmp_path, rank=1)
    with pytest.raises(EvaluationError, match=r"rank 1 loses .* raise rank"):
        remote.write(mixture(pool, 1.0, 1.0, 1.0))
    assert not list(tmp_path.iterdir())


def test_a_server_that_has_died_is_a_failure(
    world: Path, pool: ExpertPool, resident: Resident, tmp_path: Path
) -> None:
    with serving(world / "base") as (url, _):
        remote = served(pool, resident, url, tmp_path)
    with pytest.raises(TransientFailure, match="does not take the adapter"):
        remote.write(mixture(pool, 1.0, 0.0, 0.0))
    with pytest.raises(TransientFailure, match="does not answer"):
        remote.run(REQUESTS)
    with pytest.raises(ValueError, match=r"backend\.url=.*no OpenAI-compatible server"):
        served(pool, resident, url, tmp_path)


@pytest.mark.parametrize("fault", ["server", "disk"])
def test_no_candidate_is_to_blame_where_adapters_do_not_arrive(
    world: Path,
    pool: ExpertPool,
    resident: Resident,
    server: tuple[str, Served],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: str,
) -> None:
    """The base, which needs no adapter, can be scored all the same."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    if fault == "disk":
        monkeypatch.setattr(save_adapter, "save_file", refuse)
    else:
        monkeypatch.setattr(server[1], "load", refuse)
    monkeypatch.setattr(tries, "PAUSES_S", (0.0, 0.0))
    panel = Panel("search", {"text": Perplexity(resident.info, data=str(world / "search.jsonl"))})
    scorer = Scorer(served(pool, resident, server[0], tmp_path), panel, pool)
    assert scorer(pool.base_weights())
    with pytest.raises(TransientFailure, match=r"adapter.* base and experts cannot be scored now"):
        scorer(mixture(pool, 1.0, 0.5, 0.0))
    monkeypatch.undo()
    assert scorer(mixture(pool, 1.0, 0.5, 0.0))


def test_what_a_server_cannot_do_is_refused(
    pool: ExpertPool, resident: Resident, server: tuple[str, Served], tmp_path: Path
) -> None:
    remote = served(pool, resident, server[0], tmp_path)
    with pytest.raises(ValueError, match="answers no Classify request"):
        remote.run([Classify("head", {})])
    with pytest.raises(UserError, match=r"use ResidentModel \(backend=resident\)"), explained():
        remote.run([Classify("head", {})])
    with pytest.raises(ValueError, match="rank must be at least 1"):
        served(pool, resident, server[0], tmp_path, rank=0)


def test_search_by_a_server_finds_what_the_resident_model_finds(
    world: Path, server: tuple[str, Served], tmp_path: Path
) -> None:
    line = overrides(world, "space=weights", "strategy=random", "budget.evaluations=4")
    line += ["in_hull=null", "baselines=none", "save_model=false"]
    here = evomerge("search", *line, f"out={tmp_path}/here", cwd=tmp_path)
    assert here.returncode == 0, here.stderr
    away = evomerge(
        "search",
        *line,
        f"out={tmp_path}/away",
        "backend=completions",
        f"backend.url={server[0]}",
        "backend.served_as=base",
        "backend.rank=6",
        f"backend.adapters={tmp_path}/adapters",
        cwd=tmp_path,
    )
    assert away.returncode == 0, away.stderr
    one, other = ((tmp_path / run / "recipe.json").read_text() for run in ("here", "away"))
    assert one == other


def test_an_unknown_model_is_refused_by_name(
    world: Path, server: tuple[str, Served], shell: Shell
) -> None:
    line = overrides(
        world, "backend=completions", f"backend.url={server[0]}", "backend.served_as=x"
    )
    shell.refuse("backend.served_as=x: the server", "search", *line)
