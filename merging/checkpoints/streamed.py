"""Tensors that stay in host memory and are copied to a device one after the other."""

import torch
from torch import Tensor

from merging.weights import LazyWeights, Weights


class StreamedWeights(LazyWeights):
    """Copies on `device`, made when read; the next tensor travels while one is worked on.

    `weights` are copied into host memory once, and read in their order, in turns. Held on the
    device are the tensor last read and the one after it. On CUDA the host's copies are pinned and
    travel on a stream of their own.
    """

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._host = {name: self._on_host(weights[name]) for name in weights}
        names = list(self._host)
        super().__init__(names)
        self._next = dict(zip(names, names[1:] + names[:1], strict=True))
        self._side = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._ahead: dict[str, Tensor] = {}

    def _tensor(self, name: str) -> Tensor:
        following = self._next[name]
        here, after = self._ahead.get(name), self._ahead.get(following)
        if here is None:
            here = self._send(name)
        if self._side is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._side)
            here.record_stream(current)  # its memory is not reused before the work is done
        self._ahead = {name: here, following: self._send(following) if after is None else after}
        return here

    def _on_host(self, tensor: Tensor) -> Tensor:
        copy = tensor.to("cpu", copy=True)
        return copy.pin_memory() if self._cuda else copy

    def _send(self, name: str) -> Tensor:
        """Starts the copy and returns where it arrives."""
        if self._side is None:
            return self._host[name].to(self.device)
        with torch.cuda.stream(self._side):
            return self._host[name].to(self.device, non_blocking=True)
