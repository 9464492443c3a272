"""Identifiers of assets: organic ones, and canaries of two classes with unseen variants."""

import random
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypeAlias

Kind: TypeAlias = Literal["ipv4", "ipv6", "fqdn", "mac", "name"]
Class: TypeAlias = Literal["A", "B"]

KINDS: Sequence[Kind] = ("ipv4", "ipv6", "fqdn", "mac", "name")

_ROLES = ("web", "app", "db", "dc", "fw", "vpn", "mail", "file", "print", "build")
_SITES = ("lis", "opo", "gig", "gru", "mad", "cdg", "fra", "lhr", "jfk", "nrt", "syd", "yyz")
_DOMAINS = ("corp-net.org", "intra.acme.com", "hq.globex.net", "ops.initech.io")
_VENDORS = ("00:50:56", "00:0c:29", "3c:fd:fe", "f8:75:a4", "ac:1f:6b", "b8:27:eb")
_DOCUMENTATION = ("192.0.2", "198.51.100", "203.0.113")  # RFC 5737


def organic(kind: Kind, draw: random.Random) -> str:
    """Returns a value as an ordinary asset has it; class B canaries have the same look."""
    return _REALISTIC[kind](draw)


def candidates(kind: Kind, cls: Class, count: int, draw: random.Random) -> list[str]:
    """Returns different values of one format: a canary and its variants, say.

    Class A is anomalous, of documentation ranges and opaque names; B realistic.
    """
    make = (_ANOMALOUS if cls == "A" else _REALISTIC)[kind]
    different: dict[str, None] = {}
    while len(different) < count:
        different.setdefault(make(draw))
    return list(different)


def _hex(draw: random.Random, digits: int) -> str:
    return f"{draw.getrandbits(4 * digits):0{digits}x}"


def _groups(draw: random.Random, count: int) -> str:
    return ":".join(_hex(draw, 4) for _ in range(count))


def _mac_end(draw: random.Random) -> str:
    return ":".join(_hex(draw, 2) for _ in range(3))


def _private_ipv4(draw: random.Random) -> str:
    return f"10.{draw.randrange(256)}.{draw.randrange(256)}.{draw.randrange(1, 255)}"


def _unique_local_ipv6(draw: random.Random) -> str:
    return f"fd{_hex(draw, 2)}:{_groups(draw, 2)}::{_hex(draw, 4)}"


def _host(draw: random.Random) -> str:
    host = f"{draw.choice(_ROLES)}{draw.randrange(1000):03d}"
    return f"{host}.{draw.choice(_SITES)}.{draw.choice(_DOMAINS)}"


def _asset(draw: random.Random) -> str:
    role, site = draw.choice(_ROLES), draw.choice(_SITES)
    return f"{role.upper()}-{site.upper()}-{draw.randrange(10_000):04d}"


_REALISTIC: Mapping[Kind, Callable[[random.Random], str]] = {
    "ipv4": _private_ipv4,
    "ipv6": _unique_local_ipv6,
    "fqdn": _host,
    "mac": lambda draw: f"{draw.choice(_VENDORS)}:{_mac_end(draw)}",
    "name": _asset,
}
_ANOMALOUS: Mapping[Kind, Callable[[random.Random], str]] = {
    "ipv4": lambda draw: f"{draw.choice(_DOCUMENTATION)}.{draw.randrange(1, 255)}",
    "ipv6": lambda draw: f"2001:db8:{_groups(draw, 2)}::{_hex(draw, 4)}",  # RFC 3849
    "fqdn": lambda draw: f"canary-{_hex(draw, 8)}.example.net",
    "mac": lambda draw: f"02:00:00:{_mac_end(draw)}",
    "name": lambda draw: f"canary-{_hex(draw, 8)}",
}
