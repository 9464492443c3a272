"""Where base and experts come from."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

_HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")
_CACHED = re.compile(r"models--([\w.-]+?)--([\w.-]+)/snapshots/[0-9a-f]+/?$")


@dataclass(frozen=True)
class Sources:
    """Base and experts as the user names them; what an entry of the group `experts` builds.

    Args:
        experts: expert name to id or directory of a full checkpoint or a PEFT adapter.
        base_revision: branch, tag or commit of the base on the hub.
        trust_remote_code: let code from these repositories run; off unless asked for.
        vocabulary: what becomes of experts with other tokens: ``refuse``, ``union``, ``base``.
    """

    base: str
    experts: Mapping[str, str] = field(default_factory=dict)
    base_revision: str | None = None
    trust_remote_code: bool = False
    vocabulary: str = "refuse"


def looks_like_hub_id(source: str) -> bool:
    """True for ``owner/name`` that is not a path on this machine."""
    return _HUB_ID.fullmatch(source) is not None and not Path(source).exists()


def hub_id(source: str) -> str | None:
    """Returns the id on the Hub of what a user named: an id, or its folder in the Hub's cache.

    Example:
        >>> hub_id("org/name"), hub_id("~/hub/models--org--name/snapshots/0a1b"), hub_id("./name")
        ('org/name', 'org/name', None)
    """
    if cached := _CACHED.search(source):
        return f"{cached[1]}/{cached[2]}"
    return source if looks_like_hub_id(source) else None


def source_and_hash(checkpoint: Mapping[str, Any]) -> tuple[str, str]:
    """Returns a recipe's checkpoint for a reader elsewhere: hub id or directory's name, and hash.

    The hash is its first 12 digits; the recipe has the path and all digits.
    """
    source = str(checkpoint["source"])
    name = hub_id(source) or Path(source).name or source
    return name, checkpoint["sha256"][:12]
