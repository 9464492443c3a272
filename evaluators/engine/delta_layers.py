"""One layer of an unmodified model, for several candidates at once: hooks that add differences.

The rows that a layer sees are the candidates' one after the other, equally many of each. Where
``W_p = W + b_p diag(m_p) a_p``, the layer's own output for W is kept and the candidates' part is
added in two thin products, so that W is read once for all of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.hooks import RemovableHandle
from transformers.pytorch_utils import Conv1D

from merging.lora.low_rank import LowRankProduct

Parts: TypeAlias = Mapping[str, Sequence[LowRankProduct | Tensor | None]]
"""A layer's parameter to what each candidate adds to it; None: nothing."""

_KINDS: Mapping[type[nn.Module], Mapping[str, bool]] = {
    nn.Linear: {"weight": False, "bias": True},
    Conv1D: {"weight": False, "bias": True},
    nn.Embedding: {"weight": False},
    nn.LayerNorm: {"weight": True, "bias": True},
}
"""Kind of layer to the parameters in which candidates can differ; whether as a whole vector."""


@dataclass(frozen=True, eq=False)
class PassCandidates:
    """Candidates whose rows go through one pass.

    Args:
        candidates: which, as an index into all of them.
        count: how many they are.
        rows: of the whole batch, equally many for each.
    """

    candidates: slice | Tensor
    count: int
    rows: int


class DeltaLayer(Protocol):
    """Adds the differences of the chosen candidates to one layer."""

    def choose(self, chosen: PassCandidates) -> None:
        """Takes the candidates whose rows come next."""
        ...

    def attach(self) -> list[RemovableHandle]:
        """Sets the hooks; removing them leaves the layer as it was."""
        ...


def delta_layer(name: str, module: nn.Module, parts: Parts, *, output: bool) -> DeltaLayer:
    """Returns the `DeltaLayer` of a linear, embedding or norm layer.

    Args:
        name: of the layer, for messages.
        module: the layer.
        parts: for its own parameters; none that `refusal` has a reason against.
        output: whether it is the output layer of a language model, which sees chosen positions
            instead of rows.
    """
    if isinstance(module, nn.Linear | Conv1D):
        return _LinearLayer(name, module, parts, output=output)
    if isinstance(module, nn.Embedding):
        return _EmbeddingLayer(module, parts)
    return _NormLayer(module, parts)


def refusal(tensor: str, module: nn.Module, attribute: str, *, vector: bool) -> str | None:
    """Returns why candidates cannot differ in a parameter within one pass; None: they can.

    Kinds are told by their exact class: what a subclass does with its weight is not known.

    Args:
        tensor: its name.
        module: the layer that owns it.
        attribute: its name there.
        vector: whether the difference is a whole vector instead of factors.
    """
    if ".experts." in tensor:
        return f"{tensor} sees the tokens that a router sends it, not whole rows"
    fits = _KINDS.get(type(module))
    if fits is None:
        fits = {"weight": True} if _is_rms_norm(module) else {}
    if fits.get(attribute) == vector:
        return None
    return f"{tensor} belongs to a {type(module).__name__}, whose rows cannot have weights each"


def _is_rms_norm(module: nn.Module) -> bool:
    """Whether the layer multiplies the last dimension by its one vector, and does no more."""
    shapes = [parameter.dim() for _, parameter in module.named_parameters()]
    return type(module).__name__.endswith("RMSNorm") and shapes == [1]


