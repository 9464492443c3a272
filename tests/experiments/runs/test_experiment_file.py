"""A command line as an experiment file."""

from pathlib import Path
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from experiments.runs import experiment_file


def test_what_a_file_cannot_hold_is_said(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said = {}
    for words in (["seed=1"], ["seed=1", "~search_on.choice"]):
        overrides, runtime = SimpleNamespace(task=words), SimpleNamespace(choices={})
        hydra = SimpleNamespace(overrides=overrides, runtime=runtime)
        stub = SimpleNamespace(initialized=lambda: True, get=lambda hydra=hydra: hydra)
        monkeypatch.setattr(experiment_file, "HydraConfig", stub)
        run = tmp_path / str(len(words))
        run.mkdir()
        config = OmegaConf.create({"experiment_file": True, "name": "n"})
        said[len(words)] = experiment_file.write_experiment(run, config)
    assert len(said[1]) == 1
    assert "~search_on.choice: has no place in that file" in said[2][1]
