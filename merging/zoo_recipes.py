"""Models that a zoo keeps as recipes: rebuilt bit for bit, where they are opened.

`merging/zoo/` knows bytes and tensors alone, so that checkpoints can be read from it; a recipe
needs a pool, a plan and what saves a model.
"""

import os
from collections.abc import Callable, Collection, Iterable
from functools import partial
from pathlib import Path

from merging.checkpoints.adapters import adapter_sha256
from merging.checkpoints.mechanisms import PrivacyRecordError
from merging.checkpoints.privacy_record import RECORD_FILE, record_of
from merging.checkpoints.sources import is_path
from merging.privacy.ledger import Ledger
from merging.recipe import Ingredient, Recipe, RecipeError
from merging.saving.rebuild import rebuild
from merging.weight_names import is_adapter
from merging.weights import Weights
from merging.zoo.errors import ZooError
from merging.zoo.store import RECIPE, SOURCE, Zoo, ZooModel, default_directory

Shown = Callable[[str, Weights], Weights]
"""Wraps the weights of a model of some name before they are read, to show progress."""

_CARD = "README.md"


def _unshown(name: str, weights: Weights) -> Weights:
    return weights


def make_views(sources: Iterable[str], shown: Shown = _unshown) -> None:
    """Rebuilds what of `sources` a zoo keeps as a recipe and nobody has opened yet.

    Afterwards `resolve` takes each of them for a directory. Sources of other kinds are left alone.

    Raises:
        ZooError: there is no such zoo or model.
        RecipeError: a recipe cannot be read, or an ingredient has other content.
        CheckpointError: an ingredient is gone.
    """
    for source in dict.fromkeys(sources):
        if source.startswith(SOURCE):
            zoo, name = Zoo.of(source)
            if zoo.model(name).kind == "recipe":
                zoo.rebuilt(name, partial(_fill, zoo, name, shown))


def open_recipe(zoo: Zoo, name: str, out: Path, shown: Shown = _unshown) -> None:
    """Writes the model of a recipe as plain files into a new directory `out`.

    Raises:
        RecipeError, CheckpointError: as `make_views`, or `out` exists.
    """
    recipe = read_recipe(zoo, name)
    places = ingredients_in(zoo, recipe)
    for role, source in lacking(recipe, places).items():
        raise RecipeError(
            f"{name}: {role} is not in its zoo {zoo.directory}, and {_where(source)}: add it there"
        )
    make_views(places.values(), shown)
    pool = recipe.open_pool(replaced=places)
    cards = [file.raw() for file in zoo.files(name) if file.name == _CARD]
    card = cards[0].decode() if cards else None
    rebuild(recipe, pool, out, card=card, shown=lambda weights: shown(name, weights))
    recipe.save(out / RECIPE)  # says that it was made here, should its privacy.json be lost


def write_plain(zoo: Zoo, name: str, out: Path, shown: Shown = _unshown) -> None:
    """Writes a model's plain files into a new directory: as they were added, or rebuilt.

    Raises:
        ZooError, RecipeError, CheckpointError: as `make_views`, or `out` exists.
    """
    if zoo.model(name).kind == "recipe":
        open_recipe(zoo, name, out, shown)
    else:
        zoo.export(name, out)


def _where(source: str) -> str:
    """Returns in which other place a recipe's ingredient is not."""
    if not source.startswith(SOURCE):
        return f"{source} does not exist"
    directory, _, name = source.removeprefix(SOURCE).rpartition("/")
    return f"no model {name!r} in the zoo {directory or default_directory()}"


def _fill(zoo: Zoo, name: str, shown: Shown, draft: Path) -> None:
    """Rebuilds a recipe into a directory that holds the files beside it already."""
    inside = draft / "rebuilt"
    open_recipe(zoo, name, inside, shown)
    for path in inside.iterdir():
        os.replace(path, draft / path.name)
    inside.rmdir()


def read_recipe(zoo: Zoo, name: str) -> Recipe:
    """Returns the recipe of a model; raises RecipeError where it cannot be read."""
    try:
        return Recipe.from_json(zoo.recipe(name))
    except RecipeError as error:
        raise RecipeError(f"{name} in the zoo {zoo.directory}: {error}") from None


def load_recipe(source: str) -> Recipe:
    """Returns the recipe in a file, or that of ``zoo:NAME``; raises as `Recipe.load`, ZooError."""
    if source.startswith(SOURCE):
        return read_recipe(*Zoo.of(source))
    return Recipe.load(Path(source))


