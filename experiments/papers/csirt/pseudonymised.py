"""Records whose identifiers are replaced by keyed slugs."""

import hashlib
from collections.abc import Mapping

from experiments.papers.csirt.records import Scan
from experiments.pseudonyms.pseudonyms import Pseudonyms, SecretKey
from merging.seeding import stable_seed

FIELDS: Mapping[str, str] = {  # whatever identifies an asset, and the type of its slug
    "asset.name": "HOSTNAME",
    "asset.host_name": "HOSTNAME",
    "asset.display_fqdn": "HOSTNAME",
    "asset.display_ipv4_address": "IP_ADDRESS",
    "asset.display_ipv6_address": "IP_ADDRESS",
    "asset.display_mac_address": "MAC_ADDRESS",
    "asset.ipv4_addresses": "IP_ADDRESS",
    "scan.target": "IP_ADDRESS",
}


def pseudonyms_of(seed: int | str) -> Pseudonyms:
    """Returns the pseudonyms of a seed, whose key stands in no file.

    The experiment must repeat, so its key follows from the seed; a real one must not.
    """
    key = hashlib.sha256(repr(stable_seed("csirt", seed, "key")).encode()).digest()
    return Pseudonyms(SecretKey(key))


def pseudonymised(record: Scan, pseudonyms: Pseudonyms) -> Scan:
    """Returns the record with a slug in every field that identifies an asset."""
    return pseudonyms.record(record, FIELDS)
