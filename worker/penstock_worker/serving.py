"""Runs one worker as a process: readiness announced, SIGTERM and SIGINT drain, the process ends with its parent if asked to.

`penstock worker` calls `serve_worker`. It builds nothing itself (`assembly` does, and the gang's modules where Ray hosts the engine) and
knows no HTTP.
"""

import asyncio
import importlib.util
import os
import signal
from pathlib import Path
from typing import TYPE_CHECKING

from penstock_core.errors import PenstockError
from penstock_dataplane.loop import run
from penstock_process import logs
from penstock_process.announcing import announce
from penstock_process.settings import ConfigError
from penstock_process.system import end_with_parent, raise_open_files

from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets, ray_environment
from penstock_worker.gang_follower import GangFollower
from penstock_worker.host import Host

if TYPE_CHECKING:
    from penstock_worker.gang_leader import GangLeader


def serve_worker(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    """Serve until a signal or a drain ends it.

    Raises OSError for an address that cannot be had, ConfigError for what does not fit together, EngineDied for a dead engine.
    """
    logs.configure(config.log_level)
    if config.parent_pid:
        end_with_parent(config.parent_pid)
    raise_open_files(config.connections)
    if config.engine_host == "ray":
        _check_gang(config, secrets)
        run(_serve_gang(config, secrets))
    else:
        run(_serve(config, secrets))


def _check_gang(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("engine_host is 'ray', and Ray is not installed; allowed: process, or install penstock[ray]")
    if config.gang_size > 1 and config.engine != "sim":
        raise ConfigError(f"gang_size is {config.gang_size}; allowed: 1 with engine {config.engine}, which does not span Pods yet")
    if config.gang_size > 1 and not (secrets.fleet_token and secrets.ray_token):
        raise ConfigError(
            f"gang_size is {config.gang_size}, and PENSTOCK_FLEET_TOKEN and RAY_AUTH_TOKEN are not both set; allowed: 1 without them, "
            "because whoever reaches an open Ray can run anything in it"
        )


def _leader(config: WorkerConfig, secrets: WorkerSecrets) -> "GangLeader":
    os.environ.update(ray_environment(secrets))  # Ray reads whether it has to ask for a token when it is imported, and never again
    from penstock_worker.gang_leader import GangLeader

    return GangLeader(config, secrets)


async def _serve_gang(config: WorkerConfig, secrets: WorkerSecrets) -> None:
    member = GangFollower(config, secrets) if config.gang_rank else _leader(config, secrets)
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, member.tell)
    await member.run()


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
