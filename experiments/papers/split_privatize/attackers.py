"""All attackers of the experiment on what is sent of a customer's training sentences."""

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from evaluators.inversion.nearest import Attacker, NearestToken, log_frequencies
from evaluators.inversion.scores import Inversion
from experiments.attacks.learned import LearnedSettings, LearnedTokens, learn
from experiments.attacks.matched import MatchedInput
from experiments.experts.split.halves import Bottom
from experiments.experts.split.metric_noise import nearest, sample
from experiments.experts.split.privatization import Privatization
from experiments.experts.training.loop import Schedule
from search.privacy.private_noise import Bits

CLEAN, NOISED, AWARE, NEAREST = "learned, clean", "learned, noised", "noise-aware", "nearest"

_TEXTS = 64  # at once, of like lengths: less padding


@dataclass(frozen=True)
class AttackSettings:
    """How much attackers may do.

    Args:
        texts: sentences that are attacked.
        matched: of these, how many by the attacker that optimises an input.
        public_states: of how many public sentences the nearest state is sought.
        matched_steps: of its descent; `candidates`: tokens that it tries at a place.
    """

    texts: int
    matched: int
    public_states: int
    matched_steps: int
    candidates: int
    schedule: Schedule = field(default_factory=lambda: Schedule(200, 32, 1e-3))
    negatives: int = 1000


@dataclass(frozen=True, eq=False)
class NearestState:
    """Takes the token of the public state that is nearest; no text makes up for a missing one."""

    states: Tensor
    tokens: Tensor

    def recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``(T,)`` int64 token ids of ``(T, d)`` states, for each text."""
        return [self.tokens[nearest(each, self.states)] for each in states]


@dataclass(eq=False)
class Attackers:
    """What attackers of one bottom know: it, and public texts.

    Args:
        private: ``(T,)`` tokens of the attacked sentences.
        public: the same of texts that attackers have; `states`: ``(T, d)`` of each, clean.
    """

    bottom: Bottom
    settings: AttackSettings
    private: Sequence[Tensor]
    public: Sequence[Tensor]
    states: Sequence[Tensor]
    everywhere: Collection[int]
    seed: int

    def success(self, sent: Sequence[Tensor], noise: Privatization | None) -> dict[str, float]:
        """Returns the share of tokens that each attacker recovers of ``(T, d)`` sent states."""
        found = self._scores(sent, self._by_nearest)
        found = {NEAREST: found["success"], "trivial": found["trivial"], "blind": found["blind"]}
        found[CLEAN] = self._scores(sent, self._clean)["success"]
        learned = self._clean
        if noise is not None:
            learned = self._learned(noise)
            found[NOISED] = self._scores(sent, learned)["success"]
        aware, some = self._aware(learned, noise)
        found[AWARE] = self._scores(sent[:some], aware)["success"]
        return found

    def _scores(self, sent: Sequence[Tensor], attacker: Attacker) -> dict[str, float]:
        private = self.private[: len(sent)]
        inversion = Inversion(private, public=self.public, everywhere=self.everywhere)
        order = sorted(range(len(sent)), key=lambda i: len(sent[i]))
        found: dict[int, Tensor] = {}
        for start in range(0, len(order), _TEXTS):
            some = order[start : start + _TEXTS]
            found |= zip(some, attacker.recover([sent[i] for i in some]), strict=True)
        scores = inversion.score([found[i] for i in range(len(sent))])
        return {
            "success": scores["success"].value,
            "trivial": scores["trivial_success"].value,
            "blind": scores["blind_success"].value,
        }

    @cached_property
    def _by_nearest(self) -> Attacker:
        if self.bottom.blocks == 0:
            return NearestToken(self._alone, self.bottom.vocabulary)
        some = slice(self.settings.public_states)
        return NearestState(torch.cat(list(self.states[some])), torch.cat(list(self.public[some])))

    @cached_property
    def _clean(self) -> LearnedTokens:
        return self._learned(None)

    def _learned(self, noise: Privatization | None) -> LearnedTokens:
        def sent(some: Sequence[int], draw: int) -> list[Tensor]:
            chosen = [self.states[i] for i in some]
            if noise is None:
                return chosen
            bits = Bits(f"attacker {self.seed} {draw}".encode())
            etas = noise.etas(torch.cat([self.public[i] for i in some]))
            drawn = sample((len(etas), self.bottom.width), etas, bits).float()
            parts = torch.split(drawn, [len(each) for each in chosen])
            return [state + part for state, part in zip(chosen, parts, strict=True)]

        settings = LearnedSettings(
            self.settings.schedule, negatives=self.settings.negatives, seed=self.seed
        )
        return learn(sent, self.public, self.bottom.table(), settings)

    def _aware(self, learned: LearnedTokens, noise: Privatization | None) -> tuple[Attacker, int]:
        """Returns who knows the noise, and how many texts it attacks.

        Without blocks the likeliest token is the Bayes rule; else an input is optimised.
        """
        vocabulary, settings = self.bottom.vocabulary, self.settings
        prior = log_frequencies(self.public, vocabulary)
        etas = None if noise is None else noise.etas(torch.arange(vocabulary))
        if self.bottom.blocks == 0:
            return NearestToken(self._alone, vocabulary, etas, prior), settings.texts
        matched = MatchedInput(
            learned,
            self.bottom.states_from,
            self.bottom.table(),
            etas=etas,
            log_prior=prior,
            steps=settings.matched_steps,
            candidates=settings.candidates,
        )
        return matched, settings.matched

    def _alone(self, tokens: Tensor) -> Tensor:
        return self.bottom.states(tokens, torch.ones_like(tokens))
