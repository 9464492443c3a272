"""Every kind of recipe from before merging had folders gives the model that it gave then.

``recipes.json`` holds, by a name, the plan of a recipe, the pool that it is for, and the sum over
``w[i] cos(i)`` of every tensor, in float64, as the code of that time computed them: but for four
tensors of TIES and DELLA with equal magnitudes, which were kept by their place then.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from merging.checkpoints.experts import ExpertPool
from merging.described import MOVED
from merging.plans import plan_from_description
from tests.merging.recipes_of_0_1 import checkpoints

RECIPES: dict[str, dict[str, Any]] = json.loads(
    Path(__file__).with_name("recipes.json").read_text()
)


@pytest.fixture(scope="module")
def pools(tmp_path_factory: pytest.TempPathFactory) -> dict[str, ExpertPool]:
    folder = tmp_path_factory.mktemp("recipes")
    models = checkpoints.write_models(folder)
    return {"models": models, "adapters": checkpoints.write_adapters(folder)}


@pytest.mark.parametrize("name", RECIPES)
def test_rebuilds_what_it_rebuilt_then(name: str, pools: dict[str, ExpertPool]) -> None:
    entry = RECIPES[name]
    pool = pools[entry["pool"]].select(entry["recipe"].get("merged", checkpoints.EXPERTS))
    plan = plan_from_description(entry["recipe"])
    described_anew = plan_from_description(json.loads(json.dumps(plan.describe())))
    again = described_anew.weights(pool, dtype=torch.float32)
    weights = plan.weights(pool, dtype=torch.float32)
    assert len(weights) == len(entry["sums"])
    for (tensor_name, tensor), expected in zip(weights.items(), entry["sums"], strict=True):
        assert torch.equal(tensor, again[tensor_name])
        numbers = tensor.double().reshape(-1)
        waves = torch.cos(torch.arange(len(numbers), dtype=torch.float64))
        # Other CPUs may round other last bits; another merge would be off by far more.
        assert float(numbers @ waves) == pytest.approx(expected, abs=2e-5 + 1e-5 * len(numbers))


def test_every_moved_name_stands_in_a_recipe() -> None:
    text = json.dumps(RECIPES)
    assert [old for old in MOVED if f'"{old}"' not in text] == []


def test_plans_are_described_by_the_names_of_today() -> None:
    plans = [plan_from_description(entry["recipe"]) for entry in RECIPES.values()]
    text = json.dumps([plan.describe() for plan in plans])
    assert [old for old in MOVED if f'"{old}"' in text] == []
    assert all(new in text for new in MOVED.values())
