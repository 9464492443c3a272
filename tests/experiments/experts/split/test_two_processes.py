"""Two processes over a connection: what crosses it, killed sides, refusals on both."""

from __future__ import annotations

import json
import os
import re
import shutil
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_module

from experiments.commands import split as command
from experiments.experts.split import in_process
from experiments.experts.split.customer import Customer, EncodedSentence
from experiments.experts.split.halves import Bottom
from experiments.experts.split.sessions import Offer
from experiments.experts.split.states import StateFolder
from experiments.experts.split.vendor import Vendor, VendorSettings
from experiments.runs.errors import UserError
from experiments.setup.assemble import open_part
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import PrivacyRecord, read_record
from merging.checkpoints.weight_files import WeightFiles
from merging.privacy.ledger import Ledger
from merging.seeding import generator
from merging.zoo.store import Zoo
from tests import builders
from tests.experiments.experts.split.processes import Tap, ended, free_port, start
from tests.experiments.refusals import Shell

STEPS = 16


class World:
    """A base, texts, a secret, and the options of both sides."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.base = builders.bert_classifier(folder / "bert", kind="encoder")
        (folder / "secret").write_text("0123456789abcdef0123456789abcdef\n")
        self.texts = [self.text(i) for i in range(30)]
        rows = [{"text": text, "label": i % 2} for i, text in enumerate(self.texts)]
        for name, part in {"train": rows[:20], "held_out": rows[20:]}.items():
            (folder / f"{name}.jsonl").write_text("".join(f"{json.dumps(r)}\n" for r in part))
        self.port = free_port()

    @staticmethod
    def text(i: int) -> str:
        drawn = torch.randint(97, 123, (8 + i % 5,), generator=generator("text", i))
        return "".join(map(chr, drawn.tolist())) + "xy"[i % 2] * 3

    def common(self, side: str, port: int) -> list[str]:
        options = {
            "base": self.base,
            "blocks": 1,
            "port": port,
            "secret_file": self.folder / "secret",
            "folder": self.folder / side,
            "wait_s": 30,
            "timeout_s": 20,
            "threads": 1,
        }
        return [f"{key}={value}" for key, value in options.items()]

    @property
    def vendor(self) -> list[str]:
        own = [f"schedule.steps={STEPS}", "schedule.batch=4", "lora.rank=2", "checkpoint_steps=4"]
        return [*self.common("vendor", self.port), f"out={self.folder / 'expert'}", *own]

    def customer(self, port: int) -> list[str]:
        files = [f"{name}={self.folder / name}.jsonl" for name in ("train", "held_out")]
        return [*self.common("customer", port), *files, "data=letters", "examples_per_message=4"]

    def start(self, side: str, *options: str) -> Any:
        return start(["split", side, *options], self.log(side))

    def log(self, side: str) -> Path:
        return self.folder / f"{side}.log"

    def said(self, side: str) -> list[str]:
        lines = self.log(side).read_text().splitlines()
        return [line for line in lines if line.startswith(f"evomerge split {side}: ")]


@pytest.fixture
def world(tmp_path: Path) -> World:
    return World(tmp_path)


def test_killed_and_started_again_both_end_as_one_process_does_and_nothing_else_crosses(
    world: World,
) -> None:
    running: dict[str, Any] = {}
    killed = dict.fromkeys(("customer", "vendor"), False)

    def watch(side: str, sent: bytearray) -> None:
        if killed[side]:
            return
        third = side == "customer" and sent.count(b'"kind": "states"') == 3
        if third or b'"kind": "progress", "steps": 7,' in sent:
            killed[side] = True
            running[side].kill()

    tap = Tap(world.port, watch)
    options = {"vendor": world.vendor, "customer": world.customer(tap.port)}
    for side, given in options.items():
        running[side] = world.start(side, *given)
    for side in ("customer", "vendor"):
        assert ended(running[side]) == -9, world.log(side).read_text()
        running[side] = world.start(side, *options[side])
    assert [ended(running[side]) for side in options] == [0, 0], [
        world.log(side).read_text() for side in options
    ]
    assert "closed the connection" in world.log("vendor").read_text()

    reference = one_process(world)
    expert = dict(WeightFiles.find(world.folder / "expert").items())
    alone = dict(WeightFiles.find(world.folder / "alone").items())
    assert set(expert) == set(alone)
    assert all(torch.equal(expert[name], alone[name]) for name in expert)
    result = json.loads((world.folder / "customer" / "result.json").read_text())
    assert result == {"accuracy": reference.accuracy, "held_out": 10}
    record = read_record(world.folder / "expert")
    assert record is not None
    assert record.spends[0].metric is not None
    assert record.spends[0].metric.space.startswith("states behind block 1 of model ")
    starts = (Path(os.environ["EVOMERGE_STATE"]) / "private_starts.jsonl").read_text()
    own = [
        line for line in map(json.loads, starts.splitlines()) if str(world.folder) in line["out"]
    ]
    assert [line["release"] for line in own] == [record.spends[0].release], "once for all starts"
    check_traffic(bytes(tap.sent["customer"]), bytes(tap.sent["vendor"]), reference)


class Reference:
    """What one process makes of the same texts with the same key."""

    accuracy: float
    texts: Any
    clean: list[torch.Tensor]
    noised: list[torch.Tensor]


def one_process(world: World) -> Reference:
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("split", [*world.customer(0), *world.vendor[-4:]])
    base = Checkpoint.open(str(world.base), encoder=True)
    found = Reference()
    found.texts = command._Texts.read(config, base)
    bottom = Bottom(base.module(dtype=torch.float32, device=torch.device("cpu")), 1)
    settings = open_part(config.privatization)
    noise = command._privatization(config, base, bottom, found.texts, settings, begun=True)
    plain, private = Customer(bottom, None), Customer(bottom, noise, "states")
    sent, asked = (StateFolder(world.folder / "again" / each, {}) for each in ("sent", "asked"))
    private.fill(sent, found.texts.train, "train", together=4)
    held_out = [EncodedSentence(each.tokens, None) for each in found.texts.held_out]
    private.fill(asked, held_out, "held out", together=4)
    found.clean = [plain.states(each, "") for each in (*found.texts.train, *held_out)]
    found.noised = [
        each for folder in (sent, asked) for s in folder.batches() for each in s.apart()
    ]
    schedule, lora = open_part(config.schedule), open_part(config.lora)
    vendor = Vendor(
        base, 1, 2, VendorSettings(schedule, lora), world.folder / "alone-vendor", identity={}
    )
    in_process.fine_tune(vendor, sent)
    vendor.save(world.folder / "alone", Ledger())
    labels = torch.tensor([each.label for each in found.texts.held_out])
    right = in_process.answers(vendor, asked).argmax(dim=1) == labels
    found.accuracy = float(right.double().mean())
    return found


def check_traffic(customer: bytes, vendor: bytes, reference: Reference) -> None:
    """Noised states cross, clean ones, tokens and texts do not, in any usual form."""
    for clean, noised in zip(reference.clean, reference.noised, strict=True):
        assert noised.numpy().tobytes() in customer
        for row in clean:
            for form in (row.numpy(), row.half().numpy(), row.double().numpy()):
                assert form.tobytes() not in customer + vendor
                assert form[:4].tobytes() not in customer + vendor
    for example in (*reference.texts.train, *reference.texts.held_out):
        for kind in (np.int64, np.int32, np.int16, np.uint8):
            tokens = np.array([token % 256 for token in example.tokens], np.int64).astype(kind)
            assert tokens[1:5].tobytes() not in customer + vendor, kind
        assert json.dumps(list(example.tokens))[1:16].encode() not in customer + vendor
    for i in range(30):
        assert World.text(i).encode()[:6] not in customer + vendor
    assert b"grad" not in vendor
    assert max(sizes(vendor)) < 2**12, "nothing as large as states or gradients comes back"


def sizes(sent: bytes) -> list[int]:
    """Lengths of the messages in what one side sent over its last connection."""
    at, found = sent.rindex(b"evomerge split 1\n") + 17 + 32, []
    while at < len(sent):
        (size,) = struct.unpack_from(">Q", sent, at)
        found.append(size)
        at += 8 + size
    return found


def refused(world: World, vendor: list[str], customer: list[str]) -> tuple[str, str]:
    """Runs both; returns the sentence that each ended with, and its status is 2."""
    running = {"vendor": world.start("vendor", *world.vendor, *vendor)}
    running["customer"] = world.start("customer", *world.customer(world.port), *customer)
    assert [ended(process) for process in running.values()] == [2, 2]
    said = [world.said(side) for side in running]
    assert [len(lines) for lines in said] == [1, 1], said
    assert not (world.folder / "expert").exists()
    return said[0][0], said[1][0]


def test_a_wrong_secret_ends_both_in_a_sentence(world: World) -> None:
    (world.folder / "other").write_text("another secret that is long enough")
    vendor, customer = refused(world, [], [f"secret_file={world.folder / 'other'}"])
    assert "the customer does not know the secret: give both sides the same file" in vendor
    assert "the vendor does not know the secret: give both sides the same file" in customer


REFUSED: dict[str, tuple[list[str], list[str]]] = {
    "splits another model": ([], ["base={other}"]),
    "splits behind block [12], this side behind [12]": (["blocks=2"], []),
    "announces a message of .*, more than the 4194 that are taken": (["limit_mb=0.004"], []),
}


@pytest.mark.slow
@pytest.mark.parametrize("reason", REFUSED)
def test_what_does_not_fit_ends_both_in_a_sentence(reason: str, world: World) -> None:
    other = builders.bert_classifier(world.folder / "other", kind="encoder", seed=5)
    vendor, customer = ([o.format(other=other) for o in side] for side in REFUSED[reason])
    for said in refused(world, vendor, customer):
        assert re.search(reason, said), said


OPTIONS = {
    "out is not set: give out=VALUE": ("vendor", "out=null"),
    "blocks=-1: it must be at least 0": ("vendor", "blocks=-1"),
    "lora.rang: Lora has no such option": ("vendor", "+lora.rang=2"),
    "train is not set": ("customer", "train=null"),
    "privatization: privatization.ratio must be above 0": ("customer", "privatization.ratio=0"),
    "secret_file or secret_env: key file .* does not exist": ("customer", "secret_file=none"),
    "max_length=0: it must be at least 1": ("customer", "max_length=0"),
}


@pytest.mark.parametrize("reason", OPTIONS)
def test_wrong_options_are_refused_before_anything_is_made(
    reason: str, world: World, shell: Shell
) -> None:
    side, option = OPTIONS[reason]
    given = world.vendor if side == "vendor" else world.customer(world.port)
    ended = shell.run("split", side, *given, option)
    assert ended.code == 2
    assert len(ended.messages) == 1, ended.stderr
    assert re.search(rf"evomerge split {side}: {reason}", ended.messages[0]), ended.messages
    assert not (world.folder / side).exists()


NOISES = {
    "uniform": ([], "uniform", "states behind block 1"),
    "projected": (
        ["privatization.where=embedding", "privatization.project=true"],
        "uniform",
        "word embeddings",
    ),
    "contributing": (["privatization=contributing"], "labels", "states behind block 1"),
    "directions": (
        ["privatization=directions", "privatization.directions.count=4"],
        "uniform",
        "states behind block 1",
    ),
    "none": (["privatization=none"], None, None),
}


@pytest.mark.parametrize("noise", NOISES)
def test_what_is_sent_is_noised_as_the_options_say_and_the_same_again(
    noise: str, world: World
) -> None:
    options, budgets, space = NOISES[noise]
    with initialize_config_module("conf", version_base="1.3"):
        config = compose("split", [*world.customer(1), *options])
    base = Checkpoint.open(str(world.base), encoder=True)
    texts = command._Texts.read(config, base)
    bottom = Bottom(base.module(dtype=torch.float32, device=torch.device("cpu")), 1)
    settings = open_part(config.privatization) if config.privatization else None

    (world.folder / "customer").mkdir()

    def sent() -> tuple[Offer, list[torch.Tensor]]:
        given = config, command._opened(config)[0], base, bottom, texts, settings
        session = command._filled(*given)
        assert session.asked is not None
        batches = [*session.sent.batches(), *session.asked.batches()]
        assert [batch.labels is None for batch in batches] == [False] * 5 + [True] * 3
        return session.offer, [state for batch in batches for state in batch.apart()]

    offer, first = sent()
    for part in ("sent", "asked"):  # the key stays
        shutil.rmtree(world.folder / "customer" / part)
        (world.folder / "customer" / part).mkdir()
    again, second = sent()
    assert offer == again
    assert all(map(torch.equal, first, second))
    if noise == "directions":
        (world.folder / "customer" / "directions.safetensors").unlink()
        with pytest.raises(UserError, match="is missing, and texts were noised in its directions"):
            sent()
    plain = Customer(bottom, None)
    same = [
        torch.equal(state, plain.states(text, ""))
        for state, text in zip(first, (*texts.train, *texts.held_out), strict=True)
    ]
    record = PrivacyRecord.from_json(offer.record)
    if budgets is None:
        assert all(same)
        assert record.unrecorded == ("the states of letters, sent as they are",)
        return
    assert not any(same)
    (spend,) = record.spends
    assert spend.metric is not None
    assert spend.metric.budgets == budgets
    assert spend.metric.space.startswith(str(space))


def test_a_vendor_trains_on_a_base_of_a_zoo(world: World) -> None:
    Zoo.open(world.folder / "zoo", create=True).add(world.base, "bert")
    source = f"zoo:{world.folder / 'zoo'}/bert"
    stored = Checkpoint.open(source, encoder=True)
    plain = command._taken_out(source, stored, world.folder / "vendor" / "base")
    vendor = Vendor(plain, 1, 2, VendorSettings(), world.folder / "vendor", identity={})
    assert vendor.base.sha256 == Checkpoint.open(str(world.base), encoder=True).sha256
    assert command._taken_out(source, stored, world.folder / "vendor" / "base").path == plain.path
    other = builders.bert_classifier(world.folder / "other", kind="encoder", seed=5)
    with pytest.raises(UserError, match="holds another model than base=zoo:"):
        command._taken_out(source, Checkpoint.open(str(other), encoder=True), plain.path)
