"""Checkpoints that the tests of mergekit files share and never change."""

from pathlib import Path

import pytest
from torch import Tensor

from merging.checkpoints.experts import ExpertPool
from merging.mergekit_yaml.reading import MergekitJob, from_mergekit
from tests import builders
from tests.merging.mergekit_yaml.mergekit_files import EXPERTS, LAYERS, Run


@pytest.fixture(scope="package")
def zoo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base of five layers, three experts and an adapter, side by side."""
    root = tmp_path_factory.mktemp("zoo")
    base = builders.llama(root / "base", num_hidden_layers=LAYERS)
    for seed, name in enumerate(EXPERTS):
        builders.llama(
            root / name, num_hidden_layers=LAYERS, like=base, seed=9 + seed, scale=0.02 + seed / 99
        )
    builders.lora_adapter(root / "adapter", base)
    return root


@pytest.fixture(scope="package")
def states(zoo: Path) -> dict[str, dict[str, Tensor]]:
    """Name -> tensors, float64."""
    pool = ExpertPool.open(str(zoo / "base"), {name: str(zoo / name) for name in EXPERTS})
    loaded = {"base": {name: pool.base[name].double() for name in pool.names}}
    for expert in EXPERTS:
        weights = pool.expert_weights(expert)
        loaded[expert] = {name: weights[name].double() for name in pool.names}
    return loaded


@pytest.fixture
def run(zoo: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Run:
    """Reads a file whose models are named relative to the zoo."""
    monkeypatch.chdir(zoo)

    def read(text: str) -> MergekitJob:
        path = tmp_path / "merge.yaml"
        path.write_text(text)
        return from_mergekit(path)

    return read
