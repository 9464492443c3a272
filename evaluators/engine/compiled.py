"""A model's compiled forward, put in place while candidates have the passes to themselves."""

from typing import Any

import torch


class CompiledForward:
    """Compiles a model without its output layer, whose inputs the engine thins; a context manager.

    Outside of the context the model is as it was: hooks on its layers are then seen.
    """

    def __init__(self, module: Any) -> None:
        self._body: Any = getattr(module, "base_model", module)
        self._forward = torch.compile(self._body.forward, dynamic=True)

    def __enter__(self) -> None:
        self._body.forward = self._forward

    def __exit__(self, *_: object) -> None:
        del self._body.forward
