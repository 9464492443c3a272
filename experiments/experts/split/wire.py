"""Messages between two processes that share a secret; docs/split.md has the format."""

import hashlib
import hmac
import json
import secrets
import socket
import struct
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal, TypeAlias

import safetensors.torch
from safetensors import SafetensorError
from torch import Tensor

from experiments.pseudonyms.pseudonyms import SecretKey

PROTOCOL = 1
REFUSAL = "refusal"

_GREETING = f"evomerge split {PROTOCOL}\n".encode()
_NONCE_BYTES = 32
_MAC_BYTES = 32
_LENGTH = struct.Struct(">Q")
_HEAD = struct.Struct(">QI")  # counter, bytes of JSON
_LEAST_BYTES = _HEAD.size + _MAC_BYTES
_FIRST_BYTES = 2**16  # before the other side has shown that it knows the secret
_PIECE_BYTES = 2**20
_DRAIN_S = 5.0

Side: TypeAlias = Literal["customer", "vendor"]


class WireError(Exception):
    """A connection that must not go on; the message is one sentence that says why."""


class Interrupted(WireError):  # noqa: N818
    """The other side is gone or silent: it may come back, and everything goes on."""


@dataclass(frozen=True)
class Message:
    """One message: what kind, small values as JSON, and tensors by name."""

    kind: str
    fields: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, Tensor] = field(default_factory=dict)


