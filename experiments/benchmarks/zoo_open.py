"""Opening a model of a zoo, and reading one of its tensors, beside a plain file."""

import tempfile
from pathlib import Path

import torch

from experiments.benchmarks.measured import Measured, in_turns
from experiments.benchmarks.models import random_llama, save_experts
from merging.checkpoints.checkpoint import Checkpoint
from merging.zoo import index
from merging.zoo.blocks import blocks_of, forget
from merging.zoo.store import Zoo

TENSOR = "model.layers.0.mlp.down_proj.weight"


def measure() -> list[Measured]:
    """Returns how long opening takes, and what is read of the packs."""
    with tempfile.TemporaryDirectory() as folder:
        model = random_llama(hidden=1024, layers=12, heads=16).to(torch.bfloat16)
        base, experts = save_experts(model, Path(folder), 1, noise=0.001)
        zoo = Zoo.open(Path(folder) / "zoo", create=True)
        zoo.add(Path(base), "base")
        zoo.add(Path(experts["expert0"]), "expert")
        source = f"zoo:{zoo.directory}/expert"

        def stored() -> None:
            forget()
            Checkpoint.open(source)[TENSOR].clone()

        def plain() -> None:
            Checkpoint.open(experts["expert0"])[TENSOR].clone()

        ours, other, ratio = in_turns(stored, plain)
        took = Measured(
            "open a 160M Llama and read one tensor",
            ours,
            other,
            "a plain file",
            "s",
            1 / ratio,
            None,
        )
        return [took, _bytes(zoo)]


def _bytes(zoo: Zoo) -> Measured:
    """Returns what is read beside what the tensor's own blocks and their bases take."""
    forget()
    Checkpoint.open(f"zoo:{zoo.directory}/expert")[TENSOR]
    with index.reading(zoo.directory) as connection:
        rows = index.rows(connection, [piece.block for piece in zoo.pieces("expert")[TENSOR]])
    own = sum(row.stored for row in rows.values())
    read = blocks_of(zoo.directory).read_bytes
    whole = next(model for model in zoo.models() if model.name == "expert")
    return Measured(
        "bytes read for one tensor",
        read / 1e6,
        own / 1e6,
        "its blocks and their bases",
        "MB",
        read / own,
        1.05,
        at_most=True,
        note=f"of {whole.bytes / 1e6:.0f} MB of the model",
    )
