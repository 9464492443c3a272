"""The other side of `merge_speed`, run by a Python that has mergekit: its own methods, on request.

Reads one JSON line with the shapes and makes up a base and experts; then one line per merge, with
method and parameters, answered when all tensors are merged. No file is read or written.
"""

import json
import sys
from typing import Any

import torch
from mergekit import merge_methods  # type: ignore[import-not-found]
from mergekit.merge_methods.base import (  # type: ignore[import-not-found]
    PerInputValues,
    TensorEntry,
    TensorGroup,
)


def main() -> None:
    """Serves requests until the input ends."""
    given = json.loads(sys.stdin.readline())
    torch.set_num_threads(given["threads"])
    noise = torch.Generator().manual_seed(0)
    dtype = getattr(torch, given["dtype"])
    models = []
    for shape in given["shapes"]:
        base = torch.randn(shape, generator=noise).mul_(0.02)
        tuned = [base + 0.001 * torch.randn(shape, generator=noise) for _ in range(3)]
        models.append([tensor.to(dtype) for tensor in (base, *tuned)])
    print("ready", flush=True)
    for line in sys.stdin:
        merge(models, **json.loads(line))
        print("done", flush=True)


def merge(
    models: list[list[torch.Tensor]],
    method: str,
    inputs: list[int],
    base: int | None,
    each: dict[str, list[float]],
    shared: dict[str, Any],
) -> None:
    """Merges every tensor as mergekit does, one after the other.

    Args:
        models: base and experts of every tensor.
        base: the one that is mergekit's base model.
        each: per-input parameters, in the order of the inputs that are no base.
    """
    chosen = merge_methods.get(method)
    others = [i for i in inputs if i != base]
    parameters = {
        **{k: PerInputValues(list(zip(others, v, strict=True))) for k, v in each.items()},
        **shared,
    }
    for tensors in models:
        entries = tuple(TensorEntry(id=i, tensor=tensors[i], is_base=i == base) for i in inputs)
        chosen([TensorGroup(entries=entries)], parameters=parameters)


if __name__ == "__main__":
    main()
