"""Deduplicated targets in a zoo: the bytes that each of them takes."""

from typing import Any

from filelock import FileLock

from experiments.deduplication.models import DedupModel
from experiments.deduplication.storing import store
from experiments.papers.dedup.cells import DedupSetting, Pair
from merging.deduplication.substitution import Substitution
from merging.privacy.ledger import Ledger
from merging.weights import CheckpointError
from merging.zoo.store import Zoo


def stored_bytes(
    setting: DedupSetting, pool: str, base: str, pair: Pair, found: Substitution, ledger: Ledger
) -> dict[str, Any]:
    """Adds a deduplicated target to the run's zoo; returns its own bytes and those of its files.

    None are returned for a model whose files hold other names than transformers gives, as ViT's.
    """
    size = pair.target.pool.block_size
    try:
        model, lender = (
            DedupModel.open(
                f"{pool}-{name}",
                str(setting.pools[pool].expert(setting.cache, name)),
                size,
                trust_remote_code=False,
            )
            for name in (pair.target.name, base)
        )
    except CheckpointError:
        return {}
    name = f"{pool}-{pair.target.name}-from-{base}"
    with FileLock(setting.out / "zoo.lock"):  # two targets add one base
        zoo = Zoo.open(setting.out / "zoo", create=True)
        if name in {one.name for one in zoo.models()}:  # an earlier start ended here
            zoo.remove(name)
        store(zoo, name, model, [lender], found, ledger)
    one = next(one for one in zoo.models() if one.name == name)
    return {"own_bytes": one.own_bytes, "bytes": one.bytes}
