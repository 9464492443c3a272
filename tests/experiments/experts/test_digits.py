"""Digit experts: one encoder, a head for each task, and splits that share no digit."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from experiments.experts.digits.source import PARTS, TASKS, data_file, experts
from merging.checkpoints.experts import ExpertPool


def test_experts_share_an_encoder_and_splits_share_no_digit(tmp_path: Path) -> None:
    made = experts(str(tmp_path), steps=1, hidden=8, layers=1, start_steps=1)
    pool = ExpertPool.open(made.base, made.experts)
    assert pool.heads == tuple(TASKS)
    seen: set[bytes] = set()
    for split, part in PARTS.items():
        if split == "train":
            continue
        with np.load(data_file(made, "plain", split)) as file:
            images = {image.tobytes() for image in file["images"]}
        assert len(images) > len(part) - 5  # some are alike
        assert len(images & seen) < 5
        seen |= images
    with np.load(data_file(made, "thirds", "search")) as file:
        assert set(file["labels"].tolist()) == {0, 1, 2}
    with pytest.raises(ValueError, match=r"experts.tasks=\['plane'\]: expected some of plain, tu"):
        experts(str(tmp_path), tasks=["plane"])
