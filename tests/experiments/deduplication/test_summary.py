"""The table of a deduplication never promises more than its ledgers."""

from typing import Any

from experiments.deduplication.summary import lines


def test_epsilons_are_rounded_up_and_lost_promises_are_named() -> None:
    def target(before: float | None, after: float | None) -> dict[str, Any]:
        return {
            "bases": ["base"], "compression": 0.5, "new_blocks": 1, "blocks": 2, "checks": 3,
            "failed": 1, "epsilon": {"before": before, "after": after}, "scores": {},
        }  # fmt: skip

    targets = {"a": target(1.0, 2.23401), "b": target(2.0, None), "c": target(None, None)}
    table = lines(
        {"targets": targets, "whole": [], "compression": 0.5, "checks": 9,
         "epsilon_increase": 1.23401}
    )  # fmt: skip
    assert [row.split()[-4:-2] for row in table[1:4]] == [
        ["1", "2.235"], ["2", "none"], ["none", "none"],
    ]  # fmt: skip
    assert "ε grows by 1.235 in sum, but b without a promise now; 9 checks" in table[4]
