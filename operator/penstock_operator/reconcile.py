"""Makes one ModelService true: observe → plan → apply, until a plan has nothing to write; then its status, once.

`workers` calls it with a key. What it remembers of a key (Secret, refusal, time of the last status) is a saving only: a new process
starts without it and comes to the same end.
"""

import logging
import time
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any, Protocol

import msgspec

from penstock_operator.api_server import NamespaceTerminating
from penstock_operator.apply import Applier, Server
from penstock_operator.cache import Cache, Key
from penstock_operator.conditions import READY, find
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.kinds import MODEL_SERVICE, POD, SECRET
from penstock_operator.metrics import OperatorMetrics
from penstock_operator.names import workers_object
from penstock_operator.observe import Observed, Registered, Report, observe
from penstock_operator.plan import DrainOrder, Plan, plan

log = logging.getLogger(__name__)

_MOST_PASSES = 12
_TERMINATING_S = 60.0
_SECRET_FRESH_S = 5.0

Transition = Callable[[Mapping[str, Any], Mapping[str, Any]], Awaitable[None]]
"""Told of the object before and the status written; posts events."""


class RefusedForGood(Exception):
    """Something was refused; it stands in the status, and is tried again with back-off or when the spec changes."""


class Following(Protocol):
    """What is asked of `drain.Drainer`."""

    async def ask(self, pods: Iterable[tuple[str, str]]) -> dict[str, Report | None]: ...
    def follow(self, key: Key, orders: Iterable[DrainOrder]) -> None: ...
    def reports(self, key: Key) -> Mapping[str, Report]: ...


class _Memory(msgspec.Struct):
    """What is kept of one key between reconciles."""

    secret: Mapping[str, Any] | None = None
    secret_read: float = -1e12
    refused: str = ""
    refused_generation: int = -1
    status_written: float = -1e12


class Reconciler:
    """See the module. `clock` gives epoch seconds."""

    def __init__(
        self,
        cache: Cache,
        server: Server,
        drainer: Following,
        config: OperatorConfig,
        secrets: OperatorSecrets,
        metrics: OperatorMetrics,
        *,
        clock: Callable[[], float] = time.time,
        on_status: Transition | None = None,
        registered: Callable[[Key], Registered | None] = lambda _: None,
    ) -> None:
        self._cache = cache
        self._server = server
        self._drainer = drainer
        self._config = config
        self._secrets = secrets
        self._metrics = metrics
        self._clock = clock
        self._on_status = on_status
        self._registered = registered
        self._applier = Applier(server, cache, metrics)
        self._memory: dict[Key, _Memory] = {}

    async def __call__(self, key: Key) -> float | None:
        """Seconds until it wants to look again; None: an event will say. Raises ApiError, RefusedForGood."""
        began, outcome = time.perf_counter(), "failed"
        try:
            after_s = await self._reconcile(key)
            outcome = "ok"
            return after_s
        except NamespaceTerminating:
            outcome = "namespace_terminating"
            return _TERMINATING_S
        finally:
            self._metrics.reconcile.labels(outcome).observe(time.perf_counter() - began)

    async def _reconcile(self, key: Key) -> float | None:
        loads: dict[str, Report | None] = {}
        memory = self._memory.setdefault(key, _Memory())
        settled: Plan | None = None
        refused = ""
        for _ in range(_MOST_PASSES):
            observed = await self._observe(key, memory, loads)
            if observed is None:
                self._forget(key)
                return None
            made = plan(observed, self._config, self._secrets, self._clock())
            if made.ask:
                loads.update(dict.fromkeys((uid for uid, _ in made.ask), None))
                loads.update(await self._drainer.ask(made.ask))
            self._drainer.follow(key, made.drains)
            if self._needs_secret(memory, made):
                memory.secret_read = -1e12
                continue
            if not made.ask and not made.writes and not made.removals:
                settled = made
                break
            refused, secret = await self._applier.carry_out(key, made)
            memory.secret = secret or memory.secret
            if refused:
                memory.refused, memory.refused_generation = refused, observed.service["metadata"].get("generation", 0)
                break
            memory.refused = ""
        return await self._finish(key, memory, settled, loads, refused)

    def _needs_secret(self, memory: _Memory, made: Plan) -> bool:
        """Pods are not made before their Secret, which is not watched: somebody may have deleted it since it was read."""
        return any(write.kind is POD for write in made.writes) and self._clock() - memory.secret_read > _SECRET_FRESH_S

    async def _observe(self, key: Key, memory: _Memory, loads: Mapping[str, Report | None]) -> Observed | None:
        service = self._cache.get(MODEL_SERVICE, *key)
        if service is None:
            return None
        now = self._clock()
        if now - memory.secret_read >= self._config.resync_s and not service["metadata"].get("deletionTimestamp"):
            memory.secret = await self._server.read(SECRET, key[0], workers_object(key[1]))
            memory.secret_read = now
        refused = memory.refused if memory.refused_generation == service["metadata"].get("generation", 0) else ""
        return observe(
            self._cache,
            key,
            secret=memory.secret,
            reports={**loads, **self._drainer.reports(key)},
            registered=self._registered(key),
            refused=refused,
        )

    async def _finish(
        self, key: Key, memory: _Memory, settled: Plan | None, loads: Mapping[str, Report | None], refused: str
    ) -> float | None:
        """The statuses, from what is now."""
        if settled is None:  # refused, or still not at rest: say how it stands
            observed = await self._observe(key, memory, loads)
            if observed is None:
                return None
            settled = plan(observed, self._config, self._secrets, self._clock())
        wait_s = self._too_early(key, memory, settled)
        before = self._cache.get(MODEL_SERVICE, *key)
        if wait_s is None and await self._applier.write_statuses(key, settled):
            memory.status_written = self._clock()
            if self._on_status is not None and before is not None and settled.status is not None:
                await self._on_status(before, settled.status)
        if refused:
            raise RefusedForGood(refused)
        times = [s for s in (wait_s, settled.after_s, 0.0 if settled.writes or settled.removals or settled.ask else None) if s is not None]
        return min(times) if times else None

    def _too_early(self, key: Key, memory: _Memory, settled: Plan) -> float | None:
        """Seconds to wait before the next status may be written; None: now. A change of Ready, or of the spec, never waits."""
        rest_s = memory.status_written + self._config.status_interval_s - self._clock()
        live = (self._cache.get(MODEL_SERVICE, *key) or {}).get("status") or {}
        if rest_s <= 0 or settled.status is None or live.get("observedGeneration") != settled.status["observedGeneration"]:
            return None
        now, then = find(settled.status["conditions"], READY), find(live.get("conditions") or (), READY)
        return rest_s if now.get("status") == then.get("status") else None

    def _forget(self, key: Key) -> None:
        self._drainer.follow(key, ())
        self._memory.pop(key, None)
