"""What an lm-eval task costs per candidate beyond its plain requests, after the first candidate.

A multiple-choice task of lm-eval with three examples in every prompt, from a local file, on a
random Llama of 21 million parameters. Counted is all of an evaluation's time outside the engine,
which answers the task's requests: lm-eval's filters, its metrics and their means. The note says
how much of the engine's time is the model's.
"""

import json
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.harness.lm_eval_task import LmEvalTask
from evaluators.panel import Panel
from evaluators.requests import Request, Response
from experiments.benchmarks.measured import Measured
from experiments.benchmarks.models import byte_tokenizer, random_llama

ITEMS = 100
CANDIDATES = 5


def measure() -> list[Measured]:
    """Returns one row: seconds outside the engine, beside those within."""
    torch.set_num_threads(1)
    cuda = torch.cuda.is_available()
    resident = Resident(
        random_llama(), tokenizer=byte_tokenizer(), device="cuda" if cuda else "cpu"
    )
    clock = _Clock(resident.module)
    with tempfile.TemporaryDirectory() as folder:
        task = LmEvalTask(resident.info, task=_task(Path(folder)))
        panel, engine = Panel("search", {"choice": task}), _TimedEngine(resident)
        panel.evaluate(engine)  # the first plans, and fills lm-eval's caches
        seconds = []
        for _ in range(CANDIDATES):
            engine.seconds, clock.seconds, began = 0.0, 0.0, time.perf_counter()
            panel.evaluate(engine)
            total = time.perf_counter() - began
            seconds.append((total - engine.seconds, engine.seconds, clock.seconds))
    outside, within, forward = map(statistics.median, zip(*seconds, strict=True))
    ratio = statistics.median(out / (out + inside) for out, inside, _ in seconds)
    measure = f"lm-eval task of {ITEMS} items and 4 answers, per candidate: outside the engine"
    note = (
        f"of the engine's time {forward:.3g} s are the model's forward passes; the rest copies "
        "keys and values of shared prompts and reads log-probabilities off"
    )
    return [Measured(measure, outside, within, "within", "s", ratio, 0.02, True, note)]


class _TimedEngine(Engine):
    """Adds up the seconds that it takes to answer."""

    seconds = 0.0

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Returns the answers; see `Engine.run`."""
        began = time.perf_counter()
        try:
            return super().run(requests)
        finally:
            self.seconds += time.perf_counter() - began


class _Clock:
    """Adds up the seconds that a model's calls take."""

    def __init__(self, module: Any) -> None:
        self.seconds, self._began = 0.0, 0.0
        module.register_forward_pre_hook(self._start)
        module.register_forward_hook(self._stop)

    def _start(self, *_: Any) -> None:
        self._wait()
        self._began = time.perf_counter()

    def _stop(self, *_: Any) -> None:
        self._wait()
        self.seconds += time.perf_counter() - self._began

    @staticmethod
    def _wait() -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()


def _task(folder: Path) -> dict[str, Any]:
    """Writes the items and returns the task's configuration."""
    data = folder / "items.jsonl"
    data.write_text("".join(_items()))
    return {
        "task": "overhead",
        "dataset_path": "json",
        "dataset_kwargs": {
            "data_files": {"test": str(data), "train": str(data)},
            "cache_dir": str(folder / "cache"),
        },
        "output_type": "multiple_choice",
        "test_split": "test",
        "fewshot_split": "train",
        "num_fewshot": 3,
        "doc_to_text": "Question: {{question}}\nAnswer:",
        "doc_to_choice": "{{choices}}",
        "doc_to_target": "label",
    }


def _items() -> Iterator[str]:
    draw = np.random.default_rng(0)

    def words(count: int) -> str:
        letters = draw.integers(97, 123, 5 * count).astype(np.uint8).tobytes().decode()
        return " ".join(letters[i : i + 5] for i in range(0, len(letters), 5))

    for i in range(ITEMS):
        item = {"question": words(6), "choices": [words(2) for _ in range(4)], "label": i % 4}
        yield json.dumps(item) + "\n"
