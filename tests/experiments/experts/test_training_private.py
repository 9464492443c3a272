"""DP-SGD: clipped norms, scale of the noise, empty lots and accountant, against closed forms."""

from __future__ import annotations

import itertools
import json
import math
import time
from pathlib import Path

import dp_accounting
import pytest
import torch
from dp_accounting.rdp import RdpAccountant
from torch import Tensor, nn
from transformers import LlamaConfig, LlamaForCausalLM

from experiments.experts.quickstart.tokenizer import byte_tokenizer
from experiments.experts.quickstart.training import ModelSize, new_model
from experiments.experts.training.expert import DataSet, train_expert
from experiments.experts.training.language_model import Lora
from experiments.experts.training.private import (
    PrivateOptimizer,
    TrainingSpend,
    noise_for,
    per_record_gradients,
)
from experiments.experts.training.records import Record, padded, record_losses, token_counts
from experiments.experts.training.regime import Clipping, Reduction, Regime, TrainingPrivacy
from experiments.experts.training.train import train
from experiments.runs.starts import PUBLIC_NOISE, others_in_words
from merging.checkpoints.privacy_record import read_record
from merging.seeding import generator

SIZE = ModelSize(hidden=16, intermediate=24, layers=1, heads=2, context=64)
CPU = torch.device("cpu")


def records(*lengths: int) -> list[Record]:
    draw = generator("records")
    return [
        tuple(torch.randint(3, 259, (length + 1,), generator=draw).tolist()) for length in lengths
    ]


def summed(
    chosen: list[Record], clip: float, loss: Reduction, clipping: Clipping
) -> dict[str, Tensor]:
    """Returns the clipped sum of these records' gradients, by opacus."""
    model = new_model(SIZE, seed=0)
    privacy = TrainingPrivacy(1e-5, noise_multiplier=0.0, clip=clip, clipping=clipping)
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        privacy,
        noise_multiplier=0.0,
        lot=1,
        seed=0,
        device=CPU,
    )
    with per_record_gradients(model) as wrapped:
        inputs, targets = padded(chosen, CPU)
        record_losses(wrapped, inputs, targets, loss).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.add(token_counts(targets))
        return {name: vars(p)["summed_grad"] for name, p in model.named_parameters()}


def alone(record: Record, loss: Reduction) -> dict[str, Tensor]:
    """Returns one record's gradient by an ordinary backward pass."""
    model = new_model(SIZE, seed=0)
    record_losses(model, *padded([record], CPU), loss).sum().backward()  # type: ignore[no-untyped-call]
    return {name: p.grad for name, p in model.named_parameters()}  # type: ignore[misc]


def norm(gradients: dict[str, Tensor]) -> float:
    return math.sqrt(sum(float(each.double().square().sum()) for each in gradients.values()))


@pytest.mark.parametrize("loss", ["mean", "sum"])
@pytest.mark.parametrize("tokens", [1, 7, 33, 60])
def test_clipped_norm_of_a_record_is_at_most_c_whatever_its_length(
    tokens: int, loss: Reduction
) -> None:
    [record] = records(tokens)
    for clip in (0.01, 1.0, 1e4):
        clipped = norm(summed([record], clip, loss, "per_record"))
        assert clipped <= clip * (1 + 1e-5)
        assert clipped == pytest.approx(min(clip, norm(alone(record, loss))), rel=1e-3)


@pytest.mark.parametrize("tokens", [1, 7, 33, 60])
def test_as_released_a_record_of_t_tokens_exceeds_c_t_times(tokens: int) -> None:
    """csirt.md section 8: opacus 1.6.0 with T = 64 gave 64.0 x C."""
    [record] = records(tokens)
    assert norm(summed([record], 0.01, "mean", "as_released")) == pytest.approx(
        tokens * 0.01, rel=1e-3
    )


def test_the_sum_is_that_of_every_record_clipped_alone() -> None:
    chosen = records(5, 40, 17)
    clip = 1.0
    total = summed(chosen, clip, "mean", "per_record")
    each = [alone(record, "mean") for record in chosen]
    factors = [min(1.0, clip / norm(gradients)) for gradients in each]
    for name, tensor in total.items():
        expected = sum(f * g[name].double() for f, g in zip(factors, each, strict=True))
        torch.testing.assert_close(tensor.double(), expected, rtol=1e-3, atol=1e-5)


def test_a_weight_that_two_layers_share_is_clipped_once() -> None:
    """Tied embeddings, as the published models have: both uses belong to one gradient."""
    config = LlamaConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=1,
        num_attention_heads=2,
        tie_word_embeddings=True,
    )
    chosen = [tuple(place % 60 + 3 for place in record) for record in records(4, 17)]
    gradients = []
    for part in (chosen, chosen[:1], chosen[1:]):
        torch.manual_seed(0)
        model = LlamaForCausalLM(config)
        shared = model.model.embed_tokens.weight
        with per_record_gradients(model) as wrapped:
            losses = record_losses(wrapped, *padded(part, CPU), "mean")
            losses.sum().backward()  # type: ignore[no-untyped-call]
            gradients.append(vars(shared)["grad_sample"].clone())
        if len(part) == 1:
            torch.testing.assert_close(gradients[-1][0], shared.grad)
    torch.testing.assert_close(gradients[0], torch.cat(gradients[1:]), rtol=1e-4, atol=1e-6)


