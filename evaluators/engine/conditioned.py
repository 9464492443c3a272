"""Requests whose answers rest on more than tokens before them: on an encoder, images or sounds.

Candidates are written one after the other, as layers of an encoder see other rows than those of a
decoder, and layers of images patches.
"""

import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from evaluators.engine.batching import EngineRun, check_tokens, pack
from evaluators.engine.cached_rows import kept_logits
from evaluators.engine.decoding import decoder_start, rules_of
from evaluators.engine.forward import check_finite, token_log_probs
from evaluators.engine.inputs import Inputs, close, cost, shapes, stacked
from evaluators.engine.resident import Resident
from evaluators.engine.whole_answers import NOT_FINITE, NoFiniteScoresError, generated
from evaluators.requests import Generate, Generated, Likelihood, Loglikelihood

_log = logging.getLogger(__name__)
_Asked = tuple[int, Loglikelihood]


@dataclass(frozen=True, eq=False)
class _Batch:
    """Rows of one pass.

    Args:
        kept: ``(tokens,)`` flat positions that predict the scored tokens, row after row.
        token: ``(tokens,)`` these tokens; `starts`: where each row's begin.
    """

    inputs: dict[str, Tensor]
    indices: tuple[int, ...]
    kept: Tensor
    token: Tensor
    starts: npt.NDArray[np.int64]


class ConditionedLikelihoodJob:
    """Log-likelihoods of what a decoder says of a text, a sound, or an image with a text.

    An encoder's rows share batches, if padding leaves them as they are; rows with images do not.
    """

    def __init__(
        self, requests: Sequence[_Asked], resident: Resident, *, batch_tokens: int
    ) -> None:
        if resident.info.encoder_decoder:
            _check([request for _, request in requests], resident, "log-likelihoods")
            batches = _batches(requests, resident, batch_tokens)
        else:
            batches = (
                _batch([asked], _with_media(asked[1], resident), resident) for asked in requests
            )
        self._batches = list(batches)
        self.most_rows = max(len(batch.indices) for batch in self._batches)

    def run(self, run: EngineRun) -> None:
        """Fills in a `Likelihood` for every request; see `Job`."""
        for candidate in range(run.population.size):
            run.population.write(candidate)
            for batch in self._batches:
                run.deadline.check()
                _answer(run, candidate, batch)


class ConditionedGenerationJob:
    """What a decoder says of the same, by transformers' own generate, one request at a time."""

    most_rows = 1

    def __init__(
        self, requests: Sequence[tuple[int, Generate]], resident: Resident, *, batch_tokens: int
    ) -> None:
        _check([request for _, request in requests], resident, "generations")
        self._indices: dict[Generate, list[int]] = {}
        for index, request in requests:
            self._indices.setdefault(request, []).append(index)
        self._rules = list(rules_of(list(self._indices), resident).values())

    def run(self, run: EngineRun) -> None:
        """Fills in a `Generated` for every request; see `Job`."""
        for candidate in range(run.population.size):
            run.population.write(candidate)
            for rules in self._rules:
                try:
                    written = generated(run, rules)
                except NoFiniteScoresError:
                    run.answers.fail(candidate, NOT_FINITE)
                    continue
                answer = Generated(rules.text(written), cut_off=rules.cut_off(written))
                for index in self._indices[rules.request]:
                    run.answers.put(candidate, index, answer)


def is_conditioned(request: Loglikelihood | Generate, resident: Resident) -> bool:
    """Whether the answer rests on more than the tokens before it."""
    return request.media is not None or resident.info.encoder_decoder


def _check(requests: Sequence[Loglikelihood | Generate], resident: Resident, what: str) -> None:
    if any(request.media is None for request in requests):
        check_tokens(resident, what)


def _answer(run: EngineRun, candidate: int, batch: _Batch) -> None:
    logits, _ = kept_logits(run.resident.module, batch.kept, use_cache=False, **batch.inputs)
    places = torch.arange(len(batch.kept), device=logits.device)
    token_log_p, greedy = token_log_probs(logits, places, batch.token)
    log_probs = token_log_p.cpu().double().numpy()
    check_finite(log_probs, candidate, run.answers)
    totals = np.add.reduceat(log_probs, batch.starts).tolist()
    likeliest = np.logical_and.reduceat(greedy.cpu().numpy(), batch.starts).tolist()
    for index, total, is_greedy in zip(batch.indices, totals, likeliest, strict=True):
        run.answers.put(candidate, index, Likelihood(total, is_greedy))


