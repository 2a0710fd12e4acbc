"""`compiled`: machine code where numba is installed, the same plain Python where it is not.

The pass loop and what it calls are written in numba's subset of Python and decorated with it. numba's cache looks at the
decorated file only, yet columns and callees of other files are compiled in: their digest is part of each function's name in
the cache, so that a change of any of them compiles anew instead of running machine code of the old layout.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

from penstock_core import profile
from penstock_router import columns, kernel
from xxhash import xxh3_64_hexdigest

_F = TypeVar("_F", bound=Callable[..., Any])
_OWN = ("compiled", "engine_model", "fleet", "kv_cache", "workload")

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None


def _digest() -> str:
    """Of all sources that end up in the machine code."""
    files = [Path(__file__).with_name(f"{name}.py") for name in _OWN]
    files += [Path(module.__file__ or "") for module in (profile, columns, kernel)]
    return xxh3_64_hexdigest(b"\0".join(file.read_bytes() for file in files if file.is_file()))


_DIGEST = _digest()


def compiled(function: _F) -> _F:
    """`function` compiled and cached on disk, where numba is installed; callable from Python."""
    if njit is None:
        return function
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    machine_code: _F = njit(cache=True, error_model="numpy")(function)
    return machine_code


def compiled_part(function: _F) -> _F:
    """The same for a function that only compiled ones call: without an entry from Python it compiles much faster."""
    if njit is None:
        return function
    function.__qualname__ = f"{function.__name__}_{_DIGEST}"
    machine_code: _F = njit(cache=True, error_model="numpy", forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)(function)
    return machine_code
