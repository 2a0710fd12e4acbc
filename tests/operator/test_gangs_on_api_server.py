"""Replicas of several Pods on the real API server: ready as one, gone as one, whole again when one is lost."""

from collections.abc import Callable
from typing import Any

import pytest
from control_plane import Object, accepted, wait_until
from penstock_operator import names
from test_on_api_server import CORE, View, model_service, view

__all__ = ["view"]  # a fixture

SLOW = {"metadata": {"annotations": {"tests.penstock.dev/gone-after": "2s"}}}
"""As a Pod that is deleted drains for a while."""
POOLS = [{"name": "all", "role": "Both", "replicas": 1, "parallelism": {"tensor": 3}, "podTemplate": SLOW}]


@pytest.fixture
def gang(view: View, start_operator: Callable[..., Any]) -> View:
    """One replica of three Pods, ready."""
    operator = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace, pools=POOLS)))
    view.wait_ready("1/1")
    return view


def ranks(view: View) -> dict[str, Object]:
    return {raw["metadata"]["labels"][names.RANK_LABEL]: raw for raw in view.pods("all")}


def replicas(view: View) -> set[str]:
    return {raw["metadata"]["labels"][names.REPLICA_LABEL] for raw in view.pods("all")}


def path_of(view: View, pod: Object) -> str:
    return f"{CORE}/namespaces/{view.namespace}/pods/{pod['metadata']['name']}"


def test_a_gang_is_ready_when_each_of_its_pods_is(gang: View) -> None:
    """A follower that is not ready takes the replica out, and the scale counts replicas, not Pods."""
    assert set(ranks(gang)) == {"0", "1", "2"}
    scale = wait_until(
        "scale", lambda: raw if (raw := gang.get("/apis/serving.penstock.dev/v1alpha1//workerpools/llama-all/scale")) else None
    )
    assert scale["status"]["replicas"] == 1
    follower = ranks(gang)["2"]
    headers = {"content-type": "application/strategic-merge-patch+json"}
    hold = {"metadata": {"annotations": {"tests.penstock.dev/hold": "true"}}}
    accepted(gang.plane.client.patch(path_of(gang, follower), json=hold, headers=headers))
    status = {"status": {"conditions": [{"type": "Ready", "status": "False"}]}}
    accepted(gang.plane.client.patch(path_of(gang, follower) + "/status", json=status, headers=headers))
    wait_until("not ready", lambda: gang.condition("Ready")["status"] == "False")
    assert gang.service()["status"]["decode"] == "0/1"
    accepted(
        gang.plane.client.patch(
            path_of(gang, follower), json={"metadata": {"annotations": {"tests.penstock.dev/hold": None}}}, headers=headers
        )
    )
    gang.wait_ready("1/1")


def test_one_pod_taken_takes_its_gang(gang: View) -> None:
    """`kubectl delete pod` of a follower: the whole replica leaves, and another takes its place."""
    before = replicas(gang)
    gang.plane.kubectl("delete", "pod", ranks(gang)["1"]["metadata"]["name"], "-n", gang.namespace, "--wait=false")
    wait_until("another replica", lambda: len(found := replicas(gang)) == 1 and not found & before and len(gang.pods("all")) == 3)
    gang.wait_ready("1/1")


def test_a_lost_pod_is_replaced_in_its_gang(gang: View) -> None:
    """A leading Pod that is gone without leaving (its node was lost): the same name again, in the same replica."""
    before = ranks(gang)
    accepted(gang.plane.client.delete(path_of(gang, before["0"]), params={"gracePeriodSeconds": 0}))
    wait_until(
        "whole again",
        lambda: set(found := ranks(gang)) == {"0", "1", "2"} and found["0"]["metadata"]["uid"] != before["0"]["metadata"]["uid"],
    )
    gang.wait_ready("1/1")
    after = ranks(gang)
    assert (
        after["1"]["metadata"]["uid"] == before["1"]["metadata"]["uid"]
        and after["0"]["metadata"]["name"] == before["0"]["metadata"]["name"]
    )
