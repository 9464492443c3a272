"""Settings of every test: nothing is read from or written to the user's own caches."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

import pytest

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("HF_DATASETS_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("WANDB_MODE", "offline")
os.environ.setdefault("WANDB_SILENT", "true")
os.environ["EVOMERGE_CACHE"] = tempfile.mkdtemp(prefix="evomerge-test-cache-")


@pytest.fixture(scope="session")
def world(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A base, three experts and data files that command-line tests share and never change."""
    from tests.experiments.local import make_world

    return make_world(tmp_path_factory.mktemp("world"))
