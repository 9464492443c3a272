"""Losses of a reference model on texts, for membership inference: `evomerge reference-losses`."""

from pathlib import Path

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.memorization.membership import Membership
from evaluators.memorization.reference_losses import write_reference
from experiments.runs.device import choose_device, choose_dtype
from experiments.zoo.opening import open_sources
from merging.checkpoints.checkpoint import Checkpoint


def write_losses(
    model: str,
    data: str,
    out: Path,
    *,
    text_field: str = "text",
    member_field: str = "member",
    max_length: int | None = None,
    device: str = "auto",
    dtype: str = "auto",
) -> int:
    """Writes the file that `Membership` reads as `reference`; returns how many texts it holds.

    Args:
        model: Hugging Face id or directory, usually the base; its tokenizer must be that of the
            models to come, as losses are compared per token.
        max_length: most tokens of a text; must be the later run's. None: as the config says.
        dtype: ``auto`` is bfloat16 on CUDA and float32 elsewhere.

    Raises:
        ValueError: as `Membership` and `Checkpoint.open`.
        EvaluationError: the model cannot be scored.
    """
    open_sources([model])
    checkpoint, chosen = Checkpoint.open(model), choose_device(device)
    resident = Resident(
        checkpoint.module(dtype=choose_dtype(dtype, chosen), device=chosen),
        tokenizer=checkpoint.tokenizer(),
        device=chosen,
        max_length=max_length,
    )
    evaluator = Membership(
        resident.info, data=data, text_field=text_field, member_field=member_field
    )
    losses = evaluator.losses(Engine(resident).run(evaluator.items.requests))
    write_reference(out, model, losses)
    return len(losses)
