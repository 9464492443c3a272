"""Digit experts as entries of the configuration: six tasks that ask or show digits differently."""

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import MappingProxyType

import numpy as np
import torch
from torch import Tensor
from transformers import ViTForImageClassification

from experiments.experts.digits import digits
from experiments.experts.pool_folder import PoolFolder
from experiments.experts.training.loop import Schedule
from experiments.runs.cache import digest_of, made_once
from experiments.runs.processes import torch_threads
from experiments.runs.sources import Sources
from merging.checkpoints.checkpoint import quiet_transformers
from merging.seeding import generator, stable_seed

log = logging.getLogger(__name__)

TASKS: Mapping[str, tuple[int, Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = (
    MappingProxyType(
        {
            "plain": (10, lambda images: images, lambda digit: digit),
            "turned": (10, lambda images: images.rot90(1, (2, 3)), lambda digit: digit),
            "odd": (2, lambda images: images, lambda digit: digit % 2),
            "large": (2, lambda images: images, lambda digit: digit // 5),
            "thirds": (3, lambda images: images, lambda digit: digit % 3),
            "near": (4, lambda images: images, lambda digit: (digit - 5).abs().clamp(max=3)),
        }
    )
)
"""Name to number of classes, what is shown of an image, and what is asked of its digit."""

PARTS: Mapping[str, range] = MappingProxyType(
    {
        "train": range(700),
        "search": range(700, 900),
        "selection": range(900, 1100),
        "report": range(1100, 1797),
    }
)
"""Which digits, in an order drawn by the pool's seed, serve for what; the same for all tasks."""


def experts(
    cache_dir: str,
    tasks: Sequence[str] = tuple(TASKS),
    steps: int = 200,
    learning_rate: float = 5e-4,
    hidden: int = 48,
    layers: int = 4,
    start_steps: int = 800,
    seed: int = 0,
) -> Sources:
    """Returns a transformer that reads printed digits, and one expert of it for each task.

    They are trained on first use, in half a minute, and cached.

    Args:
        tasks: names in `TASKS`.
        steps: of each expert's training.
        start_steps: of the training on printed digits, shown in the ways of all tasks.
        seed: of trainings, heads and splits; not the seed of a search.

    Raises:
        ValueError: a task is unknown.
    """
    if not tasks or set(tasks) - set(TASKS) or len(set(tasks)) < len(tasks):
        raise ValueError(f"experts.tasks={list(tasks)}: expected some of {', '.join(TASKS)}")
    content = [list(tasks), steps, learning_rate, hidden, layers, start_steps, seed]
    code = [Path(__file__), Path(str(digits.__file__))]
    folder = Path(cache_dir).expanduser().resolve() / f"digits-{digest_of(content, code)}"

    def make(draft: Path) -> None:
        log.info("training the digit experts in %s, once", folder)
        made = PoolFolder(draft, tuple(tasks))
        made.data.mkdir()
        with torch_threads(1):
            start = digits.new_transformer(hidden, layers, seed=seed)
            schedule = Schedule(start_steps, 64, 2e-3)
            digits.train_on_images(start, *_printed(seed), schedule, seed, "order", "printed")
            _save(start, made.base)
            for task in tasks:
                for split in ("search", "selection", "report"):
                    _write(made.data / f"{task}.{split}.npz", task, split, seed)
                expert = _expert(made.base, task, Schedule(steps, 32, learning_rate), seed)
                _save(expert, made.experts[task])

    made_once(folder, make)
    return PoolFolder(folder, tuple(tasks)).sources


def data_file(pool: Sources, task: str, split: str) -> str:
    """Returns the path of a task's items, in an order drawn once; ``take`` says how many."""
    return str(Path(pool.base).parent / "data" / f"{task}.{split}.npz")


def _expert(base: Path, task: str, schedule: Schedule, seed: int) -> ViTForImageClassification:
    with quiet_transformers(), torch.random.fork_rng(devices=[]):
        torch.manual_seed(stable_seed(seed, "head", task))
        model = ViTForImageClassification.from_pretrained(
            base, num_labels=TASKS[task][0], ignore_mismatched_sizes=True, dtype=torch.float32
        )
    digits.train_on_images(model, *_items(task, "train", seed), schedule, seed, "order", task)
    return model


def _printed(seed: int) -> tuple[Tensor, Tensor]:
    """Returns printed digits, shown in the ways of all tasks."""
    images, labels = digits.printed(3000, seed)
    ways = [shown for _, shown, _ in TASKS.values()]
    parts = [way(images[i :: len(ways)]) for i, way in enumerate(ways)]
    return torch.cat(parts), torch.cat([labels[i :: len(ways)] for i in range(len(ways))])


def _items(task: str, part: str, seed: int) -> tuple[Tensor, Tensor]:
    images, labels = digits.handwritten()
    _, shown, asked = TASKS[task]
    order = torch.randperm(len(labels), generator=generator(seed, "digits"))[list(PARTS[part])]
    return shown(images[order]), asked(labels[order])


def _write(path: Path, task: str, split: str, seed: int) -> None:
    """Writes the items of a split, each task's in an order of its own."""
    images, labels = _items(task, split, seed)
    order = torch.randperm(len(labels), generator=generator(seed, "order", task, split))
    np.savez(path, images=images[order].contiguous().numpy(), labels=labels[order].numpy())


def _save(model: ViTForImageClassification, out: Path) -> None:
    with quiet_transformers():
        model.save_pretrained(out)
