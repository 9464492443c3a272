"""What models of a zoo are read from: stored bytes, those of a recipe's ingredients among them."""

from collections import Counter, defaultdict
from collections.abc import Hashable, Iterator, Mapping, Sequence

from merging.zoo.sharing import needs_in
from merging.zoo.store import Zoo, ZooModel
from merging.zoo_recipes import ingredients_in, read_recipe

Made = Mapping[str, Mapping[str, str]]
"""Recipe -> ingredient, ``base`` or an expert -> the model of the zoo that it is."""


def made_from(zoo: Zoo, models: Sequence[ZooModel]) -> Made:
    """Returns what the recipes among models are made from, without what is not in the zoo."""
    known: dict[Hashable, Mapping[str, str]] = {}  # a search's recipes have the same ingredients
    made = {}
    for model in models:
        if model.kind == "recipe":
            recipe = read_recipe(zoo, model.name)
            key = tuple((k, one.source, one.sha256) for k, one in recipe.ingredients.items())
            if key not in known:
                places = ingredients_in(zoo, recipe)
                known[key] = {role: at.rpartition("/")[2] for role, at in places.items()}
            made[model.name] = known[key]
    return made


def needs_of(zoo: Zoo, made: Made) -> dict[str, dict[Hashable, int]]:
    """Returns what each model needs, as `sharing` takes it.

    Blocks that the same models hold count as one, so that many recipes cost little.
    """
    holders: dict[Hashable, list[str]] = defaultdict(list)
    sizes: dict[Hashable, int] = {}
    own: dict[str, dict[Hashable, int]] = {}
    for name, blocks in needs_in(zoo.directory).items():
        own[name] = {}
        for block, size in blocks.items():
            holders[block].append(name)
            sizes[block] = size
    together: Counter[tuple[str, ...]] = Counter()
    for block, names in holders.items():
        together[tuple(names)] += sizes[block]
    for names_of_one, size in together.items():
        for name in names_of_one:
            own[name][names_of_one] = size
    return {
        name: {k: size for each in _reached(name, made) for k, size in own[each].items()}
        for name in own
    }


def plain_sizes(models: Sequence[ZooModel], made: Made) -> dict[str, int | None]:
    """Returns the bytes of every model's plain files; of a recipe's, those of its base's.

    None: the base is not in the zoo, so that they are not known.
    """
    stored = {model.name: model.bytes for model in models if model.kind != "recipe"}
    sizes = {}
    for model in models:
        bases = [name for name in _reached(model.name, made, ("base",)) if name in stored]
        sizes[model.name] = stored[bases[0]] if bases else None
    return sizes


def _reached(name: str, made: Made, roles: Sequence[str] | None = None) -> Iterator[str]:
    """Yields a model and all that it is made from, each once; `roles`: by these alone."""
    todo, seen = [name], set()
    while todo:
        one = todo.pop()
        if one not in seen:
            seen.add(one)
            yield one
            todo += [at for role, at in made.get(one, {}).items() if not roles or role in roles]
