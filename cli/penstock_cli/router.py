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

from penstock_dataplane.loop import run
from penstock_process import logs
from penstock_process.system import keep_freed_memory, raise_open_files
from penstock_router.app import Router
from penstock_router.config import RouterConfig, Secrets

log = logging.getLogger(__name__)

GC_ALLOCATIONS = 20_000
"""Net new objects between two looks of the garbage collector at the youngest ones."""


def settle_memory() -> None:
    """Take what start-up made out of the garbage collector's sight, let it look less often, and keep what requests free.

    Some hundred thousand objects of imports never become garbage, and a request leaves no cycles unless it fails.
    """
    keep_freed_memory()
    gc.collect()
    gc.freeze()
    gc.set_threshold(GC_ALLOCATIONS, 20, 50)


def run_router(config: RouterConfig, secrets: Secrets, *, started: Callable[[str, int], None] | None = None) -> int:
    """Run a router until it has drained. `started(host, port)` is called once it listens. Gives the process' exit status:
    0 after a clean end, 1 when streams had to be cut. Raises ConfigError, KeyFileError or OSError when it cannot start."""
    logs.configure(config.log_level)
    raise_open_files(2 * config.connections)
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
