"""mergekit's task arithmetic on the same models, where a Python is named that has mergekit.

``EVOMERGE_MERGEKIT_PYTHON`` names it (0.1.5); it runs this file, and answers line by line.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from functools import cache
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from experiments.benchmarks.conformance.tiny_models import Saved

PYTHON = "EVOMERGE_MERGEKIT_PYTHON"


def check(saved: Saved) -> str | None:
    """Returns what mergekit's merge came to: right, what is wrong, or why there is none."""
    from experiments.benchmarks.conformance.merged_models import WEIGHTS, expected, faults
    from experiments.benchmarks.conformance.tiny_models import ERRORS

    peer = _peer()
    if peer is None:
        return None
    models = [[saved.path(expert), weight] for expert, weight in WEIGHTS.items()]
    asked = {"base": saved.path("base"), "out": saved.path("mergekit"), "models": models}
    peer.stdin.write(json.dumps(asked) + "\n")
    peer.stdin.flush()
    if why := json.loads(peer.stdout.readline() or '"it ended"'):
        return f"refused: {why}"
    base = saved.load("base")
    states = {name: saved.load(name).state_dict() for name in ("base", *WEIGHTS)}
    wanted = expected("task_arithmetic", states, WEIGHTS)
    try:
        wrong = faults(saved.load("mergekit"), base, wanted, states)
    except ERRORS as error:
        return f"wrong: transformers does not load it: {type(error).__name__}"
    return f"wrong: of {len(wanted)} tensors {len(wrong)}, {wrong[0]}" if wrong else "right"


@cache
def _peer() -> Any:
    python = os.environ.get(PYTHON)
    if python is None:
        return None
    pipe = subprocess.PIPE
    command = [python, __file__]
    return subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=subprocess.DEVNULL, text=True)


def _serve() -> None:
    """Merges what is asked for; answers null, or why not."""
    from mergekit.config import MergeConfiguration  # type: ignore[import-not-found]
    from mergekit.merge import run_merge  # type: ignore[import-not-found]
    from mergekit.options import MergeOptions  # type: ignore[import-not-found]

    answers, sys.stdout = sys.stdout, sys.stderr
    for line in sys.stdin:
        asked = json.loads(line)
        models = [{"model": m, "parameters": {"weight": w}} for m, w in asked["models"]]
        content = {
            "merge_method": "task_arithmetic",
            "base_model": asked["base"],
            "models": models,
            "dtype": "float32",
            "parameters": {"normalize": False},
        }
        why = None
        try:
            config = MergeConfiguration.model_validate(content)
            run_merge(config, asked["out"], MergeOptions(quiet=True, copy_tokenizer=False))
        except (
            ArithmeticError,
            LookupError,
            OSError,
            RuntimeError,
            TypeError,
            ValueError,
        ) as error:
            why = f"{type(error).__name__}: {str(error).strip().splitlines()[:1]}"
        print(json.dumps(why), file=answers, flush=True)


if __name__ == "__main__":
    _serve()
