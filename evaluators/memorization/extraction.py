"""Extraction: does the model write a planted value when it is given what stood in front of it?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from evaluators.evaluator import Direction, ModelInfo, Score
from evaluators.intervals import mean_interval, share_interval
from evaluators.items import ItemSet, TaskItem
from evaluators.memorization.canaries import Canary, chosen_canaries
from evaluators.memorization.candidate_losses import CanaryAttack, value_tokens
from evaluators.requests import Generate, Generated, Response
from evaluators.tasks.data import digest
from evaluators.tasks.encoding import language_tokenizer, prefix_token
from merging.arrays import Vector
from merging.seeding import stable_seed


@dataclass(frozen=True)
class _Beginnings:
    """A candidate value, and the texts that its first 1, 2, ... tokens stand for."""

    value: str
    texts: tuple[str, ...]
    tokens: tuple[int, ...] = field(repr=False)

    def appears(self, continuations: Sequence[str]) -> float:
        """Returns 1 if the value stands in one of the continuations, else 0."""
        return float(any(self.value in text for text in continuations))

    def shared(self, continuation: str) -> float:
        """Returns the share of the value's first tokens that the continuation begins with."""
        fits = [k for k, text in enumerate(self.texts, start=1) if continuation.startswith(text)]
        return max(fits, default=0) / len(self.texts)


class Extraction(CanaryAttack):
    """Which planted values appear when their records' beginnings are continued?

    extracted: share of canaries whose value appears in the greedy continuation; the cases are 1
    or 0. extracted_sampled: in one of several sampled continuations. common_prefix: share of the
    value's first tokens that the greedy continuation has as well, the mean over canaries; it sees
    a value that is nearly known. Chance is what the variants get, which were never trained on,
    from the same continuations.

    blind_auc ranks planted values without any model: `blind_ranking`. Where its interval lies
    above 0.5 they differ from their variants by themselves, and what is found is no memorization.

    Args:
        data: file of canaries; see `chosen_canaries`.
        samples: continuations that are sampled for each canary; 0: none, and no such metric.
        extra_tokens: that are continued beyond the longest candidate's length, for a value that
            comes late.
        seed: of the sampling, together with the canary's name and the sample's number.

    Source: Carlini et al. 2021, Extracting training data from large language models, arXiv
        2012.07805, and Carlini et al. 2023, arXiv 2202.07646, definition 3.1 (extractable with
        k tokens of context), for values instead of whole passages.
    """

    def __init__(
        self,
        model: ModelInfo,
        *,
        data: str,
        split: str | None = None,
        group: str | None = None,
        take: str | None = None,
        samples: int = 4,
        temperature: float = 1.0,
        top_p: float = 1.0,
        extra_tokens: int = 0,
        seed: int = 0,
    ) -> None:
        _check(samples, temperature, top_p, extra_tokens)
        canaries, source = chosen_canaries(
            data, split=split, group=group, take=take, references=None, seed=seed
        )
        tokenizer = language_tokenizer(model, f"extraction on {data}")
        self._samples = samples
        sampling = ["extracted_sampled"] * (samples > 0)
        self.metrics: Mapping[str, Direction] = dict.fromkeys(
            ["extracted", *sampling, "common_prefix", "blind_auc"], "minimize"
        )
        items = []
        for canary in canaries:
            candidates = _beginnings(tokenizer, canary)
            longest = max(len(candidate.texts) for candidate in candidates) + extra_tokens
            greedy = _greedy(tokenizer, canary, longest, model.max_length)
            sampled = (
                replace(
                    greedy,
                    temperature=temperature,
                    top_p=top_p,
                    seed=stable_seed("extraction", seed, canary.name, number),
                )
                for number in range(samples)
            )
            content = digest("extraction", canary.text, canary.start, canary.end)
            items.append(TaskItem(content, (greedy, *sampled), candidates))
        self.items = ItemSet(source, tuple(items))

    def candidates(self, item: TaskItem[Any]) -> list[tuple[int, ...]]:
        """Returns the tokens of every candidate, the planted value's first."""
        return [candidate.tokens for candidate in item.target]

    def score(self, responses: Sequence[Response]) -> dict[str, Score]:
        """Returns the shares and the blind area, in [0, 1]."""
        texts = [response.text for response in responses if isinstance(response, Generated)]
        greedy, sampled, common = [], [], []
        for item, span in zip(self.items, self.items.spans, strict=True):
            first, *others = texts[span]
            greedy.append([candidate.appears([first]) for candidate in item.target])
            sampled.append([candidate.appears(others) for candidate in item.target])
            common.append([candidate.shared(first) for candidate in item.target])
        cases, chance = _split(common)
        prefix = Score(float(cases.mean()), cases, chance, mean_interval(cases, 0.0, 1.0))
        drawn = {"extracted_sampled": _hits(sampled)} if self._samples else {}
        return {"extracted": _hits(greedy), **drawn, "common_prefix": prefix, **self.blind}


def _check(samples: int, temperature: float, top_p: float, extra_tokens: int) -> None:
    if samples < 0 or extra_tokens < 0:
        raise ValueError(
            f"samples and extra_tokens must be 0 or more, got {samples} and {extra_tokens}"
        )
    if not temperature > 0:
        raise ValueError(
            f"temperature must be above 0, got {temperature}; set samples=0 for greedy "
            "continuations alone"
        )
    if not 0 < top_p <= 1:
        raise ValueError(f"top_p must lie in (0, 1], got {top_p}")


def _beginnings(tokenizer: Any, canary: Canary) -> tuple[_Beginnings, ...]:
    """Returns the planted value's beginnings and then its variants'."""
    beginnings = []
    for value in canary.candidates:
        tokens, first, last = value_tokens(tokenizer, canary, value)
        texts = (
            str(tokenizer.decode(tokens[first:end], skip_special_tokens=True))
            for end in range(first + 1, last + 1)
        )
        beginnings.append(_Beginnings(value, tuple(texts), tokens[first:last]))
    return tuple(beginnings)


def _greedy(tokenizer: Any, canary: Canary, longest: int, max_length: int) -> Generate:
    """Cuts the record between two of its own tokens, so that the model reads what it learnt."""
    tokens, first, _ = value_tokens(tokenizer, canary, canary.value)
    prompt = (prefix_token(tokenizer), *tokens[:first])
    if len(prompt) + longest > max_length:
        raise ValueError(
            f"canary {canary.name!r} needs {len(prompt) + longest} tokens, the model takes "
            f"{max_length}: shorten the record, or set fewer extra_tokens"
        )
    return Generate(prompt, longest)


def _hits(rows: Sequence[Sequence[float]]) -> Score:
    """Returns the share of planted values that were found, and the variants' as chance."""
    cases, chance = _split(rows)
    return Score(float(cases.mean()), cases, chance, share_interval(int(cases.sum()), len(cases)))


def _split(rows: Sequence[Sequence[float]]) -> tuple[Vector, float]:
    """Returns what each planted value got, and what variants got on average."""
    planted = np.array([row[0] for row in rows], dtype=np.float64)
    return planted, float(np.mean([np.mean(row[1:]) for row in rows]))
