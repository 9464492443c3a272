"""Vendor and customer over a connection: what is said, in which order, and how both go on."""

import socket
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from experiments.experts.split.states import StateFolder, States
from experiments.experts.split.vendor import Vendor
from experiments.experts.split.wire import Connection, Interrupted, Message, Side, WireError
from experiments.pseudonyms.pseudonyms import SecretKey
from merging.checkpoints.privacy_record import PrivacyRecord
from merging.privacy.ledger import Ledger

_PAUSE_S = 0.2
_CLASSES = 100_000


@dataclass(frozen=True)
class Terms:
    """What both sides must agree on before anything is sent.

    Args:
        base: sha256 of the whole model's weight files.
        blocks: of the bottom.
    """

    base: str
    blocks: int


@dataclass(frozen=True)
class Offer:
    """What a customer will send.

    Args:
        data: name of the data.
        upload: identity of the states, drawn when the first were noised.
        examples: how many are sent, with labels that count `classes`.
        record: privacy record of the states, as JSON.
    """

    data: str
    upload: str
    examples: int
    classes: int
    record: dict[str, Any]

    def __post_init__(self) -> None:
        for each in fields(self):
            kind = dict if each.name == "record" else each.type
            if type(value := getattr(self, each.name)) is not kind:
                raise ValueError(f"{each.name} is {value!r:.40}")
        if self.examples < 1 or not 2 <= self.classes <= _CLASSES:
            raise ValueError(f"{self.examples} examples of {self.classes} classes")
        PrivacyRecord.from_json(self.record)

    def ledger(self, base: Path) -> Ledger:
        """Returns what went into an expert that these states make of a base.

        Raises PrivacyRecordError: the base's record is broken.
        """
        ledger = Ledger.of_base(base, "the model it started from")
        return ledger.read(
            PrivacyRecord.from_json(self.record), "the states it was trained on", None
        )


@dataclass(frozen=True)
class Endpoint:
    """How to reach the other side.

    Args:
        timeout_s: longest time for a message.
        limit_bytes: of a message.
        wait_s: longest time until the other side comes, or comes back.
        tell: is given a sentence where something is waited for.
    """

    host: str
    port: int
    secret: SecretKey
    timeout_s: float = 60.0
    limit_bytes: int = 2**26
    wait_s: float = 600.0
    tell: Callable[[str], object] = print

    def connection(self, link: socket.socket, own: Side) -> Connection:
        """Returns the connection over a socket; raises as `Connection` does."""
        return Connection(
            link, self.secret, own, timeout_s=self.timeout_s, limit_bytes=self.limit_bytes
        )


@dataclass
class VendorSession:
    """A vendor that is asked for until a customer says that it has ended.

    Args:
        open_vendor: returns what trains on an offer; ValueError: it cannot.
        out: directory of the expert.
    """

    line: Endpoint
    terms: Terms
    open_vendor: Callable[[Offer], Vendor]
    out: Path
    _vendor: Vendor | None = field(default=None, init=False)

    def serve(self) -> None:
        """Listens, trains on what a customer sends, writes the expert and answers.

        Raises:
            WireError: a message had to be refused, by either side, or nobody came.
            OSError: the address cannot be listened on.
        """
        line = self.line
        with socket.create_server((line.host, line.port)) as listener:
            listener.settimeout(line.wait_s)
            line.tell(f"waiting for a customer at {line.host}:{listener.getsockname()[1]}")
            while True:
                try:
                    link, _ = listener.accept()
                except TimeoutError:
                    if self.out.exists():
                        line.tell(f"no customer came back; the expert is {self.out}")
                        return None
                    raise WireError(f"no customer came within wait_s={line.wait_s:g}") from None
                try:
                    with link:
                        return self._session(line.connection(link, "vendor"))
                except Interrupted as error:
                    line.tell(f"{error}: waiting for it to come back")

    def _session(self, connection: Connection) -> None:
        connection.send(Message("hello", asdict(self.terms)))
        hello = dict(connection.receive("hello").fields)
        _check_terms(connection, hello, self.terms)
        try:
            offer = Offer(**hello)
            vendor = self._vendor = self._vendor or self.open_vendor(offer)
            self._receive(connection, vendor, offer)
            self._train(connection, vendor)
            vendor.save(self.out, offer.ledger(vendor.base.path))
            connection.send(Message("trained", {"steps": len(vendor.losses)}))
            self._answer(connection, vendor)
        except (ValueError, TypeError) as error:
            raise connection.refused(f"what was sent cannot be used: {error}") from error

    def _receive(self, connection: Connection, vendor: Vendor, offer: Offer) -> None:
        while True:
            held = len(vendor.received)
            connection.send(Message("received", {"examples": held}))
            if held >= offer.examples:
                return
            sent = connection.receive("states").tensors
            states = States.read(sent, width=vendor.width, classes=vendor.classes)
            if held + len(states.lengths) > offer.examples:
                raise ValueError(f"more than the {offer.examples} examples that were offered")
            vendor.received.append(states)

    def _train(self, connection: Connection, vendor: Vendor) -> None:
        """Trains to the end, whoever listens; raises Interrupted at the end where nobody did."""
        lost: list[Interrupted] = []
        total = vendor.settings.schedule.steps

        def progress(steps: int) -> None:
            if not lost:
                try:
                    connection.send(Message("progress", {"steps": steps, "of": total}))
                except Interrupted as error:
                    lost.append(error)

        vendor.train(progress)
        if lost:
            raise lost[0]

    def _answer(self, connection: Connection, vendor: Vendor) -> None:
        while (asked := connection.receive("ask", "end")).kind == "ask":
            states = States.read(asked.tensors, width=vendor.width)
            logits = vendor.answer(states.apart()).contiguous()
            connection.send(Message("answers", {}, {"logits": logits}))
        connection.send(Message("end"))


