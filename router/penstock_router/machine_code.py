"""Machine code where numba is installed, the same plain Python where it is not; never that of an older source.

The placement kernel and the simulator's pass loop are written in numba's subset of Python and decorated with a Compiler.
numba's cache on disk looks at the decorated file only, yet constants and callees of other files are compiled in: the digest
of all of them is part of each function's name in the cache, so a change of any compiles anew.
"""

from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from xxhash import xxh3_64_hexdigest

_F = TypeVar("_F", bound=Callable[..., Any])

njit: Any
try:
    from numba import njit
except ImportError:
    njit = None


class Compiler:
    """A decorator. `sources`: every file or module whose text ends up in the machine code, the decorated ones included."""

    def __init__(self, *sources: Path | ModuleType) -> None:
        files = [Path(source.__file__ or "") if isinstance(source, ModuleType) else source for source in sources]
        self._digest = xxh3_64_hexdigest(b"\0".join(file.read_bytes() for file in files if file.is_file()))

    @property
    def works(self) -> bool:
        """Whether functions are compiled at all."""
        return njit is not None

    def __call__(self, function: _F) -> _F:
        """`function` compiled and cached on disk; callable from Python."""
        return self._compile(function)

    def part(self, function: _F) -> _F:
        """The same for a function that only compiled ones call: without an entry from Python it compiles much faster."""
        return self._compile(function, forceinline=True, no_cpython_wrapper=True, no_cfunc_wrapper=True)

    def _compile(self, function: _F, **options: bool) -> _F:
        if njit is None:
            return function
        function.__qualname__ = f"{function.__name__}_{self._digest}"
        machine_code: _F = njit(cache=True, error_model="numpy", **options)(function)
        return machine_code
