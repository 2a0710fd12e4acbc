"""Kopf as the shell: it watches, in a thread and an event loop of its own; listings and events go to the feed. Nothing else.

No handler of Kopf's runs: no finalizer, no status of Kopf's, no write at all. `settings` says why each differs from the default.
Kopf cancels every task of its loop when it ends and takes signals where it can, hence the thread; when it ends by itself it is
started anew. `process` starts and stops it.
"""

import asyncio
import logging
import random
import threading
from collections.abc import Iterator
from typing import Any

import kopf
from kubernetes.aio.client import Configuration

from penstock_operator.api_server import authorization, new_session
from penstock_operator.difference import kept
from penstock_operator.feed import Feed
from penstock_operator.kinds import MADE, WATCHED
from penstock_operator.names import MANAGED_SELECTOR
from penstock_operator.watch_session import Event, Listeners, response_class

log = logging.getLogger(__name__)

_RESTART_S = 2.0
_STOP_S = 10.0
_CANCELS = 5


class _Endless:
    """Pauses between attempts that never run out: with a list that does, the whole of Kopf ends when the API server is away."""

    def __iter__(self) -> Iterator[float]:
        pause_s = 0.5
        while True:
            yield pause_s * random.uniform(0.5, 1.5)  # noqa: S311 -- spreads retries, guards nothing
            pause_s = min(10.0, pause_s * 2)


class Watches:
    """The thread in which Kopf runs. `start` once, `stop` once."""

    def __init__(self, configuration: Configuration, namespace: str, feed: Feed) -> None:
        """`namespace`: the one to watch; empty: all."""
        self._configuration = configuration
        self._namespace = namespace
        self._feed = feed
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, name="kopf", daemon=True)
        self.restarts = 0

    @property
    def alive(self) -> bool:
        return self._thread.is_alive()

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Returns when the thread has ended, or after some seconds."""
        self._stop.set()
        if self._thread.is_alive():
            self._thread.join(_STOP_S)

    def _run(self) -> None:
        while not self._stop.is_set():
            try:
                asyncio.run(self._watch())
            except Exception:  # the thread's top
                log.exception("watching failed")
            if not self._stop.wait(_RESTART_S):
                self.restarts += 1
                log.warning("watching starts anew", extra={"facts": {"restarts": self.restarts}})

    async def _watch(self) -> None:
        """Until told to stop, or until any part of Kopf has ended: the rest would wait for it, deaf, for minutes or for ever."""
        parts = await kopf.spawn_tasks(
            registry=self._registry(),
            settings=settings(),
            standalone=True,
            clusterwide=not self._namespace,
            namespaces=[self._namespace] if self._namespace else [],
            stop_flag=self._stop,
        )
        done, _ = await asyncio.wait(parts, return_when=asyncio.FIRST_COMPLETED)
        for part in done:
            if not self._stop.is_set() and not part.cancelled():
                log.error("a part of Kopf has ended", extra={"facts": {"part": part.get_name()}}, exc_info=part.exception())
        for _ in range(_CANCELS):  # it takes a cancellation for a lost connection now and then, and goes on
            others = asyncio.all_tasks() - {asyncio.current_task()}
            for task in others:
                task.cancel()
            if others:
                await asyncio.wait(others, timeout=1.0)

    def _registry(self) -> kopf.OperatorRegistry:
        """Kopf watches the kinds that have a handler; no event comes to it, `watch_session` takes them all."""
        registry = kopf.OperatorRegistry()
        kopf.on.login(registry=registry, id="login")(self._login)
        for kind in WATCHED:
            kopf.on.event(kind.group, kind.version, kind.plural, registry=registry, id=kind.plural)(_untold)
        return registry

    async def _login(self, **_: Any) -> kopf.AiohttpSession:
        places = {kind.path(self._namespace or None): kind for kind in WATCHED}
        pages: dict[str, list[dict[str, Any]]] = {}

        def listed(path: str, items: list[dict[str, Any]], version: int, first: bool, last: bool) -> None:
            kind = places[path]
            if first:
                pages[path] = []
            whole = pages.setdefault(path, [])
            whole += [kept({"apiVersion": kind.api_version, "kind": kind.kind, **item}, kind) for item in items]
            if last:
                self._feed.post(self._feed.listed, kind, pages.pop(path), version)

        def changed(path: str, events: list[Event]) -> None:
            kind = places[path]
            self._feed.post(self._feed.changed, kind, [(event, kept(raw, kind)) for event, raw in events])

        listeners = Listeners(listed, changed, lambda path: self._feed.heard(places[path]))
        kinds = response_class({path: path for path in places}, listeners)
        headers = await authorization(self._configuration)
        session = await new_session(self._configuration, connections=0, headers=headers, response_class=kinds)
        return kopf.AiohttpSession(server=self._configuration.host, aiohttp_session=session)


async def _untold(**_: Any) -> None:
    raise RuntimeError("an event came to Kopf's handler: its stream is no longer read through `watch_session`")


def settings() -> kopf.OperatorSettings:
    """Kopf's settings, each with what it keeps from happening."""
    chosen = kopf.OperatorSettings()
    chosen.scanning.disabled = True  # no right to list CRDs and namespaces is needed; our kinds are there before we start
    chosen.watching.server_timeout = 300
    chosen.watching.connect_timeout = 10
    chosen.watching.reconnect_backoff = 1.0  # a watch that fails at once, again and again, lists once a second
    chosen.watching.chunk_size = 500
    chosen.networking.request_timeout = 30
    chosen.networking.error_backoffs = _Endless()
    chosen.posting.enabled = False
    chosen.posting.level = logging.WARNING
    chosen.peering.standalone = True
    chosen.queueing.worker_limit = None  # with a limit, objects whose handler fails keep others waiting
    chosen.queueing.idle_timeout = 1.0
    chosen.persistence.finalizer = "serving.penstock.dev/never-used"
    chosen.persistence.progress_storage = kopf.AnnotationsProgressStorage(prefix="serving.penstock.dev")
    chosen.persistence.diffbase_storage = kopf.AnnotationsDiffBaseStorage(prefix="serving.penstock.dev")
    for kind in MADE:
        chosen.watching.label_selectors[kind.group, kind.version, kind.plural] = MANAGED_SELECTOR
    return chosen
