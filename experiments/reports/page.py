"""A self-contained HTML page: style, tables and text, nothing fetched from anywhere."""

from collections.abc import Sequence
from dataclasses import dataclass
from html import escape

_STYLE = """
:root { color-scheme: light; --ink: #1f2933; --muted: #66727f; --line: #e3e7eb; --good: #1b7f5c;
  --bad: #c2361f; --wash: #f6f8fa; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 62rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink);
  font: 16px/1.55 system-ui, "Segoe UI", Roboto, "Helvetica Neue", sans-serif; background: #fff; }
h1 { font-size: 1.75rem; line-height: 1.25; margin: 0 0 .4rem; }
h2 { font-size: 1.2rem; margin: 2.6rem 0 .5rem; padding-top: .9rem;
  border-top: 1px solid var(--line); }
h3 { font-size: 1rem; margin: 1.4rem 0 .4rem; }
p { margin: .4rem 0 .8rem; max-width: 46rem; }
.muted, figcaption { color: var(--muted); font-size: .9rem; }
.verdict { border-left: 4px solid var(--muted); background: var(--wash); padding: .7rem 1rem;
  font-size: 1.06rem; margin: 1rem 0 1.2rem; max-width: none; }
.verdict.good { border-color: var(--good); }
.verdict.bad { border-color: var(--bad); }
.cards { display: flex; flex-wrap: wrap; gap: .7rem; margin: 0 0 1rem; padding: 0; }
.card { border: 1px solid var(--line); border-radius: 6px; padding: .55rem .9rem;
  min-width: 8rem; }
.card b { display: block; font-size: 1.35rem; font-variant-numeric: tabular-nums; }
.card span { color: var(--muted); font-size: .85rem; }
figure { margin: .6rem 0 1rem; overflow-x: auto; }
.scroll { overflow-x: auto; }
table { border-collapse: collapse; font-size: .92rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .7rem; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap; vertical-align: top; }
th { color: var(--muted); font-weight: 600; }
th:first-child, td:first-child, .text { text-align: left; }
.wrap { white-space: normal; overflow-wrap: break-word; }
th.wrap { max-width: 10.5rem; }
tr.mark td { background: #eaf6f1; }
td.best { font-weight: 700; }
td.failed { color: var(--bad); }
pre { background: var(--wash); border: 1px solid var(--line); border-radius: 6px;
  padding: .7rem 1rem; overflow-x: auto; font-size: .88rem; }
svg text { user-select: text; }
@media print { body { max-width: none; padding: 0; } h2, figure, tr { break-inside: avoid; } }
"""


@dataclass(frozen=True)
class TableCell:
    """A table cell.

    Args:
        style: CSS classes.
        hint: what a pointer resting on the cell shows.
    """

    text: str
    style: str = ""
    hint: str = ""


Row = Sequence[TableCell | str]
"""Of a table; a plain text is a cell without style."""


def table(head: Row, rows: Sequence[Row], marked: Sequence[int] = ()) -> str:
    """Returns an HTML table, without a head where it is empty; `marked` rows are highlighted."""
    lines = [f"<tr>{_cells(head, 'th')}</tr>"] if head else []
    for index, row in enumerate(rows):
        mark = ' class="mark"' if index in marked else ""
        lines.append(f"<tr{mark}>{_cells(row, 'td')}</tr>")
    return '<div class="scroll"><table>\n' + "\n".join(lines) + "\n</table></div>"


def _cells(row: Row, tag: str) -> str:
    parts = []
    for cell in row:
        cell = TableCell(cell) if isinstance(cell, str) else cell
        style = f' class="{cell.style}"' if cell.style else ""
        hint = f' title="{escape(cell.hint)}"' if cell.hint else ""
        parts.append(f"<{tag}{style}{hint}>{escape(cell.text)}</{tag}>")
    return "".join(parts)


def figure(svg: str, caption: str) -> str:
    """Returns a chart with a caption below it."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def paragraph(text: str, style: str = "") -> str:
    """Returns a paragraph of plain text."""
    return f'<p class="{style}">{escape(text)}</p>' if style else f"<p>{escape(text)}</p>"


def section(title: str, *parts: str) -> str:
    """Returns a section of the page from finished HTML parts."""
    return "\n".join([f"<section><h2>{escape(title)}</h2>", *parts, "</section>"])


def page(title: str, *sections: str) -> str:
    """Returns the whole document from finished HTML sections."""
    head = (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">\n'
        '<meta name="viewport" content="width=device-width, initial-scale=1">\n'
        f"<title>{escape(title)}</title>\n<style>{_STYLE}</style></head>\n<body>\n"
    )
    return head + "\n".join(sections) + "\n</body></html>\n"
