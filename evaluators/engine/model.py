"""What a scorer needs of a model: to take a candidate's weights, and to answer for them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from evaluators.engine.engine import Engine
from evaluators.engine.resident import Resident
from evaluators.requests import Request, Response
from merging.weights import Weights


class Model(Protocol):
    """Holds one candidate at a time: in this process, or behind a server."""

    def write(self, weights: Weights) -> None:
        """Takes the candidate in the place of the one before."""
        ...

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Returns its answers to `requests`, in order."""
        ...


@dataclass(frozen=True)
class ResidentModel:
    """The model of this process: `resident` holds the candidate, `engine` asks it."""

    resident: Resident
    engine: Engine

    def write(self, weights: Weights) -> None:
        """Copies the weights in place; see `Resident.write`."""
        self.resident.write(weights)

    def run(self, requests: Sequence[Request]) -> list[Response]:
        """Returns the engine's answers; see `Engine.run`."""
        return self.engine.run(requests)
