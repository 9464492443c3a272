"""A model card against another of the same run, number by number."""

import re
from collections.abc import Collection, Sequence
from difflib import SequenceMatcher

_NUMBER = re.compile(r"(?<![\w.])[-+]?\d[\d,]*(?:\.\d+)?(?:e[-+]?\d+)?(?![\w])")


def count_numbers(card: str) -> int:
    """Returns how many numbers stand in a card."""
    return len(_NUMBER.findall(card))


def differences(card: str, again: str, tolerance: float = 0.0) -> list[str]:
    """Returns where a card says something else than one made again, a sentence each.

    Lines without digits may be added to a card, but none that hides or replaces what was made
    again, which must all stand in it.

    Args:
        tolerance: how far apart two numbers may lie.
    """
    ours, theirs = card.splitlines(), again.splitlines()
    keys = {key for at in range(len(theirs)) if (key := _key(theirs, at))}
    masked = [[_NUMBER.sub("\0", line) for line in lines] for lines in (ours, theirs)]
    matcher = SequenceMatcher(None, masked[0], masked[1], autojunk=False)
    found = []
    for kind, start, stop, first, last in matcher.get_opcodes():
        if kind == "equal":
            for here, there in zip(range(start, stop), range(first, last), strict=True):
                found += _in_line(ours, here, theirs[there], tolerance)
            continue
        more = [i for i in range(start, stop) if _says(ours, i, keys)]
        less = [i for i in range(first, last) if theirs[i].strip()]
        found += [f"{_where(ours, i)}: the run gives no such line" for i in more]
        found += [f"{_where(theirs, i)}: the card lacks it" for i in less]
    return found


def _says(lines: Sequence[str], at: int, keys: Collection[str]) -> bool:
    """Whether a line that was added changes what a reader, or the Hub, takes for measured."""
    return bool(re.search(r"\d|<!--", lines[at])) or _key(lines, at) in keys


def _key(lines: Sequence[str], at: int) -> str | None:
    """Returns the entry of the head that a line begins; of two, readers of YAML take the last."""
    found = re.match(r"[\"']?([\w-]+)[\"']?\s*:", lines[at])
    return found[1] if found and lines[:1] == ["---"] and "---" not in lines[1:at] else None


def _in_line(lines: Sequence[str], at: int, again: str, tolerance: float) -> list[str]:
    """Returns which numbers of one line differ."""
    line, cells = lines[at], lines[at].split(" | ")
    pairs = zip(_NUMBER.finditer(line), _NUMBER.finditer(again), strict=True)
    return [
        f"{_name(lines, at, line[: mine.start()].count(' | '), cells)}: {mine[0]} in the card, "
        f"{other[0]} made again"
        for mine, other in pairs
        if mine[0] != other[0] and not _near(mine[0], other[0], tolerance)
    ]


def _near(one: str, other: str, tolerance: float) -> bool:
    values = [float(text.replace(",", "")) for text in (one, other)]
    return abs(values[0] - values[1]) <= tolerance


def _name(lines: Sequence[str], at: int, column: int, cells: Sequence[str]) -> str:
    """Returns what a number is called: section, row and column, or the line that it stands in."""
    if not lines[at].startswith("| "):
        return _where(lines, at)
    top = at
    while top and lines[top - 1].startswith("| "):
        top -= 1
    head = lines[top].removeprefix("| ").removesuffix(" |").split(" | ")
    row = cells[0].removeprefix("| ").strip("*")
    return f"{_section(lines, at)}, {row}, {head[column]}"


def _where(lines: Sequence[str], at: int) -> str:
    return f"{_section(lines, at)}, {' '.join(lines[at].split())!r}"


def _section(lines: Sequence[str], at: int) -> str:
    """Returns the heading above a line; of the head, the metric it belongs to."""
    headings = [line for line in lines[: at + 1] if line.startswith("#")]
    if headings:
        return headings[-1].lstrip("# ")
    near = (line.strip() for line in (*lines[at + 1 : at + 2], *reversed(lines[:at])))
    named = (line.removeprefix("name: ") for line in near if line.startswith("name: "))
    return f"head, {name}" if (name := next(named, None)) else "head"
