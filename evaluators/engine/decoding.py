"""How the answer to one `Generate` request is chosen, ended and read.

As lm-eval's Hugging Face model asks transformers' generate for one prompt, and reads its answer.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor
from transformers import GenerationConfig
from transformers.generation.configuration_utils import GenerationMode

from evaluators.engine.resident import Resident
from evaluators.requests import Generate

_LOOK_BACK = 2  # tokens that a stop text may take beyond its own number; lm-eval's
_STEPWISE = (GenerationMode.GREEDY_SEARCH, GenerationMode.SAMPLE)
_BROUGHT = (
    *_STEPWISE,
    GenerationMode.BEAM_SEARCH,
    GenerationMode.BEAM_SAMPLE,
    GenerationMode.ASSISTED_GENERATION,
)
_WHOLE = ("guidance_scale", "watermarking_config", "stop_strings", "max_time", "token_healing")
"""Options that are more than scores of the tokens so far."""


@dataclass(frozen=True, eq=False)
class Rules:
    """What the answer to one request keeps to.

    Args:
        prompt: the tokens that the answer goes on from.
        given: what the model reads beside them, as a batch of one: its encoder's inputs, images.
        config: of transformers' generate, with all that the request leaves open.
        ends: tokens that end the answer.
        stops: number of last tokens -> the texts that end the answer once these hold one.
    """

    request: Generate
    prompt: tuple[int, ...]
    given: Mapping[str, Tensor]
    resident: Resident
    config: GenerationConfig
    ends: frozenset[int]
    stops: Mapping[int, Sequence[str]]

    @property
    def most(self) -> int:
        """The most tokens of the answer."""
        return int(self.config.max_length or 0) - len(self.prompt)

    @property
    def stepwise(self) -> bool:
        """Whether tokens are chosen one by one, each by its score after those before."""
        plain = all(getattr(self.config, name, None) in (None, 1, False) for name in _WHOLE)
        return plain and self.config.get_generation_mode() in _STEPWISE

    def processors(self) -> Any:
        """Returns transformers' own chain from logits to scores, to be called with all tokens."""
        device = self.resident.device
        return self.resident.module._get_logits_processor(
            generation_config=self.config,
            input_ids_seq_length=len(self.prompt),
            encoder_input_ids=torch.tensor([self.prompt], device=device),
            device=device,
        )

    def ended(self, written: Sequence[int]) -> bool:
        """Whether an answer of at least one token ends with its last one."""
        if written[-1] in self.ends:
            return True
        decode = self.resident.info.tokenizer.decode
        tails = ((decode(written[-back:]), texts) for back, texts in self.stops.items())
        return any(text in tail for tail, texts in tails for text in texts)

    def cut_off(self, written: Sequence[int]) -> bool:
        """Whether an answer ends for want of tokens alone."""
        return len(written) >= self.most > 0 and not self.ended(written)

    def text(self, written: Sequence[int]) -> str:
        """Returns the answer up to the first stop text."""
        text = str(self.resident.info.tokenizer.decode(written, skip_special_tokens=True))
        for stop in filter(None, self.request.stop):
            text = text.split(stop)[0]
        return text


def rules_of(requests: Sequence[Generate], resident: Resident) -> dict[Generate, Rules]:
    """Returns what the answer to each request keeps to.

    Raises:
        ValueError: no room for a prompt, or a way of decoding that transformers does not bring.
    """
    tokenizer = resident.info.tokenizer

    @cache
    def look_back(text: str) -> int:
        return len(tokenizer.encode(text, add_special_tokens=False)) + _LOOK_BACK

    rules = {}
    for request in requests:
        prompt, given = _read(request, resident)
        config = _config(request, len(prompt), resident)
        stops: dict[int, list[str]] = {}
        for text in request.stop:
            stops.setdefault(look_back(text), []).append(text)
        ends = _ids(config.eos_token_id) | _ids(tokenizer.eos_token_id)
        rules[request] = Rules(request, prompt, given, resident, config, ends, stops)
    return rules


