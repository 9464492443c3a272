"""What items are for. Apart from panels, so that a finished run is shown without torch."""

from typing import Literal, TypeAlias

Split: TypeAlias = Literal["search", "selection", "report"]
"""Candidates are ranked, the best few compared again, the winner measured."""
