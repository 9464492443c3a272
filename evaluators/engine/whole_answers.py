"""Answers by transformers' own generate, one prompt at a time: for all that batches cannot do."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig, GenerationMixin

from evaluators.engine.batching import EngineRun
from evaluators.engine.cached_rows import forget
from evaluators.engine.decoding import Rules

NOT_FINITE = (
    "a generated token has no finite logits: the candidate's weights give NaN or infinite logits"
)


class NoFiniteScoresError(Exception):
    """A token without a finite score."""


def generated(run: EngineRun, rules: Rules) -> list[int]:
    """Returns the tokens of the answer by the model as it is.

    Raises:
        NoFiniteScoresError: the weights give NaN or infinite logits.
        TransientFailure: the time is up.
        ValueError: the model's own generate raises an error.
    """
    resident, count = run.resident, len(rules.prompt)

    def look(_: Tensor, scores: Tensor) -> Tensor:
        run.deadline.check()
        if not bool(scores.max(dim=-1).values.isfinite().all()):
            raise NoFiniteScoresError
        return scores

    def ended(tokens: Tensor, _: Any, **__: Any) -> Tensor:
        over = rules.ended(tokens[0, count:].tolist())
        return torch.full((len(tokens),), over, dtype=torch.bool, device=tokens.device)

    config = copy.deepcopy(rules.config)
    if not rules.stops:  # transformers ends every beam by itself
        config.eos_token_id = sorted(rules.ends) or None
    ids = torch.tensor([rules.prompt], device=resident.device)
    inputs = {name: resident.placed(tensor) for name, tensor in rules.given.items()}
    if resident.info.encoder_decoder:
        inputs["decoder_input_ids"] = ids
    else:
        inputs |= {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        forget(resident.module, ids)
    # Whisper's own generate hears long sounds in parts, with prompts of its choice
    sounds = resident.info.encoder_decoder and rules.request.media is not None
    plain: Any = partial(GenerationMixin.generate, resident.module)
    devices = [resident.device] if resident.device.type == "cuda" else []
    with torch.random.fork_rng(devices), _own_config_left_out(resident.module):
        torch.manual_seed(rules.request.seed)
        try:
            rows = (plain if sounds else resident.module.generate)(
                **inputs,
                generation_config=config,
                logits_processor=[look],
                stopping_criteria=[ended] if rules.stops else [],
                tokenizer=resident.info.tokenizer,
                return_dict_in_generate=False,
            )
        except (AttributeError, LookupError, TypeError, NotImplementedError) as error:
            raise ValueError(
                f"transformers' own generate does not work for {type(resident.module).__name__} "
                f"({type(error).__name__}: {error}), so nothing can be generated: use another base"
            ) from error
    return [int(token) for token in rows[0, count:]]


@contextmanager
def _own_config_left_out(module: Any) -> Iterator[None]:
    """Keeps generate from filling up `Rules.config`, which is complete."""
    own, module.generation_config = module.generation_config, GenerationConfig()  # type: ignore[no-untyped-call]
    try:
        yield
    finally:
        module.generation_config = own