class Connection:
    """Messages over a socket whose other end knows the same secret.

    Every message carries a code under keys of this connection and direction and its number, so
    that none can be changed, left out, sent again, or sent back. It is not encrypted.

    Args:
        own: which side this is.
        timeout_s: longest time in which a message must have come, or gone, completely.
        limit_bytes: largest message that is taken or sent.

    Raises:
        WireError: the other side speaks something else.
        Interrupted: it is gone or silent.
    """

    def __init__(
        self,
        link: socket.socket,
        secret: SecretKey,
        own: Side,
        *,
        timeout_s: float,
        limit_bytes: int,
    ) -> None:
        self.other: Side = "vendor" if own == "customer" else "customer"
        self._link, self._timeout_s, self._limit_bytes = link, timeout_s, limit_bytes
        self._sent = self._received = 0
        nonces = {own: secrets.token_bytes(_NONCE_BYTES)}
        self._write(_GREETING + nonces[own])
        deadline = time.monotonic() + timeout_s
        greeting = self._read(len(_GREETING), deadline, "its greeting")
        if greeting != _GREETING:
            link.close()
            raise WireError(
                f"the other side greets with {greeting!r:.60}, not as a {self.other} of protocol "
                f"{PROTOCOL} does: start the same version of evomerge on both sides"
            )
        nonces[self.other] = self._read(_NONCE_BYTES, deadline, "its greeting")
        both = f"{nonces['customer'].hex()} {nonces['vendor'].hex()}"
        self._keys = {
            side: bytes.fromhex(secret.digest(f"evomerge split {PROTOCOL} {side} {both}"))
            for side in nonces
        }
        self._own: Side = own

    def send(self, message: Message) -> None:
        """Sends a message; raises WireError where it is too large, Interrupted: nobody reads."""
        content = encoded(message, self._sent)
        size = len(content) + _MAC_BYTES
        if size > self._limit_bytes:
            raise self.refused(
                f"a message of {size} bytes ({message.kind}) is larger than limit_mb="
                f"{self._limit_bytes / 2**20:g} allows: raise it on both sides, or lower "
                "examples_per_message"
            )
        framed = _LENGTH.pack(size) + content
        self._write(framed + self._code(self._own, framed))
        self._sent += 1

    def receive(self, *kinds: str) -> Message:
        """Returns the next message, which must be of one of these kinds.

        Raises:
            WireError: it is too large, changed, out of order or of another kind, or the other
                side refused one of ours; it is told, but where it told us.
            Interrupted: it did not come completely.
        """
        deadline = time.monotonic() + self._timeout_s
        head = self._read(_LENGTH.size, deadline, f"its message {self._received}")
        (size,) = _LENGTH.unpack(head)
        limit = self._limit_bytes if self._received else min(_FIRST_BYTES, self._limit_bytes)
        if size > limit:
            raise self.refused(
                f"the {self.other} announces a message of {size} bytes, more than the {limit} "
                "that are taken: raise limit_mb on both sides, or lower examples_per_message"
            )
        if size < _LEAST_BYTES:
            raise self.refused(f"the {self.other} announces a message of {size} bytes: too few")
        content = self._read(size, deadline, f"its message {self._received}")
        body, code = content[:-_MAC_BYTES], content[-_MAC_BYTES:]
        if not hmac.compare_digest(code, self._code(self.other, head + body)):
            raise self._forged()
        message = self._decoded(body)
        self._received += 1
        if message.kind == REFUSAL:
            self._link.close()
            raise WireError(f"the {self.other} refused: {message.fields.get('why')}")
        if message.kind not in kinds:
            raise self.refused(
                f"the {self.other} sent {message.kind!r}, expected {' or '.join(kinds)}"
            )
        return message

    def refused(self, why: str) -> WireError:
        """Tells the other side why, as well as can be, closes, and returns the error to raise."""
        with suppress(OSError, WireError):
            self.send(Message(REFUSAL, {"why": why}))
            self._link.shutdown(socket.SHUT_WR)
            # Closed with bytes unread, the refusal might be lost with the connection.
            deadline = time.monotonic() + min(_DRAIN_S, self._timeout_s)
            while self._some(_PIECE_BYTES, deadline):
                pass
        self._link.close()
        return WireError(why)

    def _forged(self) -> WireError:
        if self._received:
            return self.refused(
                f"message {self._received} of the {self.other} was changed on its way, or is of "
                "another connection"
            )
        self._link.close()  # it could not read a refusal either, and finds the same of ours
        return WireError(
            f"the {self.other} does not know the secret: give both sides the same file or variable"
        )

    def _decoded(self, body: bytes) -> Message:
        counter, _ = _HEAD.unpack_from(body)
        if counter != self._received:
            raise self.refused(
                f"message {counter} of the {self.other} came in place of {self._received}: a "
                "message was sent again or left out"
            )
        try:
            return decoded(body)
        except (ValueError, SafetensorError) as error:
            raise self.refused(
                f"message {counter} of the {self.other} cannot be read ({error})"
            ) from error

    def _code(self, sender: Side, content: bytes) -> bytes:
        return hmac.digest(self._keys[sender], content, hashlib.sha256)

    def _write(self, content: bytes) -> None:
        try:
            self._link.settimeout(self._timeout_s)
            self._link.sendall(content)
        except TimeoutError as error:
            raise self._silent("did not take a message") from error
        except OSError as error:
            raise self._gone(error) from error

    def _read(self, count: int, deadline: float, what: str) -> bytes:
        pieces = bytearray()
        while len(pieces) < count:
            try:
                piece = self._some(min(_PIECE_BYTES, count - len(pieces)), deadline)
            except TimeoutError as error:
                raise self._silent(f"did not send {what}") from error
            except OSError as error:
                raise self._gone(error) from error
            if not piece:
                self._link.close()
                cut = f" in the middle of {what}" if pieces else ""
                raise Interrupted(f"the {self.other} closed the connection{cut}")
            pieces += piece
        return bytes(pieces)

    def _some(self, most: int, deadline: float) -> bytes:
        left_s = deadline - time.monotonic()
        if left_s <= 0:
            raise TimeoutError
        self._link.settimeout(left_s)
        return self._link.recv(most)

    def _silent(self, what: str) -> Interrupted:
        self._link.close()
        return Interrupted(f"the {self.other} {what} within timeout_s={self._timeout_s:g}")

    def _gone(self, error: OSError) -> Interrupted:
        self._link.close()
        return Interrupted(f"the connection to the {self.other} broke ({error.strerror or error})")


def encoded(message: Message, counter: int) -> bytes:
    """Returns a message as bytes: counter, length of the JSON, the JSON, safetensors."""
    text = json.dumps({"kind": message.kind, **message.fields}).encode()
    tensors = safetensors.torch.save(dict(message.tensors)) if message.tensors else b""
    return _HEAD.pack(counter, len(text)) + text + tensors


def decoded(content: bytes) -> Message:
    """Returns the message that `encoded` wrote; ValueError or SafetensorError: it is none."""
    _, json_bytes = _HEAD.unpack_from(content)
    text, tensors = content[_HEAD.size :][:json_bytes], content[_HEAD.size + json_bytes :]
    fields = json.loads(text)
    if not isinstance(fields, dict) or not isinstance(fields.get("kind"), str):
        raise ValueError("its JSON is no object with a kind")
    kind = fields.pop("kind")
    return Message(kind, fields, safetensors.torch.load(tensors) if tensors else {})
