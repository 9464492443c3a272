"""Weights rounded to NF4, as a base loaded in 4 bits has them, kept in their own dtype.

Source: Dettmers et al. 2023, QLoRA, arXiv 2305.14314, section 3 and appendix E. Deviations: scales
stay in float32 (double quantization moves a weight by less than 1 % of its block's largest), and
so do the weights: what is reproduced is the rounding, not the memory it saves. bitsandbytes is not
used because its mere presence makes every import of peft slower and print a warning.
"""

from pathlib import Path

import torch
from torch import Tensor, nn

from experiments.experts.training.language_model import open_model, open_tokenizer
from merging.checkpoints.checkpoint import quiet_transformers
from merging.checkpoints.sources import resolve
from merging.saving.save import carry_record

BLOCK = 64
"""Entries that share a scale."""


def levels() -> Tensor:
    """Returns the 16 values of NF4, ascending, ``(16,)`` in float32, from -1 to 1.

    Quantiles of a normal distribution, 8 of the positive and 7 of the negative half, and zero.
    """
    # Half a step short of 0 and 1, in the mean of 15 and 16 steps: QLoRA's published offset.
    offset = (1 - 1 / 30 + 1 - 1 / 32) / 2
    # q = Phi^-1(p), p evenly from the offset to 1/2
    above = torch.special.ndtri(torch.linspace(offset, 0.5, 9, dtype=torch.float64)[:-1])
    below = -torch.special.ndtri(torch.linspace(offset, 0.5, 8, dtype=torch.float64)[:-1])
    quantiles = torch.cat([below, torch.zeros(1, dtype=torch.float64), above]).sort().values
    return (quantiles / quantiles.abs().max()).to(torch.float32)  # q_i / max_j |q_j|


def rounded(weight: Tensor) -> Tensor:
    """Returns a weight on the nearest levels, scaled by the largest magnitude of each block.

    Blocks run over the weight's entries row by row; the last one may be shorter.
    """
    flat = weight.detach().flatten().to(torch.float32)
    blocks = nn.functional.pad(flat, (0, -len(flat) % BLOCK)).view(-1, BLOCK)
    scale = blocks.abs().amax(dim=1, keepdim=True)
    table = levels().to(weight.device)
    between = (table[1:] + table[:-1]) / 2
    # A block of zeros has no scale: 0 / 0 must not become NaN.
    unit = blocks / scale.clamp(min=torch.finfo(torch.float32).tiny)
    nearest = table[torch.bucketize(unit, between)] * scale  # s argmin_q |w / s - q|, s = max |w|
    return nearest.flatten()[: len(flat)].view_as(weight).to(weight.dtype)


def round_linear_layers(model: nn.Module) -> None:
    """Rounds the weights of all linear layers in place, but not the output embedding's."""
    output = getattr(model, "get_output_embeddings", lambda: None)()
    with torch.no_grad():
        for module in model.modules():
            if isinstance(module, nn.Linear) and module is not output:
                module.weight.copy_(rounded(module.weight))


def write_rounded(base: str | Path, out: Path) -> None:
    """Writes a copy of a causal language model with its linear layers on NF4, in float32.

    What the model's private data cost, the copy's did.
    """
    source = resolve(str(base))
    model = open_model(base, None, seed=0, device=torch.device("cpu"))
    round_linear_layers(model)
    with quiet_transformers():
        model.save_pretrained(out)
        open_tokenizer(base).save_pretrained(out)
    carry_record(source, out)
