"""How mergekit spells the merge methods, their knobs and their options."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from merging.methods.breadcrumbs import Breadcrumbs
from merging.methods.breadcrumbs_ties import BreadcrumbsTies
from merging.methods.dare_linear import DareLinear
from merging.methods.dare_ties import DareTies
from merging.methods.della import Della
from merging.methods.della_linear import DellaLinear
from merging.methods.karcher import Karcher
from merging.methods.linear import Linear
from merging.methods.model_stock import ModelStock
from merging.methods.nearswap import Nearswap
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties


class MergekitError(ValueError):
    """A mergekit file that cannot be run, or a recipe that mergekit cannot express; says why."""


@dataclass(frozen=True)
class Option:
    """A parameter of mergekit that is a field of our method, not a knob.

    Args:
        field: of our dataclass; None: it changes nothing that we compute.
        default: mergekit's value where the file gives none; its type is the option's.
        only: no other value than the default can be honoured here.
    """

    field: str | None
    default: bool | int | float
    only: bool = False


@dataclass(frozen=True)
class Spelling:
    """How one of mergekit's methods is spelt here; defaults are those of mergekit 0.1.5.

    Args:
        per_model: mergekit's parameter of one model to our knob.
        shared: mergekit's parameter of the whole merge to our knob.
        defaults: mergekit's value where the file gives none; a parameter without one is required.
        options: mergekit's parameter to what it is here.
        base: what the base_model is. ``origin``: task vectors start there, it is not merged
            itself; ``optional``: likewise, and without one whole weights are merged; ``first``:
            the first of two merged models; ``member``: one of the merged models, where given.
        count: least and largest number of merged models; None: no limit.
        fixed: fields of our method that have this value, whatever the file says.
    """

    cls: type[Any]
    per_model: Mapping[str, str] = field(default_factory=dict)
    shared: Mapping[str, str] = field(default_factory=dict)
    defaults: Mapping[str, float] = field(default_factory=dict)
    options: Mapping[str, Option] = field(default_factory=dict)
    base: Literal["origin", "optional", "first", "member"] = "origin"
    count: tuple[int, int | None] = (1, None)
    fixed: Mapping[str, Any] = field(default_factory=dict)

    @property
    def parameters(self) -> frozenset[str]:
        """All that mergekit reads with this method."""
        return frozenset({*self.per_model, *self.shared, *self.options})


_WEIGHT = {"weight": "weight"}


def _task_vectors(
    cls: type[Any], *extra: str, normalize: bool, rescale: bool | None = None
) -> Spelling:
    """Returns the spelling of mergekit's generalised task arithmetic with one sparsifier.

    `extra` are our knobs beside weight and scale; `normalize` and `rescale` are mergekit's
    defaults, rescale None: ours never rescales.
    """
    return Spelling(
        cls,
        per_model=_WEIGHT | {name: name for name in extra},
        shared={"lambda": "scale"},
        defaults={"density": 1.0, "gamma": 0.01, "epsilon": 0.15, "lambda": 1.0},
        options={
            "normalize": Option("normalize", normalize),
            "rescale": Option("rescale", rescale)
            if rescale is not None
            else Option(None, default=False, only=True),
            "int8_mask": Option(None, default=False),
        },
    )


METHODS: Mapping[str, Spelling] = {
    "linear": Spelling(
        Linear, _WEIGHT, options={"normalize": Option("normalize", default=True)}, base="member"
    ),
    "task_arithmetic": _task_vectors(TaskArithmetic, normalize=False),
    "slerp": Spelling(Slerp, shared={"t": "weight"}, base="first", count=(2, 2)),
    "nuslerp": Spelling(
        NuSlerp,
        _WEIGHT,
        options={
            "nuslerp_flatten": Option("flatten", default=True),
            "nuslerp_row_wise": Option("row_wise", default=False),
        },
        base="optional",
        count=(2, 2),
    ),
    # The direction of the weighted mean: mergekit's tangent step there is zero, ours is not.
    "multislerp": Spelling(
        Karcher,
        _WEIGHT,
        options={
            "normalize_weights": Option(None, default=True, only=True),
            "eps": Option(None, default=1e-8),
        },
        base="optional",
        fixed={"max_iterations": 0},
    ),
    "karcher": Spelling(
        Karcher,
        options={"max_iter": Option("max_iterations", 10), "tol": Option("tolerance", 1e-5)},
        base="member",
    ),
    "ties": _task_vectors(Ties, "density", normalize=True),
    "dare_linear": _task_vectors(DareLinear, "density", normalize=False, rescale=True),
    "dare_ties": _task_vectors(DareTies, "density", normalize=False, rescale=True),
    "della": _task_vectors(Della, "density", "epsilon", normalize=True, rescale=True),
    "della_linear": _task_vectors(
        DellaLinear, "density", "epsilon", normalize=False, rescale=True
    ),
    "breadcrumbs": _task_vectors(Breadcrumbs, "density", "gamma", normalize=False),
    "breadcrumbs_ties": _task_vectors(BreadcrumbsTies, "density", "gamma", normalize=False),
    "sce": Spelling(
        Sce,
        shared={"select_topk": "density"},
        defaults={"select_topk": 1.0},
        options={"int8_mask": Option(None, default=False)},
        count=(2, None),
    ),
    "model_stock": Spelling(
        ModelStock,
        options={"filter_wise": Option(None, default=False, only=True)},
        count=(2, None),
    ),
    "nearswap": Spelling(Nearswap, shared={"t": "t"}, count=(1, 1)),
}

PASSTHROUGH = "passthrough"
"""The method that merges nothing: layers of models, one after the other."""

SCALES = Spelling(object, per_model={"scale": "scale"})
"""What passthrough reads."""

WORDS = SCALES.parameters.union(*(spelling.parameters for spelling in METHODS.values()))
"""Every parameter that some method of mergekit reads."""
