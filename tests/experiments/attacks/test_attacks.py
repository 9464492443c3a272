"""Attackers recover what noise leaves: on a table, and behind the blocks of a tiny encoder."""

from collections.abc import Callable, Sequence
from dataclasses import replace

import pytest
import torch
import transformers
from torch import Tensor

from evaluators.inversion.nearest import Attacker, NearestToken, log_frequencies
from evaluators.inversion.scores import Inversion
from experiments.attacks.attributes import LogisticRegression
from experiments.attacks.learned import LearnedSettings, LearnedTokens, Sent, learn
from experiments.attacks.matched import MatchedInput
from experiments.experts.split.halves import Bottom
from experiments.experts.split.metric_noise import eta_of, mean_neighbour_distance, sample
from experiments.experts.training.loop import Schedule
from merging.seeding import generator
from search.privacy.private_noise import Bits

VOCABULARY, WIDTH = 120, 32
LEARNED = LearnedSettings(Schedule(60, 16, 3e-3), width=16, negatives=60)


@pytest.mark.parametrize(("ratio", "share"), [(1.0, 0.999), (1.5, 0.87), (2.0, 0.56), (3.0, 0.16)])
def test_nearest_neighbours_fall_with_the_ratio(ratio: float, share: float) -> None:
    """2,000 random tokens of width 64: shares that a simulation of others found."""
    table = torch.randn(2000, 64, generator=generator("table"))
    tokens = torch.arange(2000)
    attacker = NearestToken(lambda some: table[some], 2000)
    assert torch.equal(attacker.recover([table])[0], tokens)
    eta = eta_of(ratio, 64, mean_neighbour_distance(table))
    noised = table + sample((2000, 64), eta, Bits(b"ratio")).float()
    found = attacker.recover([noised[i : i + 100] for i in range(0, 2000, 100)])
    hits = float((torch.cat(found) == tokens).double().mean())
    assert hits == pytest.approx(share, abs=0.035)  # of both simulations, and of tables


