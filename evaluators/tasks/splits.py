"""One file's items shared out over search, selection and held-out, by seed and not by place."""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from evaluators.split import Split

PANELS: tuple[Split, ...] = ("search", "selection", "report")
_MOST: Mapping[Split, int] = {"search": 100, "selection": 100, "report": 1000}
_OPTIONS: Mapping[Split, str] = {"report": "held_out"}  # where it is named otherwise


@dataclass(frozen=True)
class ItemDraw:
    """Which items of a task one panel takes: those of its part of one seeded order of them all.

    Equal items count once, so that none stands on two panels, and every part of the order holds
    each label in proportion. The order rests on the items' content, not on their place.

    Numbers that are None share what the others leave: a quarter each for search and selection
    (half each where held-out items have a split of their own, and half for the first of two), at
    most 100; the rest is held out, at most 1000.

    Args:
        search: items that rank candidates.
        selection: for the second look.
        held_out: read once, at the end.
        seed: of the draw alone, so that searches with other seeds share their items.
    """

    panel: Split
    search: int | None = None
    selection: int | None = None
    held_out: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        for option in ("search", "selection", "held_out"):
            size = getattr(self, option)
            if size is not None and (not isinstance(size, int) or size < 1):
                raise ValueError(f"{option} must be null or a number of items, got {size!r}")

    def part(self, found: int, what: str, among: Sequence[Split] = PANELS) -> slice:
        """Returns the panel's part of the order of `found` items that panels `among` share.

        Raises:
            ValueError: there are too few; says how many and what takes fewer.
        """
        sizes = self._sizes(found, among)
        if sum(sizes.values()) > found or min(sizes.values()) < 1:
            wanted = ", ".join(f"{_OPTIONS.get(p, p)} {max(size, 1)}" for p, size in sizes.items())
            raise ValueError(
                f"{what} has {found} distinct items, which do not suffice for {wanted}: ask for "
                "fewer (search:, selection: and held_out: of its task), or give it more items"
            )
        place = list(among).index(self.panel)
        start = sum(sizes[panel] for panel in among[:place])
        return slice(start, start + sizes[self.panel])

    def _sizes(self, found: int, among: Sequence[Split]) -> dict[Split, int]:
        asked = {panel: getattr(self, _OPTIONS.get(panel, panel)) for panel in among}
        free = found - sum(size for size in asked.values() if size is not None)
        own = [panel for panel in among if asked[panel] is None]
        left = free
        for panel in own:  # 1/4, 1/4 and the rest of three; 1/2 and the rest of two
            size = left if panel == own[-1] else free // (2 * (len(own) - 1))
            asked[panel] = min(_MOST[panel], size)
            left -= asked[panel]
        return asked


def ordered(digests: Sequence[str], labels: Sequence[object], seed: int) -> list[int]:
    """Returns one index of each distinct digest, in an order that `seed` and the digests give.

    Stratified: of n items with a label, one falls at random into each n-th of the order, so that
    any stretch of it holds the label in proportion, within two items.

    Example:
        >>> [i // 4 for i in ordered("abcdefgh", [0] * 4 + [1] * 4, 0)]
        [0, 1, 1, 0, 1, 0, 1, 0]
    """
    first: dict[str, int] = {}
    for index, digest in enumerate(digests):
        first.setdefault(digest, index)
    strata: dict[str, list[tuple[int, int, int]]] = defaultdict(list)
    for digest, index in first.items():
        hashed = hashlib.blake2b(f"{seed} {digest}".encode(), digest_size=16).digest()
        rank, jitter = int.from_bytes(hashed[:8], "big"), int.from_bytes(hashed[8:], "big")
        strata[str(labels[index])].append((rank, jitter, index))
    places = []
    for members in strata.values():
        for number, (rank, jitter, index) in enumerate(sorted(members)):
            places.append(((number + jitter / 2**64) / len(members), rank, index))
    return [index for _, _, index in sorted(places)]
