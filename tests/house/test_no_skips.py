"""In CI a skipped test is a failed one; on a user's machine it stays a skip."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
TESTS = """
import pytest

def test_says_why():
    pytest.skip("no Redis here")

@pytest.mark.skip(reason="decorated")
def test_decorated():
    pass

@pytest.mark.xfail
def test_known_fault():
    assert False

def test_fine():
    pass
"""


@pytest.mark.parametrize(
    ("ci", "status", "counts"), [("true", 1, "1 failed, 1 passed, 1 xfailed, 1 error"), ("", 0, "1 passed, 2 skipped, 1 xfailed")]
)
def test_a_skip_fails_in_ci_only(tmp_path: Path, ci: str, status: int, counts: str) -> None:
    """The reason of the skip is in the failure; an expected failure is no skip."""
    shutil.copy(ROOT / "conftest.py", tmp_path)
    (tmp_path / "test_some.py").write_text(TESTS)
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", "--rootdir", str(tmp_path), str(tmp_path)]
    said = subprocess.run(command, check=False, cwd=tmp_path, env={**os.environ, "CI": ci}, capture_output=True, text=True, timeout=60)
    assert said.returncode == status, said.stdout
    assert counts in said.stdout
    assert ("CI allows no skips" in said.stdout and "no Redis here" in said.stdout) == (ci == "true")
