"""Machine code is never that of an older source."""

import math
from pathlib import Path

import pytest
from penstock_router import machine_code
from penstock_router.machine_code import Compiler


def name_in_cache(*sources: Path) -> str:
    def least(a: float, b: float) -> float:
        return math.fmin(a, b)

    Compiler(*sources)(least)
    return least.__qualname__


@pytest.mark.skipif(machine_code.njit is None, reason="numba is not installed")
def test_a_change_of_any_source_gives_another_name_in_the_cache(tmp_path):
    """The decorated file or one whose constants it takes in: numba alone would see only the first."""
    own, columns = tmp_path / "own.py", tmp_path / "columns.py"
    own.write_text("x = 1\n")
    columns.write_text("FIRST, SECOND = 0, 1\n")
    before = name_in_cache(own, columns)
    assert name_in_cache(own, columns) == before
    columns.write_text("FIRST, SECOND = 1, 0\n")
    assert name_in_cache(own, columns) != before


def test_without_numba_a_function_stays_what_it_is(monkeypatch):
    """Plain Python, under its own name."""

    def plain() -> int:
        return 7

    monkeypatch.setattr(machine_code, "njit", None)
    compiler = Compiler(Path(__file__))
    assert compiler(plain) is plain and compiler.part(plain) is plain and not compiler.works