class Tiny:
    """An encoder of random weights that mix tokens well."""

    def __init__(self) -> None:
        config = transformers.BertConfig(
            vocab_size=VOCABULARY,
            hidden_size=WIDTH,
            num_hidden_layers=2,
            num_attention_heads=2,
            intermediate_size=64,
            max_position_embeddings=16,
            initializer_range=0.2,
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.encoder = transformers.BertModel(config).eval()
        bottom = Bottom(self.encoder, 2)
        self.table, self.forward = bottom.table(), bottom.states_of

    def states(self, texts: Sequence[Tensor], blocks: int = 2) -> list[Tensor]:
        bottom = Bottom(self.encoder, blocks)
        return [bottom.states(text[None], torch.ones(1, len(text)).long())[0] for text in texts]


def texts(count: int, seed: int) -> list[Tensor]:
    """Tokens walk in small steps, so that neighbours tell of each other."""
    draw = generator("texts", seed)
    steps = [torch.randint(1, 9, (4 + i % 8,), generator=draw) for i in range(count)]
    return [(each.cumsum(0) + i) % VOCABULARY for i, each in enumerate(steps)]


@pytest.fixture(scope="module")
def tiny() -> Tiny:
    return Tiny()


@pytest.fixture(scope="module")
def public() -> list[Tensor]:
    return texts(300, 1)


@pytest.fixture(scope="module")
def private() -> list[Tensor]:
    return texts(40, 2)


def noised(states: Sequence[Tensor], eta: float, seed: str) -> list[Tensor]:
    bits = Bits(seed.encode())
    return [each + sample((len(each), WIDTH), eta, bits).float() for each in states]


def sender(states: Sequence[Tensor], eta: float | None = None) -> Sent:
    def sent(some: Sequence[int], step: int) -> list[Tensor]:
        chosen = [states[i] for i in some]
        return chosen if eta is None else noised(chosen, eta, f"draw {step}")

    return sent


@pytest.fixture(scope="module")
def clean(tiny: Tiny, public: list[Tensor]) -> LearnedTokens:
    return learn(sender(tiny.states(public)), public, tiny.table, LEARNED)


Success = Callable[[Attacker, Sequence[Tensor]], float]


@pytest.fixture
def success(public: list[Tensor], private: list[Tensor]) -> Success:
    scored = Inversion(private, public=public)
    return lambda attacker, sent: scored.score(attacker.recover(sent))["success"].value


def test_without_blocks_and_noise_the_nearest_state_is_the_token(
    tiny: Tiny, private: list[Tensor], success: Success
) -> None:
    bottom = Bottom(tiny.encoder, 0)
    nearest = NearestToken(lambda some: bottom.states(some, torch.ones_like(some)), VOCABULARY)
    assert success(nearest, tiny.states(private, blocks=0)) == 1.0


def test_clean_states_give_tokens_away_and_matching_the_input_gives_more(
    tiny: Tiny, private: list[Tensor], clean: LearnedTokens, success: Success
) -> None:
    states = tiny.states(private)
    assert not any(each.requires_grad for each in states)
    learned = success(clean, states)
    assert learned > 0.5
    assert success(MatchedInput(clean, tiny.forward, tiny.table, steps=40), states) > learned + 0.1
    # no text makes what was sent less likely than the one it starts from
    still = MatchedInput(clean, tiny.forward, tiny.table, steps=1, candidates=1)
    assert success(still, states) >= learned


def test_whoever_knows_the_noise_reads_noised_states_better(
    tiny: Tiny, public: list[Tensor], private: list[Tensor], clean: LearnedTokens, success: Success
) -> None:
    seen = tiny.states(public)
    eta = eta_of(2.0, WIDTH, mean_neighbour_distance(torch.cat(seen), torch.cat(public)))
    sent = noised(tiny.states(private), eta, "private")
    aware = learn(sender(seen, eta), public, tiny.table, LEARNED)
    assert success(aware, sent) > success(clean, sent)
    matched = MatchedInput(
        aware,
        tiny.forward,
        tiny.table,
        etas=torch.full((VOCABULARY,), eta),
        log_prior=log_frequencies(public, VOCABULARY),
        steps=5,
    )
    assert success(matched, sent) > 1.5 * success(aware, sent)


def test_noise_on_word_embeddings_is_seen_through_the_blocks(
    tiny: Tiny, private: list[Tensor], clean: LearnedTokens, success: Success
) -> None:
    """Who matches the input has the noised embeddings themselves, and their nearest tokens."""
    eta = eta_of(1.0, WIDTH, mean_neighbour_distance(tiny.table))
    words = noised([tiny.table[text] for text in private], eta, "words")
    with torch.no_grad():
        sent = [tiny.forward(each[None], torch.ones(1, len(each)))[0] for each in words]
    attacker = MatchedInput(clean, tiny.forward, tiny.table, where="embedding", steps=80)
    assert success(attacker, sent) > 1.5 * success(clean, sent)


def test_mere_noise_is_read_as_the_most_frequent_token(tiny: Tiny) -> None:
    draw = generator("frequent")
    some = [torch.randint(VOCABULARY, (10,), generator=draw) for _ in range(200)]
    frequent = [torch.where(torch.arange(10) % 3 == 0, 7, text) for text in some]
    sent = sender([torch.zeros(10, WIDTH)] * 200, 1.0)
    attacker = learn(sent, frequent, tiny.table, replace(LEARNED, schedule=Schedule(5, 16, 1e-3)))
    found = torch.cat(attacker.recover(sent(range(50), 99)))
    assert float((found == 7).double().mean()) > 0.9


def test_an_attacker_is_the_same_whenever_it_is_trained(
    tiny: Tiny, public: list[Tensor], clean: LearnedTokens
) -> None:
    torch.rand(7)
    again = learn(sender(tiny.states(public)), public, tiny.table, LEARNED)
    pairs = zip(again.parameters(), clean.parameters(), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)
    with pytest.raises(ValueError, match="public texts"):
        learn(sender([]), [], tiny.table)


def test_attributes_are_inferred_from_pooled_states_as_far_as_they_differ() -> None:
    draw = generator("attributes")
    attributes = torch.randint(3, (300,), generator=draw).tolist()
    centres = torch.randn(3, 8, generator=draw)
    states = [centres[a] + 2 * torch.randn(4, 8, generator=draw) for a in attributes]
    model = LogisticRegression.fitted(states[:200], attributes[:200])
    found = model.infer(states[200:])
    hits = sum(a == b for a, b in zip(found, attributes[200:], strict=True)) / 100
    # of the rule that knows centres and noise
    best = [int(((s.mean(0) - centres) ** 2).sum(1).argmin()) for s in states[200:]]
    ceiling = sum(a == b for a, b in zip(best, attributes[200:], strict=True)) / 100
    assert 0.5 < ceiling < 1
    assert hits > ceiling - 0.1
