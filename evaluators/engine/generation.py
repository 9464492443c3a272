"""Runs `Generate` requests: greedy or sampled, left-padded batches with a key-value cache."""

import inspect
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.engine.batching import Answers, EngineRun, check_causal, pack, padded
from evaluators.engine.forward import kept_logits
from evaluators.engine.passes import going_on
from evaluators.engine.population import tiled
from evaluators.engine.prefix_tree import groups
from evaluators.engine.resident import Resident
from evaluators.requests import Generate, Generated


@dataclass(frozen=True, eq=False)
class _Batch:
    """Prompts that are continued together.

    Args:
        requests: one for each row.
        prefix: ``(1, shared)`` tokens that all prompts begin with; none where that saves little.
        input_ids: ``(rows, width)`` the others, padded on the left; `mask` is theirs.
    """

    requests: tuple[Generate, ...]
    prefix: Tensor
    input_ids: Tensor
    mask: Tensor

    @property
    def tokens(self) -> int:
        """Tokens that all rows hold at the end."""
        longest = max(request.max_new_tokens for request in self.requests)
        return len(self.requests) * (self.prefix.numel() + self.input_ids.shape[1] + longest)


class GenerationJob:
    """All generation requests of a run, as padded tensors on the device; equal ones run once."""

    def __init__(
        self, requests: Sequence[tuple[int, Generate]], resident: Resident, *, batch_tokens: int
    ) -> None:
        check_causal(resident, "generations")
        self._indices: dict[Generate, list[int]] = {}
        for index, request in requests:
            self._indices.setdefault(request, []).append(index)
        length = resident.info.max_length
        prompts = {request: _prompt(request, length) for request in self._indices}
        ordered = sorted(
            prompts, key=lambda one: (-one.max_new_tokens, -len(prompts[one]), one.prompt)
        )
        alike = groups([prompts[request] for request in ordered])
        if any(shared for shared, _ in alike) and not resident.takes_cache:
            alike = [(0, list(range(len(ordered))))]
        self._batches: list[_Batch] = []
        for shared, rows in alike:
            members = [ordered[row] for row in rows]
            lengths = [len(prompts[request]) + request.max_new_tokens for request in members]
            for batch in pack(members, lengths, batch_tokens):
                tokens = [prompts[request] for request in batch]
                self._batches.append(_tensorise(batch, tokens, shared, resident))
        self.most_rows = max(len(batch.requests) for batch in self._batches)
        self._ends = _end_tokens(resident)

    def run(self, run: EngineRun) -> None:
        """Fills in a `Generated` for every request; see `Job`."""
        tokenizer = run.resident.info.tokenizer
        for batch in self._batches:
            for part in run.population.parts(batch.tokens, cached=True):
                decodings = {
                    candidate: _Decoding(batch.requests, tokenizer, self._ends)
                    for candidate in part
                }
                _decode(run, batch, decodings)
                for candidate, decoding in decodings.items():
                    for request, text in zip(batch.requests, decoding.texts(), strict=True):
                        for index in self._indices[request]:
                            run.answers.put(candidate, index, Generated(text))


def _tensorise(
    requests: Sequence[Generate],
    prompts: Sequence[tuple[int, ...]],
    shared: int,
    resident: Resident,
) -> _Batch:
    shared = shared if len(prompts) > 1 else 0
    tails = [prompt[shared:] for prompt in prompts]
    ids, mask = padded(tails, resident, left=True)
    prefix = torch.tensor([prompts[0][:shared]], dtype=torch.int64, device=resident.device)
    return _Batch(tuple(requests), prefix, ids, mask)


class _Decoding:
    """The tokens written so far, and which rows are finished."""

    def __init__(self, requests: Sequence[Generate], tokenizer: Any, ends: frozenset[int]) -> None:
        self._requests = requests
        self._tokenizer = tokenizer
        self._ends = ends
        self._written: list[list[int]] = [[] for _ in requests]
        self._generators = [
            torch.Generator().manual_seed(request.seed) if request.temperature > 0 else None
            for request in requests
        ]
        self.open = [request.max_new_tokens > 0 for request in requests]

    def choose(self, row: int, logits: Tensor, likeliest: int) -> int:
        """Returns the next token of `row`; `logits` ``(vocabulary,)`` are read if sampling."""
        generator = self._generators[row]
        if generator is None:
            return likeliest
        request = self._requests[row]
        return _sample(logits, request.temperature, request.top_p, generator)

    def write(self, row: int, token: int) -> None:
        """Appends a token, or closes the row at an end token, stop text or the limit."""
        request, written = self._requests[row], self._written[row]
        if token in self._ends:
            self.open[row] = False
            return
        written.append(token)
        self.open[row] = len(written) < request.max_new_tokens and not self._stopped(row)

    def close(self) -> None:
        """Closes every row."""
        self.open = [False] * len(self.open)

    def texts(self) -> list[str]:
        """Returns every row's text up to the first stop text."""
        return [
            _cut(self._text(written), request.stop)
            for written, request in zip(self._written, self._requests, strict=True)
        ]

    def _stopped(self, row: int) -> bool:
        """A stop text of n bytes ends in the last n + 2 tokens; the whole is decoded at a hit."""
        stop = self._requests[row].stop
        if not stop:
            return False
        tail = self._written[row][-(max(len(text.encode()) for text in stop) + 2) :]
        return _holds(self._text(tail), stop) and _holds(self._text(self._written[row]), stop)

    def _text(self, tokens: Sequence[int]) -> str:
        return str(self._tokenizer.decode(tokens, skip_special_tokens=True))


