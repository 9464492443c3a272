"""The contract for every strategy over lineages."""

from __future__ import annotations

import pytest

from tests.search.strategies.lineage_contract import (
    STRATEGIES,
    Entry,
    LineageContract,
    asked_elsewhere,
)

__all__ = ["asked_elsewhere"]


class TestLineageStrategies(LineageContract):
    @pytest.fixture(params=STRATEGIES, ids=lambda entry: entry.name)
    def entry(self, request: pytest.FixtureRequest) -> Entry:
        entry: Entry = request.param
        return entry
