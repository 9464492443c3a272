"""Runs `Generate` requests: left-padded batches with a cache, or one by one where need be."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.batching import Answers, EngineRun, check_causal, pack, padded
from evaluators.engine.cached_rows import CachedRows, going_on, kept_logits
from evaluators.engine.capabilities import Capabilities
from evaluators.engine.decoding import Decoding, Rules, rules_of
from evaluators.engine.population import tiled
from evaluators.engine.prefix_tree import groups
from evaluators.engine.resident import Resident
from evaluators.engine.whole_answers import NOT_FINITE, NoFiniteScoresError, generated
from evaluators.requests import Generate, Generated

_log = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class _Batch:
    """Prompts that are continued together.

    Args:
        rules: one for each row.
        prefix: ``(1, shared)`` tokens that all prompts begin with; none where that saves little.
        input_ids: ``(rows, width)`` the others, padded on the left; `mask` is theirs.
    """

    rules: tuple[Rules, ...]
    prefix: Tensor
    input_ids: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that all rows hold at the end."""
        longest = max(rules.most for rules in self.rules)
        return len(self.rules) * (self.prefix.numel() + self.input_ids.shape[1] + longest)


class GenerationJob:
    """All generation requests of a run, as padded tensors on the device; equal ones run once."""

    def __init__(
        self, requests: Sequence[tuple[int, Generate]], resident: Resident, *, batch_tokens: int
    ) -> None:
        check_causal(resident, "generations")
        self._indices: dict[Generate, list[int]] = {}
        for index, request in requests:
            self._indices.setdefault(request, []).append(index)
        rules = rules_of(list(self._indices), resident)
        if not resident.capabilities.grows:
            _log.warning(
                "padded rows of %s differ from rows alone: generating one by one",
                type(resident.module).__name__,
            )
        together: list[Rules] = []
        self._alone: list[Rules] = []
        for one in rules.values():
            (together if _batched(one, resident.capabilities) else self._alone).append(one)
        self._batches = list(_batches(together, resident, batch_tokens))
        self.most_rows = max((len(batch.rules) for batch in self._batches), default=1)

    def run(self, run: EngineRun) -> None:
        """Fills in a `Generated` for every request; see `Job`."""
        for batch in self._batches:
            for part in run.population.parts(batch.tokens, cached=True):
                answers = {c: [Decoding(rules) for rules in batch.rules] for c in part}
                _decode(run, batch, answers)
                for candidate, rows in answers.items():
                    for rules, answer in zip(batch.rules, rows, strict=True):
                        self._put(run, candidate, rules, answer.written)
        for rules in self._alone:
            for part in run.population.parts(len(rules.prompt) + rules.most, cached=True):
                for candidate in part:
                    run.population.choose(range(candidate, candidate + 1), 1)
                    try:
                        written = generated(run, rules)
                    except NoFiniteScoresError:
                        run.answers.fail(candidate, NOT_FINITE)
                    else:
                        self._put(run, candidate, rules, written)

    def _put(self, run: EngineRun, candidate: int, rules: Rules, written: Sequence[int]) -> None:
        answer = Generated(rules.text(written), cut_off=rules.cut_off(written))
        for index in self._indices[rules.request]:
            run.answers.put(candidate, index, answer)


def _batched(rules: Rules, able: Capabilities) -> bool:
    return able.grows and rules.stepwise and len(rules.prompt) + rules.most <= able.length


def _batches(rules: Sequence[Rules], resident: Resident, batch_tokens: int) -> Iterator[_Batch]:
    ordered = sorted(rules, key=lambda one: (-one.most, -len(one.prompt), one.request.prompt))
    alike = [(0, list(range(len(ordered))))]
    if ordered and resident.capabilities.shares:
        alike = groups([one.prompt for one in ordered])
    for shared, rows in alike:
        members = [ordered[row] for row in rows]
        lengths = [len(one.prompt) + one.most for one in members]
        for batch in pack(members, lengths, batch_tokens):
            yield _tensorise(batch, shared, resident)


