"""The matrix as a page of the docs."""

import re
import textwrap
from collections import Counter
from collections.abc import Mapping

import transformers
from transformers.models.auto.configuration_auto import CONFIG_MAPPING

from experiments.benchmarks.conformance.rows import CAPABILITIES, Row
from experiments.runs.markdown import markdown_table

_HEAD = """# Every model type

Written by `python -m experiments.benchmarks.conformance`; do not edit.

Each type that transformers {version} knows is built tiny, with random weights far from fresh ones,
and two experts beside it. **merge**: task arithmetic and TIES, saved, reloaded through its Auto
class: every tensor equals plain float64 arithmetic to a few float32 roundings, tied tensors,
buffers and the file's names and shapes are the base's. **likelihoods** and **generation**, of
all that write (encoder-decoders read the prompts): the engine's log-likelihoods and greedy texts
of unequal prompts, alone and in batches, with and without common beginnings, equal transformers'
own, one by one. **population**: two candidates that differ in low-rank factors of every matrix,
asked together, equal each by itself.
{mergekit}Each comparison is made with a wrong model as well, which must not pass. *refused*: said
in one sentence before work starts; the reasons stand below. An empty cell: does not apply.
"""
_MERGEKIT = """**mergekit**: the same check of task arithmetic by mergekit 0.1.5 under the same
transformers; its reasons are in `experiments/benchmarks/conformance/rows.jsonl`.
"""


def page(rows: Mapping[str, Row]) -> str:
    """Returns the page in Markdown."""
    built = [row for row in rows.values() if "cells" in row]
    beside = any("mergekit" in row["cells"] for row in built)
    columns = [name for name in CAPABILITIES if beside or name != "mergekit"]
    mergekit = _MERGEKIT if beside else ""
    head = ["type", "class", *columns, "engine"]
    parts = [
        _HEAD.format(version=transformers.__version__, mergekit=mergekit),
        sentence(rows) + "\n\n" + summary(rows),
        markdown_table(head, [_cells(row, columns) for row in built], "l" * len(head)),
        "## Why refused or wrong\n\n" + _reasons(built),
        "## Not built\n\n" + _not_built(rows),
    ]
    return "\n\n".join(parts) + "\n"


def sentence(rows: Mapping[str, Row]) -> str:
    """Returns how many types there are and what came of them, as README says it."""
    built = [row for row in rows.values() if "cells" in row]
    came = Counter(map(verdict, built))
    untried = len([*CONFIG_MAPPING]) - len(rows)
    return (
        f"Of the {len([*CONFIG_MAPPING])} model types of transformers {transformers.__version__}, "
        + (f"{untried} of which have not been tried yet, " if untried else "")
        + f"{len(built)} are built tiny: {came['right']} are right in all that they can do, "
        f"{came['refused']} are refused in part, by name with the reason, {came['wrong']} are "
        "wrong."
    )


def told(readme: str, rows: Mapping[str, Row]) -> str:
    """Returns README with the sentence as it is now."""
    said = textwrap.fill(sentence(rows), 140, subsequent_indent="  ")
    return re.sub(r"Of the \d+ model types .*? wrong\.", said, readme, flags=re.DOTALL)


def verdict(row: Row) -> str:
    """Returns the worst that a type which is built came to here: right, refused or wrong."""
    words = [_word(cell) for name, cell in row["cells"].items() if name != "mergekit"]
    return max(words, key=("right", "refused", "wrong").index)


def summary(rows: Mapping[str, Row]) -> str:
    """Returns how many came to what, column by column."""
    built = [row for row in rows.values() if "cells" in row]
    lines = []
    for name in CAPABILITIES:
        counts = Counter(_word(row["cells"][name]) for row in built if name in row["cells"])
        if counts:
            said = ", ".join(f"{count} {word}" for word, count in sorted(counts.items()))
            lines.append(f"- {name}: {said}")
    return "\n".join(lines)


def _word(cell: str) -> str:
    return cell.partition(":")[0]


def _cells(row: Row, columns: list[str]) -> list[str]:
    cells = [_word(row["cells"].get(name, "")) for name in columns]
    return [f"`{row['type']}`", row["class"], *cells, "; ".join(row["notes"])]


def _reasons(built: list[Row]) -> str:
    """Returns each reason once, with the types that it holds for."""
    who: dict[str, list[str]] = {}
    for row in built:
        for name, cell in row["cells"].items():
            if _word(cell) != "right" and name != "mergekit":
                said = cell.replace(row["class"] or "\0", "CLASS")
                who.setdefault(f"{name} {said}", []).append(row["type"])
    return "\n".join(f"- {said}: {_listed(types)}" for said, types in sorted(who.items()))


def _not_built(rows: Mapping[str, Row]) -> str:
    who: dict[str, list[str]] = {}
    for row in rows.values():
        if "not built" in row:
            who.setdefault(row["not built"], []).append(row["type"])
    return "\n".join(f"- {said}: {_listed(types)}" for said, types in sorted(who.items()))


def _listed(types: list[str]) -> str:
    return ", ".join(f"`{name}`" for name in types)
