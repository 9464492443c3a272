"""lm-eval instances to requests, by the token rules of lm-eval's own Hugging Face model."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import jinja2
from lm_eval.api.instance import Instance
from lm_eval.api.model import TemplateLM
from lm_eval.models.utils import handle_stop_sequences, normalize_gen_kwargs
from transformers import GenerationConfig

from evaluators.requests import Generate, Loglikelihood
from evaluators.tasks.encoding import prefix_token, rolling_windows
from merging.seeding import stable_seed

_DEFAULT_NEW_TOKENS = 256  # lm-eval's, where a task names no limit
_KNOWN = vars(GenerationConfig())  # type: ignore[no-untyped-call]
_OPTIONS = frozenset(_KNOWN) - {"max_length", "max_new_tokens"}


class RequestEncoder(TemplateLM):  # type: ignore[misc]
    """A model to lm-eval that answers with tokenised requests instead of numbers."""

    def __init__(self, tokenizer: Any, max_length: int, *, encoder_decoder: bool = False) -> None:
        super().__init__()
        self.backend = "seq2seq" if encoder_decoder else "causal"
        self.tokenizer = tokenizer
        self._prefix = prefix_token(tokenizer)
        self._max_length = max_length

    @property
    def eot_token_id(self) -> int:
        """The tokenizer's end of text."""
        return int(self.tokenizer.eos_token_id)

    @property
    def prefix_token_id(self) -> int:
        """Beginning of text, or its end where the tokenizer has none."""
        return self._prefix

    @property
    def tokenizer_name(self) -> str:
        """Name of the tokenizer, as chat templates want it."""
        return str(self.tokenizer.name_or_path)

    def tok_encode(
        self, string: str, add_special_tokens: bool | None = None, **kwargs: Any
    ) -> list[int]:
        """Returns token ids; a text that already starts with the prefix token gets no second."""
        if kwargs:
            raise TypeError(f"tok_encode knows no {', '.join(kwargs)}")
        if add_special_tokens is None and string.startswith(self.tokenizer.decode(self._prefix)):
            add_special_tokens = False
        options = {} if add_special_tokens is None else {"add_special_tokens": add_special_tokens}
        ids: list[int] = self.tokenizer.encode(string, **options)
        return ids

    def _loglikelihood_tokens(
        self, requests: Sequence[tuple[Any, list[int], list[int]]], **_: Any
    ) -> list[Loglikelihood]:
        """Ends lm-eval's own `loglikelihood`, which splits context and continuation."""
        return [Loglikelihood(tuple(context), tuple(answer)) for _, context, answer in requests]

    def loglikelihood_rolling(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[list[Loglikelihood]]:
        """Returns every text's windows."""
        if self.backend != "causal":
            raise ValueError("texts without a context need a causal language model")
        windows = partial(rolling_windows, prefix=self._prefix, window=self._max_length)
        return [list(windows(self.tok_encode(request.args[0]))) for request in requests]

    def generate_until(
        self, requests: Sequence[Instance], disable_tqdm: bool = False
    ) -> list[Generate]:
        """Returns every prompt with its options; the n-th copy of an instance has its own seed."""
        copies: dict[int, int] = {}
        encoded = []
        for request in requests:
            copy = copies[id(request)] = copies.get(id(request), -1) + 1
            prompt, options = request.args[:2]
            seed = stable_seed(str(request.task_name), int(request.doc_id), request.idx, copy)
            encoded.append(self._generate(prompt, options, seed))
        return encoded

    def _generate(self, prompt: str, options: Mapping[str, Any], seed: int) -> Generate:
        known = dict(normalize_gen_kwargs(dict(options), _DEFAULT_NEW_TOKENS))
        eos = self.tokenizer.decode(self.eot_token_id)
        until = handle_stop_sequences(list(known.pop("until")), eos=eos)
        more, sampled = int(known.pop("max_gen_toks")), known.pop("do_sample")
        temperature = float(known.pop("temperature", 1.0)) if sampled else 0.0
        unknown = {
            name: value
            for name, value in known.items()
            if name not in _OPTIONS or not isinstance(value, bool | int | float | str | None)
        }
        if unknown:
            raise ValueError(
                f"generation options {unknown} are not supported; there are until, max_gen_toks, "
                "and the numbers and texts of transformers' GenerationConfig"
            )
        return Generate(
            prompt=tuple(self._encode_prompt(prompt)) or (self._prefix,),  # never an empty one
            max_new_tokens=more,
            stop=tuple(until),
            temperature=temperature,
            top_p=float(known.get("top_p", 1.0)),
            seed=seed,
            options=tuple(sorted(known.items())),
        )

    def _encode_prompt(self, prompt: str) -> list[int]:
        """As lm-eval's `tok_batch_encode`, which looks for a beginning of text alone."""
        bos = self.tokenizer.bos_token
        own = bos is not None and prompt.startswith(bos)
        ids: list[int] = self.tokenizer(prompt, **({"add_special_tokens": False} if own else {}))[
            "input_ids"
        ]
        return ids

    def apply_chat_template(
        self, chat_history: list[dict[str, str]], add_generation_prompt: bool = True
    ) -> str:
        """Returns a chat as text; without its system turn where the template knows none."""

        def render(turns: list[dict[str, str]]) -> str:
            return str(
                self.tokenizer.apply_chat_template(
                    turns,
                    tokenize=False,
                    add_generation_prompt=add_generation_prompt,
                    continue_final_message=not add_generation_prompt,
                )
            )

        try:
            return render(chat_history)
        except jinja2.exceptions.TemplateError:
            return render([turn for turn in chat_history if turn["role"] != "system"])
