"""One static merge: `evomerge merge`."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from experiments.reports.card_head import Parents
from experiments.reports.model_card import static_card
from experiments.reports.privacy_section import privacy_lines
from experiments.runs.directory import check_writable
from experiments.runs.errors import UserError, explained
from experiments.runs.options import check_groups, check_options
from experiments.runs.shown import writing
from experiments.runs.starts import beside_others, write_start
from experiments.setup import assemble
from experiments.zoo.opening import open_sources
from merging.checkpoints.experts import ExpertPool
from merging.grouping import Grouping
from merging.mergekit_yaml.reading import from_mergekit
from merging.method import MergeError, MergeMethod
from merging.methods.linear import Linear
from merging.plan import MergePlan, Plan, uniform_plan
from merging.privacy.dial import Dial, Setting
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe, dtype_name
from merging.saving.save import save_model, saved_bytes
from merging.saving.save_adapter import check_adapter, save_adapter
from merging.weights import CheckpointError


def run_merge(config: DictConfig) -> None:
    """Writes the merged model and its recipe to ``config.out``.

    Raises:
        UserError: wrong input, found before any tensor is merged.
    """
    with explained():
        check_options(config)
        if config.out is None:
            raise UserError("out is not set: give out=DIR")
        out = Path(config.out)
        if out.exists():
            raise UserError(f"out={out} exists already: name a new directory")
        check_writable(out, "out")
        machine = assemble.open_machine(config)
        if config.mergekit is not None and config.target_epsilon is not None:
            raise UserError("target_epsilon chooses the experts that are merged: give no mergekit")
        if config.target_epsilon is None:
            _check_undialled(config)
        if config.mergekit is None:
            check_groups(config)
            pool, plan, ledger = _configured(config)
            dtype = machine.save_dtype
        else:
            job = from_mergekit(Path(config.mergekit), before_opening=open_sources)
            pool, plan, dtype = job.pool, job.plan, job.dtype or machine.save_dtype
            ledger = Ledger.of(pool, plan, searched=False)
        check_writable(out, "out", saved_bytes(pool, dtype, weights=plan.weights(pool)))
        ledger = beside_others(ledger, "merge")
        assemble.check_merges(plan.weights(pool), pool)
        if config.adapter_rank is not None:
            check_adapter(pool, plan.weights(pool))
        assemble.read_through(pool)
        held = pool if machine.device.type == "cpu" else pool.resident(machine.device)
        weights = plan.weights(held, dtype=dtype)
        recipe = Recipe.of(pool, plan, dtype=dtype_name(dtype), privacy=ledger.describe())
    try:
        card = static_card(recipe.to_json(), Parents.of(pool))

        def beside(model: Path) -> None:
            recipe.save(model / "recipe.json")
            if (rank := config.adapter_rank) is not None:
                exact = plan.weights(held, dtype=torch.float32)
                print(save_adapter(pool, exact, model / "adapter", rank=rank, ledger=ledger))

        with writing(pool, weights, dtype, "merging and writing") as read:
            save_model(pool, read, out, dtype=dtype, card=card, ledger=ledger, beside=beside)
    except (MergeError, CheckpointError, OSError) as error:
        raise UserError(str(error)) from error
    print(*privacy_lines(ledger.describe()), out, sep="\n")


def _configured(config: DictConfig) -> tuple[ExpertPool, Plan, Ledger]:
    """Returns the experts that are merged, how, and what that costs."""
    pool = assemble.open_pool(config)
    method, grouping = assemble.open_part(config.method), assemble.open_part(config.grouping)
    knobs = OmegaConf.to_container(config.knobs) if config.knobs else {}
    if config.target_epsilon is None:
        plan = static_plan(method, grouping, pool, knobs)
        return pool, plan, Ledger.of(pool, plan, searched=False)
    if method != Linear() or knobs:
        raise UserError("target_epsilon sets weights: give method=linear, and no knobs")
    dial = Dial.of(pool, config.target_delta, config.accountant)
    return dialled(pool, dial.turn(config.dial, config.target_epsilon), grouping, Path(config.out))


def _check_undialled(config: DictConfig) -> None:
    """Raises UserError for options of the privacy dial, which nobody turned."""
    for name, idle in (("target_delta", None), ("dial", "best"), ("accountant", "rdp")):
        if config[name] != idle:
            raise UserError(
                f"{name}={config[name]} is of the privacy dial, which only target_epsilon=E "
                f"turns: give it, or leave {name} out"
            )


def dialled(
    pool: ExpertPool, setting: Setting, grouping: Grouping, out: Path
) -> tuple[ExpertPool, MergePlan, Ledger]:
    """Returns the experts that a setting of the privacy dial draws, their merge and its ledger.

    Only the drawn experts are in the pool, the plan and so in the recipe; what the ledger says is
    the price of the whole draw. A draw is written down before it is made, as the start of a
    release to `out`: who draws until the result pleases has spent every one.

    Raises:
        UserError: the base has a cost of its own, or none is known of it.
    """
    base = Ledger.of_base(pool.base.path)
    if base.spends or base.unrecorded:
        raise UserError(
            f"base={pool.base.source} was made from private or unrecorded data, which the target "
            "epsilon cannot count: dial experts of a public base"
        )
    for spend in setting.spends if len(setting.options) > 1 else ():
        write_start(spend.dataset, str(spend.release), setting.price, out)
    weights = dict(setting.draw())
    drawn = pool.select(tuple(weights))
    return (
        drawn,
        static_plan(Linear(), grouping, drawn, {"weight": weights}),
        base.add(*setting.spends),
    )


def static_plan(
    method: MergeMethod, grouping: Grouping, pool: ExpertPool, knobs: Any
) -> MergePlan:
    """Returns the static merge with the user's knob values in place of the start values.

    Raises:
        MergeError: a knob that the method lacks.
    """
    plan = uniform_plan(method, grouping, pool)
    known = [knob.name for knob in method.knobs]
    for name, value in knobs.items():
        if name not in known:
            raise MergeError(
                f"knobs: {type(method).__name__} has no knob {name!r}: "
                f"it reads {', '.join(known) or 'none'}"
            )
        if isinstance(value, Mapping) and (extra := set(value) - set(pool.expert_names)):
            raise MergeError(
                f"knobs: {name} names {sorted(extra)[0]!r}, which is no expert: "
                f"expected {', '.join(pool.expert_names)}"
            )
    coefficients = {
        group: {
            knob: {**start, **given}
            if isinstance(given := knobs.get(knob, start), Mapping) and isinstance(start, Mapping)
            else given
            for knob, start in table.items()
        }
        for group, table in plan.coefficients.items()
    }
    return MergePlan(method, grouping, plan.experts, coefficients)
