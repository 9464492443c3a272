"""What a side says that does not fit is refused on both; who does not come is given up."""

from __future__ import annotations

import re
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from experiments.experts.split.sessions import (
    CustomerSession,
    Endpoint,
    Offer,
    Terms,
    VendorSession,
)
from experiments.experts.split.states import StateFolder
from experiments.experts.split.wire import Connection, Message, WireError
from experiments.pseudonyms.pseudonyms import SecretKey
from merging.checkpoints.checkpoint import Checkpoint
from merging.checkpoints.privacy_record import PrivacyRecord
from tests import builders
from tests.experiments.experts.split import tiny
from tests.experiments.experts.split.processes import Aside, free_port

SECRET = SecretKey(b"a secret of more than 16 bytes")
OFFER: dict[str, Any] = {
    "data": "letters",
    "upload": "1",
    "examples": 4,
    "classes": 2,
    "record": PrivacyRecord(unrecorded=("the states",)).to_json(),
}
TERMS = Terms("ab" * 32, 1)


def line(**options: Any) -> Endpoint:
    given = {"timeout_s": 10.0, "wait_s": 10.0, "tell": lambda text: None, **options}
    return Endpoint("127.0.0.1", given.pop("port", None) or free_port(), SECRET, **given)


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Checkpoint:
    path = builders.bert_classifier(tmp_path_factory.mktemp("base") / "bert", kind="encoder")
    return Checkpoint.open(str(path), encoder=True)


@pytest.fixture
def serve(base: Checkpoint, tmp_path: Path) -> Iterator[Callable[[], tuple[Connection, Aside]]]:
    """Starts a vendor; returns a customer's end of a connection to it, and the vendor."""
    links = []

    def started() -> tuple[Connection, Aside]:
        at = line()
        session = VendorSession(
            at, TERMS, lambda offer: tiny.vendor(base, 1, tmp_path / "vendor"), tmp_path / "out"
        )
        vendor = Aside(session.serve)
        while True:
            try:
                links.append(socket.create_connection((at.host, at.port)))
                return at.connection(links[-1], "customer"), vendor
            except ConnectionRefusedError:
                assert vendor.is_alive(), vendor.ended

    yield started
    for link in links:
        link.close()


def states(count: int = 1, **changed: torch.Tensor) -> Message:
    tensors = {
        "states": torch.zeros(2 * count, 32),
        "lengths": torch.full((count,), 2),
        "labels": torch.ones(count, dtype=torch.int64),
    }
    return Message("states", {}, {**tensors, **changed})


WRONG_HELLO = {
    "another model": {"base": "cd" * 32},
    "behind block 2, this side behind 1": {"blocks": 2},
    "classes is '2'": {"classes": "2"},
    "0 examples of 2 classes": {"examples": 0},
    "spends must be a list": {"record": {"spends": None, "unrecorded": []}},
    "unexpected keyword": {"texts": ["all of them"]},
}


@pytest.mark.parametrize("reason", WRONG_HELLO)
def test_a_customer_of_other_terms_is_refused(
    reason: str, serve: Callable[[], tuple[Connection, Aside]], tmp_path: Path
) -> None:
    customer, vendor = serve()
    customer.send(Message("hello", {**vars(TERMS), **OFFER, **WRONG_HELLO[reason]}))
    customer.receive("hello")
    both_say(reason, customer, vendor)
    assert not (tmp_path / "out").exists()


WRONG_STATES = {
    "states have width 8, the model has 32": {"states": torch.zeros(2, 8)},
    "a label is none of 2 classes": {"labels": torch.tensor([2])},
    "together the number of states": {"lengths": torch.tensor([9])},
    "expected .'labels', 'lengths', 'states'": {"tokens": torch.tensor([1])},
}


@pytest.mark.parametrize("reason", WRONG_STATES)
def test_states_that_do_not_fit_are_refused_and_not_kept(
    reason: str, serve: Callable[[], tuple[Connection, Aside]], tmp_path: Path
) -> None:
    customer, vendor = offered(serve)
    customer.send(states(**WRONG_STATES[reason]))
    both_say(reason, customer, vendor)
    assert not list((tmp_path / "vendor").rglob("*.safetensors"))


def test_more_than_was_offered_is_refused(
    serve: Callable[[], tuple[Connection, Aside]],
) -> None:
    customer, vendor = offered(serve)
    customer.send(states(5))
    both_say("more than the 4 examples that were offered", customer, vendor)


def offered(serve: Callable[[], tuple[Connection, Aside]]) -> tuple[Connection, Aside]:
    customer, vendor = serve()
    customer.send(Message("hello", {**vars(TERMS), **OFFER}))
    customer.receive("hello")
    assert customer.receive("received").fields == {"examples": 0}
    return customer, vendor


def both_say(reason: str, customer: Connection, vendor: Aside) -> None:
    with pytest.raises(WireError) as told:
        customer.receive("nothing")
    error = vendor.result()
    assert isinstance(error, WireError)
    assert re.search(reason, str(error)), error
    assert str(told.value) == f"the vendor refused: {error}"


LIES: dict[str, list[Message]] = {
    "holds 99 of 24 examples|has no batch that begins at example 99": [
        Message("received", {"examples": 99})
    ],
    "cannot be used: 'examples'": [Message("received")],
    "sent 'answers', expected progress or trained": [
        Message("received", {"examples": 24}),
        Message("answers"),
    ],
}


@pytest.mark.parametrize("reason", LIES)
def test_a_vendor_that_says_what_cannot_be_is_refused(
    reason: str, base: Checkpoint, tmp_path: Path
) -> None:
    at = line()
    sent = tiny.sent(base, 1, tmp_path / "customer")
    with socket.create_server((at.host, at.port)) as server:
        customer = Aside(CustomerSession(at, TERMS, Offer(**{**OFFER, "examples": 24}), sent).run)
        link, _ = server.accept()
        with link:
            vendor = at.connection(link, "vendor")
            vendor.send(Message("hello", vars(TERMS)))
            vendor.receive("hello")
            for message in LIES[reason]:
                vendor.send(message)
            with pytest.raises(WireError, match="the customer refused: "):
                vendor.receive("nothing")
        error = customer.result()
    assert isinstance(error, WireError)
    assert re.search(reason, str(error)), error


def test_who_does_not_come_is_not_waited_for_longer(base: Checkpoint, tmp_path: Path) -> None:
    def never(offer: Offer) -> Any:
        pytest.fail("nobody came")

    at = line(wait_s=0.3)
    with pytest.raises(WireError, match=r"no customer came within wait_s=0\.3"):
        VendorSession(at, TERMS, never, tmp_path / "out").serve()
    session = CustomerSession(at, TERMS, Offer(**OFFER), StateFolder(tmp_path / "sent", {}))
    with pytest.raises(WireError, match=r"no vendor at 127.* \(Connection refused\) within wait"):
        session.run()