class _Factors:
    """All candidates' factors of one matrix, stacked: ``x -> (down x)^T * mix @ up``.

    Args:
        given: one for each candidate; None: nothing to add.
        parameter: decides dtype and device.
        rows_in: whether the layer's input runs along the rows of the stored matrix.
    """

    def __init__(
        self, given: Sequence[LowRankProduct | None], parameter: Tensor, *, rows_in: bool
    ) -> None:
        self._like = parameter
        self._rows_in = rows_in
        products = [product for product in given if product is not None]
        self._mix: Tensor | None = None
        if len({(id(product.a), id(product.b)) for product in products}) == 1:
            rank = len(products[0].a)
            self._down, self._up = self._sides(products[0])
            mix = [_mix(product, rank, parameter.device) for product in given]
            self._mix = torch.stack(mix).to(parameter.dtype).unsqueeze(1)
        else:
            rank = max(len(product.a) for product in products)
            sides = [self._padded(product, rank, products[0]) for product in given]
            self._down = torch.stack([down for down, _ in sides])
            self._up = torch.stack([up for _, up in sides])
        self.choose(slice(None))

    def choose(self, candidates: slice | Tensor) -> None:
        """Takes the candidates whose rows come next."""
        self._now: tuple[Tensor, Tensor, Tensor | None]
        if self._mix is not None:
            self._now = self._down, self._up, self._mix[candidates]
        else:
            self._now = self._down[candidates], self._up[candidates], None

    def low(self, x: Tensor) -> Tensor:
        """Returns ``(down x)^T * mix`` ``(candidates, vectors, rank)`` for x ``(.., .., in)``."""
        down, _, mix = self._now
        if mix is None:  # this order of the product is two to four times as fast as the other
            return torch.bmm(down, x.transpose(1, 2)).transpose(1, 2)
        return (x @ down.T).mul_(mix)

    def gathered(self, token: Tensor) -> Tensor:
        """Returns the same for one-hot x, given by their indices ``(candidates, vectors)``."""
        down, _, mix = self._now
        if mix is None:
            candidate = torch.arange(len(token), device=token.device).unsqueeze(1)
            return down.transpose(1, 2)[candidate, token]
        return down.T[token] * mix

    def add(self, output: Tensor, low: Tensor) -> None:
        """Adds ``low @ up`` to ``(candidates, vectors, out)``, in place."""
        _, up, mix = self._now
        if mix is None:
            output.baddbmm_(low, up.transpose(1, 2))
        else:
            output.flatten(0, 1).addmm_(low.flatten(0, 1), up.T)

    def _sides(self, product: LowRankProduct) -> tuple[Tensor, Tensor]:
        """Returns ``down (rank, in)`` and ``up (out, rank)``, as adapters hold A and B."""
        a, b = product.a.to(self._like), product.b.to(self._like)
        return (b.T, a.T) if self._rows_in else (a, b)

    def _padded(
        self, product: LowRankProduct | None, rank: int, like: LowRankProduct
    ) -> tuple[Tensor, Tensor]:
        """Returns down and up of one candidate, with zeros up to the largest rank."""
        if product is None:
            product = LowRankProduct(like.a[:0], like.b[:, :0])
        elif product.mix is not None:
            product = LowRankProduct(product.a, product.b * product.mix)
        down, up = self._sides(product)
        lacking = rank - len(product.a)
        if lacking == 0:
            return down, up
        return functional.pad(down, (0, 0, 0, lacking)), functional.pad(up, (0, lacking))


def _mix(product: LowRankProduct | None, rank: int, device: torch.device) -> Tensor:
    if product is None:
        return torch.zeros(rank, device=device)
    return torch.ones(rank, device=device) if product.mix is None else product.mix.to(device)


def _factors(given: Sequence[LowRankProduct | Tensor | None]) -> list[LowRankProduct | None]:
    return [product for product in given if not isinstance(product, Tensor)]


class _Vectors:
    """All candidates' differences of one vector, ``(candidates, 1, n)``."""

    def __init__(self, given: Sequence[Any], parameter: Tensor) -> None:
        zero = torch.zeros_like(parameter)
        rows = [zero if delta is None else delta.to(parameter) for delta in given]
        self.all = torch.stack(rows).unsqueeze(1)
        self.now = self.all

    def choose(self, candidates: slice | Tensor) -> None:
        """Takes the candidates whose rows come next."""
        self.now = self.all[candidates]


