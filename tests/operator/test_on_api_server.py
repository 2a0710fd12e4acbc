"""The operator process on a real API server, with nodes and Pods played by kwok."""

import time
from collections.abc import Callable
from typing import Any

import pytest
from control_plane import ControlPlane, Object, accepted, wait_until
from penstock_core.api_terms import API_VERSION
from penstock_operator import names

Start = Callable[..., Any]

CORE, OURS, APPS = "/api/v1", f"/apis/{API_VERSION}", "/apis/apps/v1"


def model_service(namespace: str, name: str = "llama", **spec: Any) -> Object:
    """2P2D of the sim engine."""
    pools = [{"name": "prefill", "role": "Prefill", "replicas": 2}, {"name": "decode", "role": "Decode", "replicas": 2}]
    filled = {"model": {"name": "llama"}, "engine": {"type": "Sim"}, "pools": pools, "drain": {"deadlineSeconds": 2}} | spec
    metadata = {"name": name, "namespace": namespace}
    return {"apiVersion": API_VERSION, "kind": "ModelService", "metadata": metadata, "spec": filled}


class View:
    """What there is in one namespace."""

    def __init__(self, plane: ControlPlane, namespace: str) -> None:
        self.plane = plane
        self.namespace = namespace

    def get(self, path: str) -> Object:
        group, _, rest = path.partition("//")
        return accepted(self.plane.client.get(f"{group}/namespaces/{self.namespace}/{rest}"))

    def service(self, name: str = "llama") -> Object:
        return self.get(f"{OURS}//modelservices/{name}")

    def condition(self, type_: str, name: str = "llama") -> Object:
        conditions = self.service(name).get("status", {}).get("conditions", ())
        return next((c for c in conditions if c["type"] == type_), {})

    def pods(self, pool: str = "") -> list[Object]:
        items: list[Object] = self.get(f"{CORE}//pods")["items"]
        return [raw for raw in items if not pool or raw["metadata"]["labels"].get(names.POOL_LABEL) == pool]

    def images(self, pool: str) -> list[str]:
        return sorted(raw["spec"]["containers"][0]["image"] for raw in self.pods(pool))

    def wait_ready(self, counts: str = "2/2", name: str = "llama") -> Object:
        """Until the ModelService is Ready with so many decode replicas."""

        def ready() -> Object | None:
            status = self.service(name).get("status", {})
            done = any(c["type"] == "Ready" and c["status"] == "True" for c in status.get("conditions", ())) and status["decode"] == counts
            return status if done else None

        return wait_until(f"{name} ready with {counts}: {self.service(name).get('status')}", ready)


@pytest.fixture
def view(control_plane: ControlPlane, namespace: str) -> View:
    if control_plane.client.get("/api/v1/nodes/operator-node").status_code == 404:
        control_plane.add_fake_node("operator-node", pods="1000")
    return View(control_plane, namespace)


@pytest.fixture
def running(view: View, start_operator: Start) -> Any:
    """(view, operator) with 2P2D ready."""
    operator = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace)))
    view.wait_ready()
    return view, operator


def test_a_model_service_becomes_pods_and_ready(running: Any) -> None:
    """Pods run, every condition is there, the scale subresource shows the pool, and nothing is written when all is done."""
    view, operator = running
    assert len(view.pods("prefill")) == len(view.pods("decode")) == 2
    wait_until("complete", lambda: view.condition("Progressing")["reason"] == "Complete")
    types = {c["type"] for c in view.service()["status"]["conditions"]}
    assert types == {"Ready", "PoolsReady", "Progressing", "Draining", "SpecValid", "ScalingActive"}
    scale = view.get(f"{OURS}//workerpools/llama-decode/scale")
    wait_until("scale", lambda: view.get(f"{OURS}//workerpools/llama-decode/scale")["status"]["replicas"] == 2)
    selected = view.plane.client.get(f"{CORE}/namespaces/{view.namespace}/pods", params={"labelSelector": scale["status"]["selector"]})
    assert len(accepted(selected)["items"]) == 2
    events = [one["reason"] for one in view.get(f"{CORE}//events")["items"] if one["involvedObject"]["kind"] == "ModelService"]
    assert events == ["Ready"]
    written = operator.metric("penstock_operator_writes_total")
    children = len(view.pods()) + 8  # two pools with a budget each, Service, NetworkPolicy, Secret, revision
    assert written <= 2 * children + 4
    view.plane.kubectl("label", "pod", view.pods("decode")[0]["metadata"]["name"], "unrelated=yes", "-n", view.namespace)
    view.plane.kubectl("delete", "pod", view.pods("decode")[0]["metadata"]["name"], "-n", view.namespace, "--wait=true")
    wait_until("the Pod is back", lambda: len([p for p in view.pods("decode") if not p["metadata"].get("deletionTimestamp")]) == 2)


@pytest.mark.parametrize(
    "path", [f"{CORE}//services/llama-workers", f"{APPS}//controllerrevisions", "/apis/policy/v1//poddisruptionbudgets/llama-decode"]
)
def test_a_child_deleted_by_hand_comes_back(running: Any, path: str) -> None:
    """Deleted at once, and there again under the same name with another uid."""
    view, _ = running
    if path.endswith("controllerrevisions"):
        path += "/" + view.get(path)["items"][0]["metadata"]["name"]
    uid = view.get(path)["metadata"]["uid"]
    group, _, rest = path.partition("//")
    url = f"{group}/namespaces/{view.namespace}/{rest}"
    accepted(view.plane.client.delete(url))
    wait_until(f"{path} is back", lambda: view.plane.client.get(url).json().get("metadata", {}).get("uid", uid) != uid)


