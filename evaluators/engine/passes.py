"""Forward passes over rows that share their beginnings, which go first, into a cache."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.batching import EngineRun, padded
from evaluators.engine.cached_rows import going_on, kept_logits, positions_of, takes_positions
from evaluators.engine.population import tiled
from evaluators.engine.prefix_tree import Branch, packed
from evaluators.engine.resident import Resident


@dataclass(frozen=True, eq=False)
class Pass:
    """One forward pass, and those that go on from its cache.

    Args:
        input_ids: ``(rows, width)``; padded on the right where rows end, else on the left.
        ends: number and length of the row that ends in each line; empty: `following` go on.
        parents: ``(rows,)`` the line of the pass before that each goes on from; None: the start.
        lines: of the pass before.
        mask: ``(rows, held + width)`` 0 where a row has padding on its left; None: nowhere.
        following: passes that go on from this one.
    """

    input_ids: Tensor
    ends: tuple[tuple[int, int], ...]
    parents: Tensor | None
    lines: int
    mask: Tensor | None
    following: tuple[Pass, ...]

    def all(self) -> Iterator[Pass]:
        """Yields this pass and all that follow."""
        yield self
        for one in self.following:
            yield from one.all()

    def run(
        self,
        run: EngineRun,
        candidates: range,
        kept: Callable[[Pass], Tensor],
        past: Any = None,
    ) -> Iterator[tuple[Pass, Tensor]]:
        """Yields every pass in which rows end, with logits ``(candidates * kept, vocabulary)``.

        Args:
            candidates: whose rows go through together.
            kept: pass to the flat positions of one candidate whose logits are needed.
            past: cache of the pass before.
        """
        run.deadline.check()
        module, count, size = run.resident.module, len(candidates), self.input_ids.numel()
        run.population.choose(candidates, len(self.input_ids))
        options: dict[str, Any] = {"use_cache": bool(self.following)}
        if self.parents is not None:
            options["past_key_values"] = going_on(past, tiled(self.parents, count, self.lines))
        if self.mask is not None:
            options["attention_mask"] = self.mask.repeat(count, 1)
            if takes_positions(module):
                positions = positions_of(self.mask, self.input_ids.shape[1])
                options["position_ids"] = positions.repeat(count, 1)
        wanted = self.input_ids.new_empty(0) if self.following else kept(self)
        logits, output = kept_logits(
            module,
            tiled(wanted, count, size),
            input_ids=self.input_ids.repeat(count, 1),
            **options,
        )
        if not self.following:
            yield self, logits
        for one in self.following:
            yield from one.run(run, candidates, kept, output.past_key_values)


def passes_of(
    branches: Sequence[tuple[Branch, int]],
    resident: Resident,
    batch_tokens: int,
    before: Tensor | None = None,
) -> tuple[Pass, ...]:
    """Returns the passes for all rows of some branches of one level.

    Args:
        branches: each with the line of the pass before that it goes on from.
        batch_tokens: most tokens of one pass, padding included.
        before: ``(lines, held)`` mask of the pass before; None at the start.
    """
    lines, held = (0, 0) if before is None else before.shape
    passes: list[Pass] = []
    for batch in packed(branches, held, batch_tokens):
        ending = batch[0][0].row is not None
        ids, mask = padded([branch.tokens for branch, _ in batch], resident, left=not ending)
        seen = torch.ones_like(mask) if ending else mask  # nothing looks right
        parents = None
        if before is not None:
            parents = torch.tensor([line for _, line in batch], device=resident.device)
            seen = torch.cat([before[parents], seen], dim=1)
        inner = [(b, line) for line, (branch, _) in enumerate(batch) for b in branch.branches]
        passes.append(
            Pass(
                input_ids=ids,
                ends=tuple((b.row, len(b.tokens)) for b, _ in batch if b.row is not None),
                parents=parents,
                lines=lines,
                mask=None if bool(seen.all()) else seen,
                following=passes_of(inner, resident, batch_tokens, seen),
            )
        )
    return tuple(passes)
