"""``evomerge zoo best``: of a zoo's models on one private data set the best merge at an ε."""

from collections.abc import Sequence
from pathlib import Path

from experiments.commands.merge_models import dialled
from experiments.reports.model_card import static_card
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.errors import UserError
from experiments.runs.starts import beside_others
from experiments.zoo.names import as_name, check_known
from experiments.zoo.promises import ledger_of
from merging.checkpoints.experts import ExpertPool
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
        UserError: there is no such model, or none on the data set.
        DialError: none costs as little, or their records do not say what was run.
        ZooError: the name is taken.
    """
    zoo = Zoo.open(directory)
    check_known(zoo, [base, *names])
    name = name or as_name(f"best-{dataset}-{epsilon:g}")
    if name in {model.name for model in zoo.models()}:
        raise UserError(f"the zoo {zoo.directory} has a model {name!r} already: choose a --name")
    chosen = list(names) or _trained_on(zoo, base, dataset)
    if not chosen:
        raise UserError(
            f"no model in the zoo {zoo.directory} has {base}'s shapes and a record of {dataset!r} "
            "alone: name the data set as `evomerge zoo list` does"
        )
    at = f"{SOURCE}{zoo.directory}/"
    pool = ExpertPool.open(f"{at}{base}", {each: f"{at}{each}" for each in chosen})
    setting = Dial.of(pool, delta).turn("best", epsilon)
    drawn, plan, ledger = dialled(pool, setting, Whole(), zoo.directory / "views" / name)
    told = beside_others(ledger, "merge").describe()
    recipe = Recipe.of(drawn, plan, privacy=told).to_json()
    zoo.add_recipe(recipe, name, {"README.md": static_card(recipe).encode()})
    return [f"zoo:{zoo.directory}/{name}  of {', '.join(chosen)}", *privacy_lines(told)]


def _trained_on(zoo: Zoo, base: str, dataset: str) -> list[str]:
    """Returns the stored models of a base's shapes with a record of one data set alone."""
    found = []
    for model in zoo.models():
        ledger = ledger_of(zoo, model) if model.kind == "stored" and model.name != base else None
        if ledger is not None and list(ledger["data_sets"]) == [dataset]:
            found.append(model.name)
    return [name for name in found if _alike(zoo, base, name)]


def _alike(zoo: Zoo, one: str, other: str) -> bool:
    first, second = zoo.weights(one), zoo.weights(other)
    common = set(first) & set(second)
    return bool(common) and all(first.shape(name) == second.shape(name) for name in common)
