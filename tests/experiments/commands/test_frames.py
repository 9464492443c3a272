"""How long the chain is: our own frames from the verb to the compiled kernel of a merge."""

from __future__ import annotations

import inspect
import re
from pathlib import Path
from typing import Any

import pytest

from merging.checkpoints import experts
from merging.rules import kernels
from tests.experiments.local import overrides
from tests.experiments.refusals import Shell
from tests.test_layers import LAYERS, ROOT

MOST = 15


def own_frames() -> list[str]:
    """Our functions on the stack, the verb first, as ``file:function``."""
    layers = [str(ROOT / layer) for layer in LAYERS]
    names = [
        f"{Path(frame.filename).relative_to(ROOT)}:{frame.function}"
        for frame in inspect.stack(context=0)
        if frame.filename.startswith(tuple(layers))
    ]
    return names[::-1]


def test_few_frames_lie_between_the_verb_and_the_kernel(
    shell: Shell, world: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    chains = []
    kernel = kernels.run_rule

    def recorded(*arguments: Any) -> None:
        chains.append([*own_frames(), "merging/rules/kernels.py:run_rule"])
        kernel(*arguments)

    monkeypatch.setattr(experts, "LARGE", 0)
    monkeypatch.setattr(kernels, "run_rule", recorded)
    options = ("method=ties", "in_hull=null", "baselines=none", "budget.evaluations=1")
    ended = shell.run("search", *overrides(world, *options, "save_model=false", "out=run"))
    assert ended.code == 0, ended.stderr
    searching = [chain for chain in chains if any("search/loop/" in frame for frame in chain)]
    longest = max(searching, key=len)
    assert len(longest) <= MOST, "\n".join(longest)
    shown = re.findall(r"[\w/]+\.py:\w+", (ROOT / "ARCHITECTURE.md").read_text(encoding="utf-8"))
    assert shown == longest
