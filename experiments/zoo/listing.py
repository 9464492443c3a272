"""``evomerge zoo list``: what a zoo holds, what it costs and who shares what."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from experiments.compare.text import TextTable
from experiments.zoo.promises import in_short, ledger_of
from experiments.zoo.sizes import size_text
from merging.zoo.sharing import Sharing, needs_in, sharing
from merging.zoo.store import Zoo, ZooModel

_HEAD = ("model", "kind", "as files", "needs", "its part", "alone", "base", "ε")
_NOTE = (
    "as files: its plain files (a recipe's: its base's); needs: stored bytes that it is read "
    "from; its part: these divided among all who need them; alone: what removing it frees"
)


def list_models(directory: Path | None, *, as_json: bool, plot: Path | None) -> str:
    """Returns the table of a zoo's models, or JSON; draws who shares what where `plot` says."""
    zoo = Zoo.open(directory)
    models, needs = zoo.models(), needs_in(zoo.directory)
    shared = sharing(needs)
    plain = plain_sizes(zoo, models)
    if plot is not None:
        from experiments.zoo.plot import draw

        draw(models, needs, plain, plot)
    ledgers = {model.name: ledger_of(zoo, model) for model in models}
    if as_json:
        rows = [
            _numbers(zoo, model, shared, index, plain, ledgers[model.name])
            for index, model in enumerate(models)
        ]
        content = {"zoo": str(zoo.directory), "stored_bytes": shared.total, "models": rows}
        return json.dumps(content, indent=2)
    if not models:
        return f"{zoo.directory} is empty: evomerge zoo add DIR"
    needed = shared.shared.diagonal().tolist()
    table = TextTable(
        _HEAD,
        [
            (
                model.name,
                model.kind,
                size_text(plain[model.name]),
                size_text(needed[index]),
                size_text(round(shared.parts[index])),
                size_text(model.own_bytes),
                model.base or "",
                in_short(ledgers[model.name]),
            )
            for index, model in enumerate(models)
        ],
    )
    return "\n".join([table.aligned(), "", _total(zoo, shared, plain), _NOTE])


def plain_sizes(zoo: Zoo, models: Sequence[ZooModel]) -> dict[str, int]:
    """Returns the bytes of every model's plain files; of a recipe's, those of its base's."""
    known = {model.sha256: model.bytes for model in models}
    sizes = {model.name: model.bytes for model in models}
    for model in models:
        if model.kind == "recipe":
            sizes[model.name] = known.get(zoo.recipe(model.name)["base"]["sha256"], model.bytes)
    return sizes


def _numbers(
    zoo: Zoo,
    model: ZooModel,
    shared: Sharing,
    index: int,
    plain: Mapping[str, int],
    ledger: Mapping[str, Any] | None,
) -> dict[str, Any]:
    with_whom = {
        name: int(size)
        for name, size in zip(shared.names, shared.shared[index].tolist(), strict=True)
        if size and name != model.name
    }
    return {
        **asdict(model),
        "source": f"zoo:{zoo.directory}/{model.name}",
        "plain_bytes": plain[model.name],
        "needed_bytes": int(shared.shared[index, index]),
        "part_bytes": float(shared.parts[index]),
        "shared_bytes": with_whom,
        "privacy": ledger,
    }


def _total(zoo: Zoo, shared: Sharing, plain: Mapping[str, int]) -> str:
    whole = sum(plain.values())
    times = f", {whole / shared.total:.1f} times as much" if shared.total else ""
    return (
        f"{zoo.directory}: {len(plain)} models in {size_text(shared.total)}; "
        f"as plain files {size_text(whole)}{times}"
    )