class Decoding:
    """The answer to one request so far, of one candidate."""

    def __init__(self, rules: Rules) -> None:
        self._rules = rules
        self._processors = rules.processors()
        self._generator: torch.Generator | None = None
        if rules.config.do_sample:
            self._generator = torch.Generator().manual_seed(rules.request.seed)
        if self._processors or self._generator is not None:
            room = (*rules.prompt, *(0 for _ in range(rules.most)))
            self._tokens = torch.tensor([room], device=rules.resident.device)
        self.written: list[int] = []
        self.open = rules.most > 0

    def write(self, logits: Tensor, likeliest: int) -> int:
        """Appends the next token, closes the answer where it ends, and returns the token.

        A sampled one is what transformers' generate draws for this prompt alone, on the CPU,
        behind ``torch.manual_seed(seed)``.

        Args:
            logits: ``(vocabulary,)``.
            likeliest: the token with the highest.
        """
        token = likeliest
        if self._processors or self._generator is not None:
            token = self._chosen(logits.to(torch.float32, copy=True)[None])
        self.written.append(token)
        full = len(self.written) >= self._rules.most
        self.open = not full and not self._rules.ended(self.written)
        return token

    def text(self) -> str:
        """Returns the answer up to the first stop text."""
        return self._rules.text(self.written)

    def _chosen(self, logits: Tensor) -> int:
        end = len(self._rules.prompt) + len(self.written)
        scores = self._processors(self._tokens[:, :end], logits)
        if self._generator is None:
            token = scores.argmax()
        else:
            probs = scores.softmax(dim=-1).cpu()
            token = torch.multinomial(probs, 1, generator=self._generator)
        self._tokens[0, end] = token
        return int(token)


def _config(request: Generate, prompt: int, resident: Resident) -> GenerationConfig:
    """Returns the configuration of generate for a prompt of so many tokens."""
    module, sampled = resident.module, request.temperature > 0
    options: dict[str, Any] = {"do_sample": sampled}
    if sampled:
        options["temperature"] = request.temperature
    if request.options is None:
        options |= {"top_p": request.top_p, "top_k": 0} if sampled else {}
        options["eos_token_id"] = module.generation_config.eos_token_id
        config = GenerationConfig(**options)  # type: ignore[no-untyped-call]
    else:
        config, _ = module._prepare_generation_config(None, **options, **dict(request.options))
    _check(config)
    more = request.max_new_tokens if config.max_new_tokens is None else config.max_new_tokens
    config.max_length = prompt + more
    if config.min_new_tokens is not None:
        config.min_length = prompt + config.min_new_tokens
    module._prepare_special_tokens(config, device=resident.device)
    return config


def _check(config: GenerationConfig) -> None:
    mode = config.get_generation_mode()
    if mode not in _BROUGHT or (config.num_return_sequences or 1) > 1:
        what = mode.value if mode not in _BROUGHT else "several answers (num_return_sequences)"
        raise ValueError(
            f"the base's generation_config.json or the task's options ask for {what}, which is "
            "not supported: remove what asks for it"
        )


def decoder_start(resident: Resident) -> int:
    """Returns the token that an encoder-decoder's answers begin with; ValueError if unknown."""
    if resident.info.decoder_start is None:
        raise ValueError(
            f"{type(resident.module).__name__}: its configuration names no decoder_start_token_id"
        )
    return resident.info.decoder_start


def _read(request: Generate, resident: Resident) -> tuple[tuple[int, ...], Mapping[str, Tensor]]:
    """Returns what the answer goes on from, and what the model reads beside it."""
    most = resident.info.max_length
    if resident.info.encoder_decoder and request.media is None:
        _prompt(request, most)  # there must be one, and room for an answer
        ids = torch.tensor([request.prompt[-most:]])
        given = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        return (decoder_start(resident),), given
    prompt = _prompt(request, most)
    if request.media is not None and len(prompt) < len(request.prompt):
        raise ValueError(
            f"a prompt with its media has {len(request.prompt)} tokens, which with "
            f"{request.max_new_tokens} new ones are more than the model takes ({most})"
        )
    return prompt, {} if request.media is None else request.media.inputs


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


def _ids(named: int | list[int] | None) -> frozenset[int]:
    several = named if isinstance(named, list) else [named]
    return frozenset(token for token in several if token is not None)
