"""``evomerge zoo show``: one model of a zoo."""

from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from experiments.compare.text import TextTable
from experiments.zoo.names import check_known
from experiments.zoo.needs import Made, made_from, needs_of, plain_sizes
from experiments.zoo.promises import drawn_of, ledger_of
from experiments.zoo.sizes import counted, size_text
from merging.zoo.sharing import Sharing, sharing
from merging.zoo.store import Zoo, ZooModel
from merging.zoo_recipes import ingredients_in, read_recipe

_ROWS = 40
"""Most tensors, and most models that it shares with, that are shown."""


def show(directory: Path | None, name: str) -> str:
    """Returns what is known of a model: what it is made of, whom it shares it with, ε, recipe."""
    zoo = Zoo.open(directory)
    check_known(zoo, [name])
    made = made_from(zoo, zoo.models())
    model, shared = zoo.model(name), sharing(needs_of(zoo, made))
    parts = [
        "\n".join(_facts(zoo, model, shared, made)),
        _recipe(zoo, name) if model.kind == "recipe" else _tensors(zoo, name),
        _shares(shared, name),
        "\n".join(_privacy(zoo, model)),
    ]
    return "\n\n".join(part for part in parts if part)


def _facts(zoo: Zoo, model: ZooModel, shared: Sharing, made: Made) -> Iterator[str]:
    place = shared.names.index(model.name)
    yield f"{model.name}: {model.kind}, opens as zoo:{zoo.directory}/{model.name}"
    yield f"as plain files  {size_text(plain_sizes(zoo.models(), made)[model.name])}"
    yield f"read from       {size_text(int(shared.shared[place, place]))} stored"
    yield f"its part        {size_text(round(shared.parts[place]))}"
    yield f"alone           {size_text(int(shared.own[place]))}"
    if model.base is not None:
        yield f"difference to   {model.base}"
    if model.kind != "recipe":
        yield f"sha256          {model.sha256}"


def _tensors(zoo: Zoo, name: str) -> str:
    weights = zoo.weights(name)
    used: Counter[int] = Counter()
    rows = []
    for tensor in weights:
        blocks = {int(piece["block"]) for piece in weights.pieces(tensor)}
        used.update(blocks)
        shape = "x".join(map(str, weights.shape(tensor))) or "scalar"
        rows.append(
            (tensor, str(weights.dtype(tensor)).removeprefix("torch."), shape, len(blocks))
        )
    shown = [(*row[:3], str(row[3])) for row in rows[:_ROWS]]
    more = f"\n... and {len(rows) - _ROWS} more" if len(rows) > _ROWS else ""
    head = f"{counted(len(rows), 'tensor')} in {counted(len(used), 'block')}\n\n"
    return head + TextTable(("tensor", "dtype", "shape", "blocks"), shown).aligned() + more


def _recipe(zoo: Zoo, name: str) -> str:
    recipe = read_recipe(zoo, name)
    there = ingredients_in(zoo, recipe)
    rows = [
        (role, ingredient.sha256[:12], there.get(role, f"not in the zoo: {ingredient.source}"))
        for role, ingredient in recipe.ingredients.items()
    ]
    table = TextTable(("ingredient", "sha256", "where"), rows).aligned()
    return f"{recipe.plan.name}, made from\n\n{table}"


def _shares(shared: Sharing, name: str) -> str:
    place = shared.names.index(name)
    sizes: Mapping[str, Any] = dict(zip(shared.names, shared.shared[place].tolist(), strict=True))
    needed = max(1, sizes[name])
    others = sorted(
        ((n, s) for n, s in sizes.items() if s and n != name), key=lambda pair: -pair[1]
    )
    if not others:
        return "shares nothing with another model"
    rows = [(other, size_text(size), f"{size / needed:.0%}") for other, size in others[:_ROWS]]
    return TextTable(("shares with", "stored", "of what it needs"), rows).aligned()


def _privacy(zoo: Zoo, model: ZooModel) -> Iterator[str]:
    ledger = ledger_of(zoo, model)
    if ledger is None:
        yield "Not private: it has no privacy record, so nothing is guaranteed about its data."
    else:
        yield from (f"Privacy: {line}" for line in ledger["words"])
    if (drawn := drawn_of(zoo, model)) is not None:
        yield from (f"Privacy of what was drawn: {line}" for line in drawn["words"])
