"""What `--help` says is what was written."""

import subprocess
import sys

import pytest


@pytest.mark.parametrize(
    ("command", "words"),
    [
        ("status", ("[default: $PENSTOCK_DATA or .penstock/data]", "[default: $KUBECONFIG or ~/.kube/config]", "--namespace")),
        ("up", ("[default: start one]", "block-cost[:SCALE]")),
        ("router", (",role=decode ,model=NAME ,connector=nixl", "[default: 127.0.0.1]")),
    ],
)
def test_square_brackets_of_a_help_text_are_shown(command: str, words: tuple[str, ...]) -> None:
    """Defaults and optional parts stand in square brackets, which a markup of the terminal would swallow."""
    asked = [sys.executable, "-m", "penstock_cli.main", command, "--help"]
    done = subprocess.run(asked, capture_output=True, text=True, timeout=120, check=True, env={"COLUMNS": "250", "PATH": "/usr/bin:/bin"})
    said = " ".join(done.stdout.split())
    assert [word for word in words if word not in said] == []
