import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from merging import finite as module
from merging.finite import finite

DTYPES = [torch.float64, torch.float32, torch.float16, torch.bfloat16]


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(
    bits=st.lists(st.integers(-(2**63), 2**63 - 1), max_size=9),
    dtype=st.sampled_from([*DTYPES, torch.complex64]),
)
def test_any_bits_are_judged_as_torch_does(bits: list[int], dtype: torch.dtype) -> None:
    values = torch.tensor(bits, dtype=torch.int64).view(dtype)
    assert finite(values) == bool(values.isfinite().all())


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shared", [False, True])
def test_one_value_anywhere_is_found(
    monkeypatch: pytest.MonkeyPatch, bad: float, dtype: torch.dtype, shared: bool
) -> None:
    monkeypatch.setattr(module, "_CACHED", 64)
    monkeypatch.setattr(module, "_SHARED", 0 if shared else 2**40)
    values = torch.full((7, 31), torch.finfo(dtype).max, dtype=dtype)
    assert finite(values)
    for at in (0, 100, 216):
        broken = values.clone()
        broken.view(-1)[at] = bad
        assert not finite(broken)
        assert not finite(broken.T)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.uint8])
def test_whole_numbers_are_finite(dtype: torch.dtype) -> None:
    assert finite(torch.ones(3, dtype=dtype))
