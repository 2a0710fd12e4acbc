"""A ModelService and its WorkerPools and Pods on the real API server, as the operator would leave them, without an operator.

For tests of what the autoscaler reads and writes there. It speaks with the rights that the chart gives the autoscaler; nothing that it
asks for may be denied. Time is a number that the test moves.
"""

import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from control_plane import ControlPlane, Object, accepted, wait_until
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.kube_api import KubeApi, login
from penstock_autoscaler.kube_fleet import KubeFleet
from penstock_autoscaler.kube_scope import KubeScope
from penstock_core.api_terms import API_VERSION, OPERATOR_MANAGER, POOL_LABEL, RANK_LABEL, SERVICE_LABEL
from penstock_kvindex.redis import RedisIndex

from tests.operator.conftest import SYSTEM, chart_account

ACCOUNT = "penstock-autoscaler"
OURS = f"/apis/{API_VERSION}"


def autoscaler_account(plane: ControlPlane) -> Path:
    """A kubeconfig of the chart's ServiceAccount of the autoscaler, with its rights and no others."""
    chart_account(plane)
    return plane.service_account_kubeconfig(SYSTEM, ACCOUNT)


def stamp(epoch_s: float) -> str:
    return datetime.fromtimestamp(int(epoch_s), UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def decided(
    reason: Reason = Reason.UP, message: str = "because", *, valid: bool = True, late: tuple[str, ...] = (), **desired: int
) -> Decision:
    """A decision with these sizes."""
    return Decision(at_s=0.0, desired=desired, reason=reason, message=message, valid=valid, late=late)


class KubeBed:
    """One namespace with one ModelService. `now` is the autoscaler's clock, epoch seconds."""

    def __init__(self, plane: ControlPlane, namespace: str, redis_url: str, model: str) -> None:
        self.plane = plane
        self.namespace = namespace
        self.model = model
        self.now = time.time()
        self._redis_url = redis_url
        self._kubeconfig = autoscaler_account(plane)

    def make(self, name: str = "llama", sizes: tuple[int, ...] = (1, 1), **spec: Any) -> Object:
        """A ModelService, a prefill pool of 0 to 4 and a decode pool of 1 to 4 replicas, with WorkerPools of these sizes."""
        bounds: list[Object] = [{"minReplicas": 0, "maxReplicas": 4}, {"minReplicas": 1, "maxReplicas": 4}]
        pools = [
            {"name": role.lower(), "role": role, "autoscaling": bound} for role, bound in zip(("Prefill", "Decode"), bounds, strict=True)
        ]
        filled = {"model": {"name": self.model}, "engine": {"type": "Sim"}, "pools": pools} | spec
        made = accepted(self.plane.apply(self._object("ModelService", name, filled)))
        for pool, size in zip(filled["pools"], sizes, strict=True):
            own = {"model": {"name": self.model}, "engine": {"type": "Sim"}, "modelService": name, "pool": pool["name"]}
            own |= {key: pool[key] for key in ("role", "autoscaling") if key in pool} | {"replicas": size}
            body = self._object("WorkerPool", f"{name}-{pool['name']}", own)
            accepted(self.plane.apply(body, manager=OPERATOR_MANAGER))
        return made

    def pod(
        self,
        pool: str,
        name: str,
        *,
        ready_after_s: float | None = None,
        run_after_s: float | None = None,
        service: str = "llama",
        **annotations: str,
    ) -> str:
        """A leading Pod that no node runs, ready so many seconds after it was made, if at all, its container started so many after, if that
        is said; gives its uid."""
        labels = {SERVICE_LABEL: service, POOL_LABEL: pool, RANK_LABEL: "0"}
        metadata = {"name": name, "namespace": self.namespace, "labels": labels, "annotations": annotations}
        spec = {
            "containers": [{"name": "worker", "image": "penstock:1"}],
            "schedulerName": "none",
        }  # a scheduler would write conditions of its own
        body = {"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec}
        made = accepted(self.plane.apply(body))
        if ready_after_s is not None:
            created_s = datetime.fromisoformat(made["metadata"]["creationTimestamp"]).timestamp()
            ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(created_s + ready_after_s)}
            told: Object = {"phase": "Running", "conditions": [ready]}
            if run_after_s is not None:
                told["conditions"].append({"type": "PodScheduled", "status": "True", "lastTransitionTime": stamp(created_s + 2)})
                running = {"running": {"startedAt": stamp(created_s + run_after_s)}}
                container = {"name": "worker", "ready": True, "restartCount": 0, "image": "penstock:1", "imageID": "", "state": running}
                told["containerStatuses"] = [container]
            status = {"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "namespace": self.namespace}}
            accepted(self.plane.apply({**status, "status": told}, status=True, force=True))
        return str(made["metadata"]["uid"])

    def scale_by_hand(self, pool: str, replicas: int) -> None:
        self.plane.kubectl("scale", f"wp/llama-{pool}", f"--replicas={replicas}", "-n", self.namespace)

    def worker_pool(self, pool: str, service: str = "llama") -> Object:
        return accepted(self.plane.client.get(f"{OURS}/namespaces/{self.namespace}/workerpools/{service}-{pool}"))

    def sizes(self) -> dict[str, int]:
        """Replicas asked for, by pool."""
        items = accepted(self.plane.client.get(f"{OURS}/namespaces/{self.namespace}/workerpools"))["items"]
        return {one["spec"]["pool"]: one["spec"]["replicas"] for one in items}

    def service(self, name: str = "llama") -> Object:
        return accepted(self.plane.client.get(f"{OURS}/namespaces/{self.namespace}/modelservices/{name}"))

    def condition(self, type_: str, name: str = "llama") -> tuple[str, str, str]:
        """Status, reason and message; empty where there is none."""
        conditions = self.service(name).get("status", {}).get("conditions", ())
        found = next((one for one in conditions if one["type"] == type_), {})
        return found.get("status", ""), found.get("reason", ""), found.get("message", "")

    def events(self) -> list[tuple[str, str]]:
        """Type and reason of the autoscaler's, oldest first."""
        items = accepted(self.plane.client.get(f"/api/v1/namespaces/{self.namespace}/events"))["items"]
        own = [one for one in items if one["source"].get("component") == ACCOUNT]
        return [(one["type"], one["reason"]) for one in sorted(own, key=lambda one: int(one["metadata"]["resourceVersion"]))]

    @asynccontextmanager
    async def fleet(self, name: str = "llama") -> AsyncIterator[KubeFleet]:
        """The Actuator of the ModelService, under the chart's account."""
        async with self.scope() as scope:
            registry = RedisIndex(self._redis_url, self.model)
            try:
                yield KubeFleet(self.namespace, name, scope, registry, lambda: self.now)
            finally:
                await registry.aclose()

    @asynccontextmanager
    async def scope(self) -> AsyncIterator[KubeScope]:
        """What it is listed in. The rights may take a moment to be known to a server that was given them just now."""
        api = KubeApi(await login(str(self._kubeconfig), {}))
        wait_until("the account's rights", lambda: self._may("list", "modelservices") and self._may("list", "pods"))
        try:
            yield KubeScope(api, self.namespace, lambda: self.now, fresh_s=0.0)
        finally:
            await api.aclose()

    def _may(self, verb: str, plural: str) -> bool:
        words = ("auth", "can-i", verb, plural, "-n", self.namespace)
        return self.plane.kubectl(*words, check=False, kubeconfig=self._kubeconfig).strip() == "yes"

    def _object(self, kind: str, name: str, spec: Object) -> Object:
        return {"apiVersion": API_VERSION, "kind": kind, "metadata": {"name": name, "namespace": self.namespace}, "spec": spec}
