"""What privacy costs in time: a private generation beside a plain one, and requests one by one.

In float32 a private search asks in the same batches and adds clipping and noise. In half precision
it asks one request a pass and shares no beginnings, so that no item changes another's answer.
"""

import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import torch

from evaluators.engine.engine import Engine
from evaluators.requests import Loglikelihood, Request
from experiments.benchmarks.loop_speed import World
from experiments.benchmarks.measured import Measured, in_turns, waiting
from experiments.benchmarks.models import random_llama, save_experts
from search.privacy.private import PrivatePool
from search.privacy.private_fitness import ClippedSum, Shares
from search.privacy.private_noise import SecretNoise

_CANDIDATES = 2
_QUESTIONS, _ANSWERS, _SHARED = 3, 4, 48  # and tokens that the answers to a question share


def measure() -> list[Measured]:
    """Returns the row of a private search in float32, and those of half precision."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        base, experts = save_experts(random_llama(), Path(folder))
        open_world = partial(World.open, base, experts, documents=12, longest=120)
        rows = [_search_row(open_world(dtype=torch.float32))]
        half = open_world(dtype=torch.bfloat16)
        documents = f"{half.panel.item_count} documents"
        rows.append(_alone_row(half, half.panel.requests, documents))
        questions = f"{_QUESTIONS} questions of {_SHARED} tokens, {_ANSWERS} answers to each"
        return [*rows, _alone_row(half, _questions(), questions)]


def _search_row(world: World) -> Measured:
    plain = world.one_by_one()
    scorer, sizes = world.scorer(world.panel), {"text": world.panel.item_count}
    private = PrivatePool(
        inner=plain,
        singly=lambda genome, _: scorer(world.space.decode(genome)),
        empty=lambda _: False,
        shares=Shares(world.objective, sizes),
        mechanism=ClippedSum(8.0, 4.0, SecretNoise(bytes(32))),
        release="means",
        encode=world.space.to_json,
    )
    return _row(
        world,
        f"private search in float32, per generation of {_CANDIDATES}",
        "plain search",
        in_turns(
            world.searching(private.evaluation, _CANDIDATES),
            world.searching(plain, _CANDIDATES),
            wait=waiting(world.resident.device),
        ),
    )


def _alone_row(world: World, requests: Sequence[Request], what: str) -> Measured:
    asked = tuple(requests)
    alone, batches = Engine(world.resident, batch_tokens=1), Engine(world.resident)
    timing = in_turns(
        lambda: alone.run(asked),
        lambda: batches.run(asked),
        rounds=3,
        wait=waiting(world.resident.device),
    )
    return _row(
        world, f"private scoring in bfloat16: {what}, one request a pass", "batches", timing
    )


def _row(world: World, what: str, against: str, timing: tuple[float, float, float]) -> Measured:
    ours, other, ratio = timing
    return Measured(what, ours, other, against, "s", 1 / ratio, None)


def _questions() -> list[Request]:
    return [
        Loglikelihood(
            tuple(100 + (question + place) % 150 for place in range(_SHARED)),
            tuple(100 + question + answer + place for place in range(4)),
        )
        for question in range(_QUESTIONS)
        for answer in range(_ANSWERS)
    ]
