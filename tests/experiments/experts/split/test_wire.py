"""The wire: what one side sends the other reads; what is cut, changed or forged is refused."""

from __future__ import annotations

import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from experiments.experts.split.wire import Connection, Interrupted, Message, WireError
from experiments.pseudonyms.pseudonyms import SecretKey
from tests.experiments.experts.split.processes import Aside

SECRET = SecretKey(b"a secret of more than 16 bytes")
LIMIT = 2**20
GREETING = 17 + 32  # the protocol's name, and a nonce


@contextmanager
def ends() -> Iterator[tuple[socket.socket, socket.socket]]:
    near, far = socket.socketpair()
    with near, far:
        yield near, far


def connect(link: socket.socket, own: Any, **options: Any) -> Connection:
    return Connection(
        link,
        options.pop("secret", SECRET),
        own,
        **{"timeout_s": 5.0, "limit_bytes": LIMIT, **options},
    )


def joined(
    near: socket.socket, far: socket.socket, **options: Any
) -> tuple[Connection, Connection]:
    other = Aside(lambda: connect(far, "vendor"))
    customer = connect(near, "customer", **options)
    return customer, other.result()


def greeted(near: socket.socket, far: socket.socket) -> tuple[Connection, Connection]:
    customer, vendor = joined(near, far)
    customer.send(Message("hello"))
    vendor.receive("hello")
    return customer, vendor


def refusal(end: Connection) -> str:
    with pytest.raises(WireError) as error:
        end.receive("states")
    return str(error.value)


def both_refuse(
    customer: Connection,
    vendor: Connection,
    pattern: str,
    before: Callable[[], object] = lambda: None,
) -> None:
    """The vendor refuses what it was sent, and the customer reads the same sentence."""
    other = Aside(lambda: (before(), customer.receive("received")))
    with pytest.raises(WireError, match=pattern) as error:
        vendor.receive("states")
    assert str(other.result()) == f"the vendor refused: {error.value}"
    assert "\n" not in str(error.value)


def test_what_is_sent_is_read_on_the_other_side() -> None:
    tensors = {"states": torch.randn(5, 3), "labels": torch.arange(5)}
    with ends() as (near, far):
        customer, vendor = joined(near, far)
        for number in range(3):
            customer.send(Message("states", {"number": number}, tensors))
            read = vendor.receive("states")
            assert (read.kind, read.fields) == ("states", {"number": number})
            assert all(torch.equal(read.tensors[name], tensors[name]) for name in tensors)
            vendor.send(Message("received"))
            assert customer.receive("received").tensors == {}


def test_a_wrong_secret_is_refused_on_both_sides() -> None:
    other = SecretKey(b"another secret of 16 bytes")
    with ends() as (near, far):
        customer, vendor = joined(near, far, secret=other)
        customer.send(Message("hello"))
        vendor.send(Message("hello"))
        assert refusal(vendor).startswith("the customer does not know the secret")
        assert refusal(customer).startswith("the vendor does not know the secret")


def test_who_greets_otherwise_is_refused() -> None:
    with ends() as (near, far):
        far.sendall(b"GET / HTTP/1.1\r\nHost: localhost\r\n\r\n")
        with pytest.raises(WireError, match=r"greets with b'GET / .* same version of evomerge"):
            connect(near, "customer")
    with ends() as (near, far):
        far.sendall(b"evomerge split 2\n" + bytes(32))
        with pytest.raises(WireError, match="not as a vendor of protocol 1 does"):
            connect(near, "customer")


def test_too_large_a_message_is_refused_by_either_side_before_it_is_held() -> None:
    large = Message("states", {}, {"states": torch.zeros(LIMIT // 4)})
    with ends() as (near, far):
        customer, vendor = greeted(near, far)
        other = Aside(lambda: vendor.receive("states"))
        with pytest.raises(WireError, match=r"\(states\) is larger than limit_mb=1 allows"):
            customer.send(large)
        assert "larger than limit_mb=1 allows" in str(other.result())
    with ends() as (near, far):
        customer, vendor = joined(near, far, limit_bytes=2**24)
        customer.send(Message("hello"))
        vendor.receive("hello")
        announced = "announces a message of 10487.. bytes, more than the 1048576"
        both_refuse(customer, vendor, announced, before=lambda: customer.send(large))


def test_a_stranger_can_announce_little() -> None:
    with ends() as (near, far):
        customer, vendor = joined(near, far)
        near.sendall(struct.pack(">Q", 2**17))
        both_refuse(customer, vendor, "announces a message of 131072 bytes, more than the 65536")


def test_a_cut_message_is_not_read() -> None:
    with ends() as (near, far):
        _, vendor = greeted(near, far)
        near.sendall(struct.pack(">Q", 1000) + bytes(500))
        near.close()
        with pytest.raises(Interrupted, match="customer closed the connection in the middle of"):
            vendor.receive("states")


def test_every_message_has_a_time_however_slowly_its_bytes_come() -> None:
    with ends() as (near, far):
        other = Aside(lambda: connect(far, "vendor", timeout_s=0.5))
        connect(near, "customer")
        vendor = other.result()
        ended = threading.Event()

        def drip() -> None:
            near.sendall(struct.pack(">Q", 1000))
            while not ended.wait(0.1):
                near.sendall(b".")

        dripping = Aside(drip)
        with pytest.raises(Interrupted, match=r"did not send its message 0 within timeout_s=0\.5"):
            vendor.receive("states")
        ended.set()
        dripping.join()


def frames(near: socket.socket, far: socket.socket) -> tuple[Connection, Connection, bytes]:
    """Both sides, and a message of the customer's that nobody has read yet, as bytes."""
    customer, vendor = greeted(near, far)
    customer.send(Message("states", {"number": 1}, {"states": torch.ones(2, 2)}))
    return customer, vendor, far.recv(2**16)


def test_a_message_that_comes_again_is_refused() -> None:
    with ends() as (near, far):
        customer, vendor, sent = frames(near, far)
        near.sendall(sent + sent)
        assert vendor.receive("states").fields == {"number": 1}
        both_refuse(customer, vendor, "message 1 of the customer came in place of 2")


def test_a_message_left_out_is_noticed() -> None:
    with ends() as (near, far):
        customer, vendor, _ = frames(near, far)
        customer.send(Message("states"))
        both_refuse(customer, vendor, "message 2 of the customer came in place of 1")


@pytest.mark.parametrize("place", [8, 20, 40, -40, -1])
def test_a_changed_byte_is_noticed(place: int) -> None:
    with ends() as (near, far):
        customer, vendor, sent = frames(near, far)
        changed = bytearray(sent)
        changed[place] ^= 1
        near.sendall(changed)
        both_refuse(customer, vendor, "message 1 of the customer was changed on its way")


def test_messages_of_another_connection_or_direction_are_refused() -> None:
    with ends() as (near, far):
        _, _, sent = frames(near, far)
    with ends() as (near, far):
        customer, vendor = greeted(near, far)
        near.sendall(sent)
        both_refuse(customer, vendor, "was changed on its way, or is of another connection")
    with ends() as (near, far):
        customer, vendor = greeted(near, far)
        vendor.send(Message("received"))
        near.sendall(near.recv(2**16))  # what the vendor sent, sent back
        near.shutdown(socket.SHUT_WR)
        assert "was changed on its way" in refusal(vendor)


def test_an_unexpected_message_is_refused() -> None:
    with ends() as (near, far):
        customer, vendor = greeted(near, far)
        customer.send(Message("ask"))
        both_refuse(customer, vendor, "the customer sent 'ask', expected states")
