"""Low-rank training of all matrices of an encoder: one factor is drawn and public, one is learnt.

With few learnt numbers the noise of DP-SGD stays small, and no gradient of a whole matrix is held
for every record; merged, the expert is a full checkpoint whose every matrix has moved. Source:
LoRA-FA, Zhang et al. 2023, arXiv 2308.03303; in private training FFA-LoRA, Sun et al. 2024, arXiv
2403.12313.
"""

import math
from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn

from merging.seeding import generator


class Factored(nn.Module):
    """A frozen linear layer or embedding plus a learnt map of a drawn projection of its input.

    Args:
        layer: ``nn.Linear`` or ``nn.Embedding``.
        rank: of the change.
        scale: of the change: with AdamW the layer learns so many times as fast.
        draw: of the fixed factor, normal with variance 1 / rank for rows of an embedding, and
            1 / inputs for a linear layer.
    """

    def __init__(
        self, layer: nn.Linear | nn.Embedding, rank: int, scale: float, draw: torch.Generator
    ) -> None:
        super().__init__()
        self.layer = layer.requires_grad_(False)
        inputs = layer.weight.shape[1 if isinstance(layer, nn.Linear) else 0]
        outputs = layer.weight.shape[0 if isinstance(layer, nn.Linear) else 1]
        fan = inputs if isinstance(layer, nn.Linear) else rank
        fixed = torch.randn(inputs, rank, generator=draw) * (scale / math.sqrt(fan))
        self.fixed = nn.Parameter(fixed, requires_grad=False)
        self.learnt = nn.Linear(rank, outputs, bias=False)
        nn.init.zeros_(self.learnt.weight)

    def forward(self, inputs: Tensor) -> Tensor:
        """Returns ``W x + B (A x)``; an embedding's rows for token numbers."""
        linear = isinstance(self.layer, nn.Linear)
        below = inputs @ self.fixed if linear else self.fixed[inputs]
        out: Tensor = self.layer(inputs) + self.learnt(below)
        return out

    @torch.no_grad()
    def merged(self) -> nn.Module:
        """Returns the layer, moved by ``B A``."""
        change = self.fixed @ self.learnt.weight.T  # (inputs, outputs)
        self.layer.weight += change.T if isinstance(self.layer, nn.Linear) else change
        return self.layer


def factor(
    model: nn.Module,
    rank: int,
    *,
    seed: int,
    spare: tuple[str, ...],
    scale_of: Callable[[str], float] = lambda name: 1.0,
) -> None:
    """Replaces linear layers and embeddings of a model in place; those named by `spare` stay.

    Vectors and what is spared are trained as they are. `scale_of` gives a layer's scale by its
    name: learning rates that fall with the depth are those of Howard and Ruder 2018, ULMFiT, arXiv
    1801.06146.
    """
    for name, parent, child, layer in list(_layers(model)):
        if not name.startswith(spare):
            draw = generator(seed, "fixed factor", name)
            setattr(parent, child, Factored(layer, rank, scale_of(name), draw))


def merge_factors(model: nn.Module) -> None:
    """Puts plain layers into the places of all `Factored` ones; everything is trainable again."""
    for parent in list(model.modules()):
        for child, module in list(parent.named_children()):
            if isinstance(module, Factored):
                setattr(parent, child, module.merged())
    model.requires_grad_(True)


def _layers(
    model: nn.Module,
) -> Iterator[tuple[str, nn.Module, str, nn.Linear | nn.Embedding]]:
    for path, parent in model.named_modules():
        for child, layer in parent.named_children():
            if isinstance(layer, nn.Linear | nn.Embedding):
                yield f"{path}.{child}".lstrip("."), parent, child, layer