def noise_alone(
    noise_multiplier: float, clip: float, lot: int, updates: int, seed: int | None = 1
) -> Tensor:
    """Returns what SGD of rate 1 has moved a parameter by after updates without any record."""
    parameter = nn.Parameter(torch.zeros(20_000))
    optimizer = PrivateOptimizer(
        torch.optim.SGD([parameter], lr=1.0),
        TrainingPrivacy(1e-5, noise_multiplier=noise_multiplier, clip=clip),
        noise_multiplier=noise_multiplier,
        lot=lot,
        seed=seed,
        device=CPU,
    )
    for _ in range(updates):
        optimizer.finish()
    return parameter.detach().double()


def test_a_broken_record_and_an_empty_one_touch_no_other() -> None:
    """What is not finite counts as nothing: a sum that is not a number would show one record."""
    model = new_model(SIZE, seed=0)
    optimizer = PrivateOptimizer(
        torch.optim.SGD(model.parameters(), lr=1.0),
        TrainingPrivacy(1e-5, noise_multiplier=0.0, clip=0.1),
        noise_multiplier=0.0,
        lot=1,
        seed=0,
        device=CPU,
    )
    chosen = [*records(5, 9), (1,)]
    with per_record_gradients(model) as wrapped:
        inputs, targets = padded(chosen, CPU)
        losses = record_losses(wrapped, inputs, targets, "mean")
        assert float(losses[2]) == 0.0
        losses.sum().backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            vars(parameter)["grad_sample"][1] = math.nan
        optimizer.add(token_counts(targets))
        found = {name: vars(p)["summed_grad"] for name, p in model.named_parameters()}
    expected = alone(chosen[0], "mean")
    assert norm(found) == pytest.approx(0.1, rel=1e-3)
    scale = 0.1 / norm(expected)
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, scale * expected[name], rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("seed", [1, None])
def test_noise_has_the_stated_scale(seed: int | None) -> None:
    """Standard deviation: multiplier x clip / lot; by chi-square, at 5 standard deviations."""
    noise = noise_alone(1.5, 0.4, 8, 1, seed)
    scale = 1.5 * 0.4 / 8
    chi_square = float((noise / scale).square().sum())
    assert chi_square == pytest.approx(20_000, abs=5 * math.sqrt(2 * 20_000))
    assert abs(float(noise.mean())) < 5 * scale / math.sqrt(20_000)


def test_secret_noise_is_drawn_afresh_by_every_training_and_update() -> None:
    one, other, two = (noise_alone(1.0, 1.0, 1, updates, None) for updates in (1, 1, 2))
    assert abs(float((one * other).mean())) < 5 / math.sqrt(20_000)
    assert float(two.var()) == pytest.approx(2.0, rel=0.06)


def test_every_update_draws_fresh_noise() -> None:
    one, four = noise_alone(1.0, 1.0, 1, 1), noise_alone(1.0, 1.0, 1, 4)
    assert float(four.var()) == pytest.approx(4.0, rel=0.06)
    correlation = float((one * four).mean() / (one.std() * four.std()))
    assert correlation == pytest.approx(0.5, abs=0.05), "one of four steps in common"


def test_an_empty_lot_is_noise_alone_and_is_counted() -> None:
    """Without its noise an empty lot would show itself, and with it who is not in the data."""
    chosen = records(*[6] * 20)
    privacy = TrainingPrivacy(1e-5, noise_multiplier=1.0)
    regime = Regime(1, epochs=3, sampling="poisson", privacy=privacy, learning_rate=1e-3)
    model = new_model(SIZE, seed=0)
    seen: list[Tensor] = []
    watched = model.lm_head.weight
    trained = train(
        model,
        chosen,
        regime,
        seed=0,
        label="x",
        on_update=lambda left: seen.append(watched.detach().clone()),
    )
    assert trained.updates == 60
    assert 8 < trained.empty < 40
    assert len(trained.losses) == 60 - trained.empty
    assert all(not torch.equal(a, b) for a, b in itertools.pairwise(seen))
    spend = TrainingSpend(privacy, 1.0, 1 / 20)
    for _ in range(60):
        spend.count()
    assert trained.spent is not None
    assert trained.spent.epsilon == spend.epsilon()


@pytest.mark.parametrize(("noise", "rate", "updates"), [(0.9, 0.04, 75), (1.1, 0.01, 300)])
def test_epsilon_agrees_with_dp_accounting_within_one_percent(
    noise: float, rate: float, updates: int
) -> None:
    privacy = TrainingPrivacy(1e-5, noise_multiplier=noise)
    spend = TrainingSpend(privacy, noise, rate)
    for _ in range(updates):
        spend.count()
    event = dp_accounting.SelfComposedDpEvent(
        dp_accounting.PoissonSampledDpEvent(rate, dp_accounting.GaussianDpEvent(noise)), updates
    )
    theirs = RdpAccountant().compose(event).get_epsilon(1e-5)
    assert spend.epsilon() == pytest.approx(theirs, rel=0.01)


