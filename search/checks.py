"""What options and outcomes may be: refused by name."""

import math
from collections.abc import Sequence

from search.strategy import Outcome


def check_positive(prefix: str = "", /, **values: float) -> None:
    """Raises ValueError for a number that is not finite or not above 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > 0):
            raise ValueError(f"{prefix}{name} must be a finite number above 0, got {value}")


def check_not_negative(prefix: str = "", /, **values: float) -> None:
    """Raises ValueError for a number that is not finite or below 0."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{prefix}{name} must be a finite number of at least 0, got {value}")


def check_at_least(least: int, prefix: str = "", /, **values: int | None) -> None:
    """Raises ValueError for a count below `least`; None is no count."""
    for name, value in values.items():
        if value is not None and value < least:
            raise ValueError(f"{prefix}{name} must be at least {least}, got {value}")


def check_probability(prefix: str = "", /, **values: float) -> None:
    """Raises ValueError for a number outside [0, 1]."""
    for name, value in values.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{prefix}{name} must lie in [0, 1], got {value}")


def check_one_objective(strategy: object, outcomes: Sequence[Outcome]) -> None:
    """Raises ValueError where a strategy that ranks by one number is told several."""
    for outcome in outcomes:
        if outcome.fitness is not None and outcome.fitness.size > 1:
            raise ValueError(
                f"{type(strategy).__name__} ranks by one number, candidate {outcome.id} has "
                f"{outcome.fitness.size}: choose an objective with one"
            )


def check_private_data(data: str, unit: str, disjoint_from: Sequence[str]) -> None:
    """Raises ValueError unless a private data set is named, and is no other than itself."""
    for name, value in (("data", data), ("unit", unit)):
        if not value.strip():
            raise ValueError(f"privacy.{name} must be text that is not empty")
    if isinstance(disjoint_from, str) or data in disjoint_from:
        raise ValueError(
            f"privacy.disjoint_from must list names of other data sets than {data!r}, "
            f"got {disjoint_from!r}"
        )
