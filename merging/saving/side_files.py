"""What lies beside weights: copied as it is, so that what reads the base reads the merge."""

import logging
import os
import shutil
from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path

from merging.checkpoints.sources import modules
from merging.weight_names import OTHER_FORMS

logger = logging.getLogger(__name__)

LARGEST_BYTES = 100 * 2**20
"""Of a file or a folder: 100 MiB, three times the largest tokenizer."""

# Of the base's weights, training and publication: left out without a word.
_BASES_OWN = (
    "config.json",
    "model.safetensors",
    "model-*-of-*.safetensors",
    "pytorch_model.bin",
    "pytorch_model-*.bin",
    "*.index.json",
    "adapter*",
    "checkpoint-*",
    "global_step*",
    "optimizer*",
    "scheduler*",
    "scaler.pt",
    "rng_state*",
    "train*_args.*",
    "trainer_*",
    "*_results.json",
    "runs",
    "wandb",
    "events.out.*",
    "zero_to_fp32.py",
    "README*",
    "privacy.json",
    "recipe.json",
    "dedup.json",
    "training.json",
    ".*",
    "__pycache__",
)
_WEIGHTS = ("*.safetensors", *OTHER_FORMS, "*.npz")


def copy_side_files(source: Path, target: Path, *, code: bool) -> None:
    """Copies all that lies in the folder `source` but weights and what is the base's own.

    A folder with weights is copied only where sentence-transformers' ``modules.json`` makes it a
    part of the model (a dense layer behind the pooling). One warning names what may be missed:
    other weights, Python files, what takes more than `LARGEST_BYTES`, links to somewhere else,
    what cannot be read.

    Args:
        code: whether Python files are copied: where the code of this repository is trusted.
    """
    parts = modules(source)
    left_out: list[str] = []
    for entry in sorted(source.iterdir()):
        if _matches(entry, _BASES_OWN):
            continue
        inside = [entry] if entry.is_file() else sorted(entry.rglob("*"))
        files = [file for file in inside if file.is_file()]
        weights = entry.name not in parts and any(_matches(file, _WEIGHTS) for file in files)
        if weights or sum(file.stat().st_size for file in files) > LARGEST_BYTES:
            left_out.append(entry.name)
            continue
        if entry.is_dir() and entry.name in parts:
            (target / entry.name).mkdir()  # even an empty one: a normalisation has no settings
        for file in files:
            name = file.relative_to(source)
            if _may_be_copied(file, source) and (code or file.suffix != ".py"):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / name)
            else:
                left_out.append(str(name))
    if left_out:
        logger.warning("not copied from %s: %s", source, ", ".join(left_out))


def _matches(path: Path, patterns: Iterable[str]) -> bool:
    return any(fnmatch(path.name, pattern) for pattern in patterns)


def _may_be_copied(file: Path, source: Path) -> bool:
    """Whether it can be read and lies in `source`; the hub's cache keeps files by their hashes."""
    real = file.resolve()
    hub = real.parent.name == "blobs" and real.parent.parent.name.startswith("models--")
    return os.access(real, os.R_OK) and (hub or real.is_relative_to(source.resolve()))
