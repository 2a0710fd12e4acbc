"""Workers as operating-system processes of their own, without Ray: `python -m penstock_worker --config …`.

Implements `worker_host.WorkerHost` for the fleet. Secrets travel in the child's environment, settings on its command line,
what it says goes to a log file. The kernel ends a child when this process dies, so nothing is left behind.
"""

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import IO

import msgspec

from penstock_worker.config import WorkerConfig, WorkerSecrets, secrets_environment
from penstock_worker.worker_host import StartFailed

_KEPT_LOG_BYTES = 2_000
_KILL_WAIT_S = 10.0
COMMAND = (sys.executable, "-m", "penstock_worker")


class ProcessHost:
    """See the module. Logs and announcements of the workers lie under `folder`."""

    def __init__(self, folder: Path, secrets: WorkerSecrets, *, command: Sequence[str] = COMMAND) -> None:
        """`command` takes `--config FILE`."""
        self._folder = folder
        self._secrets = secrets
        self._command = tuple(command)
        self._started: list[ProcessWorker] = []

    async def open(self) -> None:
        """Make the folder. Raises StartFailed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise StartFailed(f"folder {str(self._folder)!r} cannot be made: {error.strerror}") from None

    async def start(self, config: WorkerConfig) -> "ProcessWorker":
        """Start one process. It must be called in the thread that lives as long as the workers shall: they end with it."""
        announced, settings = self._folder / f"{config.id}.url", self._folder / f"{config.id}.json"
        log_path = self._folder / f"{config.id}.log"
        told = msgspec.structs.replace(config, announce_path=str(announced), parent_pid=os.getpid())
        try:
            announced.unlink(missing_ok=True)
            settings.write_bytes(msgspec.json.encode(told))
            with log_path.open("ab") as log:
                process = self._spawn(settings, log)
        except OSError as error:
            raise StartFailed(f"worker {config.id}: {error}") from None
        worker = ProcessWorker(process, announced, log_path)
        self._started = [other for other in self._started if not other.ended] + [worker]
        return worker

    def _spawn(self, settings: Path, log: IO[bytes]) -> "subprocess.Popen[bytes]":
        return subprocess.Popen(  # noqa: S603 -- our own interpreter and module
            [*self._command, "--config", str(settings)],
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=log,
            env={**os.environ, **secrets_environment(self._secrets)},
            start_new_session=True,
        )

    async def aclose(self) -> None:
        """Stop all that still run."""
        await asyncio.gather(*(worker.stop(_KILL_WAIT_S) for worker in self._started))
        self._started.clear()


class ProcessWorker:
    """One worker process; implements `worker_host.StartedWorker`."""

    def __init__(self, process: "subprocess.Popen[bytes]", announced: Path, log_path: Path) -> None:
        self._process = process
        self._announced = announced
        self._log_path = log_path
        self._url: str | None = None

    @property
    def ended(self) -> bool:
        return self._process.poll() is not None

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def url(self) -> str | None:
        if self._url is None:
            try:
                self._url = self._announced.read_text(encoding="utf-8").strip() or None
            except OSError:
                return None
        return self._url

    def why(self) -> str:
        try:
            with self._log_path.open("rb") as log:
                log.seek(max(0, self._log_path.stat().st_size - _KEPT_LOG_BYTES))
                said = log.read().decode(errors="replace").strip()
        except OSError:
            said = ""
        return f"the end of {self._log_path}: {said}\nended with status {self._process.poll()}"  # last: who shows it may cut the front

    async def stop(self, timeout_s: float) -> None:
        if self.ended:
            return
        self._process.terminate()
        if not await self._gone_within(timeout_s):
            self._process.kill()
            await self._gone_within(_KILL_WAIT_S)

    async def _gone_within(self, timeout_s: float) -> bool:
        try:
            async with asyncio.timeout(timeout_s):
                while not self.ended:  # noqa: ASYNC110 -- subprocess.Popen has no event, and asyncio's children need its own loop
                    await asyncio.sleep(0.02)
        except TimeoutError:
            return False
        return True
