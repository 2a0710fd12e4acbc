"""Runs one worker as a process: readiness announced, SIGTERM and SIGINT drain, the process ends with its parent if asked to.

`penstock worker` calls `serve_worker`. It builds nothing itself (`assembly` does) and knows no HTTP.
"""

import asyncio
import signal
from pathlib import Path

from penstock_core.errors import PenstockError
from penstock_dataplane.loop import run
from penstock_process import logs
from penstock_process.system import end_with_parent, raise_open_files

from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.host import Host


def serve_worker(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    """Serve until a signal or a drain ends it. Raises OSError for an address that cannot be had, EngineDied for a dead engine."""
    logs.configure(config.log_level)
    if config.parent_pid:
        end_with_parent(config.parent_pid)
    raise_open_files(config.connections)
    run(_serve(config, secrets))


class EngineDied(PenstockError):
    """The engine can serve no longer; whoever runs this worker starts it again, under a new epoch."""


async def _serve(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    host = build_host(config, secrets)
    loop = asyncio.get_running_loop()
    ended = asyncio.Event()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _drain_or_end, host, ended)
    starting = asyncio.create_task(host.start(), name="start")
    ending = asyncio.create_task(ended.wait(), name="end")
    try:
        await asyncio.wait((starting, ending), return_when=asyncio.FIRST_COMPLETED)
        if not starting.done():
            return
        starting.result()
        if config.announce_path:
            announce(Path(config.announce_path), host.url)
        await asyncio.wait((ending, dying := asyncio.create_task(host.died(), name="died")), return_when=asyncio.FIRST_COMPLETED)
        dying.cancel()
        if not ended.is_set():
            raise EngineDied(dying.result())
    finally:
        for task in (starting, ending):
            task.cancel()
        await asyncio.wait((starting, ending))
        await host.stop()


def _drain_or_end(host: Host, ended: asyncio.Event) -> None:
    """The first signal drains, a second one ends at once."""
    if host.draining or not host.ready:
        ended.set()
        return
    host.drain(on_drained=ended.set)


def announce(path: Path, url: str) -> None:
    """Write the URL down, whole or not at all."""
    fresh = path.with_name(path.name + ".new")
    fresh.write_text(url + "\n", encoding="utf-8")
    fresh.replace(path)
