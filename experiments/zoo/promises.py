"""What is promised of the private data behind a zoo's models."""

from collections.abc import Callable, Mapping
from typing import Any

from merging.checkpoints.mechanisms import PrivacyRecordError, RandomSelection
from merging.privacy.ledger import Ledger
from merging.privacy.words import rounded_up
from merging.zoo.store import Zoo, ZooModel
from merging.zoo_recipes import ingredients_in, ledger_in, read_recipe

Json = Mapping[str, Any]


def ledger_of(zoo: Zoo, model: ZooModel) -> Json | None:
    """Returns a model's ledger as `Ledger.describe` writes it; None: it has no record.

    Raises:
        PrivacyRecordError: the record was edited, is none, or of other weights; names the model.
    """
    if (ledger := ledger_in(zoo, model)) is None:
        return None
    written: Json = zoo.recipe(model.name)["privacy"] if model.kind == "recipe" else {}
    return written or ledger.describe()


def listed(
    read: Callable[[Zoo, ZooModel], Json | None], zoo: Zoo, model: ZooModel
) -> Json | PrivacyRecordError | None:
    """Returns what `ledger_of` or `drawn_of` reads, or why it cannot: a list shows all others."""
    try:
        return read(zoo, model)
    except PrivacyRecordError as error:
        return error


def drawn_of(zoo: Zoo, model: ZooModel) -> Json | None:
    """Returns the ledger of what was drawn, of a recipe that names it; None: nothing was drawn.

    The price of a draw is an average, which does not hold for whoever reads the recipe.
    """
    ledger = ledger_in(zoo, model) if model.kind == "recipe" else None
    mechanisms = [one for s in ledger.spends for one in s.mechanisms or ()] if ledger else []
    if not any(isinstance(one, RandomSelection) and len(one.options) > 1 for one in mechanisms):
        return None
    recipe = read_recipe(zoo, model.name)
    places, drawn = ingredients_in(zoo, recipe), Ledger()
    for name, expert in recipe.experts.items():
        source = places.get(name)
        own = source and ledger_in(zoo, zoo.model(source.rpartition("/")[2]))
        record = own.record() if own else None
        drawn = drawn.read(record, f"expert {name!r}", expert.sha256)
    return drawn.describe()


def in_short(ledger: Json | PrivacyRecordError | None) -> str:
    """Returns a ledger in a table's cell: ε by data set, rounded up.

    Example:
        >>> in_short(None)
        'no record'
        >>> promise = {"epsilon": 3.00001, "delta": 1e-6}
        >>> in_short({"data_sets": {"letters": promise}, "unrecorded": []})
        'letters 3.001'
        >>> in_short({"data_sets": {"letters": {**promise, "delta": 1}}, "unrecorded": []})
        'letters none'
    """
    if ledger is None:
        return "no record"
    if isinstance(ledger, PrivacyRecordError):
        return "bad record"
    parts = [f"{name} {_epsilon(promise)}" for name, promise in ledger["data_sets"].items()]
    return ", ".join([*parts, *(["not private"] if ledger["unrecorded"] else [])]) or "public"


def _epsilon(promise: Json | None) -> str:
    if promise is None or promise["epsilon"] is None or promise["delta"] >= 1:
        return "none"
    return rounded_up(promise["epsilon"], 4)
