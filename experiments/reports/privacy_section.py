"""What the ledger of a merge says, in reports, model cards, tables and checks."""

from collections.abc import Mapping
from typing import Any

from experiments.reports.page import Row, TableCell, paragraph, section, table
from experiments.runs.files import Json

_UNKNOWN = (
    "Not private: the experts carry no privacy record, so nothing is guaranteed about the data "
    "they were trained on or the data the search read."
)


def privacy_section(recipe: Json | None) -> str:
    """Returns the report's section on privacy: the ledger in words, then its numbers."""
    words = privacy_words(recipe)
    ledger = (recipe or {}).get("privacy") or {}
    tone = "verdict bad" if words[0].startswith("Not private") else "verdict"
    parts = [paragraph(words[0], tone), *map(paragraph, words[1:])]
    if ledger.get("data_sets"):
        parts.append(_promises(ledger["data_sets"]))
        parts.append("<h3>What it is made of</h3>" + _spends(ledger["spends"]))
    return section("Privacy", *parts)


def privacy_words(recipe: Json | None) -> list[str]:
    """Returns what a recipe's ledger says in words; at least one sentence."""
    ledger = (recipe or {}).get("privacy") or {}
    return list(ledger.get("words") or [_UNKNOWN])


def privacy_lines(ledger: Json | None) -> list[str]:
    """Returns a ledger for the terminal, a line per sentence; none where nothing has a record."""
    if not ledger or not ledger.get("data_sets"):
        return []
    return [f"Privacy: {line}" for line in ledger["words"]]


def _promises(data_sets: Mapping[str, Any]) -> str:
    head = ["data set", "unit", "ε", "δ", "by", "sum ε", "RDP ε", "releases", "group", "group ε"]
    rows: list[Row] = []
    for name, promise in data_sets.items():
        if promise is None:
            continue
        rdp, group = promise["rdp"] or {}, promise["group"] or {}
        rows.append(
            [
                TableCell(name, "text wrap"),
                TableCell(f"{promise['unit']}, {promise['relation']}", "text"),
                TableCell(_epsilon(promise), "best"),
                TableCell(_number(promise["delta"]), "best"),
                TableCell(promise["how"], "text"),
                _epsilon(promise["sum"]),
                _number(rdp.get("epsilon")),
                str(promise["releases"]),
                str(promise["group_size"]),
                "none" if group.get("delta") == 1 else _number(group.get("epsilon")),
            ]
        )
    return table(head, rows)


def _spends(spends: Any) -> str:
    head = ["what", "data set", "ε", "δ", "accountant", "mechanisms known"]
    rows = [
        [
            TableCell(spend["what"], "text wrap"),
            TableCell(spend["dataset"], "text wrap"),
            _epsilon(spend),
            _number(spend["delta"]),
            TableCell(f"{spend['accountant']} {spend['accountant_version']}", "text wrap"),
            "no" if spend["mechanisms"] is None else "yes",
        ]
        for spend in spends
    ]
    return table(head, rows)


def _epsilon(price: Mapping[str, Any]) -> str:
    return "none" if price["epsilon"] is None else _number(price["epsilon"])


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
