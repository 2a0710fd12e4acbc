"""One ModelService as the autoscaler's loop sees and changes it: an Actuator over WorkerPools' `/scale`.

`kube_scope` makes one for each ModelService with bounds. It writes sizes and two conditions, never Pods: the operator makes the sizes
true. Pools that somebody else sizes, and pools without bounds, are counted and left alone.
"""

from collections.abc import Callable, Mapping
from typing import Any, Protocol

from penstock_core.api import ModelServiceSpec
from penstock_core.api_parts import Pool as PoolSpec
from penstock_core.endpoint import Role
from penstock_core.errors import IndexUnavailable
from penstock_core.profile import DEFAULT_PROFILE, EngineProfile, profile_named
from penstock_core.slo import Slo
from penstock_kvindex.index import Registry

from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.kube_api import MANAGER
from penstock_autoscaler.kube_owners import Hands, Owner, autoscaler_of, owner_by_hand, setter_of
from penstock_autoscaler.kube_replicas import pod_facts, replica_of
from penstock_autoscaler.kube_telling import CONFLICT, Told
from penstock_autoscaler.observation import Pool, Target
from penstock_autoscaler.ports import Fleet, ScaleFailed

Raw = Mapping[str, Any]

BLIND_S = 45.0
"""Without data for so long is told."""
_MOST_ATTAINMENT = 0.999
"""Of a target of 100 %: one that no finite fleet can promise."""


class Seen(Protocol):
    """One ModelService and what belongs to it, as listed lately."""

    @property
    def service(self) -> Raw: ...

    @property
    def pools(self) -> Mapping[str, Raw]:
        """WorkerPools by the pool's name."""

    @property
    def pods(self) -> tuple[Raw, ...]:
        """The leading Pods of all replicas."""

    @property
    def hpas(self) -> tuple[Raw, ...]:
        """HorizontalPodAutoscalers of its namespace."""


class Scope(Protocol):
    """Where it is listed and written: `kube_scope`."""

    async def seen(self, namespace: str, name: str) -> Seen:
        """Raises ScaleFailed, also where it is no more."""
        ...

    async def set_scale(self, pool: Raw, replicas: int) -> None: ...

    async def tell(self, service: Raw, told: Told) -> None: ...


class RegistryReader(Protocol):
    """What is asked of `kvindex.redis.RedisIndex`."""

    async def registry(self) -> Registry: ...


