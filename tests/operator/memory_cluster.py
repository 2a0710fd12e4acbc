"""A cluster that lives in memory: server-side apply, uid-checked deletes, garbage collection, a kubelet and workers that drain.

For the planner's stories and interruptions, where hundreds of runs are wanted; what the real API server does is asked of the real
one in tests/cluster. Time is a number.
"""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from copy import deepcopy
from typing import Any

from penstock_operator import names
from penstock_operator.api_server import ApiError, Conflict, Gone, Refused
from penstock_operator.cache import Cache, Key
from penstock_operator.conditions import stamp
from penstock_operator.config import OperatorConfig, OperatorSecrets
from penstock_operator.difference import kept
from penstock_operator.kinds import MODEL_SERVICE, POD, WATCHED, ObjectKind
from penstock_operator.metrics import OperatorMetrics
from penstock_operator.names import FIELD_MANAGER
from penstock_operator.observe import Report
from penstock_operator.plan import DrainOrder
from penstock_operator.reconcile import Reconciler, RefusedForGood

KEY = ("team", "llama")
SECRETS = OperatorSecrets(fleet_token="t" * 32, redis_url="redis://redis:6379/0")
Place = tuple[ObjectKind, str]


class Crash(BaseException):
    """The operator's process ended here."""


class MemoryCluster:
    """The API server, the garbage collector, one kubelet and the workers of one namespace."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.objects: dict[Place, dict[str, Any]] = {}
        self.applied: dict[Place, dict[str, dict[str, Any]]] = {}
        self.version = 0
        self.born = 0
        self.log: list[str] = []
        """Every write, as `verb kind name`."""
        self.crash_at: int | None = None
        self.crash_after_effect = True
        self.broken_images: set[str] = set()
        self.refused_images: set[str] = set()
        self.running: dict[str, int] = {}
        """Streams of a worker, by its Pod's name."""
        self.drained: set[str] = set()
        self.cut = 0
        """Streams that ran on a Pod when it was deleted."""
        self.caches: list[Cache] = []
        self.held: list[Callable[[], object]] | None = None
        """Events that have not arrived yet, while they are held back."""
        self.answers_lost = False
        """Every write is done, and its answer never arrives."""

    # -- what the operator calls

    async def apply(self, kind: ObjectKind, body: dict[str, Any], *, manager: str = FIELD_MANAGER, subresource: str = "") -> dict[str, Any]:
        self._crash(before=True)
        place, body = (kind, body["metadata"]["name"]), deepcopy(body)
        live = self.objects.get(place)
        wanted_version = body["metadata"].pop("resourceVersion", None)
        if live is None and (subresource or "uid" in body["metadata"]):
            raise Gone(place[1])
        if live is not None and body["metadata"].get("uid", live["metadata"]["uid"]) != live["metadata"]["uid"]:
            raise Conflict(place[1])
        if live is not None and wanted_version not in (None, live["metadata"]["resourceVersion"]):
            raise Conflict(place[1])
        if kind is POD and live is None:
            if "spec" not in body:
                raise Refused("spec: Required value")
            if body["spec"]["containers"][0]["image"] in self.refused_images:
                raise Refused(f"image {body['spec']['containers'][0]['image']} is not allowed")
        self._write(place, live, body, manager, subresource)
        self.log.append(f"{'status' if subresource else 'apply'} {kind.kind} {place[1]}")
        self._crash(before=False)
        if self.answers_lost:
            raise ApiError("no answer")
        return deepcopy(self.objects[place])

    async def delete(self, kind: ObjectKind, namespace: str, name: str, uid: str) -> dict[str, Any]:
        self._crash(before=True)
        live = self.objects.get((kind, name))
        if live is None:
            raise Gone(name)
        if live["metadata"]["uid"] != uid:
            raise Conflict(name)
        self.log.append(f"delete {kind.kind} {name}")
        self.take_away(kind, name)
        self._crash(before=False)
        return deepcopy(self.objects.get((kind, name), {"kind": "Status"}))

    async def read(self, kind: ObjectKind, namespace: str, name: str) -> dict[str, Any] | None:
        return deepcopy(self.objects.get((kind, name)))

    # -- what others do

    def create(self, kind: ObjectKind, body: dict[str, Any]) -> None:
        self._write((kind, body["metadata"]["name"]), None, deepcopy(body), "user", "")

    def edit(self, kind: ObjectKind, name: str, change: Callable[[dict[str, Any]], None]) -> None:
        """Somebody changes an object by hand."""
        live = self.objects[kind, name]
        before = deepcopy(live.get("spec"))
        change(live)
        if live.get("spec") != before:
            live["metadata"]["generation"] += 1
        self._stamp((kind, name))

    def take_away(self, kind: ObjectKind, name: str) -> None:
        """Delete: Pods leave first, everything else goes at once, with what it owns."""
        live = self.objects[kind, name]
        if kind is POD and not live["metadata"].get("deletionTimestamp"):
            live["metadata"]["deletionTimestamp"] = stamp(self.now)
            if name not in self.drained:
                self.cut += self.running.get(name, 0)
            return self._stamp((kind, name))
        self._vanish((kind, name))
        return None

    def tick(self, seconds: float = 1.0) -> None:
        """Time passes: leaving Pods vanish, new ones start and become ready unless their image is broken."""
        self.now += seconds
        self._collect_garbage()
        for (kind, name), live in list(self.objects.items()):
            if kind is not POD or (kind, name) not in self.objects:
                continue
            if live["metadata"].get("deletionTimestamp"):
                self._vanish((kind, name))
            elif not live.get("status"):
                good = live["spec"]["containers"][0]["image"] not in self.broken_images
                ready = {"type": "Ready", "status": str(good), "lastTransitionTime": stamp(self.now)}
                state = {"running": {}} if good else {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
                live["status"] = {
                    "phase": "Running" if good else "Pending",
                    "podIP": "10.0.0.1",
                    "conditions": [ready],
                    "containerStatuses": [{"name": "worker", "state": state}],
                }
                self._stamp((kind, name))

    def pods(self, pool: str = "") -> list[dict[str, Any]]:
        found = [raw for (kind, _), raw in self.objects.items() if kind is POD]
        return [raw for raw in found if not pool or raw["metadata"]["labels"][names.POOL_LABEL] == pool]

    def ready(self, pool: str) -> int:
        """Pods that serve new requests: ready, and neither leaving nor draining."""
        return sum(
            any(c["type"] == "Ready" and c["status"] == "True" for c in raw.get("status", {}).get("conditions", ()))
            and not raw["metadata"].get("deletionTimestamp")
            and names.DRAIN_ANNOTATION not in raw["metadata"].get("annotations", {})
            for raw in self.pods(pool)
        )

    def fill(self, cache: Cache) -> None:
        """A listing of everything."""
        for kind in WATCHED:
            cache.replace(kind, [kept(deepcopy(raw), kind) for (of, _), raw in self.objects.items() if of is kind], self.version)

    # -- inside

    def _crash(self, *, before: bool) -> None:
        if self.crash_at is not None and self.crash_after_effect != before and len(self.log) >= self.crash_at:
            raise Crash

    def _write(self, place: Place, live: dict[str, Any] | None, body: dict[str, Any], manager: str, subresource: str) -> None:
        body.get("metadata", {}).pop("uid", None)
        if live is None:
            self.born += 1
            metadata = {"uid": f"uid-{self.born}", "generation": 1, "creationTimestamp": stamp(self.now), "resourceVersion": "0"}
            live = {"apiVersion": place[0].api_version, "kind": place[0].kind, "metadata": metadata}
            self.objects[place] = live
        spec = deepcopy(live.get("spec"))
        owners = self.applied.setdefault(place, {})
        before = owners.get(manager + subresource, {})
        others = [owned for name, owned in owners.items() if name != manager + subresource]
        _take_out(live, before, body, others)
        _lay_over(live, body)
        owners[manager + subresource] = body
        if live.get("spec") != spec and spec is not None:
            live["metadata"]["generation"] += 1
        self._stamp(place)

    def _stamp(self, place: Place) -> None:
        self.version += 1
        self.objects[place]["metadata"]["resourceVersion"] = str(self.version)
        seen = kept(deepcopy(self.objects[place]), place[0])
        self._tell(place, lambda cache: cache.put(place[0], seen))

    def _tell(self, place: Place, event: Callable[[Cache], object]) -> None:
        for cache in self.caches if place[0] in WATCHED else ():
            if self.held is None:
                event(cache)
            else:
                self.held.append(lambda cache=cache: event(cache))  # type: ignore[misc]

    def hold_events(self) -> None:
        self.held = []

    def deliver_events(self) -> None:
        held, self.held = self.held or [], None
        for event in held:
            event()

    def _collect_garbage(self) -> None:
        """What was made for an owner that is gone by then."""
        there = {raw["metadata"]["uid"] for raw in self.objects.values()}
        for (kind, name), raw in list(self.objects.items()):
            owners = raw["metadata"].get("ownerReferences", ())
            if (kind, name) in self.objects and owners and not any(one["uid"] in there for one in owners):
                self.take_away(kind, name)

    def _vanish(self, place: Place) -> None:
        gone = self.objects.pop(place)
        self.applied.pop(place, None)
        self.version += 1
        gone["metadata"]["resourceVersion"] = str(self.version)
        self._tell(place, lambda cache: cache.remove(place[0], gone))
        for (kind, name), raw in list(self.objects.items()):
            owners = raw["metadata"].get("ownerReferences", ())
            if any(one["uid"] == gone["metadata"]["uid"] for one in owners) and (kind, name) in self.objects:
                self.take_away(kind, name)


def _lay_over(live: dict[str, Any], body: Mapping[str, Any]) -> None:
    for name, value in body.items():
        if isinstance(value, Mapping) and isinstance(live.get(name), dict) and name != "selector":  # atomic in the API
            _lay_over(live[name], value)
        else:
            live[name] = deepcopy(value)


def _take_out(live: dict[str, Any], before: Mapping[str, Any], body: Mapping[str, Any], others: list[dict[str, Any]]) -> None:
    """Fields that this manager had applied, does not any more, and nobody else has."""
    for name, value in before.items():
        theirs = [other[name] for other in others if isinstance(other, Mapping) and name in other]
        if name not in body and not theirs and name in live and name != "status":
            live.pop(name)
        elif isinstance(value, Mapping) and isinstance(body.get(name), Mapping) and isinstance(live.get(name), dict):
            _take_out(live[name], value, body[name], theirs)


class MemoryDrainer:
    """Workers that drain when their streams end: `reports` asks the cluster."""

    def __init__(self, cluster: MemoryCluster) -> None:
        self._cluster = cluster
        self.asked = 0
        self._followed: dict[Key, dict[str, DrainOrder]] = {}

    async def ask(self, pods: Iterable[tuple[str, str]]) -> dict[str, Report | None]:
        self.asked += 1
        by_uid = {raw["metadata"]["uid"]: raw["metadata"]["name"] for raw in self._cluster.pods()}
        return {uid: Report(running=self._cluster.running.get(by_uid.get(uid, ""), 0)) for uid, _ in pods}

    def follow(self, key: Key, orders: Iterable[DrainOrder]) -> None:
        self._followed[key] = {order.uid: order for order in orders}

    def reports(self, key: Key) -> Mapping[str, Report]:
        by_uid = {raw["metadata"]["uid"]: raw["metadata"]["name"] for raw in self._cluster.pods()}
        found = {}
        for uid in self._followed.get(key, {}):
            name = by_uid.get(uid, "")
            running = self._cluster.running.get(name, 0)
            if not running:
                self._cluster.drained.add(name)
            found[uid] = Report(running=running, drained=not running)
        return found


class Operator:
    """One life of the operator on a MemoryCluster: its cache, its memory, and what runs it."""

    def __init__(self, cluster: MemoryCluster, secrets: OperatorSecrets = SECRETS, **settings: Any) -> None:
        self.cluster = cluster
        self.cache = Cache(WATCHED)
        cluster.fill(self.cache)
        cluster.caches = [self.cache]
        config = OperatorConfig(image="penstock:1", status_interval_s=0.0, **settings)
        self.drainer = MemoryDrainer(cluster)
        self.reconcile = Reconciler(
            self.cache,
            cluster,
            self.drainer,
            config,
            secrets,
            OperatorMetrics(),
            clock=lambda: cluster.now,
        )

    def step(self) -> float | None:
        """One reconcile; a refusal is as good as done."""
        try:
            return asyncio.run(self.reconcile(KEY))
        except RefusedForGood:
            return None

    def settle(self, rounds: int = 200, each: Callable[[], None] = lambda: None) -> int:
        """Reconcile and let time pass until three rounds change nothing; gives the rounds it took."""
        quiet = 0
        for count in range(rounds):
            before = self.cluster.version
            self.step()
            each()
            self.cluster.tick()
            quiet = quiet + 1 if self.cluster.version == before else 0
            if quiet == 3:
                return count
        raise AssertionError(f"not at rest after {rounds} rounds; the last writes: {self.cluster.log[-12:]}")


def model_service(**spec: Any) -> dict[str, Any]:
    """A ModelService as the API server would hold it; `pools` and the rest may be given."""
    pools = [{"name": "prefill", "role": "Prefill", "replicas": 2}, {"name": "decode", "role": "Decode", "replicas": 2}]
    filled = {"model": {"name": "llama"}, "engine": {"type": "Sim"}, "pools": pools, "drain": {"deadlineSeconds": 30}} | spec
    return {
        "apiVersion": MODEL_SERVICE.api_version,
        "kind": MODEL_SERVICE.kind,
        "metadata": {"name": KEY[1], "namespace": KEY[0]},
        "spec": filled,
    }
