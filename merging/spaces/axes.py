"""Axes of a vector space: what each number of a genome means and where it may lie."""

import math
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from merging.arrays import Vector


@dataclass(frozen=True)
class Real:
    """A real number in its own units.

    Args:
        name: path that reports show, for example ``weight/layers.0-3/code``.
        low: smallest allowed value, ``-inf`` where unbounded.
    """

    name: str
    low: float = -math.inf
    high: float = math.inf
    start: float = 0.0
    scale: float = 0.3


@dataclass(frozen=True)
class Choice:
    """One of several options; the genome holds the option's index as a float.

    Args:
        name: path that reports show, for example ``method``.
        start: index of the option that a search starts from.
    """

    name: str
    options: tuple[str, ...]
    start: int = 0


Axis: TypeAlias = Real | Choice


def start(axes: tuple[Axis, ...]) -> Vector:
    """Returns the neutral genome, ``(axes,)`` float64."""
    return np.array([axis.start for axis in axes], dtype=np.float64)


def check(axes: tuple[Axis, ...], genome: Vector) -> None:
    """Raises ValueError, naming the axis, unless every number of `genome` lies on its axis."""
    if genome.shape != (len(axes),):
        raise ValueError(f"genome has shape {genome.shape}, the space wants ({len(axes)},)")
    for axis, value in zip(axes, genome, strict=True):
        if isinstance(axis, Choice):
            if value not in range(len(axis.options)):
                raise ValueError(f"{axis.name}: {value} is no index into {axis.options}")
        elif not (math.isfinite(value) and axis.low <= value <= axis.high):
            raise ValueError(f"{axis.name}: {value} lies outside [{axis.low}, {axis.high}]")
