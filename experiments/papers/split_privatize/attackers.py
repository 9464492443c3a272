"""All attackers of the experiment on what is sent of a customer's training sentences.

They know everything but the noise that was drawn: also the directions that a customer sends.
"""

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
LIKELIEST = "likeliest"

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


@dataclass(frozen=True, eq=False)
class LikeliestToken:
    """Takes the token under which what was sent is likeliest, as far as public states tell.

        argmax_t sum_{i: t_i = t} eta(t)^d exp(-eta(t) |h - x_i|)

    Without its neighbours that is the Bayes rule, were there public states without end.

    Args:
        states: ``(n, d)`` of public texts; `tokens` ``(n,)``.
        etas: ``(n,)`` of the noise.
    """

    states: Tensor
    tokens: Tensor
    etas: Tensor

    def recover(self, states: Sequence[Tensor]) -> list[Tensor]:
        """Returns ``(T,)`` int64 token ids of ``(T, d)`` states, for each text."""
        return [self._recovered(each.double()) for each in states]

    def _recovered(self, states: Tensor) -> Tensor:
        tokens, places = torch.unique(self.tokens, return_inverse=True)
        gaps = torch.cdist(states, self.states.double())
        logs = states.shape[1] * self.etas.log() - self.etas * gaps
        weights = (logs - logs.amax(dim=1, keepdim=True)).exp()
        sums = weights.new_zeros(len(states), len(tokens)).index_add_(1, places, weights)
        found: Tensor = tokens[sums.argmax(dim=1)]
        return found


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
        return _Attack(self, noise).success(sent)

    def alone(self, tokens: Tensor) -> Tensor:
        """Returns the states of ``(rows, T)`` tokens, which no text surrounds."""
        return self.bottom.states(tokens, torch.ones_like(tokens))

    @cached_property
    def log_prior(self) -> Tensor:
        """``(vocabulary,)`` log frequencies of public texts."""
        return log_frequencies(self.public, self.bottom.vocabulary)

    @cached_property
    def on_clean(self) -> dict[str, LearnedTokens]:
        """Classifiers trained on clean states, one for each way to look at them."""
        return {}


class _Attack:
    """Attackers of one way to send states."""

    def __init__(self, known: Attackers, noise: Privatization | None) -> None:
        self.known, self.noise = known, noise
        self.states = [self._seen(each) for each in known.states]

    def success(self, sent: Sequence[Tensor]) -> dict[str, float]:
        known, sent = self.known, [self._seen(each) for each in sent]
        found = self._scores(sent, self._by_nearest())
        found = {NEAREST: found["success"], "trivial": found["trivial"], "blind": found["blind"]}
        learned = self._on_clean()
        found[CLEAN] = self._scores(sent, learned)["success"]
        if self.noise is not None:
            learned = self._learned(self.noise)
            found[NOISED] = self._scores(sent, learned)["success"]
            if known.bottom.blocks:
                found[LIKELIEST] = self._scores(sent, self._likeliest(self.noise))["success"]
        aware, some = self._aware(learned)
        found[AWARE] = self._scores(sent[:some], aware)["success"]
        return found

    def _seen(self, states: Tensor) -> Tensor:
        return states if self.noise is None else self.noise.seen(states)

    def _scores(self, sent: Sequence[Tensor], attacker: Attacker) -> dict[str, float]:
        known = self.known
        private = known.private[: len(sent)]
        inversion = Inversion(private, public=known.public, everywhere=known.everywhere)
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

    def _by_nearest(self) -> Attacker:
        bottom = self.known.bottom
        if bottom.blocks == 0:
            return NearestToken(self._alone, bottom.vocabulary)
        return NearestState(*self._public())

    def _likeliest(self, noise: Privatization) -> Attacker:
        states, tokens = self._public()
        return LikeliestToken(states, tokens, noise.etas(tokens))

    def _public(self) -> tuple[Tensor, Tensor]:
        some = slice(self.known.settings.public_states)
        return torch.cat(self.states[some]), torch.cat(list(self.known.public[some]))

    def _on_clean(self) -> LearnedTokens:
        directions = None if self.noise is None else self.noise.directions
        name = "all" if directions is None else directions.digest
        if name not in self.known.on_clean:
            self.known.on_clean[name] = self._learned(None)
        return self.known.on_clean[name]

    def _learned(self, noise: Privatization | None) -> LearnedTokens:
        known = self.known

        def sent(some: Sequence[int], draw: int) -> list[Tensor]:
            chosen = [self.states[i] for i in some]
            if noise is None:
                return chosen
            bits = Bits(f"attacker {known.seed} {draw}".encode())
            etas = noise.etas(torch.cat([known.public[i] for i in some]))
            drawn = sample((len(etas), chosen[0].shape[1]), etas, bits).float()
            parts = torch.split(drawn, [len(each) for each in chosen])
            return [state + part for state, part in zip(chosen, parts, strict=True)]

        settings = LearnedSettings(
            known.settings.schedule, negatives=known.settings.negatives, seed=known.seed
        )
        return learn(sent, known.public, known.bottom.table(), settings)

    def _aware(self, learned: LearnedTokens) -> tuple[Attacker, int]:
        """Returns who knows the noise, and how many texts it attacks.

        Without blocks the likeliest token is the Bayes rule; else an input is optimised.
        """
        known, settings = self.known, self.known.settings
        vocabulary = known.bottom.vocabulary
        etas = None if self.noise is None else self.noise.etas(torch.arange(vocabulary))
        if known.bottom.blocks == 0:
            return NearestToken(self._alone, vocabulary, etas, known.log_prior), settings.texts
        matched = MatchedInput(
            learned,
            lambda words, mask: self._seen(known.bottom.states_from(words, mask)),
            known.bottom.table(),
            etas=etas,
            log_prior=known.log_prior,
            steps=settings.matched_steps,
            candidates=settings.candidates,
        )
        return matched, settings.matched

    def _alone(self, tokens: Tensor) -> Tensor:
        return self._seen(self.known.alone(tokens))