def test_the_pool_is_scaled_by_its_scale_subresource(running: Any) -> None:
    """`kubectl scale` out and in: Pods follow, and the ModelService's own spec is not touched."""
    view, _ = running
    view.plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=4", "-n", view.namespace)
    view.wait_ready("4/4")
    view.plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=1", "-n", view.namespace)
    wait_until("one is left", lambda: len(view.pods("decode")) == 1)
    view.wait_ready("1/1")
    assert view.service()["spec"]["pools"][1]["replicas"] == 2


def test_a_rollout_and_a_rollback(running: Any) -> None:
    """A new image on every Pod, and back again; the revision that is not needed goes."""
    view, _ = running
    accepted(view.plane.apply(model_service(view.namespace, engine={"type": "Sim", "image": "penstock:2"})))
    wait_until("all new", lambda: view.images("prefill") + view.images("decode") == ["penstock:2"] * 4)
    accepted(view.plane.apply(model_service(view.namespace)))
    wait_until("all old", lambda: view.images("prefill") + view.images("decode") == ["penstock:1"] * 4)
    wait_until("one revision", lambda: len(view.get(f"{APPS}//controllerrevisions")["items"]) == 1)
    view.wait_ready()


def test_deleting_the_service_leaves_nothing(running: Any) -> None:
    """No finalizer: the garbage collector takes every child."""
    view, _ = running
    accepted(view.plane.client.delete(f"{OURS}/namespaces/{view.namespace}/modelservices/llama"))
    wait_until("no Pod", lambda: not view.pods())
    wait_until("no WorkerPool", lambda: not view.get(f"{OURS}//workerpools")["items"])
    wait_until(
        "no Secret", lambda: not [one for one in view.get(f"{CORE}//secrets")["items"] if one["metadata"]["name"] == "llama-workers"]
    )


def test_fields_of_another_manager_are_left_alone(running: Any) -> None:
    """An annotation that somebody else applies to a Pod and to a WorkerPool is there after the next rollout of writes."""
    view, _ = running
    pool = {"apiVersion": API_VERSION, "kind": "WorkerPool", "metadata": {"name": "llama-decode", "namespace": view.namespace}}
    pool["metadata"]["annotations"] = {"theirs": "kept"}
    accepted(view.plane.apply(pool, manager="somebody"))
    view.plane.kubectl("label", "workerpool", "llama-decode", f"{names.POOL_LABEL}=spoilt", "--overwrite", "-n", view.namespace)
    found = wait_until(
        "the label is back",
        lambda: raw if (raw := view.get(f"{OURS}//workerpools/llama-decode"))["metadata"]["labels"][names.POOL_LABEL] == "decode" else None,
    )
    assert found["metadata"]["annotations"]["theirs"] == "kept"


def test_fifty_updates_are_few_writes(running: Any) -> None:
    """Fifty changes of one Pod's labels and of the service's annotations in a row cause no write of ours."""
    view, operator = running
    wait_until("complete", lambda: view.condition("Progressing")["reason"] == "Complete")
    before = operator.metric("penstock_operator_writes_total")
    pod = view.pods("decode")[0]["metadata"]["name"]
    for number in range(50):
        body = {"metadata": {"annotations": {"number": str(number)}}}
        headers = {"content-type": "application/merge-patch+json"}
        for path in (f"{CORE}/namespaces/{view.namespace}/pods/{pod}", f"{OURS}/namespaces/{view.namespace}/modelservices/llama"):
            accepted(view.plane.client.patch(path, json=body, headers=headers))
    changed = view.plane.apply(model_service(view.namespace, slo={"ttftMilliseconds": 700}))
    generation = accepted(changed)["metadata"]["generation"]
    wait_until("observed", lambda: view.service()["status"]["observedGeneration"] == generation)
    assert operator.metric("penstock_operator_writes_total") - before <= 6, "two WorkerPools, their statuses, a status, none for the 100"


def test_a_fix_is_tried_at_once_and_failing_ones_starve_nobody(view: View, start_operator: Start) -> None:
    """Two services whose Pods are refused, concurrency 1: a third becomes ready, and a fixed one does within seconds."""
    operator = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace, concurrency=1)
    operator.wait_leading()
    bad = {"spec": {"priorityClassName": "there-is-none"}}
    for name in ("bad", "worse"):
        pools = [{"name": "all", "role": "Both", "podTemplate": bad}]
        accepted(view.plane.apply(model_service(view.namespace, name, pools=pools)))
        wait_until("refused", lambda name=name: view.condition("SpecValid", name).get("reason") == "Refused")
    assert "there-is-none" in view.condition("SpecValid", "bad")["message"]
    accepted(view.plane.apply(model_service(view.namespace, "good")))
    view.wait_ready(name="good")

    def failed() -> int:
        return sum(line["message"] == "a reconcile failed" and line["service"] == f"{view.namespace}/bad" for line in operator.logged())

    wait_until("back-off of eight seconds", lambda: failed() >= 5)
    began = time.monotonic()
    accepted(view.plane.apply(model_service(view.namespace, "bad", pools=[{"name": "all", "role": "Both"}])))
    view.wait_ready("1/1", name="bad")
    assert time.monotonic() - began < 6.0, "the fix waited for the back-off of the error before"
    assert view.condition("SpecValid", "bad")["status"] == "True"
