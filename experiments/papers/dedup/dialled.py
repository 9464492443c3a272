"""The privacy dial: merges of one part's experts at a target epsilon, against the best of them."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import torch
from torch import Tensor

from experiments.papers.dedup.cells import Target
from experiments.papers.dedup.ways import DedupSetting
from merging.privacy.dial import Dial, Setting

EPSILONS = (1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0)


def dial_table(setting: DedupSetting, pool: str) -> dict[str, Any]:
    """Returns for every target epsilon what each way gives out, and its accuracy on test items.

    What is given out follows from the privacy records alone; accuracies only judge it.
    """
    spec = setting.pools[pool]
    parts = [expert.part for expert in spec.experts.values()]
    part = max(set(parts), key=parts.count)
    targets = {
        name: Target(setting, pool, name)
        for name, expert in spec.experts.items()
        if expert.part == part
    }
    dial = Dial({name: target.ledger for name, target in targets.items()}, spec.training.delta)
    state = next(iter(targets.values()))
    weights = {name: dict(target.blocks.weights) for name, target in targets.items()}

    @cache
    def accuracy(mixture: tuple[tuple[str, float], ...]) -> float:
        return state.accuracy_of("test", _mixed(weights, dict(mixture)))

    def expected(turned: Setting) -> float:
        values = [accuracy(tuple(sorted(option.items()))) for option in turned.options]
        return sum(p * v for p, v in zip(turned.probabilities, values, strict=True))

    rows = []
    for epsilon in EPSILONS:
        allowed = [name for name in targets if dial.epsilon((name,)) <= epsilon]
        if not allowed:
            continue
        singles = {name: accuracy(((name, 1.0),)) for name in allowed}
        best = max(singles, key=lambda name: singles[name])
        row: dict[str, Any] = {"epsilon": epsilon, "single": best, "single_test": singles[best]}
        for kind in ("selection", "combination"):
            turned: Setting = getattr(dial, kind)(epsilon)
            row[kind] = {
                "options": [dict(option) for option in turned.options],
                "probabilities": list(turned.probabilities),
                "epsilon": turned.price.epsilon,
                "test": expected(turned),
            }
        rows.append(row)
    return {"experts": {name: dial.epsilon((name,)) for name in targets}, "rows": rows}


def _mixed(
    weights: Mapping[str, Mapping[str, Tensor]], mixture: Mapping[str, float]
) -> dict[str, Tensor]:
    names = next(iter(weights.values()))
    return {
        tensor: torch.stack(
            [share * weights[name][tensor] for name, share in mixture.items()]
        ).sum(0)
        for tensor in names
    }
