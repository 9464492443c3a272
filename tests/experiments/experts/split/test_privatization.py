"""What is sent is drawn once for an example, and follows the ratio that was asked for."""

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.experts.split.contributing_tokens import ContributingSettings, ContributingTokens
from experiments.experts.split.privatization import Privatization, PrivatizationSettings
from experiments.reports.privacy_section import privacy_section
from merging.privacy.ledger import Ledger
from search.privacy.private_noise import SecretNoise

WIDTH, VOCABULARY = 32, 200
TABLE = torch.randn(VOCABULARY, WIDTH, generator=torch.Generator().manual_seed(0))
TOKENS = torch.arange(50)


def filled(factor: float, **options: Any) -> ContributingTokens:
    factors = torch.full((1, VOCABULARY), factor, dtype=torch.float64)
    return ContributingTokens(factors, ContributingSettings(**options))


def fitted(
    ratio: float = 1.5,
    key: bytes = b"k" * 32,
    contributing: ContributingTokens | None = None,
    space: str = "embeddings",
    project: bool = False,
) -> Privatization:
    settings = PrivatizationSettings(ratio, where="embedding", project=project)
    return settings.fitted(
        TABLE, measured_on="rows", space=space, noise=SecretNoise(key), contributing=contributing
    )


def test_an_example_is_given_the_same_bits_whenever_asked() -> None:
    states = TABLE[TOKENS]
    first, second = fitted(), fitted()
    one = first.privatize(states, TOKENS, "train/1")
    first.privatize(states, TOKENS, "train/2")  # what is asked between changes nothing
    assert torch.equal(one, first.privatize(states, TOKENS, "train/1"))
    assert torch.equal(one, second.privatize(states, TOKENS, "train/1"))
    assert torch.equal(one, first.privatize(states, TOKENS.int(), "train/1"))
    assert one.dtype == torch.float32


def test_a_last_bit_of_what_distances_are_measured_on_draws_no_noise_anew() -> None:
    settings, noise = PrivatizationSettings(1.5), SecretNoise(b"k" * 32)
    one, other = (
        settings.fitted(vectors, measured_on="rows", space="states", noise=noise)
        for vectors in (TABLE, TABLE * (1 + 1e-6))
    )
    assert one.unit != other.unit
    drawn = [each.privatize(TABLE[TOKENS], TOKENS, "train/1") for each in (one, other)]
    assert torch.equal(*drawn)


def test_noise_is_shared_by_nothing_else() -> None:
    """Were it, the difference of two answers would be free of noise, or known but for a factor."""
    states, own = TABLE[TOKENS], fitted()
    factors = filled(3.0)
    noises = [
        own.privatize(states, TOKENS, "a") - states,
        own.privatize(states, TOKENS, "b") - states,
        own.privatize(states, TOKENS.flip(0), "a") - states,
        fitted(key=b"l" * 32).privatize(states, TOKENS, "a") - states,
        fitted(ratio=3.0).privatize(states, TOKENS, "a") - states,
        fitted(space="others").privatize(states, TOKENS, "a") - states,
        fitted(contributing=factors).privatize(states, TOKENS, "a") - states,
    ]
    unit = torch.stack([noise.flatten() / noise.norm() for noise in noises])
    cosines = unit @ unit.T - torch.eye(len(noises))
    assert cosines.abs().max() < 5 / (50 * WIDTH) ** 0.5


@pytest.mark.parametrize("ratio", [0.5, 2.0])
def test_the_mean_length_of_the_noise_is_ratio_times_the_distance_of_neighbours(
    ratio: float,
) -> None:
    own, many = fitted(ratio), torch.zeros(4000, dtype=torch.int64)
    factors = filled(4.0)
    for privatization, factor in ((own, 1), (fitted(ratio, contributing=factors), 4)):
        noise = privatization.privatize(TABLE[many], many, "a") - TABLE[many]
        expected = ratio * own.unit / factor
        assert float(noise.norm(dim=1).mean()) == pytest.approx(expected, rel=0.015)


