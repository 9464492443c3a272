"""Where the experts of a search are held."""

from __future__ import annotations

from pathlib import Path

from experiments.setup.assemble import fills
from merging.checkpoints.experts import ExpertPool
from tests import builders


def test_experts_are_streamed_where_they_fill_half_of_what_is_free(tmp_path: Path) -> None:
    base = builders.llama(tmp_path / "base")
    experts = builders.experts_of(base, 2, 0.02, names=("a", "b"))
    pool = ExpertPool.open(str(base), experts)
    stored = 3 * sum(4 * pool.base_tensor(name).numel() for name in pool.names)
    assert fills(pool, 2 * stored - 2)
    assert not fills(pool, 2 * stored)
