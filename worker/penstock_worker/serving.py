"""Runs one worker as a process: readiness announced, SIGTERM and SIGINT drain, the process ends with its parent if asked to.

`penstock worker` calls `serve_worker`. It builds nothing itself (`assembly` does) and knows no HTTP.
"""

import asyncio
import ctypes
import logging
import os
import resource
import signal
import sys
from pathlib import Path

from penstock_dataplane.loop import run

from penstock_worker import logs
from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.host import Host

log = logging.getLogger("penstock.worker.process")

_PR_SET_PDEATHSIG = 1
_SPARE_FILES = 256
"""Descriptors for everything that is no client's connection."""


def serve_worker(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    """Serve until a signal or a drain ends it. Raises OSError for an address that cannot be had."""
    logs.configure(config.log_level)
    _end_with(config.parent_pid)
    _raise_open_files(config.connections)
    run(_serve(config, secrets))


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
        await ended.wait()
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


def _raise_open_files(connections: int) -> None:
    """RLIMIT_NOFILE up to its hard limit, and a word where that is too low for the connections that are allowed."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft != hard:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
            soft = hard
        except (ValueError, OSError):
            pass  # some systems refuse an unlimited soft limit; the old one stays
    if soft != resource.RLIM_INFINITY and soft < connections + _SPARE_FILES:
        facts = {"limit": soft, "wanted": connections + _SPARE_FILES}
        log.warning("the hard limit of open files is too low for the connections that are allowed", extra={"facts": facts})


def _end_with(parent_pid: int) -> None:
    """Have the kernel kill this process when its parent ends, so that nothing is left behind even after `kill -9`."""
    if not parent_pid or not sys.platform.startswith("linux"):
        return
    ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent_pid:
        raise SystemExit(f"parent_pid is {parent_pid}, but the parent is {os.getppid()}: it ended before this worker was up")
