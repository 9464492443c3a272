from __future__ import annotations

from functools import partial
from pathlib import Path

import pytest

from experiments.runs.progress import ProgressBar
from experiments.searches import references, steps
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell


def test_references_and_search_tell_how_far_they_are(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (references, steps):
        monkeypatch.setattr(module, "ProgressBar", partial(ProgressBar, every_s=0.0))
    line = overrides(world, "in_hull=null", "baselines=few", "save_model=false")
    ended = shell.run("search", *line, "budget.evaluations=2", "strategy=random", "out=run")
    assert ended.code == 0, ended.stderr
    assert "\r" not in ended.stderr
    assert "search: 2/2 evaluations, best " in ended.stderr
    for split, models in (("search", 4), ("search", 3), ("report", 7)):
        assert f"references on {split} items: 2/{models} models, about " in ended.stderr
        assert f"references on {split} items: {models}/{models} models" in ended.stderr
