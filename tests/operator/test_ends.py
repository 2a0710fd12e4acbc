"""How things end on the real API server: a rollout at its deadline, a service deleted while its Pods still drain."""

from collections.abc import Callable
from typing import Any

import pytest
from control_plane import Object, accepted, wait_until
from test_on_api_server import OURS, View, model_service, view

__all__ = ["view"]  # a fixture

Start = Callable[..., Any]
SLOW = {"metadata": {"annotations": {"tests.penstock.dev/gone-after": "4s"}}}
"""A Pod that drains for four seconds when it is deleted."""


@pytest.fixture
def operator(view: View, start_operator: Start) -> Any:
    process = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace)
    process.wait_leading()
    return process


def pools(**pod_template: Any) -> list[Object]:
    return [{"name": name.lower(), "role": name, "replicas": 2, "podTemplate": pod_template} for name in ("Prefill", "Decode")]


def test_a_rollout_that_gets_nowhere_stops_and_the_old_generation_serves(view: View, operator: Any) -> None:
    """New Pods run and never get ready: at the deadline it says so and stops; applying the old spec again takes it back."""
    old = model_service(view.namespace, pools=pools(), rollout={"progressDeadlineSeconds": 4})
    accepted(view.plane.apply(old))
    view.wait_ready()
    serving = {raw["metadata"]["uid"] for raw in view.pods()}
    stuck = pools(metadata={"annotations": {"tests.penstock.dev/hold": "true"}})
    accepted(view.plane.apply(model_service(view.namespace, pools=stuck, rollout={"progressDeadlineSeconds": 4})))
    wait_until("it stops", lambda: view.condition("Progressing").get("reason") == "ProgressDeadlineExceeded")
    assert view.condition("Ready")["status"] == "True"
    assert serving < {raw["metadata"]["uid"] for raw in view.pods()} and len(view.pods()) == 6, "one new replica a pool, no old one gone"
    events = [one["reason"] for one in view.get("/api/v1//events")["items"] if one["involvedObject"]["kind"] == "ModelService"]
    assert events.count("ProgressDeadlineExceeded") == 1
    accepted(view.plane.apply(old))
    wait_until("the stuck ones are gone", lambda: {raw["metadata"]["uid"] for raw in view.pods()} == serving)
    wait_until("complete", lambda: view.condition("Progressing").get("reason") == "Complete")


def test_a_service_deleted_while_it_serves_drains_and_is_gone(view: View, operator: Any) -> None:
    """Its Pods get their whole grace, nothing is made anew and nothing is written; made again at once, it serves beside the old ones."""
    made = model_service(view.namespace, pools=pools(**SLOW), drain={"deadlineSeconds": 40})
    accepted(view.plane.apply(made))
    view.wait_ready()
    wait_until("complete", lambda: view.condition("Progressing").get("reason") == "Complete")
    written = operator.metric("penstock_operator_writes_total")
    accepted(view.plane.client.delete(f"{OURS}/namespaces/{view.namespace}/modelservices/llama"))
    wait_until("all leave", lambda: all(raw["metadata"].get("deletionTimestamp") for raw in view.pods()))
    leaving = view.pods()
    assert [raw["metadata"]["deletionGracePeriodSeconds"] for raw in leaving] == [55] * 4
    wait_until("nothing is left", lambda: not view.pods() and not view.get(f"{OURS}//workerpools")["items"])
    assert operator.metric("penstock_operator_writes_total") == written
    accepted(view.plane.apply(made))
    view.wait_ready()
    before = {raw["metadata"]["uid"] for raw in view.pods()}
    accepted(view.plane.client.delete(f"{OURS}/namespaces/{view.namespace}/modelservices/llama"))
    wait_until("it is gone", lambda: view.plane.client.get(f"{OURS}/namespaces/{view.namespace}/modelservices/llama").status_code == 404)
    accepted(view.plane.apply(made))
    view.wait_ready()
    wait_until("only the new ones", lambda: len(found := view.pods()) == 4 and not before & {raw["metadata"]["uid"] for raw in found})
    view.wait_ready()
