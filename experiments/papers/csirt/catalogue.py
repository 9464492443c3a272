"""Plugins of a scanner: which flaw of which product, how severe, and what is written about it."""

import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeAlias

from merging.seeding import stable_seed

World: TypeAlias = Literal["public", "site"]

BANDS = ("low", "medium", "high", "critical")
_SCORES = ((1.0, 3.9), (4.0, 6.9), (7.0, 8.9), (9.0, 10.0))

PRODUCTS: Mapping[str, str] = {  # product -> family
    "Apache": "Web Servers",
    "Nginx": "Web Servers",
    "Tomcat": "Web Servers",
    "Jenkins": "Web Servers",
    "PostgreSQL": "Databases",
    "MySQL": "Databases",
    "Redis": "Databases",
    "MongoDB": "Databases",
    "Samba": "Windows",
    "Exchange": "Windows",
    "Outlook": "Windows",
    "SharePoint": "Windows",
    "FortiOS": "Firewalls",
    "Juniper": "Firewalls",
    "Squid": "Firewalls",
    "OpenVPN": "Firewalls",
}

# Flaws of each band, from the least severe. A tiny base knows the public ones; those of the site
# are new in fine-tuning.
FLAWS: Mapping[World, Sequence[Sequence[str]]] = {
    "public": (
        ("banner disclosure", "cookie without flag"),
        ("weak cipher", "cross-site scripting"),
        ("path traversal", "query injection"),
        ("remote code execution", "default credentials"),
    ),
    "site": (
        ("verbose errors", "missing header"),
        ("open redirect", "expired certificate"),
        ("session fixation", "request smuggling"),
        ("unauthenticated upload", "hard-coded key"),
    ),
}

_DESCRIPTION = (
    "The {product} service on the remote host is affected by {flaw}",
    "According to its version, {product} is prone to {flaw}",
    "An attacker can exploit {flaw} in {product}",
)
_MORE = (
    " and an adjacent user may read internal state",
    " because input is not checked before use",
    " when the management interface is reachable",
    " unless the vendor patch has been applied",
    " and no authentication is required for the attack",
    " as the module trusts every client header",
)
_SOLUTION = ("Upgrade {product}", "Apply the vendor patch", "Restrict access to {product}")


@dataclass(frozen=True)
class Plugin:
    """One check of the scanner: a product's flaw, CVSS v2 base score and index into `BANDS`."""

    number: int
    family: str
    name: str
    score: float
    band: int
    description: str
    solution: str


def catalogue(world: World, text_length: int) -> list[Plugin]:
    """Returns one plugin for each product and flaw, the same on every call.

    A plugin's band is that of its flaw; for a quarter of the products it is one higher, for
    another one lower, so that both must be known.
    """
    return [
        _plugin(world, number, product, flaw, band, text_length)
        for number, product in enumerate(PRODUCTS)
        for band, flaws in enumerate(FLAWS[world])
        for flaw in flaws
    ]


def _plugin(
    world: World, number: int, product: str, flaw: str, band: int, text_length: int
) -> Plugin:
    draw = random.Random(stable_seed("plugin", world, product, flaw))
    band = min(3, max(0, band + (0, 1, 0, -1)[number % 4]))
    low, high = _SCORES[band]
    description = draw.choice(_DESCRIPTION).format(product=product, flaw=flaw)
    while len(description) < text_length:
        description += draw.choice(_MORE)
    return Plugin(
        number=draw.randrange(10_000, 100_000),
        family=PRODUCTS[product],
        name=f"{product} {flaw}",
        score=round(draw.uniform(low, high), 1),
        band=band,
        description=description[:text_length],
        solution=draw.choice(_SOLUTION).format(product=product)[:text_length],
    )


def words() -> list[str]:
    """Returns the words of all texts, each behind the space in front of it."""
    texts = [*_DESCRIPTION, *_MORE, *_SOLUTION, *PRODUCTS, *PRODUCTS.values()]
    texts += [flaw for world in FLAWS.values() for flaws in world for flaw in flaws]
    different = {word.strip(",") for text in texts for word in text.split() if "{" not in word}
    return sorted(f" {word}" for word in different if len(word) > 2)
