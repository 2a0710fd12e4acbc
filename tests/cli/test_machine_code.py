"""Machine code that comes with the image: used from a copy, compiled no second time, harmless where there is none."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from penstock_cli.machine_code import SHIPPED_ENV, use_shipped

pytest.importorskip("numba", reason="numba is not installed: nothing is compiled")


@pytest.fixture
def own_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """/tmp of a fresh container."""
    folder = tmp_path / "tmp"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def files(folder: Path) -> set[tuple[str, int]]:
    """Names and times of all files below it."""
    return {(path.name, path.stat().st_mtime_ns) for path in folder.rglob("*") if path.is_file()}


def test_what_the_image_compiled_is_not_compiled_again(tmp_path: Path, own_temporary_folder: Path) -> None:
    """Compiled into one folder, used from a read-only one: a second process writes nothing."""
    shipped = tmp_path / "shipped"
    plain = {**os.environ, "NUMBA_CPU_NAME": "generic", "NUMBA_CPU_FEATURES": ""}
    plain.pop("NUMBA_CACHE_DIR", None)
    subprocess.run([sys.executable, "-m", "penstock_cli.machine_code", str(shipped)], env=plain, check=True, timeout=300)
    assert files(shipped)
    environ = {**plain, SHIPPED_ENV: str(shipped)}
    use_shipped(environ)
    copy = Path(environ["NUMBA_CACHE_DIR"])
    assert copy.parent == own_temporary_folder
    before = files(copy)
    assert {name for name, _ in before} == {name for name, _ in files(shipped)}
    subprocess.run([sys.executable, "-c", "from penstock_cli.machine_code import compile_all; compile_all()"], env=environ, check=True)
    assert files(copy) == before


def test_a_second_process_of_a_container_uses_the_same_copy(tmp_path: Path, own_temporary_folder: Path) -> None:
    """Nothing is copied twice, and nothing is left half done."""
    shipped = tmp_path / "shipped"
    (shipped / "part").mkdir(parents=True)
    (shipped / "part" / "code.nbi").write_bytes(b"code")
    first, second = {SHIPPED_ENV: str(shipped)}, {SHIPPED_ENV: str(shipped)}
    use_shipped(first)
    use_shipped(second)
    assert first == second
    assert [path.name for path in own_temporary_folder.iterdir()] == [Path(first["NUMBA_CACHE_DIR"]).name]
    assert (Path(first["NUMBA_CACHE_DIR"]) / "part" / "code.nbi").read_bytes() == b"code"


@pytest.mark.parametrize("environ", [{}, {SHIPPED_ENV: "/nowhere"}, {SHIPPED_ENV: "/nowhere", "NUMBA_CACHE_DIR": "/mine"}])
def test_without_shipped_code_numba_is_left_alone(own_temporary_folder: Path, environ: dict[str, str]) -> None:
    """On a checkout, with a folder that is not there, and where the user has chosen one."""
    before = dict(environ)
    use_shipped(environ)
    assert environ == before
    assert list(own_temporary_folder.iterdir()) == []
