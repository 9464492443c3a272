"""Inner products of the task vectors of experts and other models, streamed tensor by tensor."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from merging.arrays import Matrix
from merging.checkpoints.experts import ExpertPool
from merging.method import MergeError
from merging.rules.float64 import float64_device
from merging.weights import Weights

_BLOCK_BYTES = 16_000_000
_HELD_BYTES = 4_000_000_000


@dataclass(frozen=True, eq=False)
class Gram:
    """Inner products of the task vectors of experts and points.

    Args:
        experts: their names, the first rows.
        points: their names, the rows that follow.
        matrix: ``(experts + points, experts + points)`` float64.
        rounding: ``(points,)``; how far rounding alone moves each point, see `measure`.
    """

    experts: tuple[str, ...]
    points: tuple[str, ...]
    matrix: Matrix
    rounding: Matrix

    def row(self, point: str) -> int:
        """Returns the row of a point; raises KeyError where it was not measured."""
        if point not in self.points:
            raise KeyError(f"no point {point!r} was measured, only {', '.join(self.points)}")
        return len(self.experts) + self.points.index(point)

    @property
    def expert_scale(self) -> float:
        """The experts' mean distance from the base."""
        return float(np.sqrt(np.diag(self.matrix)[: len(self.experts)]).mean())


def measure(
    pool: ExpertPool,
    points: Mapping[str, Weights],
    *,
    block_bytes: int = _BLOCK_BYTES,
    held_bytes: int = _HELD_BYTES,
) -> Gram:
    """Returns the Gram matrix of all task vectors, exact but for float64 sums.

    Reads every tensor of `pool` and `points` once, the tensors of one name at a time. Where the
    points' tensors of one name would take more than `held_bytes`, they are taken in groups, and
    each group is computed again beside every other.

    The rounding of a point is ``sqrt(sum ulp(w)^2 / 12)`` over its weights, once for the cast to
    its dtype where that is below float32, and once in float32 for every expert and for the sum,
    as merges compute: what a point of the hull is expected to be off by.

    Raises:
        MergeError: a point lacks a tensor, has one that the pool does not merge, or holds NaN or
            infinity; names both.
    """
    for point, weights in points.items():
        if foreign := sorted(set(weights) - set(pool.names)):
            raise MergeError(
                f"{point!r} has tensor {foreign[0]}, which the experts do not merge: its distance "
                "from them has no meaning"
            )
    experts, names = len(pool.expert_names), tuple(points)
    matrix = np.zeros((experts + len(names),) * 2)
    rounding = np.zeros(len(names))
    for name in pool.names:
        base = _flat(pool.base_tensor(name))
        of_experts = pool.deltas(name).to(base.device).reshape(experts, -1)  # also a lone number
        deltas = _Vectors(range(experts), list(of_experts), None)
        _add(matrix, deltas, deltas, block_bytes)
        groups = _groups(len(names), base.numel() * 4, held_bytes)
        for number, group in enumerate(groups):
            vectors = _read(points, names, group, name, base, experts)
            _add(matrix, deltas, vectors, block_bytes)
            _add(matrix, vectors, vectors, block_bytes)
            for index, tensor in zip(group, vectors.tensors, strict=True):
                rounding[index] += _rounding(tensor, experts)
            for later in groups[number + 1 :]:
                others = _read(points, names, later, name, base, experts)
                _add(matrix, vectors, others, block_bytes)
    return Gram(pool.expert_names, names, matrix, np.sqrt(rounding))


@dataclass(frozen=True)
class _Vectors:
    """Flat tensors of one name, of some rows of the Gram matrix; task vectors minus `base`."""

    rows: Sequence[int]
    tensors: list[Tensor]
    base: Tensor | None

    def block(self, span: slice) -> Tensor:
        """Returns a range of entries of the task vectors, ``(rows, span)`` float64."""
        entries = len(range(*span.indices(len(self.tensors[0]))))
        device = self.tensors[0].device
        block = torch.empty((len(self.rows), entries), dtype=torch.float64, device=device)
        for row, tensor in zip(block, self.tensors, strict=True):
            row.copy_(tensor[span])
            if self.base is not None:
                row.sub_(self.base[span])
        return block


def _add(matrix: Matrix, left: _Vectors, right: _Vectors, block_bytes: int) -> None:
    """Adds one tensor's inner products to `matrix`, symmetrically."""
    if not left.tensors or not right.tensors:
        return
    size = left.tensors[0].numel()
    step = max(1, block_bytes // (8 * (len(left.rows) + len(right.rows))))
    products = np.zeros((len(left.rows), len(right.rows)))
    for begin in range(0, size, step):
        span = slice(begin, begin + step)
        first = left.block(span)
        second = first if right is left else right.block(span)
        products += (first @ second.T).cpu().numpy()  # <d_i, d_j> over the block
    matrix[np.ix_(left.rows, right.rows)] += products
    if left is not right:
        matrix[np.ix_(right.rows, left.rows)] += products.T


def _groups(count: int, tensor_bytes: int, held_bytes: int) -> list[range]:
    """Returns the points in groups of which two fit; one group where all fit."""
    if count * tensor_bytes <= held_bytes:
        return [range(count)]
    size = max(1, held_bytes // max(1, 2 * tensor_bytes))
    return [range(at, min(at + size, count)) for at in range(0, count, size)]


def _read(
    points: Mapping[str, Weights],
    names: Sequence[str],
    group: range,
    tensor: str,
    base: Tensor,
    experts: int,
) -> _Vectors:
    tensors = [_point(points[names[i]], names[i], tensor, base) for i in group]
    return _Vectors([experts + i for i in group], tensors, base)


def _point(weights: Weights, point: str, name: str, base: Tensor) -> Tensor:
    if name not in weights:
        raise MergeError(f"{point!r} has no tensor {name}: measure it in the pool it is made of")
    flat = _flat(weights[name]).to(base.device)
    if flat.shape != base.shape:
        raise MergeError(
            f"{point!r}: tensor {name} has {flat.numel()} numbers, the base has {base.numel()}"
        )
    if not bool(torch.isfinite(flat).all()):
        raise MergeError(f"{point!r}: tensor {name} holds NaN or infinity; it lies nowhere")
    return flat


def _flat(tensor: Tensor) -> Tensor:
    return tensor.to(float64_device(tensor.device)).flatten()


def _rounding(weights: Tensor, experts: int) -> float:
    """Returns the expected squared error of one tensor, see `measure`."""
    exponents = torch.frexp(weights.float())[1][weights != 0].double()
    squares = float(torch.exp2(2 * (exponents - 1)).sum())
    single, stored = torch.finfo(torch.float32).eps, torch.finfo(weights.dtype).eps
    cast = stored**2 if stored > single else 0.0
    return squares * (cast + (experts + 1) * single**2) / 12  # sum ulp(w)^2 / 12
