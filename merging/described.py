"""Parts of a plan as JSON: import path and options, as Hydra would name them."""

import dataclasses
import importlib
import sys
from collections.abc import Mapping
from typing import Any

MOVED: Mapping[str, str] = {
    "merging.perturbation.Gaussian": "merging.paths.noise.GaussianNoise",
    "merging.perturbation.LowRank": "merging.paths.noise.LowRankNoise",
    "merging.perturbation.RowNoise": "merging.paths.noise.RowNoise",
    "merging.perturbation.BlockNoise": "merging.paths.noise.BlockNoise",
    "merging.perturbation.SingularNoise": "merging.paths.noise.SingularNoise",
    "merging.recombination.Uniform": "merging.lineages.crossover.UniformCrossover",
    "merging.recombination.Points": "merging.lineages.crossover.PointCrossover",
    "merging.recombination.PerTensor": "merging.lineages.crossover.TensorCrossover",
    "merging.recombination.Arithmetic": "merging.lineages.crossover.ArithmeticCrossover",
    "merging.recombination.Slerp": "merging.lineages.crossover.SlerpCrossover",
    "merging.recombination.SplitSlerp": "merging.lineages.crossover.SplitSlerpCrossover",
    "merging.mutation.Rescale": "merging.lineages.mutation.ScaleMutation",
    "merging.mutation.LowRankMutation": "merging.lineages.mutation.LowRankMutation",
    "merging.mutation.SignFlip": "merging.lineages.mutation.SignMutation",
}
"""Import paths in recipes from before merging had folders, to those of today."""


def describe(part: Any) -> dict[str, Any]:
    """Returns import path (``_target_``) and options of a dataclass instance.

    An option that is a dataclass itself, such as the method within a method, is described alike.
    """
    cls = type(part)
    options = dataclasses.asdict(part)
    for name in options:
        option = getattr(part, name)
        if dataclasses.is_dataclass(option):
            options[name] = describe(option)
    return {"_target_": f"{cls.__module__}.{cls.__qualname__}", **options}


def rebuild(description: Mapping[str, Any], what: str, members: tuple[str, ...]) -> Any:
    """Returns the part that `describe` wrote; raises ValueError for what is none.

    Only a dataclass with the given members is ever called, so that a recipe from a stranger
    cannot run something else by its name.

    Args:
        what: the part's name in messages, for example ``merge method``.
        members: attributes that make a class such a part.
    """
    short = what.rpartition(" ")[2]
    options = {
        name: rebuild(value, what, members)
        if isinstance(value, Mapping) and "_target_" in value
        else value
        for name, value in description.items()
    }
    path = str(options.pop("_target_", ""))
    path = MOVED.get(path, path)
    module, _, name = path.rpartition(".")
    if module.partition(".")[0] in sys.stdlib_module_names:  # never imported: some of them act
        raise ValueError(f"{path!r} is no {what}")
    try:
        cls: Any = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError, ValueError):
        raise ValueError(
            f"{short} {path!r} cannot be imported: install the package that defines it"
        ) from None
    fits = isinstance(cls, type) and all(hasattr(cls, member) for member in members)
    if not (fits and hasattr(cls, "__dataclass_fields__")):
        raise ValueError(f"{path!r} is no {what}")
    try:
        return cls(**options)
    except TypeError as error:
        raise ValueError(f"{short} {path}: {error}") from None
