"""The model of a recipe, bit for bit the one that the recipe was written for."""

from collections.abc import Callable
from pathlib import Path

from merging.checkpoints.experts import ExpertPool
from merging.privacy.ledger import Ledger
from merging.recipe import Recipe
from merging.saving.save import save_model
from merging.weights import Weights


def rebuild(
    recipe: Recipe,
    pool: ExpertPool,
    out: Path,
    *,
    card: str | None = None,
    shown: Callable[[Weights], Weights] = lambda weights: weights,
) -> None:
    """Writes the model and its ledger, as the ledger in the recipe says.

    Args:
        pool: the recipe's, as `Recipe.open_pool` opens it.
        out: directory to create.
        card: text of README.md; None: a short one.
        shown: wraps the weights before they are read, for example to show progress.

    Raises:
        PrivacyRecordError: an expert's record lists what the recipe does not.
        CheckpointError: as `save_model` raises.
    """
    dtype = recipe.torch_dtype
    ledger = Ledger.rebuilt(recipe.privacy, pool, recipe.plan)
    weights = shown(recipe.plan.weights(pool, dtype=dtype))
    save_model(pool, weights, out, dtype=dtype, card=card, ledger=ledger)
