"""How mergekit spells the merge methods and their knobs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
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
from merging.methods.multi_slerp import MultiSlerp
from merging.methods.nearswap import Nearswap
from merging.methods.nuslerp import NuSlerp
from merging.methods.sce import Sce
from merging.methods.slerp import Slerp
from merging.methods.task_arithmetic import TaskArithmetic
from merging.methods.ties import Ties


class MergekitError(ValueError):
    """A mergekit file that cannot be run, or a recipe that mergekit cannot express; says why."""


@dataclass(frozen=True)
class Spelling:
    """How one of mergekit's methods is spelt here.

    Args:
        cls: our method.
        params: mergekit's parameter to our knob.
        defaults: mergekit's value where the file gives none; the others take ours.
        normalize: mergekit's default of ``normalize``; None: the method has no such option.
        base: ``model``: the base is the task vectors' origin; ``expert``: it is merged as well;
            ``none``: there is none.
    """

    cls: type[Any]
    params: Mapping[str, str]
    defaults: Mapping[str, float]
    normalize: bool | None = None
    base: Literal["model", "expert", "none"] = "model"


_W = {"weight": "weight"}
_WL = {"weight": "weight", "lambda": "scale"}
_WDL = {"weight": "weight", "density": "density", "lambda": "scale"}
_ONES = {"weight": 1.0, "density": 1.0, "lambda": 1.0}
METHODS: Mapping[str, Spelling] = {
    "linear": Spelling(Linear, _W, {"weight": 1.0}, True, "none"),
    "task_arithmetic": Spelling(TaskArithmetic, _WL, {"weight": 1.0, "lambda": 1.0}, False),
    "slerp": Spelling(Slerp, {}, {}, None, "expert"),
    "nuslerp": Spelling(NuSlerp, _W, {"weight": 1.0}),
    "multislerp": Spelling(MultiSlerp, _W, {"weight": 1.0}, None, "none"),
    "karcher": Spelling(Karcher, {}, {"weight": 1.0}, None, "none"),
    "ties": Spelling(Ties, _WDL, _ONES, True),
    "dare_linear": Spelling(DareLinear, _WDL, _ONES, False),
    "dare_ties": Spelling(DareTies, _WDL, _ONES, False),
    "della": Spelling(Della, {**_WDL, "epsilon": "epsilon"}, {**_ONES, "epsilon": 0.15}, False),
    "della_linear": Spelling(
        DellaLinear, {**_WDL, "epsilon": "epsilon"}, {**_ONES, "epsilon": 0.15}, False
    ),
    "breadcrumbs": Spelling(
        Breadcrumbs, {**_WDL, "gamma": "gamma"}, {**_ONES, "gamma": 0.01}, False
    ),
    "breadcrumbs_ties": Spelling(
        BreadcrumbsTies, {**_WDL, "gamma": "gamma"}, {**_ONES, "gamma": 0.01}, False
    ),
    "sce": Spelling(Sce, {"select_topk": "density"}, {"select_topk": 1.0}),
    "model_stock": Spelling(ModelStock, {}, {}),
    "nearswap": Spelling(Nearswap, {"t": "t"}, {}),
}
