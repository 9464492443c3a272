"""Settings of every test: nothing is read from or written to the user's own caches."""

from __future__ import annotations

import importlib.util
import os
import sys
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ["EVOMERGE_STATE"] = tempfile.mkdtemp(prefix="evomerge-test-state-")
os.environ["EVOMERGE_CACHE"] = tempfile.mkdtemp(prefix="evomerge-test-cache-")

# absl comes with dp-accounting. Its log handler keeps the stream that it finds when imported, a
# test's captured one, and closes it when Hydra next sets logging up: pytest then breaks down.
if importlib.util.find_spec("absl") is not None:
    from absl import logging as absl_logging

    absl_logging.get_absl_handler().python_handler.stream = sys.__stderr__


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three experts and data files that command-line tests share and never change."""
    from tests.experiments.local import make_world

    return make_world(tmp_path_factory.mktemp("world"))
