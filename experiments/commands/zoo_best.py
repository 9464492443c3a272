"""``evomerge zoo best``: of a zoo's models on one private data set the best merge at an ε."""

from collections.abc import Sequence
from pathlib import Path

from experiments.commands.merge_models import dialled
from experiments.reports.card_head import Parents
from experiments.reports.model_card import static_card
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.errors import UserError
from experiments.runs.starts import beside_others
from experiments.zoo.names import as_name, check_known
from experiments.zoo.opening import open_sources
from experiments.zoo.promises import Json, ledger_of, listed
from merging.checkpoints.experts import ExpertPool
from merging.checkpoints.mechanisms import PrivacyRecordError
from merging.grouping import Whole
from merging.privacy.dial import Dial
from merging.recipe import Recipe
from merging.zoo.store import SOURCE, Zoo


def best(
    directory: Path | None,
    names: Sequence[str],
    *,
    base: str,
    dataset: str,
    epsilon: float,
    delta: float | None,
    name: str | None,
) -> list[str]:
    """Adds to a zoo, as a recipe, the best merge at an epsilon of models on one private data set.

    Args:
        names: of the models; none: all stored ones of the base's shapes whose records list that
            data set alone.
        base: name of the public model that they were made from.
        delta: of the guarantee; None: the largest that one of them states.
        name: of the merge; None: made of data set and epsilon.

    Returns:
        What it is and costs, a line each.

    Raises:
        UserError: there is no such model, or none on the data set; one is named that is not on it.
        DialError: none costs as little, or their records do not say what was run.
        ZooError: the name is taken.
    """
    zoo = Zoo.open(directory)
    check_known(zoo, [base, *names])
    name = name or as_name(f"best-{dataset}-{epsilon:g}")
    if name in {model.name for model in zoo.models()}:
        raise UserError(f"the zoo {zoo.directory} has a model {name!r} already: choose a --name")
    for each in names:
        _check_trained_on(zoo, each, dataset)
    found, notes = ([], []) if names else _trained_on(zoo, base, dataset)
    chosen = list(names) or found
    if not chosen:
        raise UserError(
            f"no model in the zoo {zoo.directory} has {base}'s shapes and a record of {dataset!r} "
            "alone: name the data set as `evomerge zoo list` does"
        )
    at = f"{SOURCE}{zoo.directory}/"
    open_sources(f"{at}{each}" for each in [base, *chosen])
    pool = ExpertPool.open(f"{at}{base}", {each: f"{at}{each}" for each in chosen})
    setting = Dial.of(pool, delta).turn("best", epsilon)
    drawn, plan, ledger = dialled(pool, setting, Whole(), zoo.directory / "views" / name)
    told = beside_others(ledger, "merge").describe()
    recipe = Recipe.of(drawn, plan, privacy=told).to_json()
    card = static_card(recipe, Parents.of(drawn))
    zoo.add_recipe(recipe, name, {"README.md": card.encode()})
    return [*notes, f"zoo:{zoo.directory}/{name}  of {', '.join(chosen)}", *privacy_lines(told)]


def _trained_on(zoo: Zoo, base: str, dataset: str) -> tuple[list[str], list[str]]:
    """Returns the stored models of a base's shapes with a record of one data set alone.

    Beside it notes on those that promise nothing, though their record lists it.
    """
    found, notes = [], []
    for model in zoo.models():
        if model.kind != "stored" or model.name == base:
            continue
        ledger = listed(ledger_of, zoo, model)
        if isinstance(ledger, PrivacyRecordError):
            notes.append(f"note: left out: {ledger}")
        elif _data_sets(ledger) == [dataset] and _alike(zoo, base, model.name):
            if unrecorded := (ledger or {}).get("unrecorded"):
                parts = ", ".join(unrecorded)
                notes.append(f"note: left out: {model.name}, of which {parts} has no record")
            else:
                found.append(model.name)
    return found, notes


def _check_trained_on(zoo: Zoo, name: str, dataset: str) -> None:
    found = _data_sets(ledger_of(zoo, zoo.model(name)))
    if found != [dataset]:
        raise UserError(
            f"{name} in the zoo {zoo.directory} has a record of "
            f"{', '.join(map(repr, found)) or 'no data set'}, not of {dataset!r} alone: leave it "
            "out, or name the data set as `evomerge zoo list` does"
        )


def _data_sets(ledger: Json | None) -> list[str]:
    return list(ledger["data_sets"]) if ledger is not None else []


def _alike(zoo: Zoo, one: str, other: str) -> bool:
    first, second = zoo.weights(one), zoo.weights(other)
    common = set(first) & set(second)
    return bool(common) and all(first.shape(name) == second.shape(name) for name in common)