class KubeFleet:
    """See the module. State: profiles seen, what the last look found, and who else sizes which pool."""

    def __init__(self, namespace: str, name: str, scope: Scope, registry: RegistryReader, clock: Callable[[], float]) -> None:
        """`clock` gives epoch seconds."""
        self._namespace, self._name = namespace, name
        self._scope = scope
        self._registry = registry
        self._clock = clock
        self._hands = Hands()
        self._profiles: dict[str, EngineProfile] = {}
        self._seen: Seen | None = None
        self._spec: ModelServiceSpec | None = None
        self._owners: dict[str, Owner] = {}
        self._blind_since_s: float | None = None

    async def look(self, now_s: float) -> Fleet:
        """What is there."""
        seen = await self._scope.seen(self._namespace, self._name)
        try:
            spec = ModelServiceSpec.model_validate(seen.service["spec"])
        except (ValueError, KeyError) as error:
            raise ScaleFailed(f"ModelService {self._namespace}/{self._name} cannot be read: {error}") from None
        try:
            rows = (await self._registry.registry()).rows
        except IndexUnavailable as error:
            raise ScaleFailed(f"the registry cannot be read: {error}") from None
        epoch_s = self._clock()
        pods = [pod for pod in map(pod_facts, seen.pods) if pod is not None]
        self._profiles |= {row.record.pool: row.record.profile for row in rows if row.lease_s > 0}
        self._seen, self._spec, self._owners = seen, spec, self._others(seen, spec, epoch_s)
        known = {row.record.id: row for row in rows}
        roles = {pool.name: pool.role.worker_role for pool in spec.pools}
        return Fleet(
            target=_target(spec),
            pools=tuple(self._pool(spec, pool, seen) for pool in spec.pools if pool.name in seen.pools),
            replicas=tuple(
                replica_of(pod, roles.get(pod.pool, Role.BOTH), known.get(pod.uid), now_s - epoch_s) for pod in pods if pod.pool in roles
            ),
            paused="scaling.paused is true" if spec.scaling.paused else "",
            overridden={name: owner.words for name, owner in self._owners.items()},
        )

    async def carry_out(self, decision: Decision) -> None:
        """Write what differs. Late replicas count for nothing, so as many more are asked for. Raises ScaleFailed, Changed too."""
        seen, spec = self._looked()
        late = {pod.uid: pod.pool for pod in map(pod_facts, seen.pods) if pod is not None and pod.uid in decision.late}
        for pool in spec.pools:
            live, bounds = seen.pools.get(pool.name), pool.autoscaling
            if live is None or bounds is None or pool.name in self._owners or pool.name not in decision.desired:
                continue
            wanted = decision.desired[pool.name] + list(late.values()).count(pool.name)
            wanted = min(max(wanted, bounds.min_replicas), bounds.max_replicas)
            if wanted != _size(live):
                await self._scope.set_scale(live, wanted)

    async def show(self, decision: Decision) -> None:
        """Condition and events of the ModelService. No data is told when it lasts: a window that comes late is no news."""
        seen, _ = self._looked()
        if decision.reason is not Reason.NO_DATA:
            self._blind_since_s = None
        else:
            self._blind_since_s = self._clock() if self._blind_since_s is None else self._blind_since_s
            if self._clock() - self._blind_since_s < BLIND_S:
                return
        sizes = {name: _size(live) for name, live in seen.pools.items()}
        await self._scope.tell(seen.service, Told(decision, sizes, dict(self._owners)))

    def _looked(self) -> tuple[Seen, ModelServiceSpec]:
        if self._seen is None or self._spec is None:
            raise ScaleFailed(f"ModelService {self._namespace}/{self._name} has not been looked at yet")
        return self._seen, self._spec

    def _others(self, seen: Seen, spec: ModelServiceSpec, epoch_s: float) -> dict[str, Owner]:
        """Who else sizes a pool that has bounds."""
        found = {}
        for pool in spec.pools:
            live = seen.pools.get(pool.name)
            if pool.autoscaling is not None and live is not None:
                owner = autoscaler_of(live, seen.hpas) or self._by_hand(pool, live, seen, spec.scaling.manual_hold_seconds, epoch_s)
                if owner is not None:
                    found[pool.name] = owner
        return found

    def _by_hand(self, pool: PoolSpec, live: Raw, seen: Seen, hold_s: float, epoch_s: float) -> Owner | None:
        setter, size, bounds = setter_of(live, MANAGER), _size(live), pool.autoscaling
        if not setter or bounds is None:
            self._hands.forget(pool.name)
            return None
        conditions = (seen.service.get("status") or {}).get("conditions") or ()
        told: Raw = next((one for one in conditions if one.get("type") == CONFLICT), {})
        since_s = self._hands.since_s(pool.name, setter, size, told, epoch_s)
        return owner_by_hand(setter, size, bounds.min_replicas, bounds.max_replicas, since_s, hold_s, epoch_s)

    def _pool(self, spec: ModelServiceSpec, pool: PoolSpec, seen: Seen) -> Pool:
        size = _size(seen.pools[pool.name])
        least, most = (size, size) if pool.autoscaling is None else (pool.autoscaling.min_replicas, pool.autoscaling.max_replicas)
        profile = self._profiles.get(pool.name) or _declared(spec.engine.profile_name)
        return Pool(
            name=pool.name,
            role=pool.role.worker_role,
            desired=size,
            min_replicas=least,
            max_replicas=most,
            profile=profile,
            start_s=profile.start_s,
            accelerators=pool.parallelism.tensor * pool.parallelism.pipeline,
        )


def _target(spec: ModelServiceSpec) -> Target:
    return Target(
        slo=Slo(spec.slo.ttft_milliseconds / 1e3, spec.slo.itl_milliseconds / 1e3),
        attainment_ratio=min(_MOST_ATTAINMENT, spec.slo.attainment_percent / 100),
        most_accelerators=spec.scaling.max_accelerators,
    )


def _declared(name: str) -> EngineProfile:
    """The profile that the resource names, until a worker has said its own."""
    try:
        return profile_named(name) if name else DEFAULT_PROFILE
    except (KeyError, ValueError):
        return DEFAULT_PROFILE


def _size(pool: Raw) -> int:
    return int(pool["spec"].get("replicas", 1))
