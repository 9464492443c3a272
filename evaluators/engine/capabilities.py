"""What a model can do with several rows at once, told by its numbers and not by its kind."""

import math
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers.cache_utils import DynamicLayer

from evaluators.engine.cached_rows import CachedRows, cache_name, going_on, kept_logits
from evaluators.requests import is_out_of_memory

_TRUNK = 8  # tokens that rows share
_TAIL = 4  # tokens behind them
_HOLE = 64  # cache slots between both that hold padding
_LONGEST_HOLE = 1024


@dataclass(frozen=True)
class Capabilities:
    """Each is whether logits are those of every row alone, without padding.

    Args:
        causal: tokens that follow leave the logits before them as they are; padding on the right
            does, too.
        grows: rows that are padded on the left grow by a token at a time behind a cache.
        shares: rows go on from keys and values of a row that they begin with, padding in between.
        length: of the longest rows for which this holds, by the model's configuration. Beyond it
            RoPE's frequencies depend on the longest row of a pass, or attention chooses among
            its keys, where a cache has been seen to change the choice.
        error: of the model when it is given tokens alone; None: it gives logits over its tokens.
    """

    causal: bool
    grows: bool
    shares: bool
    length: int
    error: str | None = None


@torch.inference_mode()
def measured(module: Any, max_length: int) -> Capabilities:
    """Returns what a model that writes can do with the weights that it has.

    An encoder-decoder, which answers row by row, has nothing but its error.
    A few tokens go through it in both ways; the difference that counts is that of most rows, as
    rounding may send a single token to another expert.
    """
    length = min(max_length, _steady_length(module.config.get_text_config(decoder=True)))
    error = _error(lambda: _check_logits(module, Tokens(module)))
    if error is not None or _is_encoder_decoder(module):
        return Capabilities(False, False, False, length, error)
    draw = Tokens(module)
    causal = _is_causal(module, draw, max_length)
    cached = causal and cache_name(module) is not None and max_length > 2 * _TAIL
    grows = cached and _holds(lambda: _grows(module, draw))
    shares = grows and _holds(lambda: _shares(module, draw, max_length))
    return Capabilities(causal, grows, shares, length)


def _holds(able: Callable[[], bool]) -> bool:
    """Whether a model is able; one that raises errors is not, unless memory runs out."""
    held: list[bool] = []
    return _error(lambda: held.append(able())) is None and held[0]


