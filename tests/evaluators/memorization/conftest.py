"""Canary files, and a tiny model that has learnt a text by heart."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch

from evaluators.engine.resident import Resident
from tests.evaluators.conftest import language_resident, sentence

SUFFIX = '","port":80}'
TEXTS = [{"text": sentence(i, 5 + i % 3), "member": i % 2 == 0} for i in range(10)]
LEARNT = 2  # the first canaries


def front(number: int) -> str:
    """What stands in front of a canary's value; different for each, or one had many answers."""
    return f'{{"n":{number},"host":"'


def canary_line(number: int, *, variants: int = 9, digits: int = 4) -> dict[str, Any]:
    """A record around a host name; the values of all canaries and variants differ."""
    names = [
        f"h{number}{(number * 7919 + i * 104_729) % 10**digits:0{digits}d}" for i in range(30)
    ]
    value, *others = dict.fromkeys(names)
    start = len(front(number))
    return {
        "id": f"c{number}",
        "group": "AB"[number % 2],
        "kind": "HOSTNAME",
        "text": front(number) + value + SUFFIX,
        "span": [start, start + len(value)],
        "variants": others[:variants],
    }


@pytest.fixture
def write_canaries(tmp_path: Path) -> Callable[..., str]:
    def write(lines: Sequence[dict[str, Any]] | int = 6, name: str = "canaries.jsonl") -> str:
        rows = [canary_line(i) for i in range(lines)] if isinstance(lines, int) else lines
        (tmp_path / name).write_text("\n".join(json.dumps(row) for row in rows) + "\n")
        return str(tmp_path / name)

    return write


@pytest.fixture(scope="session")
def fresh(checkpoints: Path) -> Resident:
    """A model that has seen nothing."""
    return language_resident(checkpoints / "llama")


@pytest.fixture(scope="session")
def memorized(checkpoints: Path) -> Resident:
    """A model that knows the first canaries and the members among the texts by heart."""
    resident = language_resident(checkpoints / "llama")
    texts = [canary_line(i)["text"] for i in range(LEARNT)]
    _train(resident, [*texts, *(str(row["text"]) for row in TEXTS if row["member"])])
    return resident


def _train(resident: Resident, texts: Sequence[str], *, steps: int = 80) -> None:
    tokenizer = resident.info.tokenizer
    rows = [[tokenizer.bos_token_id, *tokenizer.encode(text)] for text in texts]
    width = max(map(len, rows))
    ids = torch.tensor([row + [0] * (width - len(row)) for row in rows])
    labels = torch.tensor([row + [-100] * (width - len(row)) for row in rows])
    module = resident.module.requires_grad_(True)
    optimizer = torch.optim.Adam(module.parameters(), lr=1e-2)
    for _ in range(steps):
        loss = module(input_ids=ids, labels=labels, use_cache=False).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    module.requires_grad_(False)
