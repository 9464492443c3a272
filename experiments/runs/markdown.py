"""Markdown tables."""

from collections.abc import Iterable, Sequence


def markdown_table(head: Sequence[str], rows: Iterable[Sequence[str]], align: str = "lr") -> str:
    r"""Returns a table, one line per row; pipes and line ends inside a cell do not break it.

    Args:
        head: one cell for each column.
        rows: as many cells each.
        align: ``l`` or ``r`` for each column from the left, the last one for all that follow.

    Example:
        >>> print(markdown_table(["name", "score"], [["a|b", "0.5"]]))
        | name | score |
        | --- | --: |
        | a\|b | 0.5 |
    """
    sides = align.ljust(len(head), align[-1])
    rule = ["--:" if side == "r" else "---" for side in sides]
    lines = [[_cell(text) for text in line] for line in (head, *rows)]
    lines.insert(1, rule)
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(text: str) -> str:
    return " ".join(text.replace("\\", "\\\\").replace("|", "\\|").split())
