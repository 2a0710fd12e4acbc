"""Whether the workers that Kubernetes calls ready are those that routers can find, and the reverse.

Routers learn of workers from the registry alone, so a Pod that is Ready and not registered serves nobody, and a registered worker
without a Pod gets requests that go nowhere. `leading` looks now and then; the planner puts what is missing into the status.
"""

import asyncio
import logging
from collections.abc import Callable, Collection, Mapping
from typing import Protocol

import msgspec
from penstock_core.errors import PenstockError
from penstock_kvindex.index import Registry

from penstock_operator.cache import Cache, Key
from penstock_operator.gangs import read_pod
from penstock_operator.kinds import MODEL_SERVICE, POD
from penstock_operator.observe import Registered

log = logging.getLogger("penstock.operator.registration")

SETTLE_S = 20.0
"""A worker that has just become ready or has just left may be seen on one side only."""


class ModelRegistry(Protocol):
    """What is asked of `kvindex.redis.RedisIndex`."""

    async def registry(self) -> Registry: ...
    async def aclose(self) -> None: ...


class Findings(msgspec.Struct, frozen=True):
    """Of one served model: ready leading Pods that are not registered, by ModelService, and ids registered without a ready Pod."""

    missing: Mapping[Key, tuple[str, ...]]
    strays: tuple[str, ...]


def compare(
    ready: Mapping[Key, Mapping[str, tuple[str, float]]], pods: Collection[str], registered: Collection[str], now: float
) -> Findings:
    """`ready`: (name, ready since) by uid, by ModelService; `pods`: uids of all Pods of the model; `registered`: ids with a lease."""
    missing = {
        key: tuple(sorted(name for uid, (name, since) in found.items() if uid not in registered and now - since > SETTLE_S))
        for key, found in ready.items()
    }
    return Findings(missing, tuple(sorted(set(registered) - set(pods))))


class Registrations:
    """Looks and remembers. `open_registry` is given a served model's name; `clock` gives epoch seconds."""

    def __init__(
        self, cache: Cache, open_registry: Callable[[str], ModelRegistry], on_change: Callable[[Key], None], clock: Callable[[], float]
    ) -> None:
        self._cache = cache
        self._open = open_registry
        self._on_change = on_change
        self._clock = clock
        self._found: dict[Key, Registered] = {}
        self._strays: dict[str, tuple[str, ...]] = {}

    def of(self, key: Key) -> Registered | None:
        """What was found of a ModelService; None: not known yet."""
        return self._found.get(key)

    @property
    def counts(self) -> tuple[int, int]:
        """(Ready and not registered, registered and no Pod)."""
        return sum(len(found.missing) for found in self._found.values()), sum(map(len, self._strays.values()))

    async def watch(self, every_s: float) -> None:
        """Look again and again, until cancelled."""
        while True:
            await asyncio.sleep(every_s)
            for model, keys in self._models().items():
                await self._look(model, keys)

    async def _look(self, model: str, keys: list[Key]) -> None:
        index = self._open(model)
        try:
            rows = (await index.registry()).rows
        except PenstockError as error:  # the registry is away: what was known stays
            return log.warning("the registry cannot be read", extra={"facts": {"model": model, "error": str(error)}})
        finally:
            await index.aclose()
        pods = {key: [read_pod(raw) for raw in self._cache.owned(key, POD).values()] for key in keys}
        ready = {
            key: {pod.uid: (pod.name, pod.ready_since) for pod in found if pod.rank == 0 and pod.ready and not pod.drain_reason}
            for key, found in pods.items()
        }
        everything = {pod.uid for found in pods.values() for pod in found}
        findings = compare(ready, everything, {row.record.id for row in rows if row.lease_s > 0}, self._clock())
        if findings.strays != self._strays.get(model, ()):
            log.warning("registered without a Pod", extra={"facts": {"model": model, "ids": list(findings.strays)}})
        self._strays[model] = findings.strays
        for key, missing in findings.missing.items():
            found = Registered(missing, findings.strays)
            if self._found.get(key) != found:
                self._found[key] = found
                self._on_change(key)
        return None

    def _models(self) -> dict[str, list[Key]]:
        found: dict[str, list[Key]] = {}
        for key in self._cache.services():
            service = self._cache.get(MODEL_SERVICE, *key) or {}
            found.setdefault(service.get("spec", {}).get("model", {}).get("name", ""), []).append(key)
        known = {key for keys in found.values() for key in keys}
        self._found = {key: found for key, found in self._found.items() if key in known}
        self._strays = {model: ids for model, ids in self._strays.items() if model in found}
        return found
