"""Merging beside copying: bytes per second of both, on the device that a search would use.

Counted are the bytes that a merge cannot avoid: every expert read once, the base where the method
needs it, the result written once. A copy reads and writes as many. The note says what the
arithmetic alone takes, the same pass over a piece that stays in the processor's caches: where it
exceeds what the bytes take at a copy's speed, it is the limit.
"""

import tempfile
from pathlib import Path

import torch

from evaluators.engine.resident import Resident
from experiments.benchmarks.measured import Measured, in_turns, waiting
from experiments.benchmarks.merge_speed import building, in_cache, llama_pool
from merging.checkpoints.experts import ExpertPool
from merging.method import MergeMethod
from merging.methods.linear import Linear
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties

METHODS: dict[MergeMethod, tuple[bool, float | None]] = {  # whether the base is read, the bar
    Linear(): (False, 0.8),
    TaskArithmetic(): (True, None),
    Ties(): (True, 0.4),
}


def measure() -> list[Measured]:
    """Returns a row per method and dtype of the experts."""
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    if device.type == "cpu":
        torch.set_num_threads(1)
    rows = []
    for dtype in (torch.float32, torch.bfloat16):
        with tempfile.TemporaryDirectory() as folder:
            held = llama_pool(Path(folder), dtype).resident(device)
            resident = Resident.from_pool(held, device=device, dtype=torch.float32)
            rows += [_row(method, held, resident, dtype) for method in METHODS]
    return rows


def _row(
    method: MergeMethod, pool: ExpertPool, resident: Resident, dtype: torch.dtype
) -> Measured:
    with_base, bar = METHODS[method]
    entries = sum(pool.base_tensor(name).numel() for name in pool.names)
    merged_bytes = entries * (dtype.itemsize * (3 + with_base) + resident.dtype.itemsize)
    source = torch.ones(entries, device=pool.device)
    target = torch.empty_like(source)
    copied_bytes = 2 * source.nbytes
    ours, copy, ratio = in_turns(
        building(method, pool, resident, 3),
        lambda: target.copy_(source),
        rounds=41,
        wait=waiting(pool.device),
    )
    bytes_alone = merged_bytes / copied_bytes * copy / entries
    arithmetic = in_cache(method, pool, 3)
    hidden = bytes_alone / max(bytes_alone, arithmetic)
    after = bytes_alone / (bytes_alone + arithmetic)
    short = str(dtype).removeprefix("torch.")
    return Measured(
        f"merge bytes per second, {type(method).__name__}, 3 experts in {short}",
        merged_bytes / ours / 1e9,
        copied_bytes / copy / 1e9,
        "copy of a float32 tensor",
        "GB/s",
        ratio * merged_bytes / copied_bytes,
        bar if dtype == torch.float32 else None,
        note=f"{ours * 1e9 / entries:.2f} ns per entry, arithmetic in cache "
        f"{arithmetic * 1e9:.2f} ns, bytes at a copy's speed {bytes_alone * 1e9:.2f} ns: "
        f"ratio {after:.2f} one after the other, {hidden:.2f} if one hid the other",
    )
