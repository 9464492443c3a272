"""How loops are compiled by numba: without the interpreter's lock, at their first call."""

from typing import Any

from numba import njit

inner = njit(nogil=True, error_model="numpy")
"""Compiles a function that other compiled ones call; its code is kept with theirs."""


def cached(function: Any) -> Any:
    """Compiles a function at its first call, and keeps the code where there is a place for it."""
    try:
        return njit(nogil=True, error_model="numpy", cache=True)(function)
    except RuntimeError:  # neither the folder of its file nor the user's can be written to
        return inner(function)
