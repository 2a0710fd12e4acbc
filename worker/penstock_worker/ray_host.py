"""Workers as named Ray actors, each in a placement group of its own. The only module that imports ray.

Implements `worker_host.WorkerHost` for the fleet, which restarts what ended under a new epoch. The worker's HTTP server runs in the
actor's own event loop; no request and no token passes through Ray. Ray is started here, private to this process (own namespace and
temporary folder, no dashboard, never a cluster that happens to be around), and ended here. For a gang (`RayNode.ranks`) the other
Pods join it, and a worker has an actor in each: all of them or none.
"""

import asyncio
import logging
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import ray
from penstock_process import logs
from ray._private import services
from ray.util.placement_group import placement_group, remove_placement_group
from ray.util.scheduling_strategies import PlacementGroupSchedulingStrategy

from penstock_worker.assembly import build_host
from penstock_worker.config import WorkerConfig, WorkerSecrets, load_secrets, secrets_environment
from penstock_worker.gang import RAY_OBJECT_STORE_BYTES, rank_resource
from penstock_worker.ray_folder import RayFolder, remove_left
from penstock_worker.worker_host import StartFailed

log = logging.getLogger(__name__)

Result = TypeVar("Result")
_CPUS = 1
_CPUS_PER_WORKER = 0.01
"""Ray's count of CPUs only bounds how many workers it places (100) and how many idle processes it starts ahead (1)."""
_KILL_WAIT_S = 10.0
_GANG_HEALTH = {"health_check_initial_delay_ms": 2_000, "health_check_period_ms": 1_000, "health_check_failure_threshold": 5}
"""A Pod that is gone without a word is missed after some seconds, not after Ray's half minute."""


class RayNode(msgspec.Struct, frozen=True):
    """This process's part of a gang's Ray. `ranks` 0: there is no gang, all workers are on this machine."""

    address: str = ""
    """At which the other Pods reach this one."""
    ranks: int = 0
    gpus: int = 0
    """Of each rank."""

    @property
    def bundles(self) -> list[dict[str, float]]:
        """The places that one worker takes."""
        ranked = [{rank_resource(rank): 1.0} | ({"GPU": float(self.gpus)} if self.gpus else {}) for rank in range(self.ranks)]
        return [{"CPU": _CPUS_PER_WORKER} | extra for extra in (ranked or [{}])]


class WorkerActor:
    """The actor: one worker in the actor's process and event loop."""

    def __init__(self, config: bytes, secrets: dict[str, str], log_path: str) -> None:
        self._config = msgspec.json.decode(config, type=WorkerConfig)
        self._secrets = load_secrets(secrets)
        logs.configure(self._config.log_level, Path(log_path).open("a", encoding="utf-8"))  # noqa: SIM115 -- for the process's life
        self._host: Any = None
        self._dying: Any = None

    async def start(self) -> tuple[int, str]:
        """Process id and URL, once the worker is ready."""
        self._host = build_host(self._config, self._secrets)
        await self._host.start()
        self._dying = asyncio.create_task(self._end_with_engine(), name="died")
        return os.getpid(), str(self._host.url)

    async def _end_with_engine(self) -> None:
        """The fleet restarts a worker whose process is gone."""
        why = await self._host.died()
        log.error("the engine is dead, and this worker ends", extra={"facts": {"why": why}})
        await self._host.stop()
        os._exit(1)

    async def stop(self) -> None:
        """Drain, and end the worker."""
        if self._host is not None:
            self._dying.cancel()
            self._host.drain()
            await self._host.drained.wait()
            await self._host.stop()


class RankActor:
    """One rank of a gang beside the leading one: what an engine runs in that Pod lives and dies with it. The sim engine runs nothing."""

    async def start(self) -> int:
        """Process id, once the rank is up."""
        return os.getpid()

    async def run(self) -> None:
        """Never returns; the call fails when the process is gone."""
        await asyncio.Event().wait()


