"""Runs `Generate` requests: greedy or sampled, left-padded batches with a key-value cache."""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from evaluators.batching import Deadline, pack, pad_token, padded
from evaluators.forward import kept_logits
from evaluators.requests import EvaluationError, Generate, Generated, Response
from evaluators.resident import Resident


@dataclass(frozen=True, eq=False)
class _Batch:
    """Prompts that are continued together: ``(rows, width)`` ids and mask, padded on the left."""

    requests: tuple[Generate, ...]
    input_ids: Tensor
    mask: Tensor


class GenerationJob:
    """All generation requests of a run, as padded tensors on the device; equal ones run once."""

    def __init__(
        self, requests: Sequence[tuple[int, Generate]], resident: Resident, *, batch_tokens: int
    ) -> None:
        if not resident.info.causal:
            raise ValueError(
                f"{type(resident.module).__name__} is no causal language model and cannot generate"
            )
        self._places: dict[Generate, list[int]] = {}
        for place, request in requests:
            self._places.setdefault(request, []).append(place)
        prompts = {request: _prompt(request, resident.info.max_length) for request in self._places}
        ordered = sorted(
            prompts, key=lambda each: (-each.max_new_tokens, -len(prompts[each]), each.prompt)
        )
        lengths = [len(prompts[each]) + each.max_new_tokens for each in ordered]
        self._batches = []
        for batch in pack(ordered, lengths, batch_tokens):
            ids, mask = padded(
                [prompts[each] for each in batch],
                pad=pad_token(resident),
                left=True,
                device=resident.device,
            )
            self._batches.append(_Batch(tuple(batch), ids, mask))
        self.most_rows = max(len(batch.requests) for batch in self._batches)
        self._ends = _end_tokens(resident)

    def run(self, resident: Resident, deadline: Deadline, answers: list[Response | None]) -> None:
        """Fills in a `Generated` for every request; see `Job`."""
        for batch in self._batches:
            decoding = _Decoding(batch.requests, resident.info.tokenizer, self._ends)
            _decode(resident.module, batch, decoding, deadline)
            for request, text in zip(batch.requests, decoding.texts(), strict=True):
                for place in self._places[request]:
                    answers[place] = Generated(text)


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


def _decode(module: Any, batch: _Batch, decoding: _Decoding, deadline: Deadline) -> None:
    """Writes tokens into `decoding` until every row is closed."""
    rows = list(range(len(batch.requests)))  # which request each row of the tensors belongs to
    ids, mask, past = batch.input_ids, batch.mask, None
    positions = (mask.cumsum(dim=1) - 1).clamp(min=0)
    takes_positions = "position_ids" in inspect.signature(module.forward).parameters
    while any(decoding.open[row] for row in rows):
        deadline.check()
        last = torch.arange(1, len(rows) + 1, device=ids.device) * ids.shape[1] - 1
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
        chosen = _next_tokens(logits, rows, decoding)
        rows, keep = _still_open(rows, decoding)
        if keep is not None and past is not None:
            kept = torch.tensor(keep, device=ids.device)
            past.batch_select_indices(kept)
            mask, positions, chosen = mask[kept], positions[kept], [chosen[i] for i in keep]
        ids = torch.tensor(chosen, device=ids.device).unsqueeze(1)
        mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
        positions = positions[:, -1:] + 1


def _next_tokens(logits: Tensor, rows: Sequence[int], decoding: _Decoding) -> list[int]:
    """Chooses and writes the next token of every open row; closed rows repeat anything."""
    peak, best = logits.float().max(dim=-1)
    if not bool(peak.isfinite().all()):
        raise EvaluationError(
            "a generated token has no finite logits: the candidate's weights give NaN or "
            "infinite logits"
        )
    chosen: list[int] = best.tolist()
    for i, row in enumerate(rows):
        if decoding.open[row]:
            chosen[i] = decoding.choose(row, logits[i], chosen[i])
            decoding.write(row, chosen[i])
    return chosen


def _still_open(rows: list[int], decoding: _Decoding) -> tuple[list[int], list[int] | None]:
    """Drops closed rows once they are half of the batch; None: all rows stay."""
    keep = [i for i, row in enumerate(rows) if decoding.open[row]]
    if not keep or 2 * len(keep) > len(rows):
        return rows, None
    return [rows[i] for i in keep], keep


def _sample(logits: Tensor, temperature: float, top_p: float, generator: torch.Generator) -> int:
    """Returns a token of the smallest set whose probability reaches `top_p` (Holtzman et al.).

    Source: Holtzman et al. 2020, "The Curious Case of Neural Text Degeneration",
    arXiv:1904.09751, section 3.1.
    """
    exact = logits.detach().to("cpu", torch.float64) / temperature
    probs, tokens = exact.softmax(dim=-1).sort(descending=True, stable=True)
    mass = probs.cumsum(dim=-1)
    size = int((mass - probs < top_p).sum())
    point = torch.rand(1, generator=generator, dtype=torch.float64) * mass[size - 1]
    return int(tokens[min(int(torch.searchsorted(mass, point)), size - 1)])


def _prompt(request: Generate, max_length: int) -> tuple[int, ...]:
    room = max_length - request.max_new_tokens
    if room < 1:
        raise ValueError(
            f"max_new_tokens {request.max_new_tokens} leaves no room for a prompt: the model "
            f"takes {max_length} tokens"
        )
    if not request.prompt:
        raise ValueError("a Generate request needs a prompt of at least one token")
    return request.prompt[-room:]


def _end_tokens(resident: Resident) -> frozenset[int]:
    """Returns the ids that end an answer: the generation config's and the tokenizer's."""
    named = getattr(getattr(resident.module, "generation_config", None), "eos_token_id", None)
    ends: Iterable[int | None] = named if isinstance(named, list) else [named]
    return frozenset({*ends, resident.info.tokenizer.eos_token_id} - {None})


def _holds(text: str, stop: Iterable[str]) -> bool:
    return any(each in text for each in stop)


def _cut(text: str, stop: Iterable[str]) -> str:
    return text[: min((at for each in stop if (at := text.find(each)) >= 0), default=len(text))]
