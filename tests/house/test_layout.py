"""Rules of the house that a newcomer would break without noticing: layout, file length, what may stand in a tracked file."""

import re
import subprocess
import tomllib
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
MOST_LINES = 400
MOST_LINES_COMPILED = 500
COMPILED = {"router/penstock_router/kernel.py", "kvindex/penstock_kvindex/chunk_table.py"}
"""Compiled code that calls itself stays in one file: numba's cache looks at the time stamp of that file only, so a function
changed in another one would go on running as it was."""

MACHINE_PATH = re.compile(r"(?<![\w.])/(?:root|home/[a-z]\w*|work|opt/wheels)/|\.pyenv\b")
INDEX_HOST = re.compile(r"https?://[^\s\"')]*(?:pypi|pythonhosted|/simple\b|artifactory|nexus)", re.IGNORECASE)


def tracked(*patterns: str) -> list[Path]:
    """Files git knows and those it would take up: a new file is held to the rules before its first commit."""
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "--", *patterns], cwd=ROOT, capture_output=True, check=True
    )
    return [path for line in listed.stdout.decode().splitlines() if (path := ROOT / line).is_file()]


def top_level_folders() -> list[Path]:
    return sorted({ROOT / path.relative_to(ROOT).parts[0] for path in tracked() if len(path.relative_to(ROOT).parts) > 1})


def test_no_top_level_folder_is_itself_a_package() -> None:
    """`operator/__init__.py` at the root would shadow the standard library for every `python -m` run from the checkout."""
    assert top_level_folders()
    assert [folder.name for folder in top_level_folders() if (folder / "__init__.py").exists()] == []


def test_tests_are_not_packages() -> None:
    """pytest imports by path (importlib mode); a package in tests/ would change which module is imported."""
    assert [str(path.relative_to(ROOT)) for path in tracked("tests/**/__init__.py", "tests/__init__.py")] == []


@pytest.mark.parametrize("pattern", ["*.py", "*.lua"])
def test_source_files_stay_under_400_lines(pattern: str) -> None:
    """A longer file holds two nouns."""
    lines = {str(path.relative_to(ROOT)): len(path.read_text().splitlines()) for path in tracked(pattern)}
    assert {name: count for name, count in lines.items() if count > (MOST_LINES_COMPILED if name in COMPILED else MOST_LINES)} == {}


def test_every_module_says_what_it_is_for() -> None:
    """Each module of the packages opens with a docstring; an empty file needs none."""
    modules = [path for path in tracked("*.py") if path.read_text().strip()]
    assert [str(path.relative_to(ROOT)) for path in modules if not path.read_text().lstrip().startswith('"""')] == []


def test_no_tracked_file_names_a_path_or_a_package_index_of_one_machine() -> None:
    """What one developer's machine has is nobody else's: no home folders, no index hosts, in no file."""
    found: list[str] = []
    for path in tracked():
        if path == Path(__file__) or path.name == "LICENSE":
            continue
        try:
            text = path.read_text()
        except UnicodeDecodeError:
            continue
        found += [
            f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
            for number, line in enumerate(text.splitlines(), 1)
            if MACHINE_PATH.search(line) or INDEX_HOST.search(line)
        ]
    assert found == []


def requirement_names(wanted: list[str]) -> set[str]:
    return {re.split(r"[<>=!~; \[]", line, maxsplit=1)[0].lower().replace("_", "-") for line in wanted}


def lock_entries(path: str) -> dict[str, str]:
    """Name of a locked package → its lines: version, marker, hashes."""
    entries = re.split(r"\n(?=[a-z0-9])", (ROOT / path).read_text())
    return {match[1]: entry.strip() for entry in entries if (match := re.match(r"([a-z0-9-]+)==", entry)) and "--hash=sha256:" in entry}


def test_lock_file_covers_every_dependency_with_hashes() -> None:
    """A dependency added to pyproject.toml without `make lock` would be missing from a user's environment."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = requirement_names(project["project"]["dependencies"])
    for group in (*project["project"]["optional-dependencies"].values(), *project["dependency-groups"].values()):
        wanted |= requirement_names([one for one in group if isinstance(one, str)])
    assert wanted - set(lock_entries("requirements.lock")) == set()


def test_the_image_runs_what_was_tested() -> None:
    """Its lock is a part of the other, in the same versions and hashes, with all that its processes import."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    extras = project["project"]["optional-dependencies"]
    wanted = [*project["project"]["dependencies"], *extras["ray"], *extras["fast"], *extras["operator"]]
    whole, part = lock_entries("requirements.lock"), lock_entries("image/requirements.lock")
    assert requirement_names(wanted) - set(part) == set()
    assert [name for name, entry in part.items() if entry.partition(" ")[0] != whole[name].partition(" ")[0]] == []
    assert [
        name
        for name, entry in part.items()
        if not set(re.findall("sha256:[0-9a-f]+", entry)) <= set(re.findall("sha256:[0-9a-f]+", whole[name]))
    ] == []


def test_the_image_is_made_of_every_package() -> None:
    """What .dockerignore does not let in is missing in the image, and is noticed only where it runs."""
    folders = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["dev-mode-dirs"]
    assert set(folders) - {line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line.startswith("!")} == set()


def test_every_ignored_lint_rule_has_its_reason() -> None:
    """Each line of ruff's ignore lists ends with a comment that says why."""
    lists = re.findall(r"\nignore = \[\n(.*?)\n\]", (ROOT / "pyproject.toml").read_text(), re.DOTALL)
    assert lists
    assert [line for block in lists for line in block.splitlines() if "#" not in line] == []
