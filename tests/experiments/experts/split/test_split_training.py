"""Split training in one process: it learns, nothing flows back, it goes on, it is an expert."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForSequenceClassification

from experiments.experts.split import in_process
from experiments.experts.split.sessions import Offer
from experiments.experts.split.states import StateFolder, States, padded
from experiments.experts.split.vendor import Vendor
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.privacy_record import PrivacyRecord
from merging.checkpoints.weight_files import WeightFiles
from merging.privacy.ledger import Ledger
from tests import builders
from tests.experiments.experts.split import tiny


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = builders.bert_classifier(tmp_path_factory.mktemp("base") / "bert", kind="encoder")
    return Checkpoint.open(str(path), encoder=True)


def trained(base: Checkpoint, tmp_path: Path, blocks: int = 1, steps: int = 12) -> Vendor:
    vendor = tiny.vendor(base, blocks, tmp_path / "vendor", steps=steps)
    in_process.fine_tune(vendor, tiny.sent(base, blocks, tmp_path / "customer"))
    return vendor


def weights(out: Path) -> dict[str, torch.Tensor]:
    return dict(WeightFiles.find(out).items())


@pytest.mark.parametrize("blocks", [0, 1])
def test_it_learns_what_the_labels_say(base: Checkpoint, tmp_path: Path, blocks: int) -> None:
    vendor = trained(base, tmp_path, blocks, steps=80)
    asked = StateFolder(tmp_path / "asked", {})
    tiny.customer(base, blocks).fill(
        asked, tiny.examples(20, labelled=False, first=100), "asked", together=7
    )
    right = in_process.answers(vendor, asked).argmax(dim=1) == torch.arange(20) % 2
    assert right.float().mean() >= 0.9
    assert vendor.losses[0] > 2 * vendor.losses[-1]


def test_no_gradient_reaches_states_or_bottom(base: Checkpoint, tmp_path: Path) -> None:
    before = {name: base[name].clone() for name in base}
    vendor = trained(base, tmp_path)
    states = next(iter(vendor.received.batches())).apart()
    rows, mask = padded(states)
    vendor.top(rows.requires_grad_(False), mask).sum().backward()
    assert rows.grad is None
    names = [name for name, p in vendor.top.model.named_parameters() if p.grad is not None]
    assert names
    assert all("lora_" in name or "classifier" in name for name in names)
    assert not [name for name in names if "layer.0." in name or "embeddings" in name]
    assert all(torch.equal(base[name], before[name]) for name in base)


def test_a_training_that_was_stopped_ends_the_same(base: Checkpoint, tmp_path: Path) -> None:
    class Stop(Exception):
        pass

    def stop(steps: int) -> None:
        if steps == 8:  # behind the checkpoint of step 5
            raise Stop

    whole = trained(base, tmp_path / "whole")
    whole.save(tmp_path / "a", Ledger())
    sent = tiny.sent(base, 1, tmp_path / "whole" / "customer")
    vendor = tiny.vendor(base, 1, tmp_path / "stopped")
    for states in sent.batches():
        vendor.received.append(states)
    with pytest.raises(Stop):
        vendor.train(stop)
    again = tiny.vendor(base, 1, tmp_path / "stopped")
    seen: list[int] = []
    again.train(seen.append)
    assert seen == list(range(5, 13))
    assert again.losses == whole.losses
    again.save(tmp_path / "b", Ledger())
    first, second = weights(tmp_path / "a"), weights(tmp_path / "b")
    assert all(torch.equal(first[name], second[name]) for name in first)
    other = tiny.vendor(base, 1, tmp_path / "stopped", steps=13)
    with pytest.raises(ValueError, match="is of a training with other settings"):
        other.train()


def test_the_expert_is_what_was_trained_and_merges_with_others(tmp_path: Path) -> None:
    path = builders.bert_classifier(tmp_path / "bert", kind="encoder", num_hidden_layers=5)
    base = Checkpoint.open(str(path), encoder=True)
    vendor = trained(base, tmp_path)
    out = tmp_path / "expert"
    record = PrivacyRecord(unrecorded=("the states of reviews, sent as they are",)).to_json()
    vendor.save(out, Offer("reviews", "1", 24, 2, record).ledger(path))
    model = AutoModelForSequenceClassification.from_pretrained(out).eval()
    folded = PeftModel.from_pretrained(
        AutoModelForSequenceClassification.from_pretrained(base.path), str(out / "adapter")
    ).eval()
    tokens = torch.tensor([tiny.examples(1)[0].tokens])
    mask = torch.ones_like(tokens)
    states = tiny.customer(base, 1).bottom.states(tokens, mask)
    with torch.no_grad():
        logits = model(input_ids=tokens, attention_mask=mask).logits
        peft_logits = folded(input_ids=tokens, attention_mask=mask).logits
    torch.testing.assert_close(vendor.answer(list(states)), logits, atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(peft_logits, logits, atol=1e-5, rtol=1e-5)

    moved = {n for n in base if not torch.equal(model.base_model.state_dict()[n], base[n])}
    assert moved
    assert not [n for n in moved if n.startswith(("embeddings.", "encoder.layer.0."))]
    assert {n for n in base if n.endswith("query.weight")} - moved == {
        "encoder.layer.0.attention.self.query.weight"
    }
    sizes = {"num_labels": 3, "num_hidden_layers": 5}
    other = builders.bert_classifier(tmp_path / "other", like=path, **sizes)
    pool = ExpertPool.open(str(base.path), {"private": str(out), "other": str(other)})
    assert pool.heads == ("private", "other")
    words = " ".join(Ledger.of_experts(pool, pool.expert_names).sentences())
    assert "the states of reviews, sent as they are" in words
    assert "not private" in words.lower()


def test_where_nothing_can_be_adapted_is_refused(tmp_path: Path) -> None:
    decoder = Checkpoint.open(str(builders.llama(tmp_path / "llama")), encoder=True)
    with pytest.raises(ValueError, match="no linear layer behind block 2 of LlamaForSeq"):
        tiny.vendor(decoder, 2, tmp_path / "vendor")


def test_folders_of_other_states_are_refused(base: Checkpoint, tmp_path: Path) -> None:
    tiny.sent(base, 1, tmp_path / "customer")
    with pytest.raises(ValueError, match=r"holds states of another blocks .1 there, 2 now"):
        StateFolder(tmp_path / "customer", {"blocks": 2})
    tiny.vendor(base, 1, tmp_path / "vendor")
    with pytest.raises(ValueError, match="holds states of another blocks"):
        tiny.vendor(base, 2, tmp_path / "vendor")


WRONG = {
    "width": {"states": torch.zeros(3, 5)},
    "finite": {"states": torch.full((3, 4), torch.inf)},
    "shape": {"states": torch.zeros(12)},
    "float32": {"states": torch.zeros(3, 4, dtype=torch.float64)},
    "together": {"lengths": torch.tensor([1, 1])},
    "at least 1": {"lengths": torch.tensor([3, 0])},
    "one for each": {"labels": torch.tensor([1])},
    "none of 2": {"labels": torch.tensor([0, 2])},
    "expected": {"tokens": torch.tensor([1, 2, 3])},
}


@pytest.mark.parametrize("reason", WRONG)
def test_states_that_do_not_fit_are_refused(reason: str) -> None:
    right = {
        "states": torch.zeros(3, 4),
        "lengths": torch.tensor([1, 2]),
        "labels": torch.tensor([0, 1]),
    }
    States.read(right, width=4, classes=2)
    with pytest.raises(ValueError, match=reason):
        States.read({**right, **WRONG[reason]}, width=4, classes=2)


def test_a_damaged_batch_is_named(tmp_path: Path) -> None:
    folder = StateFolder(tmp_path, {})
    folder.append(States.of([torch.ones(2, 4)], [1]))
    (file,) = tmp_path.glob("*.safetensors")
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ValueError, match=rf"{file.name} is damaged .*begin in a new folder"):
        list(folder.batches())