def _tensorise(rules: Sequence[Rules], shared: int, resident: Resident) -> _Batch:
    shared = shared if len(rules) > 1 else 0
    ids, mask = padded([one.prompt[shared:] for one in rules], resident, left=True)
    prefix = torch.tensor([rules[0].prompt[:shared]], dtype=torch.int64, device=resident.device)
    return _Batch(tuple(rules), prefix, ids, mask)


def _decode(run: EngineRun, batch: _Batch, answers: Mapping[int, Sequence[Decoding]]) -> None:
    """Writes tokens into the candidates' `answers` until every one is closed."""
    # Which request each row of the tensors belongs to: candidate after candidate, equally many.
    rows = {candidate: list(range(len(batch.rules))) for candidate in answers}
    mask = batch.mask.repeat(len(rows), 1)
    mask = torch.cat([mask.new_ones(len(mask), batch.prefix.numel()), mask], dim=1)
    past = _prefix_cache(run, batch, list(rows))
    growing = CachedRows(run.resident.module, batch.input_ids.repeat(len(rows), 1), mask, past)
    while any(answer.open for own in answers.values() for answer in own):
        run.deadline.check()
        growing.append(_next_tokens(growing.logits(), rows, answers, run.answers))
        shrunk = _still_open(rows, answers)
        if shrunk is not None:
            rows, lines = shrunk
            run.population.choose(list(rows), len(next(iter(rows.values()))))
            growing.keep(lines)


def _prefix_cache(run: EngineRun, batch: _Batch, candidates: Sequence[int]) -> Any:
    """Returns the cache of what all prompts begin with, for every row; None: nothing."""
    part = range(candidates[0], candidates[-1] + 1)
    past, count = None, len(batch.rules)
    if batch.prefix.numel():
        run.population.choose(part, 1)
        ids = batch.prefix.repeat(len(part), 1)
        no_logits = torch.empty(0, dtype=torch.int64, device=ids.device)
        _, output = kept_logits(run.resident.module, no_logits, input_ids=ids, use_cache=True)
        lines = torch.zeros(count, dtype=torch.int64, device=ids.device)
        past = going_on(output.past_key_values, tiled(lines, len(part), 1))
    run.population.choose(part, count)
    return past


def _next_tokens(
    logits: Tensor,
    rows: Mapping[int, Sequence[int]],
    answers: Mapping[int, Sequence[Decoding]],
    failures: Answers,
) -> list[int]:
    """Chooses and writes the next token of every open row; closed rows repeat anything."""
    peak, best = logits.float().max(dim=-1)
    finite: list[bool] = peak.isfinite().tolist()
    chosen: list[int] = best.tolist()
    owners = [(candidate, row) for candidate, own_rows in rows.items() for row in own_rows]
    for line, (candidate, row) in enumerate(owners):
        answer = answers[candidate][row]
        if not answer.open:
            continue
        if finite[line]:
            chosen[line] = answer.write(logits[line], chosen[line])
        else:
            for one in answers[candidate]:
                one.open = False
            failures.fail(candidate, NOT_FINITE)
    return chosen


def _still_open(
    rows: Mapping[int, Sequence[int]], answers: Mapping[int, Sequence[Decoding]]
) -> tuple[dict[int, list[int]], list[int]] | None:
    """Drops closed rows once half of the batch can go; None: all rows stay.

    All candidates have equally many rows, and that stays so: with h the most open rows of any
    candidate, each that has an open row keeps h, its open ones and the first of its closed ones;
    candidates without one are dropped.

    Returns:
        The rows of each candidate that is left, and which lines of the batch they were.
    """
    width = len(next(iter(rows.values())))
    is_open = {c: [answers[c][row].open for row in own_rows] for c, own_rows in rows.items()}
    most_open = max(sum(flags) for flags in is_open.values())  # h
    alive = sum(any(flags) for flags in is_open.values())
    if not alive or 2 * most_open * alive > width * len(rows):
        return None
    left: dict[int, list[int]] = {}
    lines: list[int] = []
    for number, (candidate, flags) in enumerate(is_open.items()):
        if any(flags):
            by_state = [i for state in (True, False) for i in range(width) if flags[i] is state]
            kept = sorted(by_state[:most_open])
            left[candidate] = [rows[candidate][i] for i in kept]
            lines += [number * width + i for i in kept]
    return left, lines
