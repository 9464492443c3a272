"""Candidates near one centre, the resident's weights, that go through the model together."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import TypeAlias

import torch
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from evaluators.engine.capabilities import Tokens, mostly_equal
from evaluators.engine.delta_layers import DeltaLayer, PassCandidates, refusal
from evaluators.engine.in_place import InPlaceCandidate
from evaluators.engine.resident import Resident
from evaluators.requests import is_out_of_memory
from merging.lora.low_rank import LowRankDeltas, LowRankProduct
from merging.seeding import generator

_PROBE_TOKENS = 8

PLAIN: LowRankDeltas = {}
"""The differences of the centre itself: none."""

_Owners: TypeAlias = dict[int, list[tuple[nn.Module, str]]]
"""Id of a parameter -> the layers that hold it, and under what name: tied ones several."""

_Kind: TypeAlias = tuple[bool, tuple[int, ...]]
"""Whether a difference is a whole vector, and the shape of its tensor."""


class PopulationForward:
    """Lets candidates take their turns in passes, together or alone; a context manager.

    Together, hooks add every candidate's differences to its own rows of a pass. A batch that is
    large already gains nothing by more rows; where `writes` allows it, candidates are then
    written into the weights in turns. Leaving the context removes hooks and restores the centre.
    One candidate without differences is the plain model: nothing is touched.

    Args:
        candidates: differences from the centre, which `resident` holds; at least one.
        pass_tokens: most tokens of one pass of several candidates.
        cache_tokens: most tokens whose keys and values several candidates hold together.
        writes: whether a candidate that has a large batch to itself is written. A copy of the
            tensors that change is held then.

    Raises:
        ValueError: a tensor that the model does not have, of another shape, or of a layer whose
            rows cannot have weights each; see `refusal_of`.
    """

    def __init__(
        self,
        resident: Resident,
        candidates: Sequence[LowRankDeltas],
        *,
        pass_tokens: int,
        cache_tokens: int,
        writes: bool = False,
    ) -> None:
        self.size = len(candidates)
        self._pass_tokens = pass_tokens
        self._cache_tokens = cache_tokens
        self._alone_tokens = _alone_tokens(candidates) if writes else None
        self._alone = False
        self._device = resident.device
        self._in_place = InPlaceCandidate(resident, candidates)
        self._layers: list[DeltaLayer] = []
        if any(candidates):
            if (why := _refused(resident, candidates)) is not None:
                raise ValueError(f"these candidates cannot share a pass: {why}")
            self._layers = _layers(resident, candidates, _owners(resident))
        self._handles: list[RemovableHandle] = []

    def __enter__(self) -> PopulationForward:
        return self

    def __exit__(self, *_: object) -> None:
        self._detach()
        self._in_place.restore()

    def parts(self, tokens: int, *, cached: bool = False) -> Iterator[range]:
        """Yields the candidates a few at a time, in parts of nearly equal size.

        Args:
            tokens: of one candidate's batch, padding included.
            cached: whether they are written one after the other into a cache.
        """
        most = max(1, (self._cache_tokens if cached else self._pass_tokens) // tokens)
        large = self._alone_tokens is not None and tokens >= self._alone_tokens
        self._alone = most == 1 and large and bool(self._layers)
        passes = -(-self.size // most)
        for number in range(passes):
            yield range(self.size * number // passes, self.size * (number + 1) // passes)

    def choose(self, candidates: Sequence[int], rows: int) -> None:
        """Takes candidates by number for the next passes, `rows` rows of each."""
        if self._alone:
            self._detach()
            self._in_place.write(candidates[0])
        elif self._layers:
            self._in_place.restore()
            if not self._handles:
                self._handles = [handle for layer in self._layers for handle in layer.attach()]
            index: slice | Tensor
            if isinstance(candidates, range):
                index = slice(candidates.start, candidates.stop)
            else:
                index = torch.tensor(candidates, device=self._device)
            for layer in self._layers:
                layer.choose(PassCandidates(index, len(candidates), len(candidates) * rows))

    def write(self, candidate: int) -> None:
        """Writes one candidate into the weights: for passes whose layers see more than rows."""
        if self._layers:
            self._detach()
            self._in_place.write(candidate)

    def _detach(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []


def tiled(index: Tensor, times: int, step: int) -> Tensor:
    """Returns `index` as often as there are candidates, each time moved by `step`.

    Example:
        >>> tiled(torch.tensor([0, 2]), 3, 10).tolist()
        [0, 2, 10, 12, 20, 22]
    """
    if times == 1:
        return index
    offsets = step * torch.arange(times, device=index.device).unsqueeze(1)
    return (index + offsets).flatten()


def refusal_of(resident: Resident, deltas: LowRankDeltas) -> str | None:
    """Returns why a candidate cannot share its passes with others; None: it can."""
    return _refused(resident, (deltas,))


def _refused(resident: Resident, candidates: Sequence[LowRankDeltas]) -> str | None:
    owners = _owners(resident)
    kinds = dict.fromkeys(
        (name, _kind(delta)) for deltas in candidates for name, delta in deltas.items()
    )
    for name, kind in kinds:
        if (why := _refusal(resident, name, kind, owners)) is not None:
            return why
    module = resident.module  # of images, or of both: candidates are written one by one
    if module.main_input_name != "input_ids" or hasattr(module, "get_text_features"):
        return None
    names = dict.fromkeys(name for name, _ in kinds)
    _measure(resident, [name for name in names if name not in resident.shared], owners)
    unlike = next((name for name in names if not resident.shared[name]), None)
    return None if unlike is None else f"{unlike} is not read through its layer, row by row"


def _measure(resident: Resident, names: Sequence[str], owners: _Owners) -> None:
    """Notes for each of the tensors whether two rows with tensors of their own are as if alone."""
    if not names:
        return
    alike = _alike(resident, names, owners)
    if alike or len(names) == 1:
        resident.shared |= dict.fromkeys(names, alike)
        return
    half = len(names) // 2
    _measure(resident, names[:half], owners)
    _measure(resident, names[half:], owners)


@torch.inference_mode()
def _alike(resident: Resident, names: Sequence[str], owners: _Owners) -> bool:
    """Whether two candidates that differ in these tensors give, together, what each gives alone.

    They differ by as much as the tensors are large, so that what goes astray is seen.
    """
    module = resident.module
    candidates = [{name: _probe(resident, name, i) for name in names} for i in range(2)]
    tokens = Tokens(module)
    rows = tokens.tensor([tokens.row(_PROBE_TOKENS) for _ in candidates])
    options = {"use_cache": False} if resident.info.causal else {}
    two_sides = getattr(module.config, "is_encoder_decoder", False)
    read = ("input_ids", "decoder_input_ids") if two_sides else ("input_ids",)
    layers = _layers(resident, candidates, owners)
    in_place = InPlaceCandidate(resident, candidates)
    alone, handles = [], []
    try:
        for number in range(len(candidates)):
            in_place.write(number)
            alone.append(module(**dict.fromkeys(read, rows[number : number + 1]), **options)[0])
        in_place.restore()
        handles = [handle for layer in layers for handle in layer.attach()]
        for layer in layers:
            layer.choose(PassCandidates(slice(None), len(candidates), len(candidates)))
        together = module(**dict.fromkeys(read, rows), **options)[0]
    except (AttributeError, RuntimeError, TypeError, ValueError) as error:
        if is_out_of_memory(error):
            raise
        return False  # a layer that sees other rows
    finally:
        in_place.restore()
        for handle in handles:
            handle.remove()
    return mostly_equal(together.flatten(0, 1), torch.cat(alone).flatten(0, 1))


def _probe(resident: Resident, name: str, number: int) -> LowRankProduct | Tensor:
    """Returns a difference as large as the tensor itself."""
    tensor = resident.tensor(name)
    noise = generator(name, number)
    size = float(tensor.float().square().mean().sqrt()) or 1.0
    if tensor.dim() == 1:
        return size * torch.randn(tensor.shape, generator=noise)
    rows, columns = tensor.shape
    a, b = torch.randn(1, columns, generator=noise), torch.randn(rows, 1, generator=noise)
    return LowRankProduct(a, size * b)


def _kind(delta: LowRankProduct | Tensor) -> _Kind:
    if isinstance(delta, Tensor):
        return True, tuple(delta.shape)
    return False, (len(delta.b), delta.a.shape[1])


def _refusal(resident: Resident, name: str, kind: _Kind, owners: _Owners) -> str | None:
    parameter, (vector, shape) = resident.tensor(name), kind
    if id(parameter) not in owners:
        return f"{name} belongs to no layer"
    if shape != tuple(parameter.shape):
        return f"{name} has shape {tuple(parameter.shape)}, its difference {shape}"
    for module, attribute in owners[id(parameter)]:
        if (why := refusal(name, module, attribute, vector=vector)) is not None:
            return why
    return None


def _alone_tokens(candidates: Sequence[LowRankDeltas]) -> int | None:
    """Returns from how many tokens of a batch on it pays to write a candidate into the weights.

    Of a matrix ``(n, n)`` and factors of rank r the hooks cost two thin products of every token,
    ``4 n r`` operations that run at half speed, writing ``2 n^2 r`` operations and moving
    ``12 n^2`` bytes, each of which takes as long as ten operations.
    """
    factors = [
        delta
        for deltas in candidates
        for delta in deltas.values()
        if isinstance(delta, LowRankProduct)
    ]
    rank = max((len(delta.a) for delta in factors), default=0)
    if rank == 0:
        return None
    sizes = [len(delta.b) * delta.a.shape[1] for delta in factors]
    width = math.sqrt(sum(sizes) / len(sizes))  # n
    return math.ceil(width * (2 * rank + 120) / (8 * rank))  # (2 n^2 r + 120 n^2) / (8 n r)


def factor_bytes(deltas: LowRankDeltas, element_bytes: int) -> int:
    """Returns the memory that one candidate's differences take in a population."""
    sizes = (
        delta.a.numel() + delta.b.numel() if isinstance(delta, LowRankProduct) else delta.numel()
        for delta in deltas.values()
    )
    return element_bytes * sum(sizes)


def _layers(
    resident: Resident, candidates: Sequence[LowRankDeltas], owners: _Owners
) -> list[DeltaLayer]:
    """Returns a `DeltaLayer` for each layer in which a candidate differs."""
    modules: dict[nn.Module, dict[str, list[LowRankProduct | Tensor | None]]] = {}
    for name in dict.fromkeys(name for deltas in candidates for name in deltas):
        for module, attribute in owners[id(resident.tensor(name))]:
            parts = modules.setdefault(module, {})
            parts[attribute] = [deltas.get(name) for deltas in candidates]
    names = {module: name for name, module in resident.module.named_modules()}
    head = getattr(resident.module, "get_output_embeddings", lambda: None)()
    return [
        DeltaLayer(names[module], module, parts, output=module is head)
        for module, parts in modules.items()
    ]


def _owners(resident: Resident) -> _Owners:
    owners: _Owners = {}
    for module in resident.module.modules():
        for attribute, parameter in module.named_parameters(recurse=False):
            owners.setdefault(id(parameter), []).append((module, attribute))
    return owners
