"""From text to token ids, by the rules that lm-eval made customary."""

import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from evaluators.evaluator import ModelInfo
from evaluators.requests import Generate, Loglikelihood, Request

_log = logging.getLogger(__name__)


def language_tokenizer(model: ModelInfo, task: str, *, encoder_decoder: bool = False) -> Any:
    """Returns the tokenizer of a causal language model; raises ValueError for other models.

    Args:
        encoder_decoder: whether an encoder-decoder is welcome, too.
    """
    if not model.causal and not (encoder_decoder and model.encoder_decoder):
        raise ValueError(f"{task} needs a causal language model, and the base is none")
    if model.tokenizer is None:
        raise ValueError(f"{task} needs a tokenizer, and the base's directory has none")
    return model.tokenizer


def encoder_inputs(encoded: Mapping[str, Any]) -> dict[str, Tensor]:
    """Returns what an encoder takes of a tokenised text, ``(tokens,)`` int64 each."""
    kinds = {"input_ids", "token_type_ids", "attention_mask"}
    return {kind: torch.tensor(ids) for kind, ids in encoded.items() if kind in kinds}


def prefix_token(tokenizer: Any) -> int:
    """Returns the token in front of the first: beginning of text, or else its end."""
    for token in (tokenizer.bos_token_id, tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise ValueError(
        "the tokenizer has no bos_token and no eos_token, one of which must stand in front of a "
        "text; set one in its tokenizer_config.json"
    )


def encode_text(tokenizer: Any, text: str, place: object) -> list[int]:
    """Returns a text's tokens; raises ValueError with its `place` where none is left of it."""
    tokens: list[int] = tokenizer.encode(text, add_special_tokens=False)
    if not tokens:
        raise ValueError(f"{place}: the tokenizer leaves no token of this text: remove it")
    return tokens


def encode_apart(tokenizer: Any, context: str, continuation: str) -> Loglikelihood:
    """Returns a request for what a decoder says after its encoder has read `context`."""
    said = tokenizer.encode(continuation, add_special_tokens=False)
    return Loglikelihood(tuple(tokenizer.encode(context)), tuple(said))


def encode_pair(tokenizer: Any, context: str, continuation: str) -> Loglikelihood:
    """Returns a request for `continuation` after `context`.

    Spaces at the context's end, which is not all of it, belong to the continuation. Both are
    tokenised together and cut at the length of the context alone, so that the model sees the
    tokens of running text.
    """
    bare = context.rstrip()
    whole = tokenizer.encode(bare + context[len(bare) :] + continuation)
    start = len(tokenizer.encode(bare))
    return Loglikelihood(tuple(whole[:start]), tuple(whole[start:]))


def rolling_windows(
    tokens: Sequence[int], *, prefix: int, window: int, context: int = 1
) -> Iterator[Loglikelihood]:
    """Yields requests that score every token once, `window` tokens of input at a time.

    The first window starts behind `prefix`; every later one reads at least `context` tokens of
    what was scored before; the last reaches back as far as the window allows.

    Args:
        tokens: a document.
        prefix: token in front of the first.
        window: most tokens the model reads at once.
        context: fewest tokens that later windows read in front of what they score.
    """
    end = min(window, len(tokens))
    if end:
        yield Loglikelihood((prefix,), tuple(tokens[:end]))
    while end < len(tokens):
        start, end = end, min(end + window - context + 1, len(tokens))
        yield Loglikelihood(tuple(tokens[end - window - 1 : start]), tuple(tokens[start:end]))


def check_fits(requests: Sequence[Request], max_length: int, task: str) -> None:
    """Raises ValueError for an answer that the model has no room for, whatever it reads before."""
    for request in requests:
        if isinstance(request, Loglikelihood):
            if not request.continuation:
                raise ValueError(f"{task}: an answer has no token of its own behind its context")
            if len(request.continuation) > max_length:
                raise ValueError(
                    f"{task}: an answer has {len(request.continuation)} tokens, the model takes "
                    f"{max_length}"
                )
        if isinstance(request, Generate) and request.max_new_tokens >= max_length:
            raise ValueError(
                f"{task}: {request.max_new_tokens} new tokens leave no room for a prompt, the "
                f"model takes {max_length}; set fewer (gen_kwargs.max_gen_toks)"
            )


def warn_of_cuts(texts: Sequence[Sequence[str]], model: ModelInfo, path: Path) -> None:
    """Warns of how many of a file's texts (or pairs) are longer than the model takes."""
    lengths = [len(model.tokenizer(*one, verbose=False)["input_ids"]) for one in texts]
    if cut := sum(length > model.max_length for length in lengths):
        _log.warning(
            "%s: the model takes %d tokens, of which %d of %d texts have more: their ends are cut",
            path,
            model.max_length,
            cut,
            len(texts),
        )
