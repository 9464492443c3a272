"""Tensors that stay in host memory and are copied to a device one after the other."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from merging.weights import Weights


class StreamedWeights(Mapping[str, Tensor]):
    """Copies on `device`, made when read; the next tensor travels while one is worked on.

    Held on the device are the tensor last read and the one after it. On CUDA the host's copies
    are pinned and travel on a stream of their own.

    Args:
        weights: copied into host memory once; read in their order, in turns.
    """

    def __init__(self, weights: Weights, device: torch.device) -> None:
        self.device = device
        self._cuda = device.type == "cuda"
        self._host = {name: self._kept(weights[name]) for name in weights}
        names = list(self._host)
        self._next = dict(zip(names, names[1:] + names[:1], strict=True))
        self._side = torch.cuda.Stream(device) if self._cuda else None  # type: ignore[no-untyped-call]
        self._ahead: dict[str, Tensor] = {}

    def __getitem__(self, name: str) -> Tensor:
        if name not in self._host:
            raise KeyError(name)
        following = self._next[name]
        ahead = {each: self._ahead.get(each) for each in (name, following)}
        here = ahead[name]
        if here is None:
            here = self._sent(name)
        if self._side is not None:
            current = torch.cuda.current_stream(self.device)
            current.wait_stream(self._side)
            here.record_stream(current)  # its memory is not reused before the work is done
        after = ahead[following]
        self._ahead = {name: here, following: self._sent(following) if after is None else after}
        return here

    def __contains__(self, name: object) -> bool:
        return name in self._host

    def __iter__(self) -> Iterator[str]:
        return iter(self._host)

    def __len__(self) -> int:
        return len(self._host)

    def _kept(self, tensor: Tensor) -> Tensor:
        own = tensor.to("cpu", copy=True)
        return own.pin_memory() if self._cuda else own

    def _sent(self, name: str) -> Tensor:
        """Starts the copy and returns where it arrives."""
        if self._side is None:
            return self._host[name].to(self.device)
        with torch.cuda.stream(self._side):
            return self._host[name].to(self.device, non_blocking=True)