class _LinearLayer:
    """Adds to the output of a linear layer, of either layout."""

    def __init__(self, name: str, module: nn.Module, parts: Parts, *, output: bool) -> None:
        self._name = name
        self._module = module
        self._output = output
        parameter, rows_in = module.get_parameter("weight"), isinstance(module, Conv1D)
        self._weight = self._bias = None
        if "weight" in parts:
            self._weight = _Factors(_factors(parts["weight"]), parameter, rows_in=rows_in)
        if "bias" in parts:
            self._bias = _Vectors(parts["bias"], module.get_parameter("bias"))

    def choose(self, chosen: PassCandidates) -> None:
        """Takes the candidates whose rows come next."""
        self._chosen = chosen
        if self._weight is not None:
            self._weight.choose(chosen.candidates)
        if self._bias is not None:
            self._bias.choose(chosen.candidates)

    def attach(self) -> list[RemovableHandle]:
        """Sets the hook."""
        return [self._module.register_forward_hook(self._hook)]

    def _hook(self, _: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        x, count = arguments[0], self._chosen.count
        if not self._output and x.shape[0] % self._chosen.rows:
            raise ValueError(
                f"layer {self._name} sees an input of shape {tuple(x.shape)} where the batch has "
                f"{self._chosen.rows} rows: candidates cannot share a pass; write them one by one"
            )
        whole = output.contiguous()
        split = whole.view(count, -1, whole.shape[-1])
        if self._weight is not None:
            low = self._weight.low(x.reshape(count, -1, x.shape[-1]))
            self._weight.add(split, low)
        if self._bias is not None:
            split.add_(self._bias.now)
        return whole


class _EmbeddingLayer:
    """Adds to the rows that an embedding looks up."""

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        self._module = module
        parameter = module.get_parameter("weight")
        self._weight = _Factors(_factors(parts["weight"]), parameter, rows_in=True)

    def choose(self, chosen: PassCandidates) -> None:
        """Takes the candidates whose rows come next."""
        self._chosen = chosen
        self._weight.choose(chosen.candidates)

    def attach(self) -> list[RemovableHandle]:
        """Sets the hook."""
        return [self._module.register_forward_hook(self._hook)]

    def _hook(self, _: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        tokens, count, rows = arguments[0], self._chosen.count, self._chosen.rows
        if len(tokens) == 1 < rows:  # positions that all rows share; now they differ
            tokens = tokens.expand(rows, *tokens.shape[1:])
            output = output.expand(rows, *output.shape[1:])
        whole = output.contiguous()
        split = whole.view(count, -1, whole.shape[-1])
        self._weight.add(split, self._weight.gathered(tokens.reshape(count, -1)))
        return whole


class _NormLayer:
    """Gives every candidate's rows their own weight and bias."""

    def __init__(self, module: nn.Module, parts: Parts) -> None:
        self._module = module
        self._parts = {
            attribute: _Vectors(given, module.get_parameter(attribute))
            for attribute, given in parts.items()
        }

    def choose(self, chosen: PassCandidates) -> None:
        """Takes the candidates whose rows come next."""
        self._count = chosen.count
        for part in self._parts.values():
            part.choose(chosen.candidates)

    def attach(self) -> list[RemovableHandle]:
        """Sets the hooks."""
        if isinstance(self._module, nn.LayerNorm):
            return [self._module.register_forward_hook(self._layer_norm)]
        return [
            self._module.register_forward_pre_hook(self._lend),
            self._module.register_forward_hook(self._take_back, always_call=True),
        ]

    def _layer_norm(self, module: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        exact = functional.layer_norm(arguments[0], module.normalized_shape, eps=module.eps)
        split = exact.view(self._count, -1, exact.shape[-1])
        for attribute, apply in (("weight", split.mul_), ("bias", split.add_)):
            if getattr(module, attribute) is not None:
                apply(self._own(module, attribute))
        return exact

    def _own(self, module: nn.Module, attribute: str) -> Tensor:
        centre = module.get_parameter(attribute)
        part = self._parts.get(attribute)
        return centre if part is None else centre + part.now

    def _lend(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Puts the candidates' weights before the parameter, and their rows side by side."""
        x = arguments[0]
        self._shape = x.shape
        module.__dict__["weight"] = self._own(module, "weight")
        return (x.reshape(self._count, -1, x.shape[-1]), *arguments[1:])

    def _take_back(self, module: nn.Module, _: Any, output: Any) -> Any:
        module.__dict__.pop("weight", None)
        return None if output is None else output.view(self._shape)
