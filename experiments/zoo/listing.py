"""``evomerge zoo list``: what a zoo holds, what it costs and who shares what."""

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.compare.text import TextTable
from experiments.zoo.names import verb
from experiments.zoo.needs import made_from, needs_of, plain_sizes
from experiments.zoo.promises import Json, drawn_of, in_short, ledger_of, listed
from experiments.zoo.sizes import counted, size_text
from merging.checkpoints.mechanisms import PrivacyRecordError
from merging.zoo.sharing import Sharing, sharing
from merging.zoo.store import Zoo, ZooModel

_HEAD = ("model", "kind", "as files", "needs", "its part", "alone", "base", "ε")
_NOTE = (
    "as files: its plain files (a recipe's: its base's); needs: stored bytes that it is read "
    "from, a recipe's with its ingredients'; its part: these divided among all who need them; "
    "alone: what only it needs"
)


def list_models(directory: Path | None, *, as_json: bool, plot: Path | None) -> str:
    """Returns the table of a zoo's models, or JSON; draws who shares what where `plot` says."""
    zoo = Zoo.open(directory)
    models = zoo.models()
    made = made_from(zoo, models)
    needs, plain = needs_of(zoo, made), plain_sizes(models, made)
    shared = sharing(needs)
    if plot is not None:
        from experiments.zoo.plot import draw

        draw(models, needs, plain, plot)
    ledgers = {model.name: listed(ledger_of, zoo, model) for model in models}
    drawn = {model.name: listed(drawn_of, zoo, model) for model in models}
    if as_json:
        rows = [
            {
                **_numbers(zoo, model, shared, index, plain),
                "privacy": _json(ledgers[model.name]),
                "drawn": _json(drawn[model.name]),
            }
            for index, model in enumerate(models)
        ]
        content = {"zoo": str(zoo.directory), "stored_bytes": shared.total, "models": rows}
        return json.dumps(content, indent=2)
    if not models:
        return f"{zoo.directory} is empty: {verb(zoo, 'add')} DIR"
    cells = [
        (
            *_sizes(model, shared, index, plain[model.name]),
            in_short(ledgers[model.name])
            + (f" (drawn: {in_short(drawn[model.name])})" if drawn[model.name] else ""),
        )
        for index, model in enumerate(models)
    ]
    table = TextTable(_HEAD, cells).aligned()
    return "\n".join([table, "", _total(zoo, shared, plain), _NOTE])


def _sizes(
    model: ZooModel, shared: Sharing, index: int, plain_bytes: int | None
) -> tuple[str, ...]:
    return (
        model.name,
        model.kind,
        size_text(plain_bytes),
        size_text(int(shared.shared[index, index])),
        size_text(round(shared.parts[index])),
        size_text(int(shared.own[index])),
        model.base or "",
    )


def _numbers(
    zoo: Zoo,
    model: ZooModel,
    shared: Sharing,
    index: int,
    plain: Mapping[str, int | None],
) -> dict[str, Any]:
    with_whom = {
        name: int(size)
        for name, size in zip(shared.names, shared.shared[index].tolist(), strict=True)
        if size and name != model.name
    }
    return {
        **asdict(model),
        "own_bytes": int(shared.own[index]),
        "source": f"zoo:{zoo.directory}/{model.name}",
        "plain_bytes": plain[model.name],
        "needed_bytes": int(shared.shared[index, index]),
        "part_bytes": float(shared.parts[index]),
        "shared_bytes": with_whom,
    }


def _json(ledger: Json | PrivacyRecordError | None) -> Json | None:
    return {"error": str(ledger)} if isinstance(ledger, PrivacyRecordError) else ledger


def _total(zoo: Zoo, shared: Sharing, plain: Mapping[str, int | None]) -> str:
    whole = sum(size for size in plain.values() if size is not None)
    times = f", {whole / shared.total:.1f} times as much" if shared.total else ""
    return (
        f"{zoo.directory}: {counted(len(plain), 'model')} in {size_text(shared.total)}; "
        f"as plain files {size_text(whole)}{times}"
    )
