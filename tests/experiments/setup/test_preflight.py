"""What the check before work asks of the machine."""

import shutil
from pathlib import Path
from types import SimpleNamespace

import pytest

from tests.experiments.local import overrides
from tests.experiments.refusals import Shell


def test_room_is_asked_for_a_model_until_it_is_there(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    line = overrides(world, "out=run", "save_model=true", "budget.evaluations=1")

    def fill_disk(patch: pytest.MonkeyPatch) -> None:
        patch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=50_100_000))

    with monkeypatch.context() as patch:
        fill_disk(patch)
        full = shell.run("search", *line)
    assert "out=run: 0.05 GB free on its disk" in full.stderr
    assert shell.run("search", *line).code in (0, None)
    (shell.cwd / "run" / "report.html").unlink()
    fill_disk(monkeypatch)
    again = shell.run("search", *line)
    assert again.code in (0, None), again.stderr
    assert (shell.cwd / "run" / "report.html").exists()
