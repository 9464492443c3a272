"""The search loop beside plain batched inference of the same items.

A random Llama of 21 million parameters reads documents of unequal length, each token of which is
scored. Plain inference is a loop written by hand over batches that were sorted, padded and put on
the device before: forward, log-softmax at the scored positions, one sum per document. The search
asks a strategy, decodes, writes, scores, weighs and writes the history, and is counted per
candidate: dense merges of three whole experts, and mixtures of three LoRA experts together.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor

from evaluators.engine.engine import Engine
from evaluators.engine.model import ResidentModel
from evaluators.engine.resident import Resident
from evaluators.panel import Panel
from evaluators.requests import Loglikelihood
from evaluators.tasks.perplexity import Perplexity
from experiments.benchmarks.measured import Measured, in_turns, profile, waiting
from experiments.benchmarks.models import RANK, random_factors, random_llama, save_experts
from experiments.scoring.population import PopulationPool
from experiments.setup.ingredients import Ingredients, Scorer
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Whole
from merging.methods.task_arithmetic import TaskArithmetic
from merging.spaces.coefficients import CoefficientSpace
from search.loop.evaluation import Evaluation, LocalPool
from search.loop.generational import search
from search.loop.history import History
from search.loop.session import Budget
from search.objective import BoundObjective, WeightedMean
from search.strategies.random_search import RandomSearch

_PANELS = (
    (2, 24, 16, ""),
    (
        4,
        40,
        16,
        "one pass of a candidate keeps a core busy already, and the factors, of rank 24 together, "
        "are 7 % more multiplications in thin products; ",
    ),
    (48, 110, 4, ""),
)
"""Documents, most letters of each, candidates, and what limits them."""


def measure() -> list[Measured]:
    """Returns the rows of dense candidates and of a population of mixtures."""
    torch.set_num_threads(1)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        base, whole = save_experts(random_llama(), Path(folder))
        dense = World.open(base, whole, documents=48, longest=240)
        rows.append(dense.row("dense candidates", dense.one_by_one(), 2))
        lora = _save_adapters(random_llama(), Path(folder))
        for documents, longest, candidates, note in _PANELS:
            world = World.open(base, lora, documents=documents, longest=longest)
            what = f"population of {candidates} mixtures of LoRA experts"
            row = world.row(what, world.together(candidates), candidates)
            rows.append(replace(row, note=f"{note}{row.note}" if row.met is False else ""))
    return rows


@dataclass(frozen=True)
class World:
    """Base, experts, resident model and documents."""

    folder: Path
    pool: ExpertPool
    resident: Resident
    engine: Engine
    space: CoefficientSpace
    panel: Panel

    @classmethod
    def open(
        cls,
        base: str,
        experts: dict[str, str],
        *,
        documents: int,
        longest: int,
        dtype: torch.dtype | None = None,
    ) -> World:
        """Opens the experts and writes random documents; None: the device's usual dtype."""
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        dtype = dtype or (torch.bfloat16 if device.type == "cuda" else torch.float32)
        pool = ExpertPool.open(base, experts).resident(device)
        resident = Resident.from_pool(pool, device=device, dtype=dtype)
        folder = Path(base).parent
        text = folder / f"{documents}x{longest}.jsonl"
        text.write_text("".join(_documents(documents, longest)))
        panel = Panel("search", {"text": Perplexity(resident.info, data=str(text))})
        space = CoefficientSpace(pool, TaskArithmetic(), Whole(), dtype=dtype)
        return cls(folder, pool, resident, Engine(resident), space, panel)

    def scorer(self, panel: Panel) -> Scorer:
        """Returns what scores weights on `panel`."""
        return Scorer(ResidentModel(self.resident, self.engine), panel, self.pool)

    @property
    def held(self) -> ExpertPool:
        """The pool."""
        return self.pool

    def one_by_one(self) -> Evaluation[Any]:
        """Returns what writes every candidate's weights."""
        scorer = self.scorer(self.panel)
        return Evaluation(LocalPool(self.space.decode, lambda _: scorer))

    def together(self, size: int) -> Evaluation[Any]:
        """Returns what scores all candidates of a generation beside one centre."""
        ingredients = cast(Ingredients, self)  # has all that it reads of one
        pool = PopulationPool(ingredients, self.space, lambda _: self.panel)
        return Evaluation(pool, batch_size=size)

    def row(self, what: str, evaluation: Evaluation[Any], candidates: int) -> Measured:
        """Returns the row: seconds per candidate, and plain inference's."""
        plain = _plain(self.resident, self.panel)
        ours = self.searching(evaluation, candidates)

        def other() -> None:
            for _ in range(candidates):
                plain()

        rounds, wait = 9 if candidates == 16 else 7, waiting(self.resident.device)
        ours_s, plain_s, ratio = in_turns(ours, other, wait=wait, rounds=rounds)
        tokens = sum(len(row) - 1 for row in _rows(self.panel))
        return Measured(
            f"{what}, {tokens} tokens each: search loop",
            ours_s / candidates,
            plain_s / candidates,
            "plain inference",
            "s",
            ratio,
            0.95,
            note=f"ours: {profile(ours)}; plain: {profile(other)}",
        )

    @property
    def objective(self) -> BoundObjective:
        """The panel's score as it is."""
        raw = WeightedMean(normalize="raw")
        return raw.bind(self.panel.directions, self.panel.main, {}, {})

    def searching(self, evaluation: Evaluation[Any], candidates: int) -> Callable[[], None]:
        """Returns what searches for one generation, another one in every call."""
        seeds, objective = iter(range(10**6)), self.objective

        def run_one() -> None:
            seed = next(seeds)
            strategy = RandomSearch(
                axes=self.space.axes, seed=seed, popsize=candidates, include_start=False
            )
            run = Path(tempfile.mkdtemp(dir=self.folder))
            search(
                strategy,
                evaluation,
                objective,
                History(run),
                Budget(evaluations=candidates),
                encode=self.space.to_json,
            )

        return run_one


