"""An engine as our child: started in a session of its own, watched, and ended with everything that it started.

`engine` uses it. The child's output goes to a file or to our own output; lines in it tell how far the start has come. If this
process dies, however, the kernel tells the child to end, and engines end their own children.
"""

import asyncio
import contextlib
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO

from penstock_worker.worker_host import StartFailed

_TRAMPOLINE = (
    "import ctypes, os, signal, sys; sys.platform.startswith('linux') and ctypes.CDLL(None).prctl(1, signal.SIGTERM); "
    "os.getppid() == int(sys.argv[1]) or sys.exit(1); os.execv(sys.executable, [sys.executable, *sys.argv[2:]])"
)
"""Run by the engine's interpreter before the engine: asks the kernel for SIGTERM when our thread ends. It survives the exec."""
_KEPT_LINES = 40
_TERM_S = 15.0


class Child:
    """One child process. `phases` maps a phase to the seconds from the start to its end."""

    def __init__(self, name: str, phases: Sequence[tuple[str, re.Pattern[bytes]]], log_path: str) -> None:
        """`name`: of the engine, for messages. `phases`: each ends with the first line of output that matches."""
        self.name = name
        self.phases: dict[str, float] = {}
        self._patterns = phases
        self._log_path = log_path
        self._process: subprocess.Popen[bytes] | None = None
        self._reader: threading.Thread | None = None
        self._last: deque[bytes] = deque(maxlen=_KEPT_LINES)
        self._started_s = 0.0

    def start(self, python: str, words: Sequence[str], environment: Mapping[str, str]) -> None:
        """Start it; returns at once. Raises StartFailed where the interpreter cannot be run."""
        self._started_s = time.monotonic()
        try:
            self._process = subprocess.Popen(  # noqa: S603 -- the interpreter that the operator of this worker named
                [python, "-c", _TRAMPOLINE, str(os.getpid()), *words],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.STDOUT,
                env={**os.environ, **environment},
                start_new_session=True,
            )
        except OSError as error:
            raise StartFailed(
                f"engine_python is {python!r}: {error.strerror or error}; allowed: an interpreter that has {self.name}"
            ) from None
        self._reader = threading.Thread(target=self._read, args=(self._process.stdout,), name="engine output", daemon=True)
        self._reader.start()

    @property
    def pid(self) -> int | None:
        return self._process.pid if self._process is not None else None

    @property
    def ended(self) -> bool:
        return self._process is not None and self._process.poll() is not None

    def why(self) -> str:
        """After its end: how, and the last it said."""
        status = self._process.poll() if self._process is not None else None
        said = b"".join(self._last).decode("utf-8", "replace").strip()
        return f"{self.name} ended with status {status}; the end of its output:\n{said}"

    async def stop(self) -> None:
        """SIGTERM, and after a while SIGKILL, to all of its processes; returns when they are gone. Twice does nothing."""
        process, self._process = self._process, None
        if process is None:
            return
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        deadline_s = time.monotonic() + _TERM_S
        while time.monotonic() < deadline_s and (process.poll() is None or _group_lives(process.pid)):  # noqa: ASYNC110 -- as below
            await asyncio.sleep(0.05)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        while process.poll() is None:  # noqa: ASYNC110 -- subprocess.Popen has no event, and asyncio's children need its own loop
            await asyncio.sleep(0.02)
        if self._reader is not None:
            await asyncio.to_thread(self._reader.join, 5.0)

    def _read(self, output: IO[bytes]) -> None:
        with contextlib.ExitStack() as stack:
            sink = stack.enter_context(Path(self._log_path).open("ab", buffering=0)) if self._log_path else sys.stderr.buffer
            for line in output:
                self._last.append(line[-2_000:])
                for phase, pattern in self._patterns:
                    if phase not in self.phases and pattern.search(line):
                        self.phases[phase] = time.monotonic() - self._started_s
                with contextlib.suppress(OSError, ValueError):
                    sink.write(line)
            output.close()


def _group_lives(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
