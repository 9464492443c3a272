"""One layer of an unmodified model, for several candidates at once: hooks that add differences.

The rows that a layer sees are the candidates' one after the other, equally many of each. Where
``W_p = W + b_p diag(m_p) a_p``, the layer's own output for W is kept and the candidates' part is
added in two thin products, so that W is read once for all of them.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

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


def refusal(tensor: str, module: nn.Module, attribute: str, *, vector: bool) -> str | None:
    """Returns why candidates cannot differ in a parameter within one pass; None: they can.

    Kinds are told by their exact class: what a subclass does with its weight is not known.

    Args:
        tensor: name of the parameter, which the layer `module` has as its `attribute`.
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


class DeltaLayer:
    """Adds the differences of the chosen candidates to a linear, embedding or norm layer.

    Args:
        parts: for its own parameters; none that `refusal` has a reason against.
        output: whether it is the output layer of a language model, which sees chosen positions
            instead of rows.
    """

    def __init__(self, name: str, module: nn.Module, parts: Parts, *, output: bool) -> None:
        self._name = name
        self._module = module
        self._output = output
        self._factors: _Factors | None = None
        self._vectors: dict[str, _Vectors] = {}
        for attribute, given in parts.items():
            parameter = module.get_parameter(attribute)
            products = [delta for delta in given if not isinstance(delta, Tensor)]
            if any(products):
                rows_in = not isinstance(module, nn.Linear)
                self._factors = _Factors(products, parameter, rows_in=rows_in)
            else:
                self._vectors[attribute] = _Vectors(given, parameter)

    def choose(self, chosen: PassCandidates) -> None:
        """Takes the candidates whose rows come next."""
        self._chosen = chosen
        if self._factors is not None:
            self._factors.choose(chosen.candidates)
        for vectors in self._vectors.values():
            vectors.choose(chosen.candidates)

    def attach(self) -> list[RemovableHandle]:
        """Sets the hooks; removing them leaves the layer as it was."""
        module = self._module
        if isinstance(module, nn.Linear | Conv1D):
            return [module.register_forward_hook(self._add_to_linear)]
        if isinstance(module, nn.Embedding):
            return [module.register_forward_hook(self._add_to_embedding)]
        if isinstance(module, nn.LayerNorm):
            return [module.register_forward_hook(self._layer_norm)]
        return [
            module.register_forward_pre_hook(self._lend),
            module.register_forward_hook(self._take_back, always_call=True),
        ]

    def _split(self, output: Tensor) -> tuple[Tensor, Tensor]:
        """Returns the output, and a view of it by candidates, ``(candidates, vectors, out)``."""
        whole = output.contiguous()
        return whole, whole.view(self._chosen.count, -1, whole.shape[-1])

    def _add_to_linear(self, _: nn.Module, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        x = arguments[0]
        if not self._output and x.shape[0] % self._chosen.rows:
            raise ValueError(
                f"layer {self._name} sees an input of shape {tuple(x.shape)} where the batch has "
                f"{self._chosen.rows} rows: candidates cannot share a pass; write them one by one"
            )
        whole, split = self._split(output)
        if self._factors is not None:  # W x + b_p (m_p * (a_p x))
            low = self._factors.low(x.reshape(self._chosen.count, -1, x.shape[-1]))
            self._factors.add(split, low)
        if "bias" in self._vectors:
            split.add_(self._vectors["bias"].now)
        return whole

    def _add_to_embedding(
        self, _: nn.Module, arguments: tuple[Any, ...], output: Tensor
    ) -> Tensor:
        assert self._factors is not None, "an embedding has no other parameter"
        tokens, rows = arguments[0], self._chosen.rows
        if len(tokens) == 1 < rows:  # positions that all rows share; now they differ
            tokens = tokens.expand(rows, *tokens.shape[1:])
            output = output.expand(rows, *output.shape[1:])
        whole, split = self._split(output)
        low = self._factors.gathered(tokens.reshape(self._chosen.count, -1))
        self._factors.add(split, low)
        return whole

    def _layer_norm(self, module: Any, arguments: tuple[Any, ...], output: Tensor) -> Tensor:
        whole, split = self._split(
            functional.layer_norm(arguments[0], module.normalized_shape, eps=module.eps)
        )
        for attribute, apply in (("weight", split.mul_), ("bias", split.add_)):
            if getattr(module, attribute) is not None:
                apply(self._own(attribute))
        return whole

    def _own(self, attribute: str) -> Tensor:
        """Returns the candidates' own vectors: the centre's and their differences."""
        centre = self._module.get_parameter(attribute)
        return centre + self._vectors[attribute].now if attribute in self._vectors else centre

    def _lend(self, module: nn.Module, arguments: tuple[Any, ...]) -> tuple[Any, ...]:
        """Puts the candidates' weights before the parameter, and their rows side by side."""
        x = arguments[0]
        self._shape = x.shape
        module.__dict__["weight"] = self._own("weight")
        return (x.reshape(self._chosen.count, -1, x.shape[-1]), *arguments[1:])

    def _take_back(self, module: nn.Module, _: Any, output: Any) -> Any:
        module.__dict__.pop("weight", None)
        return None if output is None else output.view(self._shape)
