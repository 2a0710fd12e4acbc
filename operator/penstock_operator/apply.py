"""Carries a plan out: the only place where the operator writes to the API server.

`reconcile` calls it. Every answer goes into the cache at once, so the next plan sees what this one did. A write that is refused for
good does not keep the others back; anything that may pass by itself (no connection, 429, 5xx) ends the pass.
"""

import logging
from collections.abc import Mapping
from typing import Any, NamedTuple, Protocol

from penstock_operator.api_server import Conflict, Gone, Refused
from penstock_operator.cache import Cache, Key
from penstock_operator.difference import differs, kept
from penstock_operator.kinds import MODEL_SERVICE, SECRET, WORKER_POOL, ObjectKind
from penstock_operator.metrics import OperatorMetrics
from penstock_operator.names import FIELD_MANAGER
from penstock_operator.plan import Plan, Removal, Write

log = logging.getLogger(__name__)


class Server(Protocol):
    """What is asked of the API server here; `api_server` says what each does and raises."""

    async def apply(
        self, kind: ObjectKind, body: dict[str, Any], *, manager: str = FIELD_MANAGER, subresource: str = ""
    ) -> dict[str, Any]: ...

    async def delete(self, kind: ObjectKind, namespace: str, name: str, uid: str) -> dict[str, Any]: ...

    async def read(self, kind: ObjectKind, namespace: str, name: str) -> dict[str, Any] | None: ...


class Done(NamedTuple):
    """What became of a plan."""

    refused: str
    """What was refused, and why; "": nothing."""
    secret: Mapping[str, Any] | None
    """The Secret as it is now, where it was written: no watch tells of it."""


class Applier:
    """Writes plans; one for the process."""

    def __init__(self, server: Server, cache: Cache, metrics: OperatorMetrics) -> None:
        self._server = server
        self._cache = cache
        self._metrics = metrics

    async def carry_out(self, key: Key, plan: Plan) -> Done:
        """Writes and removals of a plan. Raises ApiError for anything but a refusal."""
        refused, secret = "", None
        for write in plan.writes:
            try:
                answer = await self._write(key, write)
                secret = answer if write.kind is SECRET else secret
            except Refused as error:
                self._metrics.refused.inc()
                log.warning("refused", extra={"facts": _facts(key, write) | {"message": str(error)}})
                refused = refused or f"{write.why}: {error}"
        for removal in plan.removals:
            await self._remove(key, removal)
        return Done(refused, secret)

    async def write_statuses(self, key: Key, plan: Plan) -> int:
        """Statuses that differ; gives how many were written."""
        written = 0
        namespace, name = key
        wanted = [(WORKER_POOL, pool, status) for pool, status in plan.pool_statuses.items()]
        if plan.status is not None:
            wanted.append((MODEL_SERVICE, name, plan.status))
        for kind, of, status in wanted:
            live = self._cache.get(kind, namespace, of)
            if live is None or not differs(status, live.get("status")):
                continue
            body = {"apiVersion": kind.api_version, "kind": kind.kind, "metadata": {"name": of, "namespace": namespace}, "status": status}
            try:
                self._cache.put(kind, kept(await self._server.apply(kind, body, subresource="status"), kind))
            except Gone:
                continue  # its event is on the way
            self._metrics.writes.labels(kind.kind, "status").inc()
            written += 1
        return written

    async def _write(self, key: Key, write: Write) -> dict[str, Any]:
        answer = await self._server.apply(write.kind, write.body, manager=write.manager)
        self._metrics.writes.labels(write.kind.kind, "apply").inc()
        log.info("applied", extra={"facts": _facts(key, write)})
        if write.kind is not SECRET:
            self._cache.put(write.kind, kept(answer, write.kind))
        return answer

    async def _remove(self, key: Key, removal: Removal) -> None:
        namespace, _ = key
        try:
            answer = await self._server.delete(removal.kind, namespace, removal.name, removal.uid)
        except (Gone, Conflict):
            return self._cache.forget(removal.kind, namespace, removal.name, removal.uid)
        self._metrics.writes.labels(removal.kind.kind, "delete").inc()
        self._metrics.retired(removal)
        log.info(
            "deleted", extra={"facts": {"service": "/".join(key), "kind": removal.kind.kind, "name": removal.name, "why": removal.why}}
        )
        if answer.get("kind") == removal.kind.kind and answer["metadata"].get("deletionTimestamp"):
            self._cache.put(removal.kind, kept(answer, removal.kind))
        else:
            self._cache.forget(removal.kind, namespace, removal.name, removal.uid)
        return None


def _facts(key: Key, write: Write) -> dict[str, object]:
    return {"service": "/".join(key), "kind": write.kind.kind, "name": write.body["metadata"]["name"], "why": write.why}
