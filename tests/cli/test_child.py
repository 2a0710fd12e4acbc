"""Child processes of `penstock up`: failures are told with their log, and nothing outlives its parent."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

from penstock_cli.child import Child, descendants, end_all

STUBBORN = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('ready', flush=True); time.sleep(600)"


def wait_until(true: Callable[[], bool], what: str) -> None:
    deadline = time.monotonic() + 30
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.01)


def test_a_child_that_ends_too_early_is_told_with_its_own_log(tmp_path: Path) -> None:
    """The message has name, exit status and this run's output, not that of a run before."""
    log = tmp_path / "router.log"
    log.write_text("an older run\n")
    child = Child("router", [sys.executable, "-c", "print('port 80: permission denied'); raise SystemExit(3)"], log)
    wait_until(lambda: child.ended() is not None, "the child never ended")
    assert "router ended with status 3" in str(child.failure())
    assert "port 80: permission denied" in str(child.failure())
    assert "older run" not in str(child.failure())


def test_stop_kills_a_child_that_does_not_listen(tmp_path: Path) -> None:
    """SIGTERM is ignored, SIGKILL is not; stopping twice is harmless."""
    child = Child("x", [sys.executable, "-c", STUBBORN], tmp_path / "x.log")
    wait_until(lambda: "ready" in child.said(), "the child never started")
    child.stop(0.2)
    assert child.ended() == -signal.SIGKILL
    child.stop(0.2)


def test_a_child_gets_its_environment_and_no_ctrl_c_from_the_terminal(tmp_path: Path) -> None:
    """It runs in a session of its own."""
    child = Child(
        "x", [sys.executable, "-c", "import os; print(os.environ['A'], os.getsid(0) == os.getpid())"], tmp_path / "x.log", {"A": "b"}
    )
    wait_until(lambda: child.ended() is not None, "the child never ended")
    assert child.said() == "b True"


def test_children_die_with_a_parent_that_is_killed(tmp_path: Path) -> None:
    """`kill -9` of the parent leaves no process behind (Linux)."""
    pid_file = tmp_path / "pid"
    parent_code = (
        "import sys, time; from pathlib import Path; from penstock_cli.child import Child\n"
        f"child = Child('x', [sys.executable, '-c', {STUBBORN!r}], Path({str(tmp_path / 'x.log')!r}))\n"
        f"new = Path({str(pid_file)!r} + '.new'); new.write_text(str(child.pid)); new.rename({str(pid_file)!r}); time.sleep(600)"
    )
    parent = subprocess.Popen([sys.executable, "-c", parent_code])
    wait_until(pid_file.exists, "the parent never started its child")
    pid = int(pid_file.read_text())
    assert descendants(parent.pid) == [pid]
    parent.kill()
    parent.wait()
    wait_until(lambda: not Path(f"/proc/{pid}").exists() or " Z " in Path(f"/proc/{pid}/stat").read_text(), "the child outlived its parent")


def test_end_all_ends_grandchildren_too(tmp_path: Path) -> None:
    """Everything below a process, the stubborn ones by SIGKILL."""
    code = f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]).wait()"
    child = Child("x", [sys.executable, "-c", code], tmp_path / "x.log")
    wait_until(lambda: "ready" in child.said(), "the grandchild never started")
    below = descendants(os.getpid())
    assert child.pid in below
    (grandchild,) = descendants(child.pid)
    assert end_all([child.pid, grandchild], 0.2) == [grandchild]
    wait_until(
        lambda: descendants(os.getpid()) == [pid for pid in below if pid not in (child.pid, grandchild)], "something was left behind"
    )
