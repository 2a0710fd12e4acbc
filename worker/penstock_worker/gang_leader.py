"""The leading Pod of a gang: its Ray is the gang's, and the engine's ranks are spread over the Pods that have joined it.

`serving` runs it where `engine_host` is `ray`, for replicas of one Pod as well. The gang is the one worker of a fleet: restarted as a
whole, with back-off and under a new epoch, when any rank's process, Pod or engine is lost; drained as a whole when the process is
told to end or when another Pod of the gang is. Each start of this process is a new incarnation.
"""

import asyncio
import logging
import os
import tempfile
from collections.abc import Awaitable
from pathlib import Path

import msgspec
from penstock_process.announcing import announce

from penstock_worker.config import WorkerConfig, WorkerSecrets
from penstock_worker.fleet import Fleet
from penstock_worker.fleet_plan import FleetLimits, Phase
from penstock_worker.gang import GangNews
from penstock_worker.gang_page import GangPage
from penstock_worker.host import new_epoch
from penstock_worker.ray_host import RayHost, RayNode
from penstock_worker.worker_host import StartedWorker, StartFailed

log = logging.getLogger(__name__)

_START_S = 3_600.0
"""Longest start: other Pods may wait for a place, and weights take their time."""


class GangLeader:
    """See the module. `run` once; `tell` at each signal."""

    def __init__(self, config: WorkerConfig, secrets: WorkerSecrets) -> None:
        self._config = config
        self._incarnation = f"{new_epoch():016x}"
        self._leaving = asyncio.Event()  # told to end, or another Pod of the gang was
        self._folder = tempfile.TemporaryDirectory(prefix="penstock-gang-", ignore_cleanup_errors=True)
        node = RayNode(address=config.node_address, ranks=config.gang_size, gpus=config.gang_gpus)
        self._host = RayHost(Path(self._folder.name), secrets, node=node, log_path=_own_output())
        limits = FleetLimits(start_s=_START_S, drain_s=max(0.1, config.drain_s))
        self._fleet = Fleet(_OnePod(self._host, config.id), {config.pool: config}, fleet_token=secrets.fleet_token, limits=limits)
        self._page = GangPage(secrets.fleet_token, lambda: self.ready, news=self.news, on_drain=self._leaving.set)
        self._port = config.gang_port
        self._told = False
        self._at_once = asyncio.Event()

    def tell(self) -> None:
        """The first signal drains, a second one ends at once."""
        if self._told:
            self._at_once.set()
        self._told = True
        self._leaving.set()

    @property
    def ready(self) -> bool:
        """Every rank runs and the engine serves."""
        return any(worker.phase in (Phase.READY, Phase.DRAINING) for worker in self._fleet.status())

    def news(self) -> GangNews:
        """What the other Pods are told."""
        host = self._config.node_address
        return GangNews(
            incarnation=self._incarnation,
            ray_address=self._host.address,
            page=f"http://{f'[{host}]' if ':' in host else host}:{self._port}",
            ready=self.ready,
            drained=self._leaving.is_set() and not self._fleet.status(),
        )

    async def run(self) -> None:
        """Until told to end and drained. Raises OSError where the address is taken or Ray cannot be started."""
        self._port = await self._page.start(self._config.listen_host, self._config.gang_port)
        try:
            await _first(self._fleet.open(), self._leaving.wait())
            if not self._leaving.is_set():
                self._fleet.scale(self._config.pool, 1)
                await _first(self._announce(), self._leaving.wait())
                await self._leaving.wait()
                log.info("leaving", extra={"facts": {"id": self._config.id, "ranks": self._config.gang_size}})
            await _first(self._fleet.aclose(), self._at_once.wait())
        except StartFailed as error:
            raise OSError(str(error)) from error
        finally:
            await self._fleet.aclose(drain=False)
            await self._page.aclose()
            self._folder.cleanup()

    async def _announce(self) -> None:
        await self._fleet.wait_settled(_START_S)
        url = next((worker.url for worker in self._fleet.status()), None)
        if self._config.announce_path and url is not None:
            announce(Path(self._config.announce_path), url)
        log.info("the gang serves", extra={"facts": {"id": self._config.id, "ranks": self._config.gang_size, "url": url}})


class _OnePod:
    """The gang's Ray as a fleet's host: the one worker has the Pod's own id, by which the operator knows it, not the fleet's number."""

    def __init__(self, host: RayHost, worker_id: str) -> None:
        self._host = host
        self._id = worker_id

    async def open(self) -> None:
        await self._host.open()

    async def start(self, config: WorkerConfig) -> StartedWorker:
        return await self._host.start(msgspec.structs.replace(config, id=self._id, announce_path=""))

    async def aclose(self) -> None:
        await self._host.aclose()


def _own_output() -> Path | None:
    """This process's error stream as a path, so that the engine's lines stand in the Pod's log; None where it cannot be opened."""
    path = Path(f"/proc/{os.getpid()}/fd/2")
    try:
        path.open("a").close()
    except OSError:
        return None
    return path


async def _first(*waits: Awaitable[object]) -> None:
    """Return when one of them has ended, the others cancelled; an error of that one is raised."""
    tasks = [asyncio.ensure_future(one) for one in waits]
    try:
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.wait(tasks)
    for task in done:
        task.result()