def test_noise_is_what_epsilon_needs_and_no_more() -> None:
    privacy = TrainingPrivacy(1e-4, epsilon=8.0)
    noise = noise_for(privacy, 0.04, 75)
    reached = []
    for each in (noise, noise * 0.97):
        event = dp_accounting.SelfComposedDpEvent(
            dp_accounting.PoissonSampledDpEvent(0.04, dp_accounting.GaussianDpEvent(each)), 75
        )
        reached.append(RdpAccountant().compose(event).get_epsilon(1e-4))
    assert reached[0] == pytest.approx(8.0, rel=0.01)
    assert reached[1] > 8.1


def test_nobody_can_repeat_a_private_training_from_its_seed() -> None:
    """Neither its noise nor its lots: whoever could would subtract the one and know the other."""
    chosen = records(*[6] * 20)
    regime = Regime(
        4,
        epochs=2,
        sampling="poisson",
        privacy=TrainingPrivacy(1e-5, noise_multiplier=0.01, clip=1e-6),
    )
    weights, shown = [], []
    for _ in range(3):
        model = new_model(SIZE, seed=0)
        shown.append(train(model, chosen, regime, seed=0, label="x").losses)
        weights.append(model.lm_head.weight.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert not shown[0] == shown[1] == shown[2], "the lots were those of the seed"


def test_private_training_repeats_and_needs_no_more_memory_than_it_is_given() -> None:
    chosen = records(*range(4, 24))
    weights = []
    for physical in (None, None, 3):
        model = new_model(SIZE, seed=0)
        privacy = TrainingPrivacy(1e-5, noise_multiplier=0.7, randomness="seed")
        regime = Regime(8, epochs=1, sampling="poisson", privacy=privacy, physical=physical)
        train(model, chosen, regime, seed=0, label="x")
        weights.append(model.lm_head.weight.detach().clone())
    assert torch.equal(weights[0], weights[1])
    torch.testing.assert_close(weights[0], weights[2], rtol=1e-3, atol=1e-5)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    new_model(SIZE, seed=0).save_pretrained(path)
    byte_tokenizer(SIZE.context).save_pretrained(path)
    return path


TEXTS = [f"record {number} of host-{number}" for number in range(24)]


@pytest.mark.parametrize("lora", [None, Lora(rank=2, alpha=4, targets=("q_proj", "v_proj"))])
def test_private_expert_states_its_price(base: Path, tmp_path: Path, lora: Lora | None) -> None:
    data = DataSet("texts", TEXTS, group_size=10, max_length=40)
    privacy = TrainingPrivacy(1e-4, noise_multiplier=0.9)
    regime = Regime(8, epochs=1, sampling="poisson", privacy=privacy)
    trained = train_expert(base, data, regime, tmp_path / "a", label="V2", seed=0, lora=lora)
    record = read_record(tmp_path / "a")
    assert record is not None
    assert trained.spent is not None
    [spend] = record.spends
    assert (spend.dataset, spend.group_size, spend.delta) == ("texts", 10, 1e-4)
    assert spend.epsilon == trained.spent.epsilon
    assert spend.mechanisms is not None
    [mechanism] = spend.mechanisms
    assert (mechanism.noise_multiplier, mechanism.steps) == (0.9, 3)  # type: ignore[union-attr]
    told = json.loads((tmp_path / "a" / "training.json").read_text())
    assert told["privacy"]["holds"] is True
    for name in ("last_losses", "presentations", "empty_lots", "longest_record_tokens"):
        assert told[name] == "withheld", name
    (date,) = {path.stat().st_mtime for path in (tmp_path / "a", *(tmp_path / "a").iterdir())}
    assert time.time() - date > time.time() % 86400, "when it ended tells how long it took"
    words = " ".join(json.loads((tmp_path / "a" / "privacy.json").read_text())["words"])
    assert "Noise on texts was drawn and added in floating point, as DP-SGD does" in words


@pytest.mark.parametrize(
    ("privacy", "why"),
    [
        (TrainingPrivacy(1e-4, noise_multiplier=0.0), "it had no noise"),
        (
            TrainingPrivacy(1e-4, noise_multiplier=0.9, clipping="as_released"),
            "clipping=as_released does not bound what a record moves",
        ),
        (TrainingPrivacy(1e-4, noise_multiplier=0.9, randomness="seed"), PUBLIC_NOISE),
    ],
)
def test_what_is_not_private_gets_no_record_but_is_counted(
    base: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    privacy: TrainingPrivacy,
    why: str,
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path / "state"))
    regime = Regime(8, epochs=1, sampling="poisson", privacy=privacy)
    train_expert(base, DataSet("t", TEXTS, 1, 40), regime, tmp_path / "a", label="x", seed=0)
    assert read_record(tmp_path / "a") is None
    told = json.loads((tmp_path / "a" / "training.json").read_text())["privacy"]
    assert told["holds"] is False
    words = "1 other run on t, kept or thrown away, leaves no guarantee (epsilon is infinite): "
    assert others_in_words("t", {}) == words + why
