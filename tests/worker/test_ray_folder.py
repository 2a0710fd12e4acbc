"""Folders of a Ray whose process was killed go with the next start; those of the living, and what is none of ours, stay."""

import signal
import subprocess
import sys
from pathlib import Path

from penstock_worker.ray_folder import RayFolder, remove_left

OWNER = """
import pathlib, sys
from penstock_worker.ray_folder import RayFolder
folder = RayFolder(pathlib.Path(sys.argv[1]))
print(folder.path, flush=True)
sys.stdin.read()
"""


def owner(parent: Path) -> tuple["subprocess.Popen[str]", Path]:
    """A process with a folder, with Ray's in it."""
    process = subprocess.Popen([sys.executable, "-c", OWNER, str(parent)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    path = Path(process.stdout.readline().strip())
    (path / "session" / "logs").mkdir(parents=True)
    (path / "session" / "logs" / "raylet.out").write_text("up")
    return process, path


def end(process: "subprocess.Popen[str]") -> None:
    process.send_signal(signal.SIGKILL)
    process.communicate()


def test_the_folder_of_a_killed_process_goes_and_that_of_a_living_one_stays(tmp_path: Path) -> None:
    """It is the process that counts, not how old the folder is."""
    killed, its = owner(tmp_path)
    lives, stays = owner(tmp_path)
    try:
        remove_left(tmp_path)
        assert its.exists()
        end(killed)
        remove_left(tmp_path)
        assert not its.exists()
        assert (stays / "session" / "logs" / "raylet.out").exists()
    finally:
        end(lives)


def test_what_is_none_of_ours_stays(tmp_path: Path) -> None:
    """A folder without an owner's file, one of another name, and what a link points to."""
    for name in ("penstock-ray-old", "else/penstock-ray-deep", "other"):
        (tmp_path / name).mkdir(parents=True)
    for name in ("other", "else/penstock-ray-deep"):
        (tmp_path / name / "owner").touch()
    (tmp_path / "penstock-ray-link").symlink_to(tmp_path / "other")
    before = sorted(tmp_path.rglob("*"))
    remove_left(tmp_path)
    assert sorted(tmp_path.rglob("*")) == before


def test_an_orderly_end_leaves_nothing(tmp_path: Path) -> None:
    """Only this user may look into it while it is there."""
    folder = RayFolder(tmp_path)
    assert folder.path.stat().st_mode & 0o077 == 0
    (folder.path / "file").touch()
    folder.remove()
    assert list(tmp_path.iterdir()) == []
