"""Finding and building the programs: reasons that a reader can act on, one build for many, never half a folder."""

import shutil
from pathlib import Path

import go_programs
import pytest
from go_programs import ASSETS_ENV, BUILT, CACHE_ENV, NEEDED, NoPrograms, programs

GO_MOD = "module tests/programs\n\ngo 1.21\n\nexclude (\n\tk8s.io/kubernetes v1.36.3\n)\n"
MAIN = 'package main\n\nfunc main() { println("tiny") }\n'
OWN_BINARIES = ("coredns", "pause")


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Sources that build in a second in place of the real ones, and an empty cache at `tmp_path / "cache"`; needs Go."""
    if shutil.which("go") is None:
        pytest.skip("Go is not on the PATH")
    sources = tmp_path / "sources"
    sources.mkdir()
    for name, text in (("go.mod", GO_MOD), ("go.sum", ""), ("main.go", MAIN)):
        (sources / name).write_text(text)
    for name in OWN_BINARIES:
        (sources / name).mkdir()
        (sources / name / "main.go").write_text(MAIN)
    monkeypatch.setattr(go_programs, "SOURCES", sources)
    monkeypatch.setenv(CACHE_ENV, str(tmp_path / "cache"))
    monkeypatch.delenv(ASSETS_ENV, raising=False)
    return sources


def folders(cache: Path) -> list[Path]:
    return sorted(path for path in cache.iterdir() if path.is_dir())


def test_the_second_run_builds_nothing(tiny: Path, tmp_path: Path) -> None:
    """Same sources, same Go: the folder is taken as it is, without a line of progress."""
    said: list[str] = []
    first = programs(said.append)
    assert all(first.has(name) for name in BUILT)
    assert any(line.startswith("test programs: built") for line in said)
    said.clear()
    assert programs(said.append).folder == first.folder
    assert said == []


def test_a_change_of_the_sources_builds_anew(tiny: Path, tmp_path: Path) -> None:
    """The key holds the sources, so nothing stale is run; the older folder stays for who still needs it."""
    first = programs(lambda line: None).folder
    (tiny / "main.go").write_text(MAIN.replace("tiny", "other"))
    assert programs(lambda line: None).folder != first
    assert first.is_dir()


def test_a_build_that_fails_says_why_and_leaves_nothing(tiny: Path, tmp_path: Path) -> None:
    """The compiler's words, and no folder that a later run would take for a finished one."""
    (tiny / "main.go").write_text("package main\n\nfunc main() { undefined() }\n")
    with pytest.raises(NoPrograms, match="undefined: undefined"):
        programs(lambda line: None)
    assert folders(tmp_path / "cache") == []


def test_without_go_the_reason_names_both_ways(monkeypatch: pytest.MonkeyPatch) -> None:
    """What a skipped test shows on a laptop."""
    monkeypatch.delenv(ASSETS_ENV, raising=False)
    monkeypatch.setenv("PATH", "/nonexistent")
    with pytest.raises(NoPrograms, match=r"neither KUBEBUILDER_ASSETS .* is set nor is Go on the PATH"):
        programs(lambda line: None)


def test_given_assets_are_used_as_they_are_or_refused_by_name(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """envtest's archives have three programs; one missing is named."""
    monkeypatch.setenv(ASSETS_ENV, str(tmp_path))
    with pytest.raises(NoPrograms, match="has no etcd"):
        programs(lambda line: None)
    for name in NEEDED:
        (tmp_path / name).touch(0o755)
    found = programs(lambda line: None)
    assert found.path("kubectl") == tmp_path / "kubectl"
    with pytest.raises(NoPrograms, match="has no helm"):
        found.path("helm")
