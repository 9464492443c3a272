"""Where the experts of a search are held."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch
from omegaconf import OmegaConf

from experiments.runs import memory
from experiments.runs.memory import free_bytes
from experiments.setup import assemble
from experiments.setup.assemble import Machine, fills, hold, kept_limit
from experiments.setup.ingredients import Ingredients
from experiments.setup.preflight import _model_bytes, memory_line
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.ties import Ties
from merging.plan import uniform_plan
from tests import builders

CPU = torch.device("cpu")


def test_experts_are_streamed_where_they_fill_half_of_what_is_free(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    experts = builders.experts_of(base, 2, 0.02, names=("a", "b"))
    pool = ExpertPool.open(str(base), experts)
    stored = 3 * sum(4 * pool.base_tensor(name).numel() for name in pool.names)
    assert fills(pool, 2 * stored - 2)
    assert not fills(pool, 2 * stored)


@pytest.mark.parametrize("free", [0, 10**12])
def test_experts_that_do_not_fit_into_memory_stay_in_their_files(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, free: int
) -> None:
    """Merges are the same, and `check` counts what is held alone."""
    base = builders.llama(tmp_path / "base")
    pool = ExpertPool.open(str(base), builders.experts_of(base, 2, 0.02, names=("a", "b")))
    monkeypatch.setattr(assemble, "free_bytes", lambda device: free)
    machine = Machine(CPU, torch.float32, None)
    held = hold(OmegaConf.create({"stream": "auto", "keep_gb": 0}), pool, machine)
    assert held.in_files is (free == 0)
    merged = uniform_plan(Ties(), Whole(), held).weights(held)
    wanted = uniform_plan(Ties(), Whole(), pool).weights(pool)
    assert all(torch.equal(merged[name], wanted[name]) for name in pool.names)
    engine = SimpleNamespace(resident=SimpleNamespace(module=torch.nn.Linear(1000, 1000)))
    idle: Any = None
    ingredients = Ingredients(machine, pool, held, cast(Any, engine), idle, {})
    stored = 3 * sum(4 * pool.base_tensor(name).numel() for name in pool.names)
    model = 4 * 1001 * 1000 + (0 if held.in_files else stored)
    assert _model_bytes(ingredients) == model
    assert ("in their files" in memory_line(ingredients, 0)) is held.in_files


def test_what_is_scored_once_leaves_nothing_in_memory(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    pool = ExpertPool.open(str(base), builders.experts_of(base, 2, 0.02, names=("a", "b")))
    held, idle = pool.resident(CPU), Any
    machine = Machine(CPU, torch.float32, None)
    ingredients = Ingredients(machine, pool, held, idle, idle, {})
    dict(ingredients.saved(uniform_plan(Ties(), Whole(), held)))
    assert held.kept_bytes == 0


def test_what_is_kept_is_limited_by_an_option_or_a_share_of_what_is_free() -> None:
    assert kept_limit(OmegaConf.create({"keep_gb": 0.5}), CPU) == 5e8
    free = free_bytes(CPU)
    assert 0.15 * free < kept_limit(OmegaConf.create({"keep_gb": None}), CPU) < 0.35 * free


@pytest.mark.parametrize(
    ("line", "mount", "limit", "used", "prefix"),
    [
        ("0::/job/step", "", "memory.max", "memory.current", ""),
        (
            "4:memory:/job/step",
            "memory",
            "memory.limit_in_bytes",
            "memory.usage_in_bytes",
            "total_",
        ),
    ],
)
def test_the_limit_of_a_job_is_what_is_free_but_for_pages_of_files(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    *,
    line: str,
    mount: str,
    limit: str,
    used: str,
    prefix: str,
) -> None:
    job = tmp_path / mount / "job"
    (job / "step").mkdir(parents=True)
    for folder, most in ((job, "9000"), (job / "step", "max")):
        (folder / limit).write_text(f"{most}\n")
        (folder / used).write_text("7000\n")
        (folder / "memory.stat").write_text(
            f"anon 9\n{prefix}inactive_file 500\n{prefix}active_file 40\n"
        )
    (tmp_path / "cgroup").write_text(f"5:devices:/\n{line}\n")
    monkeypatch.setattr(memory, "_GROUPS", tmp_path / "cgroup")
    monkeypatch.setattr(memory, "_MOUNT", tmp_path)
    assert free_bytes(CPU) == 9000 - 7000 + 540