class RayHost:
    """See the module. All calls into Ray are made by one thread that lives as long as this object: Ray's processes end with it."""

    def __init__(self, folder: Path, secrets: WorkerSecrets, *, node: RayNode | None = None, log_path: Path | None = None) -> None:
        """Logs of the workers lie under `folder`, or all go to `log_path`."""
        self._folder = folder
        self._secrets = secrets
        self._node = node or RayNode()
        self._log_path = log_path
        self.address = ""
        """Where Ray's head is, `host:port`; empty until `open`."""
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="ray")
        self._started: list[RayWorker] = []
        self._temporary: RayFolder | None = None
        self._closed = False

    async def open(self) -> None:
        """Start Ray: 4 to 10 seconds. Raises StartFailed."""
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            await self.call(remove_left)
            self._temporary = RayFolder()
            await self.call(partial(self._init, self._temporary.path))
            _take_signals_back()
        except Exception as error:  # a bare one is what Ray raises where its node is not up within 30 s
            raise StartFailed(f"Ray cannot be started: {error}") from error

    async def start(self, config: WorkerConfig) -> "RayWorker":
        """Start one actor; it becomes ready by itself."""
        log_path = str((self._log_path or self._folder / f"{config.id}.log").absolute())
        try:
            worker = await self.call(lambda: self._make(config, log_path))
        except (ValueError, ray.exceptions.RayError) as error:  # ValueError: the name of a dead actor is not free yet
            raise StartFailed(f"worker {config.id}: {error}") from None
        self._started = [other for other in self._started if not other.ended] + [worker]
        return worker

    async def aclose(self) -> None:
        """Stop all workers and Ray. Twice does nothing."""
        if self._closed:
            return
        await asyncio.gather(*(worker.stop(0.0) for worker in self._started))
        self._started.clear()
        await self.call(ray.shutdown)
        self._closed = True
        self._thread.shutdown(wait=False)
        if self._temporary is not None:
            self._temporary.remove()

    async def call(self, function: Callable[[], Result]) -> Result:
        """Run a call of Ray's in the thread kept for them."""
        return await asyncio.get_running_loop().run_in_executor(self._thread, function)

    def _init(self, temporary: Path) -> None:
        if ray.is_initialized():
            raise RuntimeError("this process is connected to a Ray already; Penstock's must be its own")
        os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
        logging.getLogger("ray").setLevel(logging.ERROR)  # advice about its signal handlers and tokens is not for our users
        gang: dict[str, Any] = {"_node_ip_address": self._node.address, "resources": {rank_resource(0): 1}, "_system_config": _GANG_HEALTH}
        with _groups_of_their_own():
            ray.init(
                address="local",  # a new one, whatever RAY_ADDRESS says
                namespace=f"penstock-{os.getpid()}",
                num_cpus=_CPUS,
                num_gpus=self._node.gpus,
                object_store_memory=RAY_OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                configure_logging=False,
                _temp_dir=str(temporary),
                **(gang if self._node.ranks else {}),
            )
        self.address = ray.get_runtime_context().gcs_address

    def _make(self, config: WorkerConfig, log_path: str) -> "RayWorker":
        bundles = self._node.bundles
        group = placement_group(bundles, strategy="STRICT_SPREAD" if len(bundles) > 1 else "STRICT_PACK", name=config.id)

        def options(rank: int) -> dict[str, Any]:
            return {
                "num_cpus": _CPUS_PER_WORKER,
                "num_gpus": self._node.gpus,
                "max_restarts": 0,  # the fleet restarts, with back-off and a new epoch
                "scheduling_strategy": PlacementGroupSchedulingStrategy(placement_group=group, placement_group_bundle_index=rank),
            }

        try:
            told = (msgspec.json.encode(config), secrets_environment(self._secrets), log_path)
            actor = ray.remote(WorkerActor).options(name=config.id, **options(0)).remote(*told)
            ranks = [ray.remote(RankActor).options(**options(rank)).remote() for rank in range(1, len(bundles))]
        except BaseException:
            remove_placement_group(group)
            raise
        return RayWorker(self, actor, group, ranks)