def _error(act: Callable[[], object]) -> str | None:
    """Returns the first line of the error that an act ends in; None: it ends well."""
    try:
        act()
    except (AttributeError, LookupError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"
    return None


class Tokens:
    """Rows of tokens that differ from each other, the same in every run."""

    def __init__(self, module: Any) -> None:
        read = module.get_input_embeddings().weight
        self.device = read.device
        self.size = self._common = int(read.shape[0])
        self._noise = torch.Generator().manual_seed(0)
        if _is_encoder_decoder(module):  # whose decoder may have a smaller table
            written = getattr(module.get_output_embeddings(), "weight", read)
            self._common = min(self.size, int(written.shape[0]))

    def row(self, length: int) -> list[int]:
        """Returns tokens of the vocabulary's middle: special ones stand at either end."""
        low, high = self._common // 4, max(self._common // 2, 2)
        return torch.randint(low, high, (length,), generator=self._noise).tolist()

    def tensor(self, rows: Sequence[Sequence[int]]) -> Tensor:
        """Returns rows of one length, ``(rows, length)`` int64, where the model lies."""
        return torch.tensor(rows, dtype=torch.int64, device=self.device)


def _check_logits(module: Any, draw: Tokens) -> None:
    """Raises an error unless tokens alone give logits over a vocabulary of text, one row each.

    Token tables may have rows that no logit stands for (Mllama, CPM-Ant).
    """
    ids = draw.tensor([draw.row(2)])
    more = {"decoder_input_ids": ids} if _is_encoder_decoder(module) else {}
    logits = module(input_ids=ids, **more, use_cache=False).logits
    count = getattr(module.config.get_text_config(decoder=True), "vocab_size", draw.size)
    if logits.shape[:-1] != ids.shape or logits.shape[-1] not in (count, draw.size):
        raise ValueError(f"logits {tuple(logits.shape)} for 2 tokens of {count} stand for others")


def _is_encoder_decoder(module: Any) -> bool:
    return bool(getattr(module.config, "is_encoder_decoder", False))


def _is_causal(module: Any, draw: Tokens, max_length: int) -> bool:
    """Whether rows that differ at their ends alone have the same logits before."""
    end = min(_TRUNK, max_length - 1)
    width = min(_TRUNK, max_length - end)
    shared = draw.row(width)
    ids = draw.tensor([shared + draw.row(end), shared + draw.row(end)])
    logits = module(input_ids=ids, use_cache=False).logits[:, :width]
    return mostly_equal(logits[1], logits[0])


def _grows(module: Any, draw: Tokens) -> bool:
    rows = [draw.row(length) for length in (_TAIL, 2, _TAIL - 1)]
    return _as_alone(module, draw, CachedRows(module, *_left_padded(rows, draw)), rows)


def _shares(module: Any, draw: Tokens, max_length: int) -> bool:
    hole = _hole(module.config.get_text_config(decoder=True), max_length)
    if hole is None:
        return False
    trunk = draw.row(_TRUNK)
    no_logits = torch.empty(0, dtype=torch.int64, device=draw.device)
    _, output = kept_logits(module, no_logits, input_ids=draw.tensor([trunk]), use_cache=True)
    past = output.past_key_values
    if any(type(layer) is not DynamicLayer for layer in past.layers):
        return False
    tails = [draw.row(length) for length in (_TAIL + hole, _TAIL, 2, _TAIL - 1)]
    ids, mask = _left_padded(tails, draw)
    mask = torch.cat([mask.new_ones(len(tails), _TRUNK), mask], dim=1)
    past = going_on(past, torch.zeros(len(tails), dtype=torch.int64, device=draw.device))
    rows = [trunk + tail for tail in tails]
    return _as_alone(module, draw, CachedRows(module, ids, mask, past), rows)


def _hole(config: Any, max_length: int) -> int | None:
    """Returns how much padding shows whether slots or positions count; None: more than is cheap.

    Where layers look back through a window, padding of its length pushes all tokens out of it.
    """
    window = getattr(config, "window_size", None) or 0
    hole = min(max(_HOLE, window), max_length - _TRUNK - _TAIL - 3)
    return hole if 1 <= hole <= _LONGEST_HOLE else None


def _steady_length(config: Any) -> int:
    """Returns up to how many tokens no row is computed in another way for being long.

    Beyond it RoPE has other frequencies, or attention chooses among its keys.
    """
    rope = getattr(config, "rope_parameters", None) or {}
    kinds = [rope, *(one for one in rope.values() if isinstance(one, dict))]
    lengths = [
        kind.get("original_max_position_embeddings") or config.max_position_embeddings
        for kind in kinds
        if kind.get("rope_type") in ("dynamic", "longrope")
    ]
    chosen = getattr(config, "index_topk", None)
    lengths += [chosen] if isinstance(chosen, int) else []
    return min(lengths, default=sys.maxsize + 1) - 1  # at that length itself old ones may stay


def _as_alone(module: Any, draw: Tokens, together: CachedRows, rows: Sequence[list[int]]) -> bool:
    """Whether rows give the logits that each has alone, also once they grow and are dropped."""
    more = [draw.row(2) for _ in rows]
    alone = torch.stack(
        [
            module(input_ids=draw.tensor([row + tokens]), use_cache=False).logits[0, -3:]
            for row, tokens in zip(rows, more, strict=True)
        ]
    )
    found = [together.logits()]
    for place in range(2):
        together.append([tokens[place] for tokens in more])
        if place == 1:
            together.keep(range(len(rows))[:0:-1])  # all but the first, turned round
        found.append(together.logits())
    expected = (alone[:, 0], alone[:, 1], alone[1:, 2].flip(0))
    return all(map(mostly_equal, found, expected))


def _left_padded(rows: Sequence[list[int]], draw: Tokens) -> tuple[Tensor, Tensor]:
    width = max(map(len, rows))
    ids = draw.tensor([[0] * (width - len(row)) + row for row in rows])
    mask = draw.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
    return ids, mask


def mostly_equal(found: Tensor, expected: Tensor) -> bool:
    """Whether most of the rows ``(rows, vocabulary)`` are equal but for rounding.

    ``|found - expected| <= sqrt(eps) |expected - mean(expected)|``: rounding is some ``eps``.
    Weights that give NaN tell nothing, nor do they give answers.
    """
    tolerance = math.sqrt(torch.finfo(found.dtype).eps)
    found, expected = found.float(), expected.float()
    spread = (expected - expected.mean(dim=-1, keepdim=True)).norm(dim=-1)
    far = (found - expected).norm(dim=-1) > tolerance * spread
    return bool(far.float().mean() < 0.5)