def _plain(resident: Resident, panel: Panel) -> Callable[[], list[float]]:
    """Returns the loop by hand: what every document's tokens add up to, in log-probability."""
    rows = sorted(_rows(panel), key=len, reverse=True)
    batches: list[tuple[Tensor, Tensor, Tensor]] = []
    per_batch = max(1, 8192 // len(rows[0]))
    for start in range(0, len(rows), per_batch):
        some = [torch.tensor(row) for row in rows[start : start + per_batch]]
        ids = torch.nn.utils.rnn.pad_sequence(some, batch_first=True).to(resident.device)
        real = torch.nn.utils.rnn.pad_sequence(
            [torch.ones(len(row) - 1, dtype=torch.bool) for row in some], batch_first=True
        ).to(resident.device)
        batches.append((ids[:, :-1].contiguous(), ids[:, 1:], real))

    @torch.inference_mode()
    def run() -> list[float]:
        totals: list[float] = []
        for ids, targets, real in batches:
            hidden = resident.module.model(input_ids=ids, use_cache=False).last_hidden_state
            logits = resident.module.lm_head(hidden[real]).float()
            wanted = logits.gather(1, targets[real].unsqueeze(1)).squeeze(1)
            log_probs = wanted - logits.logsumexp(dim=1)
            sums = torch.zeros(len(ids), device=ids.device)
            sums.index_add_(0, real.nonzero()[:, 0], log_probs)
            totals += sums.tolist()
        return totals

    return run


def _rows(panel: Panel) -> list[tuple[int, ...]]:
    requests = [request for request in panel.requests if isinstance(request, Loglikelihood)]
    return [(*request.context, *request.continuation) for request in requests]


def _documents(count: int, longest: int) -> Iterator[str]:
    draw = np.random.default_rng(0)
    for _ in range(count):
        letters = draw.integers(97, 123, draw.integers(longest // 2, longest)).tolist()
        yield json.dumps({"text": bytes(letters).decode()}) + "\n"


def _save_adapters(model: Any, folder: Path, count: int = 3) -> dict[str, str]:
    """Saves adapters of all linear layers in peft's format; returns name to directory."""
    config = {"peft_type": "LORA", "r": RANK, "lora_alpha": RANK, "init_lora_weights": True}
    paths = {f"lora{number}": folder / f"lora{number}" for number in range(count)}
    for number, path in enumerate(paths.values()):
        path.mkdir()
        tensors: dict[str, Tensor] = {}
        for name, (b, a) in random_factors(model, number).items():
            stem = f"base_model.model.{name.removesuffix('.weight')}"
            tensors |= {f"{stem}.lora_A.weight": a, f"{stem}.lora_B.weight": b}
        save_file(tensors, path / "adapter_model.safetensors")
        (path / "adapter_config.json").write_text(json.dumps(config))
    return {name: str(path) for name, path in paths.items()}
