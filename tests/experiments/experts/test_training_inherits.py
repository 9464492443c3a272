"""What a model that was trained, rounded or merged from another one has cost: all of it."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.experts.quickstart.tokenizer import byte_tokenizer
from experiments.experts.quickstart.training import ModelSize, new_model
from experiments.experts.training.expert import DataSet, train_expert
from experiments.experts.training.language_model import Lora
from experiments.experts.training.nf4 import write_rounded
from experiments.experts.training.regime import Regime, TrainingPrivacy
from experiments.papers.csirt.cells import CsirtCell, CsirtSetting, _training_data
from experiments.papers.csirt.corpus import CorpusSize, make_corpus
from experiments.runs.starts import beside_others
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.mechanisms import PrivacyRecordError
from merging.checkpoints.privacy_record import PrivacyRecord, PrivacySpend, write_record
from merging.grouping import Whole
from merging.methods.linear import Linear
from merging.plan import uniform_plan
from merging.privacy.ledger import Ledger
from merging.saving.save import save_model

SIZE = ModelSize(hidden=16, intermediate=24, layers=1, heads=2, context=64)
TEXTS = [f"record {number} of host-{number}" for number in range(24)]
ADAPTER = Lora(rank=2, alpha=4, targets=("q_proj", "v_proj"))


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("base") / "b0"
    new_model(SIZE, seed=0).save_pretrained(path)
    byte_tokenizer(SIZE.context).save_pretrained(path)
    return path


def private(noise: float, delta: float = 1e-4) -> Regime:
    privacy = TrainingPrivacy(delta, noise_multiplier=noise)
    return Regime(8, epochs=0.34, sampling="poisson", privacy=privacy)


def trained(base: Path, name: str, data: str, regime: Regime, lora: Lora | None = None) -> Path:
    out = base.parent / name
    if not out.exists():
        train_expert(base, DataSet(data, TEXTS, 1, 40), regime, out, label="x", seed=0, lora=lora)
    return out


def ledger_over(base: Path, **experts: Path) -> Ledger:
    pool = ExpertPool.open(str(base), {name: str(path) for name, path in experts.items()})
    return Ledger.of(pool, uniform_plan(Linear(), Whole(), pool), searched=True)


@pytest.mark.parametrize("lora", [None, ADAPTER])
def test_private_training_on_a_private_expert_adds_to_its_price(
    base: Path, lora: Lora | None
) -> None:
    first = trained(base, "e0", "D0", private(0.6))
    alone = ledger_over(base, a=first).guarantees["D0"]
    kind = "full" if lora is None else "adapter"
    again = trained(first, f"again-{kind}", "D0", private(4.0), lora)
    other = trained(first, f"other-{kind}", "D1", private(4.0), lora)
    over = first if lora else base
    ledger = ledger_over(over, again=again)
    assert ledger.private
    stated = ledger.guarantees["D0"]
    assert stated is not None
    assert alone is not None
    assert stated.releases == 2
    assert stated.price.epsilon >= alone.price.epsilon
    ledger = ledger_over(over, other=other)
    assert sorted(ledger.guarantees) == ["D0", "D1"]
    assert len(ledger.spends) == 2, "the base of a pool is paid once"


def test_a_rounded_copy_costs_what_the_original_did(base: Path) -> None:
    first, rounded = trained(base, "e0", "D0", private(0.6)), base.parent / "e0-nf4"
    write_rounded(first, rounded)
    later = trained(rounded, "on-nf4", "D1", private(4.0))
    assert sorted(ledger_over(base, a=later).guarantees) == ["D0", "D1"]
    assert len(ledger_over(rounded, a=later, b=first).spends) == 2, "each is paid once"
    public = base.parent / "b0-nf4"
    write_rounded(base, public)
    assert not (public / "privacy.json").exists()


def test_plain_training_before_a_private_one_is_not_private(base: Path) -> None:
    plain = trained(base, "plain", "D9", Regime(8, epochs=0.34))
    later = trained(plain, "later", "D1", private(4.0))
    for over in (base, plain):
        ledger = ledger_over(over, later=later)
        assert not ledger.private
        assert "the model it started from in expert 'later'" in ledger.unrecorded
    assert "the base" in ledger.unrecorded
    assert not any("taken to be public" in sentence for sentence in ledger.sentences())


def test_only_a_base_without_a_trace_is_taken_to_be_public(base: Path, tmp_path: Path) -> None:
    expert = trained(base, "e0", "D0", private(0.6))
    assert "The base is taken to be public." in ledger_over(base, e=expert).sentences()
    run = tmp_path / "run"
    shutil.copytree(base, run / "model")
    (run / "recipe.json").write_text("{}")  # of a search from before merges had records
    assert ledger_over(run / "model", e=expert).unrecorded == ("the base",)


def test_a_merge_of_experts_without_record_is_no_public_base(base: Path, tmp_path: Path) -> None:
    plain = trained(base, "plain", "D9", Regime(8, epochs=0.34))
    pool = ExpertPool.open(str(base), {"plain": str(plain)})
    weights = uniform_plan(Linear(), Whole(), pool).weights(pool, dtype=torch.float32)
    save_model(pool, weights, tmp_path / "merged")
    ledger = ledger_over(tmp_path / "merged", e=trained(base, "e0", "D0", private(0.6)))
    assert ledger.unrecorded == ("expert 'plain' in the base",)


def test_an_adapter_is_no_start(base: Path, tmp_path: Path) -> None:
    adapter = trained(base, "adapter", "D0", private(4.0), ADAPTER)
    with pytest.raises(PrivacyRecordError, match="adapter is an adapter, nothing to start from"):
        train_expert(
            adapter, DataSet("D1", TEXTS), private(1.0), tmp_path / "a", label="x", seed=0
        )


def test_a_training_tells_of_those_before_it(
    base: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("EVOMERGE_STATE", str(tmp_path / "state"))
    for name in ("one", "two"):
        data = DataSet("tickets", TEXTS, 1, 40)
        train_expert(base, data, private(4.0), tmp_path / name, label="x", seed=0)
    words = json.loads((tmp_path / "two" / "privacy.json").read_text())["words"]
    assert words[-1].startswith("This is of this training alone; 1 other run on tickets, kept or")
    ledger = beside_others(ledger_over(base, a=tmp_path / "one", b=tmp_path / "two"), "merge")
    assert ledger.notes[-1].endswith("alone; no other run on tickets is known here.")


def test_a_delta_of_one_record_in_n_is_refused(base: Path, tmp_path: Path) -> None:
    regime = private(1.0, delta=1 / 24)
    with pytest.raises(ValueError, match="would allow to give one of the 24 records away"):
        train_expert(base, DataSet("D", TEXTS), regime, tmp_path / "a", label="x", seed=0)
    assert list(tmp_path.iterdir()) == []


def test_the_name_of_a_data_set_tells_nothing_of_its_records(tmp_path: Path) -> None:
    size = CorpusSize(records=24, canaries=1, clones=1, variants=3, held_out=4)
    setting = CsirtSetting({}, size, {}, set(), None, 256, tmp_path)
    names: set[Any] = set()
    for left_out in (0, 1):
        corpus = make_corpus(size, 0)
        object.__setattr__(corpus, "training", corpus.training[left_out:])
        for form in ("raw", "pseudonymised"):
            cell = CsirtCell("tiny", 0, form, "V1")  # type: ignore[arg-type]
            names.add(_training_data(corpus, setting, cell).identity)
    assert len(names) == 1


def test_a_record_of_nothing_is_refused() -> None:
    spend = PrivacySpend("D", 0.0, 0.0, "rdp", "1", mechanisms=())
    assert PrivacyRecord((spend,)).spends == (spend,)
    with pytest.raises(PrivacyRecordError, match="mechanisms is empty though epsilon is 8"):
        PrivacySpend("D", 8.0, 1e-5, "rdp", "1", mechanisms=())


def test_a_broken_record_of_the_base_is_told_before_the_training(
    base: Path, tmp_path: Path
) -> None:
    copy = Path(shutil.copytree(base, tmp_path / "copy"))
    file = write_record(copy, PrivacyRecord())
    file.write_text(file.read_text().replace('"format": 1', '"format": 2'))
    with pytest.raises(PrivacyRecordError, match="it was edited after it was written"):
        train_expert(copy, DataSet("D", TEXTS), Regime(99), tmp_path / "a", label="x", seed=0)
