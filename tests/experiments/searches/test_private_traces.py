"""What a private search leaves on disk beside its noisy numbers: nothing of its items."""

from __future__ import annotations

import json
import shutil
import time
import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
from google.protobuf.json_format import MessageToDict  # type: ignore[import-untyped]

from experiments.runs.errors import UserError
from experiments.searches import wandb_log
from experiments.searches.private_key import KEY_FILE
from experiments.searches.tracking import NoTracker
from search.privacy.private_fitness import ClippedSum
from tests.experiments.refusals import Shell
from tests.experiments.searches.test_private_search import DESCENT, MEANS, options, search
from tests.experiments.searches.test_tracking import at_rest, logs


@pytest.mark.parametrize("way", [MEANS, DESCENT], ids=["means", "differences of samples"])
def test_with_the_same_releases_a_long_document_leaves_the_same_files(
    shell: Shell, world: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, way: list[str]
) -> None:
    """Byte for byte, and with the same dates, whatever the items cost in time and memory."""

    def same(_: ClippedSum, __: Any, *question: str | int | float) -> float:
        return zlib.crc32(repr(question).encode()) / 2**32

    monkeypatch.setattr(ClippedSum, "release", same)
    monkeypatch.setattr(ClippedSum, "reading", same)
    data = tmp_path / "items.jsonl"
    more = ["evaluator@select_on=none", "budget.evaluations=9", "privacy.randomness=seed"]
    line = options(world, data, *way, *more, "tracker=wandb")
    found: list[dict[str, bytes]] = []
    told: list[list[Any]] = []
    for text in ("a short one", "a very long one " * 2000):
        texts = [*(f"text number {number}" for number in range(7)), text]
        data.write_text("".join(json.dumps({"text": each}) + "\n" for each in texts))
        run = search(shell, str(shell.cwd / "run"), line)
        told.append(tracked(run))
        shutil.rmtree(run / "wandb")  # W&B writes when it was told, which is after the end
        files = {str(path.relative_to(run)): path for path in run.rglob("*")}
        assert len({path.stat().st_mtime_ns for path in files.values()}) == 1
        found.append({name: p.read_bytes() for name, p in files.items() if p.is_file()})
        run.rename(shell.cwd / f"run-{len(found)}")
    one, other = found
    assert {"summary.json", "report.html", "history.jsonl", "model/README.md"} <= one.keys()
    assert one.keys() == other.keys()
    assert [name for name in one if one[name] != other[name]] == []
    assert [(a, b) for a, b in zip(*told, strict=True) if a != b] == []
    logged = dict.fromkeys(item["nestedKey"][0] for one in told[0] for item in one.get("item", []))
    assert set(logged) == {"fitness", "best_fitness", "failed", "repeated", "_step", "candidates"}


class Unreachable(NoTracker):
    """A tracker whose server is gone at the end."""

    def finish(self, summary: Mapping[str, Any], files: Sequence[Path]) -> None:
        raise UserError("tracker: the server is gone")


def test_a_run_whose_tracker_fails_at_the_end_keeps_neither_key_nor_dates(
    shell: Shell, world: Path
) -> None:
    target = f"tracker._target_={Unreachable.__module__}.Unreachable"
    more = ["evaluator@select_on=none", "budget.evaluations=1", "save_model=false", target]
    line = options(world, world / "search.jsonl", *MEANS, *more)
    ended = shell.run("search", *line, "out=run")
    assert "the server is gone" in ended.stderr
    assert (shell.cwd / "run" / "report.html").exists(), "it looks finished"
    assert not (shell.cwd / "run" / KEY_FILE).exists()
    assert time.time() - (shell.cwd / "run" / "report.html").stat().st_mtime > time.time() % 86400


_IDS = ("mailboxSlot", "writerId", "clientId", "sequenceClientId", "localPath")
_OWN = (*_IDS, "startedAt", "startTime")
_CLOCK = ("_timestamp", "_runtime", "_wandb", "artifact_path", "_latest_artifact_path")


def tracked(run: Path) -> list[Any]:
    """All that W&B wrote down, but for its own clock, which starts at the end, and its names."""
    (log,) = logs(run)
    kinds = ("run", "environment", "history", "summary", "artifact", "files")
    found = list(wandb_log.records(at_rest(log)))
    kept = [record for record in found if record.WhichOneof("record_type") in kinds]
    assert {record.WhichOneof("record_type") for record in kept} == set(kinds)
    return [_without_own(MessageToDict(getattr(r, r.WhichOneof("record_type")))) for r in kept]


def _without_own(content: Any) -> Any:
    if isinstance(content, list) and all(isinstance(each, dict) for each in content):
        return sorted(map(_without_own, (c for c in content if not _is_clock(c))), key=repr)
    if isinstance(content, dict):
        return {key: _without_own(each) for key, each in content.items() if key not in _OWN}
    return content


def _is_clock(item: dict[str, Any]) -> bool:
    return not {*_CLOCK}.isdisjoint((*item.get("nestedKey", ()), item.get("key")))
