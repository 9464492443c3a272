"""A cluster in a zoo of its own: the bytes that each deduplicated target takes."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np

from experiments.deduplication.models import DedupModel
from experiments.deduplication.storing import store
from experiments.papers.dedup.ways import START, DedupSetting, directory_of
from merging.deduplication.substitution import Candidates, Substitution
from merging.privacy.deduplicated import deduplicated
from merging.zoo.store import Zoo


def zoo_table(
    setting: DedupSetting, pool: str, cluster: str, pointers: dict[str, Path]
) -> dict[str, Any]:
    """Returns bytes of the targets' files and of their own in the zoo, and those of the cluster.

    Args:
        pointers: of every target, what its deduplication has left behind.
    """
    base = _opened(setting, pool, setting.pools[pool].clusters[cluster].base)
    folder = setting.out / "zoo" / f"{pool}-{cluster}"
    shutil.rmtree(folder, ignore_errors=True)  # of a start that ended here
    zoo = Zoo.open(folder, create=True)
    for name, file in pointers.items():
        target = _opened(setting, pool, name)
        candidates = Candidates(target.blocks, (base.blocks,), np.empty((0, 0)))
        found = Substitution(candidates, np.load(file))
        ledger = deduplicated(target.ledger, [base.ledger])
        store(zoo, f"{name}-from-{base.name}", target, [base], found, ledger)
    models = {one.name: one for one in zoo.models()}
    packs = sum(path.stat().st_size for path in (folder / "packs").iterdir())
    return {
        "targets": {
            name: {"own_bytes": one.own_bytes, "bytes": one.bytes}
            for name in pointers
            for one in [models[f"{name}-from-{base.name}"]]
        },
        "bytes": sum(one.bytes for one in models.values()),
        "stored_bytes": packs,
    }


def _opened(setting: DedupSetting, pool: str, name: str) -> DedupModel:
    source = str(directory_of(setting, pool, name))
    return DedupModel.open(name, source, setting.pools[pool].block_size, base=name == START)
