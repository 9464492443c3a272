"""Training of experts: regimes, lots, losses, what is written, and determinism."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from experiments.experts.quickstart.tokenizer import byte_tokenizer
from experiments.experts.quickstart.training import ModelSize, new_model
from experiments.experts.training.expert import DataSet, train_expert
from experiments.experts.training.language_model import Lora
from experiments.experts.training.records import encode, padded, record_losses, token_counts
from experiments.experts.training.regime import Regime, TrainingPrivacy
from experiments.experts.training.train import lots, train
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.privacy_record import read_record
from merging.weight_names import is_adapter
from merging.zoo.store import Zoo

TEXTS = [f"record {number} of host-{number * 7919 % 101}" for number in range(24)]
SIZE = ModelSize(hidden=16, intermediate=24, layers=1, heads=2, context=64)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base")
    new_model(SIZE, seed=0).save_pretrained(path)
    byte_tokenizer(SIZE.context).save_pretrained(path)
    return path


def flat(drawn: Iterable[list[int]]) -> list[int]:
    return sorted(itertools.chain.from_iterable(drawn))


def state(path: Path) -> dict[str, Tensor]:
    from safetensors.torch import load_file

    return load_file(path / "model.safetensors")


def test_regimes_of_the_paper_have_equal_updates_or_equal_presentations() -> None:
    raw, large, matched = Regime(4), Regime(32), Regime(4, epochs=0.375)
    assert (raw.updates(3200), large.updates(3200), matched.updates(3200)) == (2400, 300, 300)
    shown = [sum(map(len, lots(each, 320, seed=0, label="x"))) for each in (raw, large, matched)]
    assert shown == [960, 960, 120]


def test_learning_rate_rises_once_then_falls_to_its_end() -> None:
    regime = Regime(4, learning_rate=1.0, warmup=0.1, final=0.1)
    rates = [regime.rate_at(update, 100) for update in range(100)]
    assert rates[:10] == pytest.approx([(update + 1) / 10 for update in range(10)])
    assert all(a >= b for a, b in itertools.pairwise(rates[10:]))
    assert rates[-1] == pytest.approx(0.1, abs=1e-3)


def test_rate_is_set_once_per_update_whatever_the_physical_batch() -> None:
    """The published code stepped its schedule per micro-batch: the rate went round and round."""
    seen: dict[int | None, list[float]] = {}
    for physical in (None, 1):
        regime = Regime(4, epochs=1, learning_rate=1e-2, physical=physical)
        seen[physical] = _rates_of(regime)
    assert seen[1] == seen[None] == [regime.rate_at(update, 6) for update in range(6)]


def _rates_of(regime: Regime) -> list[float]:
    rates: list[float] = []
    before = torch.optim.AdamW.step

    def step(self: torch.optim.AdamW, closure: Any = None) -> Any:
        rates.append(self.param_groups[0]["lr"])
        return before(self, closure)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.optim.AdamW, "step", step)
        records = encode(byte_tokenizer(SIZE.context), TEXTS, 32)
        train(new_model(SIZE, seed=0), records, regime, seed=0, label="x")
    return rates


def test_shuffled_lots_show_every_record_once_before_any_comes_again() -> None:
    drawn = list(lots(Regime(5, epochs=2), 20, seed=0, label="x"))
    assert [len(lot) for lot in drawn] == [5] * 8
    assert flat(drawn[:4]) == flat(drawn[4:]) == list(range(20))
    assert drawn == list(lots(Regime(5, epochs=2), 20, seed=0, label="x"))
    assert drawn != list(lots(Regime(5, epochs=2), 20, seed=1, label="x"))


def test_poisson_lots_vary_in_size_and_draw_every_record_alike() -> None:
    regime = Regime(2, epochs=200, sampling="poisson")
    drawn = list(lots(regime, 20, seed=0, label="x"))
    assert len(drawn) == 2000
    sizes = torch.tensor([float(len(lot)) for lot in drawn])
    assert sizes.mean().item() == pytest.approx(2.0, abs=5 * math.sqrt(20 * 0.09 / 2000))
    assert sizes.var().item() == pytest.approx(20 * 0.1 * 0.9, rel=0.15)
    counts = torch.bincount(torch.tensor(flat(drawn)), minlength=20).double()
    chi_square = float(((counts - 200) ** 2 / (2000 * 0.09)).sum())
    assert 5.9 < chi_square < 45.3, "20 records: quantiles 0.001 and 0.999 of chi-square"
    assert any(not lot for lot in drawn), "empty lots happen"


@pytest.mark.parametrize("loss", ["mean", "sum"])
def test_record_losses_are_those_of_each_record_alone(loss: Any) -> None:
    model = new_model(SIZE, seed=0)
    records = encode(byte_tokenizer(SIZE.context), [TEXTS[0], TEXTS[1] * 2, "x"], 40)
    together = record_losses(model, *padded(records, torch.device("cpu")), loss)
    for place, record in enumerate(records):
        ids = torch.tensor([record])
        own = model(input_ids=ids).logits[0, :-1].double().log_softmax(1)
        each = -own.gather(1, ids[0, 1:, None]).flatten()
        expected = each.mean() if loss == "mean" else each.sum()
        assert together[place].item() == pytest.approx(expected.item(), rel=1e-4)
    assert token_counts(padded(records, torch.device("cpu"))[1]).tolist() == [
        len(record) - 1 for record in records
    ]


def test_physical_batches_change_nothing_but_memory() -> None:
    results = []
    for physical in (None, 3):
        model = new_model(SIZE, seed=0)
        records = encode(byte_tokenizer(SIZE.context), TEXTS, 32)
        regime = Regime(8, epochs=1, learning_rate=1e-3, physical=physical)
        results.append((train(model, records, regime, seed=0, label="x"), model.state_dict()))
    (one, weights), (other, others) = results
    assert one.losses == pytest.approx(other.losses, rel=1e-5)
    for name, tensor in weights.items():
        torch.testing.assert_close(tensor, others[name], rtol=1e-3, atol=2e-4)


def test_expert_is_written_with_its_training_and_opens_as_one(base: Path, tmp_path: Path) -> None:
    data = DataSet("texts", TEXTS, max_length=40)
    regime = Regime(4, epochs=4, learning_rate=1e-2)
    trained = train_expert(base, data, regime, tmp_path / "a", label="V0", seed=3)
    assert trained.losses[-1] < trained.losses[0] - 0.5
    report = json.loads((tmp_path / "a" / "training.json").read_text())
    assert (report["updates"], report["presentations"]) == (24, 96)
    assert report["regime"]["lot"] == 4
    assert read_record(tmp_path / "a") is None, "without a record it counts as not private"
    pool = ExpertPool.open(str(base), {"a": str(tmp_path / "a")})
    assert all(tensor.abs().max() > 0 for tensor in map(pool.deltas, pool.names))
    train_expert(base, data, regime, tmp_path / "again", label="V0", seed=3)
    again = state(tmp_path / "again")
    for name, tensor in state(tmp_path / "a").items():
        assert torch.equal(tensor, again[name]), name


def test_lora_expert_is_an_adapter_that_repeats_bit_for_bit(base: Path, tmp_path: Path) -> None:
    data = DataSet("texts", TEXTS, max_length=40)
    regime = Regime(8, epochs=2, learning_rate=1e-2)
    lora = Lora(rank=2, alpha=4, dropout=0.1, targets=["q_proj", "v_proj"])
    for name in ("a", "b"):
        train_expert(base, data, regime, tmp_path / name, label="V1", seed=0, lora=lora)
    assert is_adapter(tmp_path / "a")
    pool = ExpertPool.open(str(base), {name: str(tmp_path / name) for name in ("a", "b")})
    changed = [name for name in pool.names if pool.deltas(name).abs().max() > 0]
    assert len(changed) == 2
    for name in changed:
        one, other = pool.deltas(name)
        assert torch.equal(one, other)


def test_a_base_in_a_zoo_trains_the_same_expert(base: Path, tmp_path: Path) -> None:
    zoo = Zoo.open(tmp_path / "zoo", create=True)
    zoo.add(base, "base")
    data = DataSet("texts", TEXTS, max_length=40)
    regime = Regime(8, epochs=1, learning_rate=1e-2)
    for source, name in ((base, "plain"), (f"zoo:{zoo.directory}/base", "stored")):
        train_expert(source, data, regime, tmp_path / name, label="V0", seed=0)
    stored = state(tmp_path / "stored")
    for name, tensor in state(tmp_path / "plain").items():
        assert torch.equal(tensor, stored[name]), name


def test_a_failed_training_leaves_nothing(base: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"regime.lot=40: there are only 24 records"):
        train_expert(base, DataSet("t", TEXTS), Regime(40), tmp_path / "a", label="x", seed=0)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"lot": 0}, "regime.lot=0: it must be at least 1"),
        ({"lot": 4, "epochs": 0.0}, "regime.epochs=0.0: it must be above 0"),
        ({"lot": 4, "sampling": "random"}, "regime.sampling='random'"),
        ({"lot": 4, "loss": "max"}, "regime.loss='max'"),
        ({"lot": 4, "privacy": TrainingPrivacy(1e-5, 8.0)}, "set regime.sampling=poisson"),
        (
            {
                "lot": 4,
                "loss": "sum",
                "sampling": "poisson",
                "privacy": TrainingPrivacy(1e-5, 8.0, clipping="as_released"),
            },
            "as_released is about the mean loss",
        ),
    ],
)
def test_regimes_without_meaning_are_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        Regime(**options)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"delta": 0.0, "epsilon": 1.0}, "privacy.delta=0.0"),
        ({"delta": 1e-5}, "give either epsilon or noise_multiplier"),
        ({"delta": 1e-5, "epsilon": -1.0}, "privacy.epsilon=-1.0"),
        ({"delta": 1e-5, "noise_multiplier": -1.0}, "privacy.noise_multiplier=-1.0"),
        ({"delta": 1e-5, "epsilon": 1.0, "clip": 0.0}, "privacy.clip=0.0"),
        ({"delta": 1e-5, "epsilon": 1.0, "clipping": "x"}, "privacy.clipping='x'"),
    ],
)
def test_privacy_without_meaning_is_refused(options: Any, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        TrainingPrivacy(**options)


def test_data_set_and_lora_without_meaning_are_refused() -> None:
    with pytest.raises(ValueError, match="data set 'd' has 1 records, expected at least 2"):
        DataSet("d", ["x"])
    with pytest.raises(ValueError, match=r"lora\.rank=0"):
        Lora(rank=0)
    with pytest.raises(ValueError, match=r"lora\.dropout=1\.0"):
        Lora(dropout=1.0)


def test_only_what_requires_a_gradient_is_trained() -> None:
    model = new_model(SIZE, seed=0)
    for parameter in model.model.embed_tokens.parameters():
        parameter.requires_grad_(False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    records = encode(byte_tokenizer(SIZE.context), TEXTS, 32)
    train(model, records, Regime(8, epochs=1, learning_rate=1e-2), seed=0, label="x")
    assert isinstance(model, nn.Module)
    same = [
        name for name, tensor in model.state_dict().items() if torch.equal(tensor, before[name])
    ]
    assert same == ["model.embed_tokens.weight"]
