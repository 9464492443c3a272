"""The quickstart as the README runs it: better than all static merges, and than the hull."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from experiments.reports.table import verdict
from tests.experiments.local import evomerge


@pytest.mark.slow
def test_evolved_beats_every_static_merge_on_held_out_items(tmp_path: Path) -> None:
    """Seeds 0, 1 and 2; about five minutes on 2 cores, one of them training."""
    env = {"EVOMERGE_CACHE": str(tmp_path / "cache")}
    options = ["experiment=quickstart", "tracker=none", f"runs={tmp_path}/runs"]
    done = evomerge("search", "-m", *options, "seed=0,1,2", cwd=tmp_path, env=env, timeout_s=3000)
    assert done.returncode == 0, done.stderr
    runs = sorted((tmp_path / "runs").glob("quickstart-cma-s*"))
    assert len(runs) == 3
    for run in runs:
        summary = json.loads((run / "summary.json").read_text())
        assert verdict(summary).wins, verdict(summary).text
        gain = summary["certificate"]["gain"]
        assert gain["interval"]["p"] < 0.05
        assert gain["interval"]["low"] > 0
        uniform = next(m for m in summary["models"] if m["name"] == "linear")["search"]["scores"]
        base = summary["models"][0]["search"]["scores"]
        for domain in ("code", "prose", "headers"):
            key = f"{domain}/bits_per_byte"
            assert uniform[key] < base[key], f"the uniform average loses to the base on {domain}"
