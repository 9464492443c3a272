"""Diagonal Fisher information: expected squared gradients of the model's own log-likelihood."""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from evaluators.engine.resident import Resident
from evaluators.requests import EvaluationError
from experiments.gathering.items import Item, logits_of, tracked
from merging.seeding import stable_seed


def gather_fisher(
    resident: Resident,
    head: str,
    items: Sequence[Item],
    names: Sequence[str],
    *,
    module: nn.Module | None = None,
    seed: int,
    expert: str,
    advance: Callable[[int], object],
) -> dict[str, Tensor]:
    """Returns parameter to the mean over `items` of ``E_y (d log p(y | x) / d theta)^2``.

    Classifiers: the expectation over the model's own classes, exact; one backward pass per class.
    Language models: y is one token drawn from the model for every scored position, given the
    text before it, and log p(y | x) the sum of their log-probabilities; one backward pass per
    item. Cross terms between positions vanish in expectation, so this is an unbiased estimate of
    the sum of every position's Fisher information. No label or text of the data is a target.

    Args:
        resident: holds the expert; better not in half precision.
        items: each passes alone, as squares of gradients do not add up within a batch.
        names: of `module`: parameters (or buffers, whose Fisher information is zero).
        module: what `resident` answers with, where that is more than `resident.module`: a
            classifier with its head.
        expert: content identity; draws belong to seed, expert and item, not to their order.

    Returns:
        ``(*shape)`` float32, CPU; zeros where no gradient reaches.

    Raises:
        EvaluationError: the model gives logits that are not finite, or has one class only.

    Source: Matena & Raffel 2022, Merging models with Fisher-weighted averaging, eq. (2) and
    section 2, arXiv:2111.09832, which draws labels too where there are many.
    """
    exact = torch.float32 if resident.device.type == "mps" else torch.float64
    module = module or resident.module
    state = module.state_dict()
    sums = {name: torch.zeros_like(state[name], dtype=exact) for name in names}
    known = dict(module.named_parameters())
    parameters = {name: known[name] for name in names if name in known}
    with tracked(list(parameters.values())):
        for item in items:
            terms = _terms(resident, head, item, stable_seed(seed, expert, item.digest))
            for weight, log_prob, last in terms:
                gradients = torch.autograd.grad(
                    log_prob, list(parameters.values()), retain_graph=not last, allow_unused=True
                )
                for name, gradient in zip(parameters, gradients, strict=True):
                    if gradient is not None:
                        wide = gradient.to(exact)
                        # F <- F + p(y | x) (d log p(y | x) / d theta)^2
                        sums[name].addcmul_(wide, wide, value=weight)
            advance(1)
    return {name: (sums.pop(name) / max(1, len(items))).float().cpu() for name in list(sums)}


def _terms(
    resident: Resident, head: str, item: Item, seed: int
) -> Iterator[tuple[float, Tensor, bool]]:
    """Yields weight and log-likelihood of every outcome of one item, and whether it is last."""
    logits = logits_of(resident, head, [item])
    log_probs = logits.to(torch.promote_types(logits.dtype, torch.float32)).log_softmax(-1)
    if not bool(log_probs.isfinite().all()):
        raise EvaluationError(f"expert {head!r} gives logits that are not finite")
    if resident.classifiers:
        classes = log_probs.shape[-1]
        if classes < 2:
            raise EvaluationError(
                f"expert {head!r} has a head of one class, whose likelihood has no gradient: "
                "use experts that classify"
            )
        weights = log_probs[0].detach().exp().tolist()
        for label in range(classes):
            yield weights[label], log_probs[0, label], label == classes - 1
        return
    drawing = torch.Generator(device=log_probs.device).manual_seed(seed)
    drawn = torch.multinomial(log_probs.detach().exp(), 1, generator=drawing)
    yield 1.0, log_probs.gather(1, drawn).sum(), True
