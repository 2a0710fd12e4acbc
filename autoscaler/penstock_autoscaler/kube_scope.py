"""Everything of a cluster, or of one namespace, that the autoscaler looks at: listed at most every few seconds for all models together.

`serve` asks which ModelServices there are to be sized, each one's `kube_fleet` asks for its own part. Listing again and again needs no
watch, misses nothing for longer than a period, and costs four requests for any number of models. It decides nothing.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable, Mapping
from typing import Any
from uuid import uuid4

import msgspec
from penstock_core.api_terms import POOL_LABEL, RANK_LABEL, SERVICE_LABEL

from penstock_autoscaler import kube_telling
from penstock_autoscaler.kube_api import HPAS, MANAGER, MODEL_SERVICES, PODS, WORKER_POOLS, Gone, KubeApi
from penstock_autoscaler.kube_telling import Told
from penstock_autoscaler.ports import ScaleFailed

log = logging.getLogger(__name__)

Raw = Mapping[str, Any]
Key = tuple[str, str]
"""Namespace and name of a ModelService."""

FRESH_S = 3.0
"""All that look within so long share one listing; a model that sleeps is looked at every second. Own writes make it stale at once."""


class SeenService(msgspec.Struct, frozen=True):
    """One ModelService and what belongs to it."""

    service: Raw
    pools: Mapping[str, Raw]
    pods: tuple[Raw, ...]
    hpas: tuple[Raw, ...]


class Scaled(msgspec.Struct, frozen=True):
    """A ModelService that names bounds."""

    key: Key
    model: str
    """Name that clients put in `model`."""
    shadowed_by: Key | None = None
    """An older ModelService that serves the same model: signals cannot be told apart, so only that one is sized."""


def scaled(services: Iterable[Raw]) -> tuple[Scaled, ...]:
    """Those with bounds on some pool, the oldest first; who serves the same model as an older one is shadowed by it."""
    found: list[Scaled] = []
    first: dict[str, Key] = {}
    for raw in sorted(services, key=lambda raw: (raw["metadata"].get("creationTimestamp", ""), _key(raw))):
        spec = raw.get("spec") or {}
        model = str((spec.get("model") or {}).get("name") or "")
        if raw["metadata"].get("deletionTimestamp") or not model:
            continue
        older = first.setdefault(model, _key(raw))
        if any(pool.get("autoscaling") for pool in spec.get("pools") or ()):
            found.append(Scaled(_key(raw), model, older if older != _key(raw) else None))
    return tuple(found)


class KubeScope:
    """See the module. State: the latest listing, replaced as a whole."""

    def __init__(self, api: KubeApi, namespace: str, clock: Callable[[], float], *, fresh_s: float = FRESH_S) -> None:
        """`namespace`: the one to look after; empty: all. `clock` gives epoch seconds."""
        self._fresh_s = fresh_s
        self._api = api
        self._namespace = namespace
        self._clock = clock
        self._services: dict[Key, SeenService] = {}
        self._listed_s = float("-inf")  # loop time
        self._listing = asyncio.Lock()

    async def services(self) -> tuple[Scaled, ...]:
        """The ModelServices with bounds, as listed now. Raises ScaleFailed."""
        await self._refresh()
        return scaled(one.service for one in self._services.values())

    async def seen(self, namespace: str, name: str) -> SeenService:
        """Raises ScaleFailed, also where there is no such ModelService."""
        await self._refresh()
        found = self._services.get((namespace, name))
        if found is None:
            raise Gone(f"ModelService {namespace}/{name} is gone")
        return found

    async def set_scale(self, pool: Raw, replicas: int) -> None:
        """Raises ScaleFailed; Changed where the WorkerPool is not as it was read."""
        self._listed_s = float("-inf")  # whatever comes of it
        await self._api.set_scale(pool, replicas)
        metadata = pool["metadata"]
        facts = {"pool": f"{metadata['namespace']}/{metadata['name']}", "replicas": replicas, "before": pool["spec"].get("replicas")}
        log.info("scaled", extra={"facts": facts})

    async def tell(self, service: Raw, told: Told) -> None:
        """Conditions where they differ, and Events; an Event that cannot be posted is logged only. Raises ScaleFailed."""
        metadata, now_s = service["metadata"], self._clock()
        live = self._services.get(_key(service))
        before = ((live.service if live is not None else service).get("status") or {}).get("conditions") or ()
        wanted = kube_telling.conditions(told, before, int(metadata.get("generation", 0)), now_s)
        if wanted is None:
            return
        await self._api.apply_conditions(service, wanted)
        for turn in kube_telling.turns(told, before):
            body = kube_telling.event(service, turn, MANAGER, uuid4().hex[:16], now_s)
            try:
                await self._api.post_event(metadata["namespace"], body)
            except ScaleFailed as error:
                log.warning("an event could not be posted", extra={"facts": {"reason": turn.reason, "error": str(error)}})

    async def _refresh(self) -> None:
        clock = asyncio.get_running_loop().time
        async with self._listing:
            if clock() - self._listed_s < self._fresh_s:
                return
            began_s = clock()
            where = self._namespace
            services = await self._api.every(MODEL_SERVICES, where)
            pools = await self._api.every(WORKER_POOLS, where)
            pods = await self._api.every(PODS, where, f"{RANK_LABEL}=0")
            hpas = await self._api.every(HPAS, where)
            self._services = _gathered(services, pools, pods, hpas)
            self._listed_s = began_s


def _gathered(services: Iterable[Raw], pools: Iterable[Raw], pods: Iterable[Raw], hpas: Iterable[Raw]) -> dict[Key, SeenService]:
    pools_of: dict[Key, dict[str, Raw]] = {}
    for raw in pools:
        spec, namespace = raw["spec"], raw["metadata"]["namespace"]
        if not raw["metadata"].get("deletionTimestamp"):
            pools_of.setdefault((namespace, str(spec.get("modelService", ""))), {})[str(spec.get("pool", ""))] = raw
    pods_of: dict[Key, list[Raw]] = {}
    for raw in pods:
        labels = raw["metadata"].get("labels") or {}
        if labels.get(POOL_LABEL):
            pods_of.setdefault((raw["metadata"]["namespace"], labels.get(SERVICE_LABEL, "")), []).append(raw)
    hpas_of: dict[str, list[Raw]] = {}
    for raw in hpas:
        hpas_of.setdefault(raw["metadata"]["namespace"], []).append(raw)
    return {
        key: SeenService(raw, pools_of.get(key, {}), tuple(pods_of.get(key, ())), tuple(hpas_of.get(key[0], ())))
        for key, raw in ((_key(raw), raw) for raw in services)
    }


def _key(raw: Raw) -> Key:
    return raw["metadata"]["namespace"], raw["metadata"]["name"]
