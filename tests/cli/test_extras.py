"""What a command says where the extra that it needs was not installed."""

import subprocess
import sys

import pytest

WITHOUT = """
import sys
sys.modules["kubernetes"] = None
from penstock_cli.main import main
sys.argv = ["penstock", sys.argv[1]]
main()
"""


@pytest.mark.parametrize("command", ["operator", "autoscaler"])
def test_a_missing_extra_is_named(command: str) -> None:
    """No traceback: which library is missing, and what to install."""
    ended = subprocess.run([sys.executable, "-c", WITHOUT, command], capture_output=True, text=True, timeout=120, check=False)
    assert ended.returncode != 0
    assert "is not installed; install penstock[operator]" in ended.stderr
    assert "Traceback" not in ended.stderr
