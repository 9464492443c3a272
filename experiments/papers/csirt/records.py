"""Vulnerability-scan records with Tenable's field names, as compact JSON."""

import copy
import json
import random
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

from experiments.papers.csirt.catalogue import BANDS, Plugin
from experiments.papers.csirt.values import Kind, organic

Scan: TypeAlias = dict[str, Any]

FIELD_OF: Mapping[Kind, str] = {  # of the asset: where a canary of each kind goes
    "ipv4": "display_ipv4_address",
    "ipv6": "display_ipv6_address",
    "fqdn": "host_name",
    "mac": "display_mac_address",
    "name": "name",
}
_PORTS = (22, 80, 443, 445, 1433, 3306, 3389, 5432, 6379, 8080, 8443)
_SCORE_KEY = '"base_score":'


def scan(plugin: Plugin, draw: random.Random, *, copies: bool) -> Scan:
    """Returns one finding on one random asset.

    With `copies` the fields ``display_fqdn``, ``ipv4_addresses`` and ``scan.target`` repeat the
    asset's identifiers.
    """
    asset: dict[str, Any] = {field: organic(kind, draw) for kind, field in _ASSET}
    record: Scan = {"asset": asset}
    if copies:
        asset["display_fqdn"] = asset["host_name"]
        asset["ipv4_addresses"] = [asset["display_ipv4_address"]]
        record["scan"] = {"target": asset["display_ipv4_address"]}
    record["definition"] = {
        "id": plugin.number,
        "family": plugin.family,
        "name": plugin.name,
        "cvss2": {"base_score": plugin.score},
        "description": plugin.description,
        "solution": plugin.solution,
    }
    record["severity"] = BANDS[plugin.band]
    record["port"] = draw.choice(_PORTS)
    return record


_ASSET: Sequence[tuple[Kind, str]] = tuple(
    (kind, FIELD_OF[kind]) for kind in ("name", "fqdn", "ipv4", "ipv6", "mac")
)


def scans(
    plugins: Sequence[Plugin], count: int, draw: random.Random, *, copies: bool
) -> list[Scan]:
    """Returns records with as many of each CVSS band as of any other, in random order."""
    of_band = [[plugin for plugin in plugins if plugin.band == b] for b in range(len(BANDS))]
    chosen = [draw.choice(of_band[number % len(BANDS)]) for number in range(count)]
    draw.shuffle(chosen)
    return [scan(plugin, draw, copies=copies) for plugin in chosen]


def planted(record: Scan, kind: Kind, value: str) -> Scan:
    """Returns a copy of the record with `value` in the field of `kind`, and nowhere else."""
    changed = copy.deepcopy(record)
    changed["asset"][FIELD_OF[kind]] = value
    return changed


def text_of(record: Scan) -> str:
    """Returns the record as compact JSON."""
    return json.dumps(record, separators=(",", ":"))


def span_of(record: Scan, kind: Kind) -> tuple[int, int]:
    """Returns where in the record's text the value of `kind` stands: first character, and end."""
    field = FIELD_OF[kind]
    opening = f'"{field}":"'
    start = text_of(record).index(opening) + len(opening)
    return start, start + len(record["asset"][field])


def band_of(record: Scan) -> int:
    """Returns the index of the record's band."""
    return BANDS.index(record["severity"])


def question_of(record: Scan) -> tuple[str, str]:
    """Returns the text up to the base score, and what stands behind it up to the next value."""
    text = text_of(record)
    start = text.index(_SCORE_KEY) + len(_SCORE_KEY)
    end = text.index("}", start)
    behind = text.index('":', end) + 3
    return text[:start], text[end:behind]


def skeleton() -> list[str]:
    """Returns what stands between the values of a record, with and without copies."""
    return [
        '{"asset":{"name":"',
        '","host_name":"',
        '","display_ipv4_address":"',
        '","display_ipv6_address":"',
        '","display_mac_address":"',
        '","display_fqdn":"',
        '","ipv4_addresses":["',
        '"]},"scan":{"target":"',
        '"},"definition":{"id":',
        ',"family":"',
        '","name":"',
        '","cvss2":{"base_score":',
        '},"description":"',
        '","solution":"',
        '"},"severity":"',
        '","port":',
    ]
