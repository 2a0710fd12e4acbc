"""Whatever the operator owns, deleted or spoilt by hand on the real API server, comes back; what others have added stays."""

from collections.abc import Callable
from typing import Any

from control_plane import Object, accepted, wait_until
from penstock_core.api_terms import API_VERSION
from penstock_operator import names
from test_on_api_server import APPS, CORE, OURS, View, model_service, view

__all__ = ["view"]  # a fixture

POLICY, NETWORK = "/apis/policy/v1", "/apis/networking.k8s.io/v1"
MERGE = {"content-type": "application/merge-patch+json"}


def children(view: View) -> dict[str, tuple[str, Object, Callable[[Object], Any]]]:
    """By kind: where the object is, how it is spoilt, and the value that must be as before."""
    root = f"/namespaces/{view.namespace}"
    pod = f"{CORE}{root}/pods/{view.pods('decode')[0]['metadata']['name']}"
    revision = view.get(f"{APPS}//controllerrevisions")["items"][0]["metadata"]["name"]
    label = {"metadata": {"labels": {names.SERVICE_LABEL: None}}}
    container = {"spec": {"containers": [{"name": "worker", "image": "evil"}]}}
    return {
        "Service": (f"{CORE}{root}/services/llama-workers", {"spec": {"selector": {"app": "other"}}}, lambda raw: raw["spec"]["selector"]),
        "NetworkPolicy": (
            f"{NETWORK}{root}/networkpolicies/llama-workers",
            {"spec": {"ingress": [{}]}},
            lambda raw: raw["spec"]["ingress"],
        ),
        "PodDisruptionBudget": (
            f"{POLICY}{root}/poddisruptionbudgets/llama-decode",
            {"spec": {"maxUnavailable": 9}},
            lambda raw: raw["spec"]["maxUnavailable"],
        ),
        "ControllerRevision": (f"{APPS}{root}/controllerrevisions/{revision}", label, lambda raw: raw["metadata"]["labels"]),
        "Secret": (f"{CORE}{root}/secrets/llama-workers", {"data": {"fleet-token": "ZXZpbA=="}}, lambda raw: raw["data"]),
        "Pod": (pod, container, lambda raw: raw["spec"]["containers"][0]["image"]),
        "WorkerPool": (
            f"{OURS}{root}/workerpools/llama-decode",
            {"spec": {"slo": {"ttftMilliseconds": 9}}},
            lambda raw: raw["spec"]["slo"],
        ),
    }


def test_everything_deleted_or_spoilt_by_hand_comes_back(view: View, start_operator: Callable[..., Any]) -> None:
    """Every kind: first spoilt, then deleted; a foreign manager's annotation on the same object outlives the repair."""
    told = {"namespace": view.namespace, "watch_namespace": view.namespace, "resync_s": 2}  # the Secret is looked at with each resync
    operator = start_operator(view.plane, **told)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace)))
    view.wait_ready()
    client = view.plane.client
    wait_until("complete", lambda: view.condition("Progressing").get("reason") == "Complete")
    for kind, (url, spoilt, value) in children(view).items():
        before = value(accepted(client.get(url)))
        theirs = {"apiVersion": _version(url), "kind": kind, "metadata": {"name": url.rpartition("/")[2], "namespace": view.namespace}}
        theirs["metadata"]["annotations"] = {"theirs": "kept"}
        accepted(view.plane.apply(theirs, manager="somebody"))
        patch = {"content-type": "application/strategic-merge-patch+json"} if kind == "Pod" else MERGE
        accepted(client.patch(url, json=spoilt, headers=patch))
        mended = wait_until(
            f"{kind} is mended", lambda url=url, value=value, before=before: raw if value(raw := client.get(url).json()) == before else None
        )
        assert mended["metadata"]["annotations"]["theirs"] == "kept", kind
        uid = mended["metadata"]["uid"]
        accepted(client.delete(url, params={"gracePeriodSeconds": 0}))
        if kind == "Pod":  # another takes its place, under a name of its own where this one's is still taken
            wait_until("two Pods", lambda uid=uid: [p["metadata"]["uid"] != uid for p in view.pods("decode")] == [True, True])
        else:
            wait_until(f"{kind} is back", lambda url=url, uid=uid: client.get(url).json().get("metadata", {}).get("uid", uid) != uid)
    view.wait_ready()
    assert operator.child.ended() is None


def test_a_condition_of_another_controller_costs_no_writes(view: View, start_operator: Callable[..., Any]) -> None:
    """Somebody adds a condition of his own to the status and changes it twenty times: it stays, and no write of ours answers it."""
    operator = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace)))
    view.wait_ready()
    wait_until("complete", lambda: view.condition("Progressing")["reason"] == "Complete")

    def writes() -> float:
        return float(operator.metric("penstock_operator_writes_total"))

    before = writes()
    for number in range(20):
        condition = {"type": "Theirs", "status": "True", "reason": f"Number{number}", "lastTransitionTime": "2026-01-01T00:00:00Z"}
        body = {"apiVersion": API_VERSION, "kind": "ModelService", "metadata": {"name": "llama", "namespace": view.namespace}}
        accepted(view.plane.apply(body | {"status": {"conditions": [condition]}}, manager="somebody", status=True))
    changed = accepted(view.plane.apply(model_service(view.namespace, slo={"ttftMilliseconds": 700})))
    wait_until("observed", lambda: view.service()["status"]["observedGeneration"] == changed["metadata"]["generation"])
    assert view.condition("Theirs")["reason"] == "Number19"
    assert writes() - before <= 5, "two WorkerPools, their statuses and one status for the change of the spec; none for the twenty"


def _version(url: str) -> str:
    group = url.partition("/namespaces/")[0]
    return group.removeprefix("/apis/").removeprefix("/api/")
