"""Who is believed to have failed: nobody, as long as nothing can be scored."""

from __future__ import annotations

import time

import pytest
import torch

from evaluators.requests import EvaluationError, TransientFailure
from evaluators.tries import PAUSES_S, tries

FAULTS = [
    TransientFailure("timed out after 7.0 s; the limit is 5 s"),
    torch.cuda.OutOfMemoryError("CUDA out of memory. Tried 2 GiB"),
    RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate"),
    MemoryError(),
    ConnectionResetError("the server is gone"),
    OSError("stale file handle"),
]


@pytest.fixture
def pauses(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    slept: list[float] = []
    monkeypatch.setattr(time, "sleep", slept.append)
    return slept


def score(model: list[BaseException | None], base: list[BaseException | None]) -> str:
    """Scores a model that fails as the list says, one entry a try; the base likewise."""

    def answer(faults: list[BaseException | None]) -> str:
        if faults and (fault := faults.pop(0)) is not None:
            raise fault
        return "scored"

    result = "never"
    for one in tries(lambda: answer(base)):
        with one:
            result = answer(model)
    return result


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_a_fault_that_passes_leaves_the_score(fault: Exception, pauses: list[float]) -> None:
    assert score([None], []) == "scored"
    assert not pauses
    assert score([fault], []) == "scored"
    assert score([fault, fault], [None]) == "scored"
    assert score([fault, fault], [fault, fault, EvaluationError("the base is odd")]) == "scored"
    assert pauses == [1.0, 1.0, 1.0, *PAUSES_S[1:3]]


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_it_is_the_models_own_where_the_base_can_be_scored(
    fault: Exception, pauses: list[float]
) -> None:
    model = [fault] * 4
    with pytest.raises(EvaluationError, match=str(fault).split(".")[0] or "MemoryError"):
        score(model, [fault, None])
    assert len(model) == 1


@pytest.mark.parametrize("fault", FAULTS, ids=lambda fault: type(fault).__name__)
def test_nobody_is_believed_to_fail_where_nothing_can_be_scored(
    fault: Exception, pauses: list[float]
) -> None:
    with pytest.raises(
        TransientFailure, match=r"base and experts cannot be scored now either .*run the same"
    ):
        score([fault] * 3, [fault] * 4)
    assert pauses == list(PAUSES_S)


@pytest.mark.parametrize("error", [EvaluationError("not finite"), KeyError("a bug")])
def test_other_errors_are_not_tried_again(error: Exception, pauses: list[float]) -> None:
    with pytest.raises(type(error)):
        score([error], [])
    assert not pauses