@dataclass
class CustomerSession:
    """A customer with all that it may send, on disk.

    Args:
        sent: states with labels to be trained on.
        asked: states whose classes are asked for; None: none.
        on_progress: called with the steps done and all steps.
    """

    line: Endpoint
    terms: Terms
    offer: Offer
    sent: StateFolder
    asked: StateFolder | None = None
    on_progress: Callable[[int, int], object] = lambda steps, of: None
    _until: float = field(default=0.0, init=False)

    def run(self) -> Tensor:
        """Sends, waits for the training and asks; a vendor that goes is waited for.

        Returns:
            ``(examples, classes)`` logits of `asked`.

        Raises:
            WireError: a message had to be refused, by either side, or no vendor was there.
        """
        line = self.line
        self._heard()
        while True:
            try:
                with socket.create_connection((line.host, line.port), line.timeout_s) as link:
                    return self._session(line.connection(link, "customer"))
            except Interrupted as error:
                line.tell(f"{error}: trying again")
            except OSError as error:
                reason = error.strerror or str(error)
                self._check_patience(f"no vendor at {line.host}:{line.port} ({reason})")
            self._check_patience("the vendor did not come back")
            time.sleep(_PAUSE_S)

    def _session(self, connection: Connection) -> Tensor:
        connection.send(Message("hello", {**asdict(self.terms), **asdict(self.offer)}))
        _check_terms(connection, dict(connection.receive("hello").fields), self.terms)
        try:
            self._send(connection)
            while (told := connection.receive("progress", "trained")).kind == "progress":
                self._heard()
                self.on_progress(int(told.fields["steps"]), int(told.fields["of"]))
            asked = () if self.asked is None else self.asked.batches()
            logits = [self._ask(connection, states) for states in asked]
        except (ValueError, KeyError, TypeError) as error:
            raise connection.refused(f"what the vendor sent cannot be used: {error}") from error
        connection.send(Message("end"))
        connection.receive("end")
        return torch.cat(logits) if logits else torch.empty(0, self.offer.classes)

    def _send(self, connection: Connection) -> None:
        """Sends the states that the vendor does not hold yet."""
        while True:
            held = int(connection.receive("received").fields["examples"])
            self._heard()
            if held == self.offer.examples:
                return
            states = next(self.sent.batches(held), None)
            if states is None:
                raise ValueError(f"it holds {held} of {self.offer.examples} examples")
            connection.send(Message("states", {}, states.tensors()))

    def _ask(self, connection: Connection, states: States) -> Tensor:
        connection.send(Message("ask", {}, states.tensors()))
        logits = connection.receive("answers").tensors["logits"]
        self._heard()
        if logits.shape != (len(states.lengths), self.offer.classes):
            raise ValueError(f"logits of shape {tuple(logits.shape)}")
        return logits

    def _heard(self) -> None:
        self._until = time.monotonic() + self.line.wait_s

    def _check_patience(self, why: str) -> None:
        if time.monotonic() > self._until:
            raise WireError(f"{why} within wait_s={self.line.wait_s:g}")


def _check_terms(connection: Connection, hello: dict[str, Any], own: Terms) -> None:
    """Takes the terms out of a greeting; raises WireError where they are others than ours."""
    base, blocks = hello.pop("base", None), hello.pop("blocks", None)
    if base != own.base:
        raise connection.refused(
            f"the {connection.other} splits another model ({base!r:.14}...) than this side "
            f"({own.base[:12]}...): give both the same base"
        )
    if blocks != own.blocks:
        raise connection.refused(
            f"the {connection.other} splits behind block {blocks}, this side behind {own.blocks}: "
            "give both the same blocks"
        )
