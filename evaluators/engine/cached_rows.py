"""Forward passes behind a cache: logits at chosen positions, rows that grow by single tokens."""

import copy
import inspect
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from transformers.cache_utils import DynamicCache

_CACHES = ("past_key_values", "cache_params")  # what models call it


def kept_logits(module: Any, kept: Tensor, **inputs: Any) -> tuple[Tensor, Any]:
    """Returns the logits at `kept`, ``(kept, vocabulary)`` in the model's dtype, and the output.

    A hook in front of the output layer drops every other position, where that layer sees a state
    of each token of the input (ProphetNet's sees more, FSMT's is an embedding). What the model
    does behind it (scaling, soft caps) still applies, as it works on each position alone.

    Args:
        module: a Hugging Face model that writes, which takes `inputs`.
        kept: ``(kept,)`` int64, positions counted through the flattened ``(rows, tokens)`` input.

    Raises:
        ValueError: the logits are not one row for each token of the input.
    """
    written: Any = inputs.get("decoder_input_ids", inputs.get("input_ids"))
    dropped = []

    def keep(_: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...] | None:
        states = arguments[0]
        if states.dim() != 3 or states.shape[:2] != written.shape:
            return None
        dropped.append(True)
        return (states.flatten(0, 1)[kept].unsqueeze(0), *arguments[1:])

    head = module.get_output_embeddings()
    handle = None if head is None else head.register_forward_pre_hook(keep)
    try:
        output = module(**inputs)
    finally:
        if handle is not None:
            handle.remove()
    logits = output.logits
    wanted = (1, len(kept)) if dropped else tuple(written.shape)
    if tuple(logits.shape[:-1]) != wanted:  # images in front (GIT), an output layer called twice
        raise ValueError(
            f"{type(module).__name__} gives logits {tuple(logits.shape)} where those of "
            f"{wanted} tokens are read, so what they stand for is not known; use another base"
        )
    return logits.squeeze(0) if dropped else logits.flatten(0, 1)[kept], output


def going_on(past: Any, parents: Tensor) -> Any:
    """Returns a cache of its own with rows of `past`, which stays as it is.

    Args:
        past: of a model whose rows may go on from others; see `Capabilities`.
        parents: ``(rows,)`` which rows, any of them any number of times.
    """
    cache = copy.copy(past)
    cache.layers = [copy.copy(layer) for layer in past.layers]
    cache.reorder_cache(parents)
    return cache


def takes_positions(module: Any) -> bool:
    """Whether the model is told its tokens' positions."""
    return "position_ids" in inspect.signature(module.forward).parameters


def positions_of(mask: Tensor, width: int) -> Tensor:
    """Returns the last `width` tokens' positions, ``(rows, width)``; padding does not count.

    Args:
        mask: ``(rows, held + width)`` 0 where a row has padding.
    """
    return (mask.cumsum(dim=1) - 1).clamp(min=0)[:, -width:]


def forget(module: Any, input_ids: Tensor) -> None:
    """Has layers drop what they keep of earlier rows: a state, frequencies for their length."""
    module(input_ids=input_ids[:, :1], use_cache=False)


def cache_name(module: Any) -> str | None:
    """Returns the argument in which a model takes the cache that transformers' generate gives it.

    None: it takes no such cache.
    """
    taken = inspect.signature(module.forward).parameters
    if not module._supports_default_dynamic_cache():
        return None
    return next((name for name in _CACHES if name in taken), None)


class CachedRows:
    """Rows that grow by a token at a time.

    Args:
        module: a model that has a `cache_name`.
        ids: ``(rows, width)`` int64 tokens, padded on the left.
        mask: ``(rows, held + width)`` int64, 0 where a row has padding.
        past: cache of the `held` tokens before; None: there are none.
    """

    def __init__(self, module: Any, ids: Tensor, mask: Tensor, past: Any = None) -> None:
        self._module = module
        self._ids = ids
        self._mask = mask
        self._name = str(cache_name(module))
        self._takes_positions = takes_positions(module)
        config = module.config.get_text_config(decoder=True)
        self._past = DynamicCache(config=config) if past is None else past

    def logits(self) -> Tensor:
        """Returns the logits of what follows every row, ``(rows, vocabulary)``."""
        rows, width = self._ids.shape
        last = torch.arange(1, rows + 1, device=self._ids.device) * width - 1
        options: dict[str, Any] = {self._name: self._past}
        if self._takes_positions:
            options["position_ids"] = positions_of(self._mask, width)
        logits, _ = kept_logits(
            self._module,
            last,
            input_ids=self._ids,
            attention_mask=self._mask,
            use_cache=True,
            **options,
        )
        return logits

    def append(self, tokens: Sequence[int]) -> None:
        """Adds a token to each row, to be computed next."""
        self._ids = torch.tensor(tokens, device=self._ids.device).unsqueeze(1)
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(self._mask), 1)], dim=1)

    def keep(self, lines: Sequence[int]) -> None:
        """Drops all rows but those."""
        kept: Any = torch.tensor(lines, device=self._ids.device)
        self._past.reorder_cache(kept)
        self._ids, self._mask = self._ids[kept], self._mask[kept]
