"""Leadership by a Lease: one of several operators acts, and one that loses the Lease ends.

Own code because of what the `kubernetes` package's election does (37.0): a refused connection raises out of it, its calls have no
deadline of their own (one that hangs outlives the Lease), and it stamps local time as if it were UTC. `process` runs it. Whether
a Lease may be taken is pure (`may_take`); clocks of others are never compared with ours, only how long a Lease has not changed.
"""

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping
from datetime import UTC, datetime
from typing import Any, Protocol

import msgspec

from penstock_operator.api_server import ApiError, Conflict, Refused
from penstock_operator.kinds import LEASE, ObjectKind

log = logging.getLogger(__name__)

LEASE_NAME = "penstock-operator"


class Leases(Protocol):
    """What is asked of the API server here."""

    async def read(self, kind: ObjectKind, namespace: str, name: str) -> dict[str, Any] | None: ...
    async def create(self, kind: ObjectKind, namespace: str, body: Mapping[str, Any]) -> dict[str, Any]: ...
    async def replace(self, kind: ObjectKind, namespace: str, name: str, body: Mapping[str, Any]) -> dict[str, Any]: ...
    async def who_am_i(self) -> dict[str, Any]: ...


class LeaseTimes(msgspec.Struct, frozen=True):
    """Seconds: how long a Lease holds, when its holder gives up, and how often it is renewed or tried."""

    duration_s: float = 15.0
    renew_deadline_s: float = 10.0
    retry_period_s: float = 2.0


def may_take(spec: Mapping[str, Any], identity: str, unchanged_s: float) -> bool:
    """Whether `identity` may write itself into a Lease that it has seen unchanged for so long."""
    holder = spec.get("holderIdentity") or ""
    return holder in ("", identity) or unchanged_s > float(spec.get("leaseDurationSeconds") or 0)


def account_reference(user: Mapping[str, Any], namespace: str) -> dict[str, Any] | None:
    """The owner reference to the ServiceAccount that `user` (a review's userInfo) is; None for one elsewhere, or for a person."""
    words = str(user.get("username") or "").split(":")
    if words[:3] != ["system", "serviceaccount", namespace] or len(words) != 4 or not user.get("uid"):
        return None
    return {"apiVersion": "v1", "kind": "ServiceAccount", "name": words[3], "uid": user["uid"]}


class Leader:
    """One candidate. `clock` rises (seconds); `pause` waits. State changes in `_try` alone."""

    def __init__(
        self,
        server: Leases,
        namespace: str,
        identity: str,
        times: LeaseTimes,
        *,
        name: str = LEASE_NAME,
        clock: Callable[[], float],
        pause: Callable[[float], Awaitable[None]] = asyncio.sleep,
    ) -> None:
        self._server = server
        self._namespace = namespace
        self._name = name
        self._identity = identity
        self._owned: dict[str, Any] | None = None  # the Lease's metadata.ownerReferences, once we know who we are
        self._times = times
        self._clock = clock
        self._pause = pause
        self._seen: Mapping[str, Any] = {}
        self._seen_at = 0.0
        self._renewed_at = 0.0

    async def acquire(self) -> None:
        """Return once this process leads."""
        while not await self._attempt(self._times.renew_deadline_s):
            await self._pause(self._times.retry_period_s)
        log.info("leading", extra={"facts": {"identity": self._identity}})

    async def hold(self) -> None:
        """Renew; return when the Lease is lost, before another may take it."""
        while True:
            await self._pause(self._times.retry_period_s)
            while not await self._attempt(self._left_s()):
                if self._left_s() <= 0 or (self._seen.get("holderIdentity") or self._identity) != self._identity:
                    log.error(
                        "the lease is lost", extra={"facts": {"identity": self._identity, "holder": self._seen.get("holderIdentity")}}
                    )
                    return
                await self._pause(min(self._times.retry_period_s, self._left_s()))

    async def release(self) -> None:
        """Let the next one take it at once. Failing does no harm: it runs out."""
        try:
            async with asyncio.timeout(self._times.retry_period_s):
                lease = await self._server.read(LEASE, self._namespace, self._name)
                if lease is not None and lease["spec"].get("holderIdentity") == self._identity:
                    lease["spec"]["holderIdentity"] = ""
                    await self._server.replace(LEASE, self._namespace, self._name, lease)
        except (ApiError, TimeoutError):
            pass

    def _left_s(self) -> float:
        return max(0.0, self._renewed_at + self._times.renew_deadline_s - self._clock())

    async def _attempt(self, within_s: float) -> bool:
        began = self._clock()
        try:
            async with asyncio.timeout(max(0.05, within_s)):
                held = await self._try()
        except (ApiError, TimeoutError) as error:
            if not isinstance(error, Conflict):
                log.warning("the lease cannot be written", extra={"facts": {"error": str(error) or type(error).__name__}})
            return False
        if held:
            self._renewed_at = began  # of the beginning: what the server has counts from then or later
        return held

    async def _try(self) -> bool:
        owned = await self._owned_by()
        lease = await self._server.read(LEASE, self._namespace, self._name)
        if lease is None:
            metadata = {"name": self._name, "namespace": self._namespace, **owned}
            body = {"apiVersion": LEASE.api_version, "kind": LEASE.kind, "metadata": metadata, "spec": self._spec({})}
            self._see((await self._server.create(LEASE, self._namespace, body))["spec"])
            return True
        spec = lease.get("spec") or {}
        if spec != self._seen:
            self._see(spec)
        if not may_take(spec, self._identity, self._clock() - self._seen_at):
            return False
        body = {**lease, "metadata": {**lease["metadata"], **owned}, "spec": self._spec(spec)}
        self._see((await self._server.replace(LEASE, self._namespace, self._name, body))["spec"])
        return True

    async def _owned_by(self) -> dict[str, Any]:
        """Owner: our ServiceAccount, so that an installation that is taken away leaves no Lease, whenever its last operator ends."""
        if self._owned is None:
            try:
                owner = account_reference(await self._server.who_am_i(), self._namespace)
            except Refused:  # a server that does not tell; the Lease then stays behind
                owner = None
            self._owned = {"ownerReferences": [owner]} if owner else {}
        return self._owned

    def _see(self, spec: Mapping[str, Any]) -> None:
        self._seen, self._seen_at = spec, self._clock()

    def _spec(self, before: Mapping[str, Any]) -> dict[str, Any]:
        now = datetime.now(UTC).strftime("%Y-%m-%dT%H:%M:%S.%fZ")
        mine = before.get("holderIdentity") == self._identity
        return {
            "holderIdentity": self._identity,
            "leaseDurationSeconds": max(1, round(self._times.duration_s)),
            "acquireTime": before["acquireTime"] if mine and before.get("acquireTime") else now,
            "renewTime": now,
            "leaseTransitions": int(before.get("leaseTransitions") or 0) + (0 if mine or not before else 1),
        }