def _decode(run: EngineRun, batch: _Batch, decodings: Mapping[int, _Decoding]) -> None:
    """Writes tokens into the candidates' `decodings` until every row is closed."""
    module = run.resident.module
    # Which request each row of the tensors belongs to: candidate after candidate, equally many.
    rows = {candidate: list(range(len(batch.requests))) for candidate in decodings}
    ids, mask = batch.input_ids.repeat(len(rows), 1), batch.mask.repeat(len(rows), 1)
    past = _prefix_cache(run, batch, list(rows))
    mask = torch.cat([mask.new_ones(len(mask), batch.prefix.numel()), mask], dim=1)
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -ids.shape[1] :]
    takes_positions = "position_ids" in inspect.signature(module.forward).parameters
    while any(any(decoding.open) for decoding in decodings.values()):
        run.deadline.check()
        last = torch.arange(1, len(ids) + 1, device=ids.device) * ids.shape[1] - 1
        logits, output = kept_logits(
            module,
            last,
            input_ids=ids,
            attention_mask=mask,
            past_key_values=past,
            use_cache=True,
            **({"position_ids": positions} if takes_positions else {}),
        )
        past = output.past_key_values
        chosen = _next_tokens(logits, rows, decodings, run.answers)
        shrunk = _still_open(rows, decodings)
        if shrunk is not None and past is not None:
            rows, lines = shrunk
            run.population.choose(list(rows), len(next(iter(rows.values()))))
            keep = torch.tensor(lines, device=ids.device)
            past.batch_select_indices(keep)
            mask, positions, chosen = mask[keep], positions[keep], [chosen[i] for i in lines]
        ids = torch.tensor(chosen, device=ids.device).unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(ids), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _prefix_cache(run: EngineRun, batch: _Batch, candidates: Sequence[int]) -> Any:
    """Returns the cache of what all prompts begin with, for every row; None: nothing."""
    part = range(candidates[0], candidates[-1] + 1)
    past, count = None, len(batch.requests)
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
    decodings: Mapping[int, _Decoding],
    answers: Answers,
) -> list[int]:
    """Chooses and writes the next token of every open row; closed rows repeat anything."""
    peak, best = logits.float().max(dim=-1)
    finite: list[bool] = peak.isfinite().tolist()
    chosen: list[int] = best.tolist()
    owners = [(candidate, row) for candidate, own_rows in rows.items() for row in own_rows]
    for line, (candidate, row) in enumerate(owners):
        decoding = decodings[candidate]
        if not decoding.open[row]:
            continue
        if not finite[line]:
            decoding.close()
            answers.fail(
                candidate,
                "a generated token has no finite logits: the candidate's weights give NaN or "
                "infinite logits",
            )
            continue
        chosen[line] = decoding.choose(row, logits[line], chosen[line])
        decoding.write(row, chosen[line])
    return chosen


def _still_open(
    rows: Mapping[int, Sequence[int]], decodings: Mapping[int, _Decoding]
) -> tuple[dict[int, list[int]], list[int]] | None:
    """Drops closed rows once half of the batch can go; None: all rows stay.

    All candidates have equally many rows, and that stays so: with h the most open rows of any
    candidate, each that has an open row keeps h, its open ones and the first of its closed ones;
    candidates without one are dropped.

    Returns:
        The rows of each candidate that is left, and which lines of the batch they were.
    """
    width = len(next(iter(rows.values())))
    is_open = {c: [decodings[c].open[row] for row in own_rows] for c, own_rows in rows.items()}
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


def _sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Returns a token of the nucleus, the smallest set whose probability reaches `top_p`.

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
        arXiv:1904.09751, section 3.1.
    """
    scaled = logits.detach().to("cpu", torch.float64) / temperature
    probs, tokens = scaled.softmax(dim=-1).sort(descending=True, stable=True)  # softmax(x / T)
    mass = probs.cumsum(dim=-1)
    size = int((mass - probs < top_p).sum())  # least n with p_1 + ... + p_n >= top_p
    point = torch.rand(1, generator=generator, dtype=torch.float64) * mass[size - 1]
    return int(tokens[min(int(torch.searchsorted(mass, point)), size - 1)])


def _prompt(request: Generate, max_length: int) -> tuple[int, ...]:
    longest = max_length - request.max_new_tokens
    if longest < 1:
        raise ValueError(
            f"max_new_tokens {request.max_new_tokens} leaves no room for a prompt: the model "
            f"takes {max_length} tokens"
        )
    if not request.prompt:
        raise ValueError("a Generate request needs a prompt of at least one token")
    return request.prompt[-longest:]


def _end_tokens(resident: Resident) -> frozenset[int]:
    """Returns the ids that end an answer: the generation config's and the tokenizer's."""
    named = getattr(getattr(resident.module, "generation_config", None), "eos_token_id", None)
    ends: Iterable[int | None] = named if isinstance(named, list) else [named]
    return frozenset({*ends, resident.info.tokenizer.eos_token_id} - {None})


def _holds(text: str, stop: Iterable[str]) -> bool:
    return any(stop_text in text for stop_text in stop)


def _cut(text: str, stop: Iterable[str]) -> str:
    return text[: min((i for end in stop if (i := text.find(end)) >= 0), default=len(text))]
