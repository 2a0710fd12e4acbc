"""`compiled`: machine code where numba is installed, the same plain Python where it is not.

The pass loop and what it calls are written in numba's subset of Python and decorated with it. numba's cache looks at the
time stamp of the decorated file only: touch `engine_model.py` after a change of a callee in another file.
"""

from collections.abc import Callable
from typing import Any, TypeVar

_F = TypeVar("_F", bound=Callable[..., Any])

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None


def compiled(function: _F) -> _F:
    """`function` compiled and cached on disk, where numba is installed; callable from Python."""
    if njit is None:
        return function
    machine_code: _F = njit(cache=True, error_model="numpy")(function)
    return machine_code


def compiled_part(function: _F) -> _F:
    """The same for a function that only compiled ones call: without an entry from Python it compiles much faster."""
    if njit is None:
        return function
    machine_code: _F = njit(cache=True, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return machine_code
