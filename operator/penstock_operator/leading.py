"""What the leading operator is made of: watches → feed → queue → reconciler, with a listing of everything now and then.

`process` runs it while it holds the Lease. The object graph of the operator is built here.
"""

import asyncio
import logging
import random
import time

from kubernetes.aio.client import Configuration
from penstock_core import metric_names
from penstock_kvindex.calls import connect
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex

from penstock_operator.api_server import ApiError, ApiServer
from penstock_operator.cache import Cache, Key
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.drain import Drainer
from penstock_operator.events import Events
from penstock_operator.feed import Feed
from penstock_operator.handlers import Watches
from penstock_operator.health import Health
from penstock_operator.kinds import MADE, WATCHED
from penstock_operator.metrics import OperatorMetrics
from penstock_operator.names import MANAGED_SELECTOR
from penstock_operator.queue import KeyedQueue
from penstock_operator.reconcile import Reconciler, RefusedForGood
from penstock_operator.registration import Registrations
from penstock_operator.targets import Targets
from penstock_operator.workers import Workers

log = logging.getLogger(__name__)

_KINDS_RETRY_S = 2.0
_REDIS_S = 2.0
_TARGETS_S = 10.0
"""How often it is looked whether Redis has lost the targets."""
_SPREAD_RATIO = 0.1
"""Share of the resync's period over which the keys are spread."""


class Leading:
    """See the module. `run` once."""

    def __init__(
        self,
        configuration: Configuration,
        server: ApiServer,
        config: OperatorConfig,
        secrets: OperatorSecrets,
        metrics: OperatorMetrics,
        health: Health,
    ) -> None:
        self._configuration = configuration
        self._server = server
        self._config = config
        self._secrets = secrets
        self._metrics = metrics
        self._health = health

    async def run(self) -> None:
        """Until cancelled; then nothing of it writes any more."""
        await self._kinds_are_there()
        cache = Cache(WATCHED)
        queue: KeyedQueue[Key] = KeyedQueue(self._config.concurrency)

        def again(key: Key) -> None:
            workers.add(key)

        redis = connect(self._secrets.redis_url, _REDIS_S) if self._secrets.redis_url else None
        drainer = Drainer(self._secrets.fleet_token, again)
        events = Events(self._server, time.time)
        registrations = Registrations(cache, lambda model: RedisIndex(self._secrets.redis_url, model, client=redis), again, time.time)
        reconciler = Reconciler(
            cache,
            self._server,
            drainer,
            self._config,
            self._secrets,
            self._metrics,
            on_status=events.on_status,
            registered=registrations.of,
        )
        workers = Workers(queue, reconciler, on_failure=_failed)
        feed = Feed(cache, lambda key, generation, delay_s: workers.add(key, generation=generation, delay_s=delay_s))
        watches = Watches(self._configuration, self._config.watch_namespace, feed)
        self._export(cache, queue, drainer, feed, watches)
        self._metrics.watch(metric_names.OPERATOR_UNREGISTERED, lambda: float(registrations.counts[0]))
        self._metrics.watch(metric_names.OPERATOR_STRAYS, lambda: float(registrations.counts[1]))
        self._metrics.leader.set(1)
        watches.start()
        try:
            await feed.synced.wait()
            log.info("everything is listed", extra={"facts": {kind.kind: cache.count(kind) for kind in WATCHED}})
            for key in cache.services():
                workers.add(key)
            async with asyncio.TaskGroup() as tasks:
                tasks.create_task(workers.serve(), name="reconcile")
                tasks.create_task(self._resync(cache, workers), name="resync")
                if redis is not None:
                    targets = Targets(cache, ServedModels(self._secrets.redis_url, client=redis), feed.services)
                    tasks.create_task(targets.keep(_TARGETS_S), name="targets")
                    tasks.create_task(registrations.watch(self._config.registry_interval_s), name="registrations")
        finally:
            await drainer.aclose()
            if redis is not None:
                await redis.aclose()
            await asyncio.get_running_loop().run_in_executor(None, watches.stop)
            self._health.leading = False

    async def _kinds_are_there(self) -> None:
        """Wait for the CRDs and for the right to list: Kopf looks for its kinds once."""
        for kind in WATCHED:
            while True:
                try:
                    await self._server.list(kind, self._config.watch_namespace, f"{MANAGED_SELECTOR},never=there")
                    break
                except ApiError as error:
                    log.warning("a kind cannot be listed yet", extra={"facts": {"kind": kind.kind, "error": str(error)}})
                    await asyncio.sleep(_KINDS_RETRY_S)

    async def _resync(self, cache: Cache, workers: Workers[Key]) -> None:
        """List everything now and then: a lost event costs at most one period."""
        while True:
            await asyncio.sleep(self._config.resync_s)
            for kind in WATCHED:
                try:
                    selector = MANAGED_SELECTOR if kind in MADE else ""
                    items, version = await self._server.list(kind, self._config.watch_namespace, selector)
                    cache.replace(kind, items, version)
                except ApiError as error:
                    log.warning("a listing failed", extra={"facts": {"kind": kind.kind, "error": str(error)}})
            for key in cache.services():
                workers.add(key, delay_s=random.uniform(0.0, self._config.resync_s * _SPREAD_RATIO))  # noqa: S311 -- spreads load

    def _export(self, cache: Cache, queue: KeyedQueue[Key], drainer: Drainer, feed: Feed, watches: Watches) -> None:
        self._health.ages, self._health.watching, self._health.synced = feed.ages, lambda: watches.alive, feed.synced.is_set
        self._health.leading = True
        self._metrics.watch(metric_names.OPERATOR_QUEUE, lambda: float(queue.depth))
        self._metrics.watch(metric_names.OPERATOR_DRAINING, lambda: float(drainer.draining))
        for kind in WATCHED:
            self._metrics.watch(metric_names.OPERATOR_WATCH_AGE, lambda kind=kind: feed.ages().get(kind.kind, 0.0), kind.kind)  # type: ignore[misc]
            self._metrics.watch(metric_names.OPERATOR_OBJECTS, lambda kind=kind: float(cache.count(kind)), kind.kind)  # type: ignore[misc]


def _failed(key: Key, error: Exception) -> None:
    facts = {"service": "/".join(key), "error": f"{type(error).__name__}: {error}"}
    if isinstance(error, ApiError | RefusedForGood):
        log.warning("a reconcile failed", extra={"facts": facts})
    else:
        log.error("a reconcile failed", extra={"facts": facts}, exc_info=error)
