"""``evomerge zoo check|gc|remove``: a zoo kept sound and small."""

from collections.abc import Sequence
from pathlib import Path

from experiments.runs.errors import UserError
from experiments.zoo.names import check_known
from experiments.zoo.progress import megabytes
from experiments.zoo.sizes import size_text
from merging.zoo.sharing import raw_bytes
from merging.zoo.store import Zoo
from merging.zoo_recipes import ingredients_in, read_recipe


def check(directory: Path | None) -> str:
    """Returns that all is well, after reading everything.

    Raises:
        UserError: something is damaged; a sentence for each damage.
    """
    zoo = Zoo.open(directory)
    with megabytes(raw_bytes(zoo.directory), "checking") as (_, on_bytes):
        damages = zoo.check(on_bytes)
    if damages:
        raise UserError("\n".join(damages))
    return f"{zoo.directory}: {len(zoo.models())} models, all as they were added"


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
    return f"removed {', '.join(dict.fromkeys(names))}: evomerge zoo gc frees their bytes"


def _check_unneeded(zoo: Zoo, names: Sequence[str]) -> None:
    for model in zoo.models():
        if model.kind != "recipe" or model.name in names:
            continue
        made_from = {
            source.rpartition("/")[2]
            for source in ingredients_in(zoo, read_recipe(zoo, model.name)).values()
        }
        if needed := sorted(made_from & set(names)):
            raise UserError(
                f"{model.name} is a recipe that is made from {needed[0]}: remove it too, or say "
                "--force if it need not open again"
            )
