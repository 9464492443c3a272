"""What a private search leaves on disk beside its noisy numbers: nothing of its items."""

from __future__ import annotations

import json
import zlib
from pathlib import Path
from typing import Any

import pytest

from search.privacy.private_fitness import ClippedSum
from tests.experiments.refusals import Shell
from tests.experiments.searches.test_private_search import MEANS, options, search


def test_with_the_same_releases_a_long_document_leaves_the_same_files(
    shell: Shell, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Byte for byte, and with the same dates, whatever the items cost in time and memory."""

    def same(_: ClippedSum, contributions: Any, *question: str | int) -> float:
        assert len(contributions) == 8
        return zlib.crc32(repr(question).encode()) / 2**32

    monkeypatch.setattr(ClippedSum, "release", same)
    data = tmp_path / "items.jsonl"
    more = ["evaluator@select_on=none", "budget.evaluations=9", "privacy.randomness=seed"]
    line = options(world, data, *MEANS, *more)
    found: list[dict[str, bytes]] = []
    for text in ("a short one", "a very long one " * 2000):
        texts = [*(f"text number {number}" for number in range(7)), text]
        data.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
        run = search(shell, "run", line)
        files = {str(path.relative_to(run)): path for path in run.rglob("*")}
        assert len({path.stat().st_mtime_ns for path in [run, *files.values()]}) == 1
        found.append({name: p.read_bytes() for name, p in files.items() if p.is_file()})
        run.rename(shell.cwd / f"run-{len(found)}")
    one, other = found
    assert {"summary.json", "report.html", "history.jsonl", "model/README.md"} <= one.keys()
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