def _batches(
    requests: Sequence[_Asked], resident: Resident, batch_tokens: int
) -> Iterator[_Batch]:
    rows = [(asked, _encoded(asked[1], resident)) for asked in requests]
    groups: dict[object, list[tuple[_Asked, Inputs]]] = {}
    for row in sorted(rows, key=lambda row: -cost(row[1])):
        groups.setdefault(shapes(row[1]), []).append(row)
    for group in groups.values():
        costs = [cost(inputs) + len(inputs["decoder_input_ids"]) for _, inputs in group]
        tokens = batch_tokens if _may_pad([inputs for _, inputs in group], resident) else 1
        for batch in pack(group, costs, tokens):
            inputs = stacked([inputs for _, inputs in batch], resident.module.config, resident)
            yield _batch([asked for asked, _ in batch], inputs, resident)


def _batch(rows: Sequence[_Asked], inputs: dict[str, Tensor], resident: Resident) -> _Batch:
    decoder = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    assert decoder is not None
    kept: list[int] = []
    starts: list[int] = []
    for line, (_, request) in enumerate(rows):
        start, count = _decoder_length(request, resident), len(request.continuation)
        starts.append(len(kept))
        kept += range(line * decoder.shape[1] + start - count, line * decoder.shape[1] + start)
    token = [token for _, request in rows for token in request.continuation]
    return _Batch(
        inputs,
        tuple(index for index, _ in rows),
        torch.tensor(kept, device=resident.device),
        torch.tensor(token, device=resident.device),
        np.array(starts, dtype=np.int64),
    )


def _decoder_length(request: Loglikelihood, resident: Resident) -> int:
    before = 1 if request.media is None else len(request.context)
    return before + len(request.continuation) - 1


def _encoded(request: Loglikelihood, resident: Resident) -> dict[str, Tensor]:
    """Returns what an encoder-decoder takes of one request, without batch dimension."""
    most = resident.info.max_length
    if not request.context or not request.continuation:
        raise ValueError("a Loglikelihood request needs at least one token on either side")
    if request.media is None:
        read = torch.tensor(request.context[-most:])
        given = {"input_ids": read, "attention_mask": torch.ones_like(read)}
        begin: tuple[int, ...] = (decoder_start(resident),)
    else:
        given = {name: tensor[0] for name, tensor in request.media.inputs.items()}
        begin = request.context
    tokens = (*begin, *request.continuation)[:-1]
    if len(tokens) > most:
        raise ValueError(f"an answer has {len(tokens)} tokens, the model takes {most}")
    return {**given, "decoder_input_ids": torch.tensor(tokens)}


def _with_media(request: Loglikelihood, resident: Resident) -> dict[str, Tensor]:
    """Returns what a decoder takes of one request with images, which stands alone in its pass."""
    assert request.media is not None
    whole = (*request.context, *request.continuation)
    if len(whole) - 1 > resident.info.max_length:
        raise ValueError(
            f"a question with its image and an answer has {len(whole)} tokens, the model takes "
            f"{resident.info.max_length}: shorten it or use smaller images"
        )
    ids = torch.tensor([whole[:-1]])
    given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    for name, tensor in request.media.inputs.items():
        of_tokens = tuple(tensor.shape) == (1, len(whole)) and not tensor.is_floating_point()
        given[name] = tensor[:, :-1] if of_tokens else tensor
    return {name: resident.placed(tensor) for name, tensor in given.items()}


def _may_pad(given: Sequence[Inputs], resident: Resident) -> bool:
    """Whether, by the base, the shortest row has the same logits beside the longest.

    Args:
        given: rows, the longest first.
    """
    long, short = given[0], given[-1]
    if {n: t.shape for n, t in long.items()} == {n: t.shape for n, t in short.items()}:
        return True
    key = tuple((name, tensor.shape) for row in (long, short) for name, tensor in row.items())
    if key in resident.padded:
        return resident.padded[key]
    config, module = resident.module.config, resident.module
    last = len(short["decoder_input_ids"]) - 1
    with resident.without_candidate(), torch.inference_mode():
        alone = module(**stacked([short], config, resident), use_cache=False).logits[0, last]
        both = module(**stacked([long, short], config, resident), use_cache=False).logits[1, last]
    alike = resident.padded[key] = close(both.float(), alone.float(), resident.dtype)
    if not alike:
        _log.warning(
            "padded rows of %s differ from rows alone: scoring one by one", type(module).__name__
        )
    return alike
