"""A process of Penstock's own, started by `penstock up`: its log, its readiness, its end; and everything below this process.

A child gets a session of its own, so that Ctrl-C reaches `up` alone and `up` stops things in order. On Linux the kernel ends
it when `up` dies, so nothing is left behind even after `kill -9`.
"""

import os
import signal
import subprocess
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

from penstock_core.errors import PenstockError
from penstock_process.system import ends_with

_KEPT_LOG_BYTES = 3_000
_POLL_S = 0.02


class ChildFailed(PenstockError):
    """A process ended too early; the message holds the end of its log."""


class Child:
    """One child process. It changes in the constructor (started) and in `stop`."""

    def __init__(self, name: str, command: Sequence[str], log_path: Path, environ: Mapping[str, str] | None = None) -> None:
        self.name = name
        self.log_path = log_path
        with log_path.open("ab") as log:
            self._log_start = log.tell()
            self._process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                env={**os.environ, **(environ or {})},
                start_new_session=True,
                preexec_fn=ends_with(os.getpid()),  # noqa: PLW1509  one prctl call, no lock is taken
            )

    @property
    def pid(self) -> int:
        return self._process.pid

    def ended(self) -> int | None:
        """Exit status, None while it runs."""
        return self._process.poll()

    def said(self) -> str:
        """The end of what this process wrote to its log."""
        with self.log_path.open("rb") as log:
            log.seek(max(self._log_start, self.log_path.stat().st_size - _KEPT_LOG_BYTES))
            return log.read().decode(errors="replace").strip()

    def failure(self) -> ChildFailed:
        """What to raise when it ended and should not have."""
        return ChildFailed(f"{self.name} ended with status {self.ended()}; the end of {self.log_path}:\n{self.said()}")

    def tell_to_stop(self) -> None:
        """SIGTERM; gives it the chance to drain."""
        if self._process.poll() is None:
            self._process.terminate()

    def stop(self, timeout_s: float) -> None:
        """SIGTERM, after `timeout_s` SIGKILL; returns when it is gone. Stopping twice does nothing."""
        self.tell_to_stop()
        try:
            self._process.wait(timeout_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()


def descendants(pid: int) -> list[int]:
    """Every living process below `pid`, by parent process id; empty where there is no /proc."""
    children: dict[int, list[int]] = {}
    for stat in Path("/proc").glob("[0-9]*/stat"):
        try:
            fields = stat.read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()
        except OSError:
            continue  # ended meanwhile
        if fields[0] != "Z":
            children.setdefault(int(fields[1]), []).append(int(stat.parent.name))
    found: list[int] = []
    look = [pid]
    while look:
        below = children.get(look.pop(), [])
        found += below
        look += below
    return found


def end_all(pids: Sequence[int], timeout_s: float) -> list[int]:
    """SIGTERM to each, SIGKILL to those still there after `timeout_s`; gives the ones that needed the latter."""
    _signal(pids, signal.SIGTERM)
    deadline_s = time.monotonic() + timeout_s
    left = [pid for pid in pids if _lives(pid)]
    while left and time.monotonic() < deadline_s:
        time.sleep(_POLL_S)
        left = [pid for pid in left if _lives(pid)]
    _signal(left, signal.SIGKILL)
    return left


def _signal(pids: Sequence[int], which: signal.Signals) -> None:
    for pid in pids:
        try:
            os.kill(pid, which)
        except (ProcessLookupError, PermissionError):
            continue


def _lives(pid: int) -> bool:
    """False too for a child of ours that ended: it is collected here."""
    try:
        if os.waitpid(pid, os.WNOHANG)[0] == pid:
            return False
    except ChildProcessError:
        pass  # not a child of ours: /proc tells
    try:
        return Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace").rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False
