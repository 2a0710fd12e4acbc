"""Kubernetes Events for what a user should see in `kubectl describe`: few, with stable reasons, one for each turn of a condition.

`reconcile` tells of every status written. An event that cannot be posted is logged and forgotten: nothing hangs on it.
"""

import logging
from collections.abc import Mapping
from typing import Any, Protocol
from uuid import uuid4

from penstock_operator.api_server import ApiError
from penstock_operator.conditions import PROGRESSING, READY, REGISTERED, SPEC_VALID, find, stamp
from penstock_operator.kinds import EVENT, ObjectKind
from penstock_operator.progress import EXCEEDED

log = logging.getLogger(__name__)

COMPONENT = "penstock-operator"


class _Creates(Protocol):
    async def create(self, kind: ObjectKind, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]: ...


class Events:
    """Posts events; `clock` gives epoch seconds."""

    def __init__(self, server: _Creates, clock: Any) -> None:
        self._server = server
        self._clock = clock

    async def on_status(self, service: Mapping[str, Any], status: Mapping[str, Any]) -> None:
        """A status was written over that of `service`."""
        before = (service.get("status") or {}).get("conditions") or ()
        for kind, reason, message in turns(before, status["conditions"]):
            await self._post(service, kind, reason, message)

    async def _post(self, service: Mapping[str, Any], type_: str, reason: str, message: str) -> None:
        metadata, now = service["metadata"], stamp(self._clock())
        body = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"name": f"{metadata['name']}.{uuid4().hex[:16]}", "namespace": metadata["namespace"]},
            "involvedObject": {
                "apiVersion": service["apiVersion"],
                "kind": service["kind"],
                "name": metadata["name"],
                "namespace": metadata["namespace"],
                "uid": metadata["uid"],
            },
            "type": type_,
            "reason": reason,
            "message": message[:1_000],
            "source": {"component": COMPONENT},
            "reportingComponent": COMPONENT,
            "firstTimestamp": now,
            "lastTimestamp": now,
            "count": 1,
        }
        try:
            await self._server.create(EVENT, metadata["namespace"], body)
        except ApiError as error:
            log.warning("an event could not be posted", extra={"facts": {"reason": reason, "error": str(error)}})


def turns(before: Any, after: Any) -> list[tuple[str, str, str]]:
    """(Normal or Warning, reason, message) for each condition whose turn a user should see."""
    found = []
    for type_ in (SPEC_VALID, READY, PROGRESSING, REGISTERED):
        was, now = find(before, type_), find(after, type_)
        if (was.get("status"), was.get("reason")) == (now.get("status"), now.get("reason")) or not now:
            continue
        good = now["status"] == "True"
        if type_ == READY and (was or good):
            found.append(("Normal" if good else "Warning", "Ready" if good else now["reason"], now["message"] or "every pool serves"))
        elif type_ == SPEC_VALID and not good:
            found.append(("Warning", f"Spec{now['reason']}", now["message"]))
        elif type_ == PROGRESSING and now["reason"] == EXCEEDED:
            found.append(("Warning", EXCEEDED, now["message"]))
        elif type_ == PROGRESSING and now["reason"] == "RollingOut":
            found.append(("Normal", "RollingOut", now["message"]))
        elif type_ == PROGRESSING and now["reason"] == "Complete" and was.get("reason") == "RollingOut":
            found.append(("Normal", "RolledOut", now["message"]))
        elif type_ == REGISTERED and not good:
            found.append(("Warning", now["reason"], now["message"]))
    return found
