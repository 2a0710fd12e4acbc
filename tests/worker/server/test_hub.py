"""Where a hub's model lies once an engine has fetched it."""

from pathlib import Path

from penstock_worker.engines.server.hub import cached_folder


def test_the_snapshot_that_a_revision_names_is_found(tmp_path: Path) -> None:
    """By branch or by commit, in the cache that the environment names; None where nothing was fetched."""
    model = tmp_path / "hub" / "models--org--llama"
    snapshot = model / "snapshots" / "c0ffee"
    snapshot.mkdir(parents=True)
    (model / "refs").mkdir()
    (model / "refs" / "main").write_text("c0ffee")
    for environ in ({"HF_HOME": str(tmp_path)}, {"HF_HUB_CACHE": str(tmp_path / "hub")}):
        assert cached_folder("org/llama", "", environ) == snapshot
        assert cached_folder("org/llama", "c0ffee", environ) == snapshot
    assert cached_folder("org/llama", "v2", {"HF_HOME": str(tmp_path)}) is None
    assert cached_folder("org/other", "", {"HF_HOME": str(tmp_path)}) is None
    assert cached_folder("org/llama", "", {"HOME": str(tmp_path)}) is None
