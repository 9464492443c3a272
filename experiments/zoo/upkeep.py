"""``evomerge zoo check|gc|remove``: a zoo kept sound and small."""

from collections.abc import Sequence
from pathlib import Path

from experiments.runs.errors import UserError
from experiments.runs.progress import megabytes
from experiments.zoo.names import check_known, verb
from experiments.zoo.needs import made_from
from experiments.zoo.sizes import counted, size_text
from merging.zoo.sharing import raw_bytes
from merging.zoo.store import Zoo
from merging.zoo_recipes import lacking, read_recipe


def check(directory: Path | None) -> str:
    """Returns that all is well, after reading everything, and which recipes cannot be opened.

    Raises:
        UserError: something is damaged; a sentence for each damage.
    """
    zoo = Zoo.open(directory)
    with megabytes(raw_bytes(zoo.directory), "checking") as (_, on_bytes):
        damages = zoo.check(on_bytes)
    if damages:
        raise UserError("\n".join(damages))
    models = zoo.models()
    lines = [f"{zoo.directory}: {counted(len(models), 'model')}, all as they were added"]
    for name, there in made_from(zoo, models).items():
        if gone := lacking(read_recipe(zoo, name), there):
            lines.append(
                f"note: {name} cannot be opened while what it is made from is neither in "
                f"the zoo nor where it lay: {', '.join(gone)}"
            )
    return "\n".join(lines)


def collect(directory: Path | None) -> str:
    """Returns how many bytes were freed."""
    zoo = Zoo.open(directory)
    return f"{zoo.directory}: {size_text(zoo.gc())} freed"


def remove(directory: Path | None, names: Sequence[str], *, even_ingredients: bool) -> str:
    """Forgets models; returns what to do for their bytes.

    Raises:
        UserError: there is no such model, or recipes that stay are made from it.
    """
    zoo = Zoo.open(directory)
    check_known(zoo, names)
    if not even_ingredients:
        _check_unneeded(zoo, names)
    for name in dict.fromkeys(names):
        zoo.remove(name)
    return f"removed {', '.join(dict.fromkeys(names))}: {verb(zoo, 'gc')} frees their bytes"


def _check_unneeded(zoo: Zoo, names: Sequence[str]) -> None:
    for recipe, ingredients in made_from(zoo, zoo.models()).items():
        if recipe not in names and (needed := sorted(set(ingredients.values()) & set(names))):
            raise UserError(
                f"{recipe} is a recipe that is made from {needed[0]}: remove it too, or say "
                "--force if it need not open again"
            )