def ledger_in(zoo: Zoo, model: ZooModel) -> Ledger | None:
    """Returns what a model of a zoo says that its private data cost; None: it has no record.

    Raises:
        PrivacyRecordError: the record was edited, is none, or of other weights; names the model.
    """
    try:
        if model.kind == "recipe":
            content = zoo.recipe(model.name).get("privacy")
            return None if content is None else Ledger.from_description(content)
        for file in zoo.files(model.name):
            if file.name == RECORD_FILE:
                record, words = record_of(file.raw(), model.sha256)
                return Ledger(record.spends, record.unrecorded, words)
    except PrivacyRecordError as error:
        raise PrivacyRecordError(
            f"{model.name} in the zoo {zoo.directory}: its privacy record: {error}; remove the "
            "model, and add it with what was written with its weights"
        ) from error
    return None


def ingredients_in(zoo: Zoo, recipe: Recipe) -> dict[str, str]:
    """Returns where in the zoo the ingredients lie that it has: expert (or ``base``) to source.

    They are found by their content; of several with it the one is taken that the recipe names, or
    else one whose record the recipe's ledger has. Of a model that is a recipe itself the content
    is not known before it is rebuilt: it is found by name, and compared when the pool is opened.
    """
    models = zoo.models()
    recipes = {model.name for model in models if model.kind == "recipe"}
    stored = {model.name: model for model in models if model.kind != "recipe"}
    known = {name: model.sha256 for name, model in stored.items()}
    if any(ingredient.sha256 not in known.values() for ingredient in recipe.experts.values()):
        known |= _adapters(zoo, stored)
    found = {}
    for role, ingredient in recipe.ingredients.items():
        alike = [stored[name] for name, sha256 in known.items() if sha256 == ingredient.sha256]
        if len(alike) > 1:
            alike.sort(key=lambda model: _unlike(zoo, model, role, recipe))
        name = alike[0].name if alike else _named(zoo, ingredient, recipes)
        if name is not None:
            found[role] = f"{SOURCE}{zoo.directory}/{name}"
    return found


def _unlike(zoo: Zoo, model: ZooModel, role: str, recipe: Recipe) -> tuple[bool, bool, bool]:
    """Returns in what a model of the right content differs: its name, its record; it has none."""
    ingredient = recipe.ingredients[role]
    other_name = model.name != Path(ingredient.source.removeprefix(SOURCE)).name
    try:
        own = ledger_in(zoo, model)
        ledger = Ledger.from_description(recipe.privacy) if recipe.privacy else None
    except PrivacyRecordError:
        return other_name, True, False
    what = "the base" if role == "base" else f"expert {role!r}"
    read = Ledger().read(own.record(), what, ingredient.sha256) if own else Ledger()
    return other_name, ledger is not None and bool(ledger.lacking(read)), own is None


def lacking(recipe: Recipe, there: Collection[str]) -> dict[str, str]:
    """Returns ingredient to source of those that are neither in the zoo nor where they lay.

    An id of Hugging Face may be fetched, and is not among them.

    Args:
        there: the ingredients that `ingredients_in` finds.
    """
    return {
        role: ingredient.source
        for role, ingredient in recipe.ingredients.items()
        if role not in there and _is_gone(ingredient.source)
    }


def _is_gone(source: str) -> bool:
    if not source.startswith(SOURCE):
        return is_path(source) and not Path(source).expanduser().is_dir()
    try:
        zoo, name = Zoo.of(source)
        zoo.model(name)
    except ZooError:
        return True
    return False


def _adapters(zoo: Zoo, names: Iterable[str]) -> dict[str, str]:
    """Returns the identity of the adapters among stored models: their scale belongs to it."""
    views = {name: zoo.view(name) for name in names}
    return {name: adapter_sha256(view) for name, view in views.items() if is_adapter(view)}


def _named(zoo: Zoo, ingredient: Ingredient, recipes: set[str]) -> str | None:
    """Returns the recipe of an ingredient's name, unless that lies in another zoo."""
    place, _, name = ingredient.source.removeprefix(SOURCE).rpartition("/")
    if not ingredient.source.startswith(SOURCE) or name not in recipes:
        return None
    other = (Path(place) if place else default_directory()).expanduser().resolve()
    if other == zoo.directory or not (other / "format").is_file():  # as of a zoo that was moved
        return name
    there = {model.name for model in Zoo.open(other).models()}
    return None if name in there else name
