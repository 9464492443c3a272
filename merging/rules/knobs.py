"""What every merge method reads first: its experts and knob values, checked once for all."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace

from torch import Tensor

from merging.method import Knob, MergeError, MergeMethod, Slot
from merging.rules.cache import ExpertTensor, ExpertTensors, ParameterStack

WEIGHT = Knob("weight")
SCALE = Knob("scale", per_expert=False)
SCALE_OF_SUM = replace(SCALE, start=0.3)
DENSITY = Knob("density", low=0.0, high=1.0, start=0.5, scale=0.15)
EPSILON = Knob("epsilon", low=0.0, high=1.0, start=0.1, scale=0.05)
"""Half the window of probabilities in which magnitudes are ranked."""
GAMMA = Knob("gamma", low=0.0, high=1.0, start=0.01, scale=0.01)
"""Share of the largest entries to be dropped."""


def scale_knob(normalize: bool) -> Knob:
    """Returns the knob that multiplies merged deltas: 1 for their mean, 0.3 for their sum.

    0.3 for sums is what Ilharco et al. 2023 (arXiv:2212.04089) find good for most tasks.
    """
    return SCALE if normalize else SCALE_OF_SUM


@dataclass(frozen=True)
class Inputs:
    """One tensor of every expert with its knob values, in the order of the experts' identities.

    The order is the same however the user lists the experts, so that sums round the same way and
    a merge does not depend on the list's order by a single bit.

    Args:
        method: the method's name, as in ``conf/method``; for messages.
        tensor: name of the parameter.
        rows: one per expert, sorted by identity.
        per_expert: knobs that are a number per expert.
        shared: knobs that are one number.
    """

    method: str
    tensor: str
    rows: ExpertTensors
    per_expert: Mapping[str, tuple[float, ...]]
    shared: Mapping[str, float]

    @property
    def experts(self) -> tuple[str, ...]:
        """Identities."""
        return tuple(row.expert for row in self.rows)

    @property
    def deltas(self) -> tuple[Tensor, ...]:
        """Expert minus base, one ``(*shape)`` per expert; not to be changed."""
        return tuple(row.delta() for row in self.rows)

    @property
    def unmoved(self) -> bool:
        """Whether every delta is zero or empty: the merge is then the base, bit for bit."""
        return not any(row.moved for row in self.rows)

    def shares(self) -> tuple[float, ...]:
        """Returns the weights divided by their sum.

        Raises:
            MergeError: the sum vanishes beside the weights themselves.
        """
        weights = self.per_expert["weight"]
        total = math.fsum(weights)
        if abs(total) <= 1e-6 * math.fsum(map(abs, weights)):
            raise MergeError(
                f"{self.method}: the weights {list(weights)} of tensor {self.tensor!r} sum to zero"
                " and cannot be normalised: change one of them"
            )
        return tuple(weight / total for weight in weights)


def read(
    method: MergeMethod,
    slot: Slot,
    base: Tensor,
    deltas: Tensor,
    knobs: Mapping[str, Tensor],
    *,
    least: int = 1,
    most: int | None = None,
) -> Inputs:
    """Returns the arguments of `MergeMethod.merge`, checked and in canonical order.

    Args:
        least: smallest number of experts that the method takes.
        most: largest number; None: no limit.

    Raises:
        MergeError: number of experts, shape, dtype, or a knob's name, shape or range is wrong.
    """
    tensors = stacked(method, slot, base, deltas)
    return read_rows(method, tensors, knobs, least=least, most=most)


def stacked(method: MergeMethod, slot: Slot, base: Tensor, deltas: Tensor) -> ParameterStack:
    """Returns the arguments of `MergeMethod.merge` as `ParameterStack`.

    Raises:
        MergeError: the deltas do not have the base's layout.
    """
    count = len(slot.experts)
    if deltas.shape != (count, *base.shape) or deltas.dtype != base.dtype:
        raise MergeError(
            f"{_name(method)}: deltas of tensor {slot.name!r} are "
            f"{deltas.dtype} {tuple(deltas.shape)}, "
            f"expected {base.dtype} {(count, *base.shape)}: one per expert, in the base's layout"
        )
    rows = tuple(
        ExpertTensor(slot.name, expert, delta, False, base, base.dtype)
        for expert, delta in zip(slot.experts, deltas, strict=True)
    )
    return ParameterStack(slot.name, base, rows, base.dtype)


def read_rows(
    method: MergeMethod,
    tensors: ParameterStack,
    knobs: Mapping[str, Tensor],
    *,
    least: int = 1,
    most: int | None = None,
) -> Inputs:
    """Returns what a rule is made of, checked and in canonical order; see `read`."""
    rows = tensors.rows
    count = len(rows)
    if count < least or (most is not None and count > most):
        number = f"exactly {least}" if most == least else f"at least {least}"
        raise MergeError(
            f"{_name(method)} merges {number} expert{'s' if least > 1 else ''}, {count} given: "
            "select other experts or another method"
        )
    check_names(method, knobs, f"tensor {tensors.name!r}")
    order = sorted(range(count), key=lambda i: rows[i].expert)
    values = [(knob, _values(method, knob, tensors, knobs[knob.name])) for knob in method.knobs]
    return Inputs(
        method=_name(method),
        tensor=tensors.name,
        rows=tuple(rows[i] for i in order),
        per_expert={
            knob.name: tuple(numbers[i] for i in order)
            for knob, numbers in values
            if knob.per_expert
        },
        shared={knob.name: numbers[0] for knob, numbers in values if not knob.per_expert},
    )


def check_names(method: MergeMethod, names: Iterable[str], where: str) -> None:
    """Raises MergeError unless `names` are those of the method's knobs."""
    expected = [knob.name for knob in method.knobs]
    if stray := sorted(set(expected) ^ set(names)):
        raise MergeError(
            f"{_name(method)}: knob {stray[0]!r} is "
            f"{'missing' if stray[0] in expected else 'unknown'} at {where}: "
            f"give {', '.join(expected) or 'no knob'}"
        )


def check_values(method: MergeMethod, knob: Knob, values: Iterable[float], where: str) -> None:
    """Raises MergeError unless all numbers are finite and in the knob's range."""
    for value in values:
        if not (math.isfinite(value) and knob.low <= value <= knob.high):
            raise MergeError(
                f"{_name(method)}: knob {knob.name!r} is {value} at {where}, "
                f"expected a finite number in [{knob.low}, {knob.high}]: "
                "clip it or bound the search"
            )


def _name(method: MergeMethod) -> str:
    """Returns the method's name as in ``conf/method``."""
    return type(method).__module__.rpartition(".")[2]


def _values(
    method: MergeMethod, knob: Knob, tensors: ParameterStack, given: Tensor
) -> list[float]:
    """Returns a knob's numbers in the order given, after checking shape and range."""
    shape = (len(tensors.rows),) if knob.per_expert else ()
    if given.shape != shape:
        raise MergeError(
            f"{_name(method)}: knob {knob.name!r} has shape {tuple(given.shape)}, "
            f"expected {shape}: "
            f"give one number {'per expert' if knob.per_expert else 'for all experts'}"
        )
    values: list[float] = given.reshape(-1).tolist()
    check_values(method, knob, values, f"tensor {tensors.name!r}")
    return values