class RayWorker:
    """One worker: its actor, and those of its other ranks. Implements `worker_host.StartedWorker`. Made in Ray's thread."""

    def __init__(self, host: RayHost, actor: Any, group: Any, ranks: Sequence[Any] = ()) -> None:
        self._host = host
        self._actor = actor
        self._ranks = ranks
        self._group = group
        self._stopped = False
        self._ready: Future[tuple[int, str]] = actor.start.remote().future()
        self._ranks_up: list[Future[int]] = [rank.start.remote().future() for rank in ranks]
        self._ranks_run: list[Future[None]] = [rank.run.remote().future() for rank in ranks]  # done: that rank is gone

    @property
    def ended(self) -> bool:
        # Of the actor here the kernel is asked, not Ray: it knows first. Of ranks elsewhere only Ray can tell.
        if self._stopped or any(rank.done() for rank in self._ranks_run):
            return True
        return self._ready.done() and (self._ready.exception() is not None or not _lives(self._ready.result()[0]))

    @property
    def pid(self) -> int | None:
        return self._ready.result()[0] if self._came_up else None

    @property
    def url(self) -> str | None:
        up = self._came_up and all(rank.done() for rank in self._ranks_up)
        return self._ready.result()[1] if up and not self.ended else None

    @property
    def _came_up(self) -> bool:
        return self._ready.done() and self._ready.exception() is None

    def why(self) -> str:
        if self._ready.done() and self._ready.exception() is not None:
            return str(self._ready.exception())
        for number, rank in enumerate(self._ranks_run, start=1):
            if rank.done():
                return f"rank {number} is gone: {rank.exception()}"
        return "stopped" if self._stopped else f"process {self.pid} is gone"

    async def stop(self, timeout_s: float) -> None:
        """Ask the actor to drain, for `timeout_s`; then end its process and give its place back."""
        if self._stopped:
            return
        had_ended = self.ended
        self._stopped = True
        if timeout_s > 0 and self._came_up and not had_ended:
            try:
                asking = await self._host.call(lambda: self._actor.stop.remote().future())
                await asyncio.wait_for(asyncio.wrap_future(asking), timeout_s)
            except (TimeoutError, ray.exceptions.RayError):
                pass  # it is ended below
        await self._host.call(self._end)
        await self._gone()

    def _end(self) -> None:
        for actor in (self._actor, *self._ranks):
            ray.kill(actor, no_restart=True)
        remove_placement_group(self._group)

    async def _gone(self) -> None:
        """Wait until the process is gone; Ray ends it a moment after being told."""
        if not self._came_up:
            return
        try:
            async with asyncio.timeout(_KILL_WAIT_S):
                while _lives(self._ready.result()[0]):  # noqa: ASYNC110 -- the kernel has no event for the end of another's child
                    await asyncio.sleep(0.02)
        except TimeoutError:
            log.warning("a worker's process does not end", extra={"facts": {"pid": self.pid}})


@contextmanager
def _groups_of_their_own() -> Iterator[None]:
    """Ray's processes, started inside, are not in our process group: a signal to the whole of it (of `timeout`, a shell or a service
    manager) would end them while they are needed to end workers in order, and Ray waits a minute for what is gone, then aborts us.
    That Ray blocks Ctrl-C in them is not enough. Another version of Ray, without this name, starts them as it likes."""
    module: Any = services
    plain = getattr(module, "ConsolePopen", None)
    if plain is None:
        yield
        return
    module.ConsolePopen = partial(plain, process_group=0)
    try:
        yield
    finally:
        module.ConsolePopen = plain


def _take_signals_back() -> None:
    """Ray puts handlers of its own before ours: after a SIGTERM they print a trace and abort this process 3 s later, drained or not."""
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGTERM, signal.SIGINT):
            if (ours := signal.getsignal(number)) is not None:
                signal.signal(number, ours)
                signal.siginterrupt(number, False)


def _lives(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass  # another user's by now, which cannot be: the number was given out anew
    return True