def test_projection_gives_rows_of_the_table_and_loses_tokens_as_noise_grows() -> None:
    kept = []
    tokens = torch.arange(VOCABULARY)
    for ratio in (0.5, 2.0, 6.0):
        sent = fitted(ratio, project=True).privatize(TABLE, tokens, "a")
        assert torch.equal(sent, TABLE[torch.cdist(sent, TABLE).argmin(dim=1)])
        kept.append(int((sent == TABLE).all(dim=1).sum()))
    assert kept[0] == VOCABULARY > kept[1] > kept[2]


def test_what_cannot_be_noised_is_refused_in_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"example 'a': states \(50, 32\) and tokens \(3,\)"):
        fitted().privatize(TABLE[TOKENS], TOKENS[:3], "a")
    with pytest.raises(ValueError, match="not finite, nothing is sent"):
        fitted().privatize(TABLE[TOKENS] / 0, TOKENS, "a")
    with pytest.raises(ValueError, match=r"set privatization\.where=embedding"):
        PrivatizationSettings(1.0, where="states", project=True)
    with pytest.raises(ValueError, match="ratio"):
        PrivatizationSettings(0.0)
    with pytest.raises(ValueError, match="expected embedding or states"):
        PrivatizationSettings(1.0, where="middle")  # type: ignore[arg-type]


def test_what_is_written_down_follows_from_the_noise() -> None:
    """Equal noise is one release; counts with noise have a price of their own beside it."""
    factors = torch.tensor([[0.6, 2.0]], dtype=torch.float64).expand(1, 2)
    noised = ContributingTokens(factors, ContributingSettings(epsilon=1.5))
    own = fitted(contributing=noised)
    ledger = own.charged(fitted().charged(Ledger(), "reviews"), "reviews")
    uniform, states, counts = ledger.spends
    assert uniform.metric is not None
    assert states.metric is not None
    assert (states.metric.eta, states.metric.least_eta) == pytest.approx(
        (2 * own.eta, 0.6 * own.eta)
    )
    assert (uniform.metric.budgets, states.metric.budgets) == ("uniform", "noised_counts")
    assert (counts.epsilon, counts.delta, states.epsilon) == (1.5, 1e-5, math.inf)
    assert own.charged(ledger, "reviews").spends == ledger.spends  # the same draws once more
    other = fitted(key=b"l" * 32, contributing=noised).charged(ledger, "reviews")
    assert len(other.spends) == len(ledger.spends) + 1  # the counts are the same
    for options in ({}, {"epsilon": 1.5, "by_class": True}):
        told = filled(1.0, **options)
        assert fitted(contributing=told).metric.budgets == "labels"
    # What tells draws apart is keyed: a digest would confirm guesses of the labelled sentences.
    ends = {
        fitted(key=key, contributing=noised).charged(Ledger(), "reviews").spends[0].release[-12:]
        for key in (b"k" * 32, b"l" * 32)
    }
    assert len(ends) == 2


def test_noise_by_a_seed_is_no_privacy_and_a_secret_key_is_kept(tmp_path: Path) -> None:
    secret = PrivatizationSettings(1.0)
    one = secret.noise(tmp_path, ["reviews"], begun=False)
    assert secret.noise(tmp_path, ["reviews"], begun=True).identity == one.identity
    assert secret.noise(tmp_path, ["letters"], begun=True).identity != one.identity
    seeded = PrivatizationSettings(1.0, randomness="seed", seed=3)
    noise = seeded.noise(tmp_path / "nowhere", ["reviews"], begun=False)
    own = seeded.fitted(TABLE, measured_on="rows", space="states", noise=noise)
    (words,) = own.charged(Ledger(), "reviews").sentences()
    assert words.startswith("Not private: the states of reviews, whose noise follows from its")


def test_reports_state_no_epsilon_for_noised_states() -> None:
    page = privacy_section({"privacy": fitted().charged(Ledger(), "reviews").describe()})
    assert page.count(">none<") == 3  # the promise, its sum, the spend
    assert "verdict bad" in page


def test_what_is_written_down_names_no_key() -> None:
    key = b"secret-secret-secret-secret-1234"
    written = json.dumps(fitted(key=key).charged(Ledger(), "reviews").describe())
    assert key.decode() not in written
    assert key.hex() not in written
