"""The data folder of `penstock up`: secrets, lock, announcement."""

import os
import stat
from pathlib import Path

import pytest
from penstock_cli.data_folder import DataFolder, DataFolderError, Running


def running(pid: int) -> Running:
    return Running(pid=pid, router_url="http://127.0.0.1:8000", redis_url="unix:///x", model="sim", host="process")


def test_secrets_are_readable_by_their_owner_only_and_stay_the_same(tmp_path: Path) -> None:
    """0600 files in a 0700 folder; a second start reads the same values, so cached chunk keys stay valid."""
    folder = DataFolder(tmp_path / "data")
    folder.open()
    paths = [folder.chunk_secret_path, folder.fleet_token_path, folder.admin_key_path]
    values = [path.read_text() for path in paths]
    assert [stat.S_IMODE(path.stat().st_mode) for path in paths] == [0o600] * 3
    assert stat.S_IMODE(folder.secrets_path.stat().st_mode) == 0o700
    assert len(set(values)) == 3
    assert len(values[0].strip()) == 16
    folder.close()
    paths[1].chmod(0o644)
    folder.open()
    assert [path.read_text() for path in paths] == values
    assert stat.S_IMODE(paths[1].stat().st_mode) == 0o600
    folder.close()


def test_a_second_up_on_the_same_folder_is_told_who_has_it(tmp_path: Path) -> None:
    """The lock names the folder, the process and the way out, and is free again after close."""
    first, second = DataFolder(tmp_path), DataFolder(tmp_path)
    first.open()
    first.announce(running(os.getpid()))
    with pytest.raises(DataFolderError, match=rf"in use by another .* \(process {os.getpid()}, .*--data"):
        second.open()
    first.close()
    second.open()
    second.close()


def test_an_announcement_of_a_process_that_is_gone_is_none(tmp_path: Path) -> None:
    """After a kill -9 of `up`, status says that nothing runs instead of asking a stranger on that port."""
    folder = DataFolder(tmp_path)
    folder.open()
    folder.announce(running(os.getpid()))
    assert folder.running() == running(os.getpid())
    folder.announce(running(2**22 + 1))
    assert folder.running() is None
    folder.running_path.write_text("not json")
    assert folder.running() is None
    folder.close()
    assert not folder.running_path.exists()


def test_a_folder_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    """The path runs through a file: the error names the folder and the option."""
    (tmp_path / "file").write_text("")
    with pytest.raises(DataFolderError, match=r"file/data' cannot be written: .*--data"):
        DataFolder(tmp_path / "file" / "data").open()
