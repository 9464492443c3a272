"""What models of a zoo share: stored bytes that two of them need."""

from collections import defaultdict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from merging.zoo import index

_NEEDS = """
SELECT m.name, b.id, b.stored FROM uses u
JOIN models m ON m.id = u.model JOIN blocks b ON b.id = u.block
"""


@dataclass(frozen=True, eq=False)
class Sharing:
    """Who needs what of a zoo's stored bytes.

    Args:
        names: of the models.
        shared: ``(models, models)`` int64, bytes that both need; on the diagonal all that it does.
        own: ``(models,)`` int64, bytes that it alone needs.
        parts: ``(models,)`` float64, each block's bytes divided evenly among who needs it; they
            add up to `total`.
        total: bytes that any of them needs, each block once.
    """

    names: tuple[str, ...]
    shared: npt.NDArray[np.int64]
    own: npt.NDArray[np.int64]
    parts: npt.NDArray[np.float64]
    total: int


def sharing(needs: Mapping[str, Mapping[Hashable, int]]) -> Sharing:
    """Returns what is shared.

    Args:
        needs: model to block to its stored bytes; all blocks without which the model cannot be
            read, those that its own are differences to and those of a recipe's ingredients too.
    """
    holders: dict[Hashable, list[int]] = defaultdict(list)
    sizes: dict[Hashable, int] = {}
    for number, blocks in enumerate(needs.values()):
        for block, size in blocks.items():
            holders[block].append(number)
            sizes[block] = size
    shared = np.zeros((len(needs), len(needs)), np.int64)
    own = np.zeros(len(needs), np.int64)
    parts = np.zeros(len(needs))
    for block, models in holders.items():
        shared[np.ix_(models, models)] += sizes[block]
        parts[models] += sizes[block] / len(models)
        if len(models) == 1:
            own[models[0]] += sizes[block]
    return Sharing(tuple(needs), shared, own, parts, sum(sizes.values()))


def raw_bytes(directory: Path) -> int:
    """Returns the bytes of all blocks of a zoo when they are decoded."""
    with index.reading(directory) as connection:
        return int(connection.execute("SELECT coalesce(sum(bytes), 0) FROM blocks").fetchone()[0])


def needs_in(directory: Path) -> dict[str, dict[Hashable, int]]:
    """Returns what each model of a zoo needs, as `sharing` takes it, in the order of their names.

    A recipe needs its own few kilobytes here; what it is made from is known above, in
    `experiments/zoo/needs.py`.
    """
    with index.reading(directory) as connection:
        needs: dict[str, dict[Hashable, int]] = {
            name: {} for (name,) in connection.execute("SELECT name FROM models ORDER BY name")
        }
        for name, block, size in connection.execute(_NEEDS):
            needs[name][block] = size
    return needs
