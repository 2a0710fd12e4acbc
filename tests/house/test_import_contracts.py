"""The import contracts in pyproject.toml bite: a copy of the tree with one forbidden import must fail, and name it.

The copy is checked in a process of its own with the copied packages first on the path.
"""

import os
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
CHECK = "import sys; from importlinter.cli import lint_imports_command; sys.exit(lint_imports_command())"


def copy_of_the_tree(into: Path) -> list[str]:
    """Copy the packages and pyproject.toml; gives the folders that hold packages."""
    folders: list[str] = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["dev-mode-dirs"]
    shutil.copy(ROOT / "pyproject.toml", into)
    for folder in folders:
        shutil.copytree(ROOT / folder, into / folder, ignore=shutil.ignore_patterns("__pycache__"))
    return folders


def lint(tree: Path, folders: list[str]) -> subprocess.CompletedProcess[str]:
    environ = {**os.environ, "PYTHONPATH": os.pathsep.join(str(tree / folder) for folder in folders), "NO_COLOR": "1", "COLUMNS": "200"}
    command = [sys.executable, "-c", CHECK, "--no-cache"]
    return subprocess.run(command, check=False, cwd=tree, env=environ, capture_output=True, text=True, timeout=120)


@pytest.mark.parametrize(
    ("module", "planted", "contract"),
    [
        ("worker/penstock_worker/planted.py", "import penstock_router", "Layers"),
        ("core/penstock_core/planted.py", "import asyncio", "core does no I/O"),
        ("router/penstock_router/planted.py", "import ray", "ray lives in one module"),
        ("dataplane/penstock_dataplane/planted.py", "import penstock_kvindex", "Layers"),
        ("router/penstock_router/planted.py", "import redis", "redis lives in kvindex"),
        ("worker/penstock_worker/planted.py", "import penstock_operator", "Layers"),
        ("cli/penstock_cli/planted.py", "import kubernetes", "kopf lives in operator, kubernetes there and in one module each"),
        ("core/penstock_core/planted.py", "import pydantic", "pydantic lives in core"),
        ("router/penstock_router/planted.py", "import penstock_core.api", "the resource types stay off"),
    ],
)
def test_a_planted_violation_is_caught(tmp_path: Path, module: str, planted: str, contract: str) -> None:
    """A forbidden import fails the check, and the output names the contract and the planted module."""
    folders = copy_of_the_tree(tmp_path)
    (tmp_path / module).write_text(f'"""Breaks a rule on purpose."""\n\n{planted}\n')
    checked = lint(tmp_path, folders)
    assert checked.returncode == 1, checked.stdout + checked.stderr
    broken = [line for line in checked.stdout.splitlines() if " BROKEN" in line]
    assert any(line.startswith(contract) for line in broken), checked.stdout
    package = Path(module).parent.name
    assert f"{package}.planted -> {planted.removeprefix('import ')}" in checked.stdout.replace("\n", " ")


def test_the_tree_as_it_is_keeps_all_contracts(tmp_path: Path) -> None:
    """The same copy without a planted import passes, so the test above fails for its own reason."""
    checked = lint(tmp_path, copy_of_the_tree(tmp_path))
    assert checked.returncode == 0, checked.stdout + checked.stderr
    assert "0 broken" in checked.stdout
