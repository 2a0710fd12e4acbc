"""The router process: settings in, a running router until it is told to stop, and an orderly drain.

`penstock router` and `penstock up` call `run_router`. It raises the limit of open files, starts `penstock_router.app.Router`,
and turns SIGTERM, SIGINT or POST /admin/drain into a drain. A second signal cuts what is left.
"""

import asyncio
import contextlib
import gc
import logging
import signal
from collections.abc import Callable, Iterator

import msgspec
from penstock_dataplane.loop import run
from penstock_process import logs
from penstock_process.system import SPARE_FILES, keep_freed_memory, raise_open_files, use_large_pages
from penstock_router.app import Router
from penstock_router.config import RouterConfig, Secrets

log = logging.getLogger(__name__)

GC_ALLOCATIONS = 20_000
"""Net new objects between two looks of the garbage collector at the youngest ones."""


def settle_memory() -> None:
    """Take what start-up made out of the garbage collector's sight, let it look less often, keep what requests free, all in large pages.

    Some hundred thousand objects of imports never become garbage, and a request leaves no cycles unless it fails.
    """
    keep_freed_memory()
    gc.collect()
    gc.freeze()
    use_large_pages()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def fitted(config: RouterConfig, files: int) -> RouterConfig:
    """The settings that hold where only so many files may be open (below 0: no limit).

    A third is for connections to upstreams, one an active request; the rest for clients and the eighth more that the server lets in
    to refuse them. So clients which say nothing cannot take what requests need.
    """
    room = files - SPARE_FILES
    if files < 0 or config.connections * 9 // 8 + config.active_requests <= room:
        return config
    active = min(config.active_requests, max(1, room // 3))
    connections = min(config.connections, max(1, room * 7 // 12))
    facts = {"connections": connections, "active_requests": active}
    log.warning("fewer connections and active requests are allowed than was set", extra={"facts": facts})
    return msgspec.structs.replace(config, connections=connections, active_requests=active)


def run_router(config: RouterConfig, secrets: Secrets, *, started: Callable[[str, int], None] | None = None) -> int:
    """Run a router until it has drained. `started(host, port)` is called once it listens. Gives the process' exit status:
    0 after a clean end, 1 when streams had to be cut. Raises ConfigError, KeyFileError or OSError when it cannot start."""
    logs.configure(config.log_level)
    config = fitted(config, raise_open_files(config.connections * 9 // 8 + config.active_requests))
    return run(_serve(config, secrets, started))


async def _serve(config: RouterConfig, secrets: Secrets, started: Callable[[str, int], None] | None) -> int:
    router = Router(config, secrets)
    try:
        host, port = await router.start()
        settle_memory()
        if started is not None:
            started(host, port)
        with _signals(router.drain_asked):
            await router.drain_asked.wait()
            log.info("draining", extra={"facts": {"deadline_s": config.drain_s, "exchanges": router.server.exchanges}})
            router.drain_asked.clear()
            clean = await _drain(router)
        log.info("stopped", extra={"facts": {"clean": clean}})
        return 0 if clean else 1
    finally:
        await router.close()


async def _drain(router: Router) -> bool:
    """Drain; a second signal ends the waiting."""
    draining = asyncio.ensure_future(router.drain())
    again = asyncio.ensure_future(router.drain_asked.wait())
    await asyncio.wait((draining, again), return_when=asyncio.FIRST_COMPLETED)
    again.cancel()
    if draining.done():
        return draining.result()
    draining.cancel()
    await asyncio.wait((draining, again))
    return False


@contextlib.contextmanager
def _signals(asked: asyncio.Event) -> Iterator[None]:
    """SIGTERM and SIGINT set the event while this lasts."""
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, asked.set)
    try:
        yield
    finally:
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.remove_signal_handler(number)
