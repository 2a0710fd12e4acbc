"""The operator when things break: API server away, operator killed, watch errors, namespaces that go."""

import json
import os
import signal
import time
from collections.abc import Callable
from typing import Any

import httpx
from component_flags import API_SERVER
from control_plane import ControlPlane, accepted, wait_until
from test_on_api_server import CORE, OURS, View, model_service

Start = Callable[..., Any]
Make = Callable[[], ControlPlane]


def namespace_of(plane: ControlPlane, name: str) -> View:
    """A namespace and a node on a private control plane."""
    accepted(plane.client.post(f"{CORE}/namespaces", json={"metadata": {"name": name}}))
    wait_until("its account", lambda: plane.client.get(f"{CORE}/namespaces/{name}/serviceaccounts/default").is_success)
    plane.add_fake_node("node-0", pods="1000")
    return View(plane, name)


def test_what_is_deleted_while_the_api_server_is_away_is_no_ghost(make_control_plane: Make, start_operator: Start) -> None:
    """Server down; it comes back without one service and with another one's Pod gone: the first is forgotten, the second repaired."""
    plane = make_control_plane()
    view = namespace_of(plane, "team")
    operator = start_operator(plane, namespace="team", watch_namespace="team", lease_duration_s=300, renew_deadline_s=250)
    operator.wait_leading()
    for name in ("llama", "other"):
        accepted(plane.apply(model_service("team", name)))
    view.wait_ready()
    view.wait_ready(name="other")
    os.kill(operator.child.pid, signal.SIGSTOP)  # as deaf as if its watches were down, for as long as it takes
    try:
        accepted(plane.client.delete(f"{OURS}/namespaces/team/modelservices/other"))
        wait_until("its Pods are gone", lambda: len(view.pods()) == 4)
        plane.stop_component(API_SERVER)
        plane.start_component(API_SERVER)
    finally:
        os.kill(operator.child.pid, signal.SIGCONT)
    victim = view.pods("decode")[0]["metadata"]
    accepted(plane.client.delete(f"{CORE}/namespaces/team/pods/{victim['name']}", params={"gracePeriodSeconds": 0}))
    wait_until(
        "the Pod is replaced",
        lambda: len(left := view.pods("decode")) == 2 and victim["uid"] not in {pod["metadata"]["uid"] for pod in left},
    )
    wait_until("one service is known", lambda: operator.metric("penstock_operator_objects", kind="ModelService") == 1)
    wait_until("four Pods are known", lambda: operator.metric("penstock_operator_objects", kind="Pod") == 4)
    assert operator.child.ended() is None
    assert not [pod for pod in view.pods() if pod["metadata"]["name"].startswith("other")]


def test_an_api_server_that_is_away_ends_nothing(make_control_plane: Make, start_operator: Start) -> None:
    """Away for longer than Kopf's own patience with a single request would last; without the Lease's clock in play, work goes on."""
    plane = make_control_plane()
    view = namespace_of(plane, "team")
    patient = {"lease_duration_s": 300, "renew_deadline_s": 250}
    operator = start_operator(plane, namespace="team", watch_namespace="team", **patient)
    operator.wait_leading()
    accepted(plane.apply(model_service("team")))
    view.wait_ready()
    plane.stop_component(API_SERVER)
    tries = 3

    def failed() -> int:
        return sum("lease cannot be written" in str(line["message"]) for line in operator.logged())

    wait_until(f"{tries} failed renewals", lambda: failed() >= tries)
    assert httpx.get(f"{operator.url}/healthz").is_success
    plane.start_component(API_SERVER)
    plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=3", "-n", "team")
    view.wait_ready("3/3")
    assert operator.child.ended() is None


def test_a_killed_leader_is_followed_in_time_and_makes_no_second_pod(make_control_plane: Make, start_operator: Start) -> None:
    """kill -9 in the middle of a rollout: the other takes over within the Lease's duration plus a retry, and finishes it."""
    plane = make_control_plane()
    view = namespace_of(plane, "team")
    times = {"lease_duration_s": 4, "renew_deadline_s": 3, "retry_period_s": 0.5}
    first = start_operator(plane, namespace="team", watch_namespace="team", **times)
    first.wait_leading()
    second = start_operator(plane, namespace="team", watch_namespace="team", **times)
    pods = {"metadata": {"annotations": {"tests.penstock.dev/ready-after": "500ms"}}}
    pools = [{"name": name.lower(), "role": name, "replicas": 3, "podTemplate": pods} for name in ("Prefill", "Decode")]
    accepted(plane.apply(model_service("team", pools=pools)))
    view.wait_ready("3/3")
    assert httpx.get(f"{second.url}/healthz").json()["leading"] is False
    accepted(plane.apply(model_service("team", pools=pools, engine={"type": "Sim", "image": "penstock:2"})))
    wait_until("the rollout has begun", lambda: "penstock:2" in view.images("decode"))
    os.kill(first.child.pid, signal.SIGKILL)
    killed = time.monotonic()
    wait_until("the second leads", lambda: httpx.get(f"{second.url}/healthz").json()["leading"])
    assert time.monotonic() - killed <= 4 + 0.5 + 2.0, "lease duration, one retry, and two seconds for a busy machine"
    most = 0

    def done() -> bool:
        nonlocal most
        most = max(most, len(view.pods("decode")), len(view.pods("prefill")))
        return view.images("prefill") + view.images("decode") == ["penstock:2"] * 6

    wait_until("the rollout is finished", done)
    assert most <= 4, "three and one surge"


def test_an_operator_that_is_told_to_end_gives_the_lease_back(make_control_plane: Make, start_operator: Start) -> None:
    """SIGTERM: status 0, and the next one leads without waiting for the Lease to run out."""
    plane = make_control_plane()
    namespace_of(plane, "team")
    first = start_operator(plane, namespace="team", watch_namespace="team", lease_duration_s=600, renew_deadline_s=500)
    first.wait_leading()
    second = start_operator(plane, namespace="team", watch_namespace="team", lease_duration_s=600, renew_deadline_s=500)
    assert httpx.get(f"{second.url}/healthz").json()["leading"] is False
    first.child.stop(20.0)
    assert first.child.ended() == 0
    second.wait_leading()


def test_an_operator_whose_lease_is_taken_ends(make_control_plane: Make, start_operator: Start) -> None:
    """Somebody else writes himself into the Lease: the process ends with status 1 and writes nothing more."""
    plane = make_control_plane()
    namespace_of(plane, "team")
    operator = start_operator(plane, namespace="team", watch_namespace="team")
    operator.wait_leading()
    path = "/apis/coordination.k8s.io/v1/namespaces/team/leases/penstock-operator"
    body = {"spec": {"holderIdentity": "usurper", "leaseDurationSeconds": 600}}
    accepted(plane.client.patch(path, json=body, headers={"content-type": "application/merge-patch+json"}))
    assert wait_until("it ends", lambda: (operator.child.ended(),) if operator.child.ended() is not None else None) == (1,)


def test_a_namespace_being_deleted_is_left_in_peace(control_plane: ControlPlane, start_operator: Start) -> None:
    """The namespace goes with everything in it; the operator does not fight it and does not call it a failure."""
    view = namespace_of(control_plane, "doomed") if control_plane.client.get(f"{CORE}/nodes/node-0").status_code == 404 else None
    if view is None:
        accepted(control_plane.client.post(f"{CORE}/namespaces", json={"metadata": {"name": "doomed"}}))
        view = View(control_plane, "doomed")
    operator = start_operator(control_plane, namespace="default", watch_namespace="doomed")
    operator.wait_leading()
    accepted(control_plane.apply(model_service("doomed")))
    view.wait_ready()
    accepted(control_plane.client.delete(f"{CORE}/namespaces/doomed"))
    wait_until("the namespace is gone", lambda: control_plane.client.get(f"{CORE}/namespaces/doomed").status_code == 404)
    assert not [line for line in operator.logged() if line["level"] == "error"]


def test_two_minutes_without_an_api_server_cost_nothing(make_control_plane: Make, start_operator: Start) -> None:
    """Away for 120 s, a real stop: one operator, patient with its Lease, lives on; one with the usual times ends and is followed."""
    plane = make_control_plane()
    view = namespace_of(plane, "team")
    accepted(plane.client.post(f"{CORE}/namespaces", json={"metadata": {"name": "usual"}}))
    patient = start_operator(plane, namespace="team", watch_namespace="team", lease_duration_s=300, renew_deadline_s=250)
    usual = start_operator(plane, namespace="usual", watch_namespace="usual")
    patient.wait_leading()
    usual.wait_leading()
    accepted(plane.apply(model_service("team")))
    view.wait_ready()
    accepted(plane.apply(model_service("usual")))
    other = View(plane, "usual")
    other.wait_ready()
    pods = {raw["metadata"]["uid"] for raw in view.pods() + other.pods()}
    plane.stop_component(API_SERVER)
    stopped_s = time.monotonic()
    wait_until("the usual one ends, for it leads no more", lambda: usual.child.ended() is not None)
    assert usual.child.ended() == 1
    account = json.loads((usual.url_file.parent / "settings.json").read_text())["kubeconfig"]  # nobody can make another one now
    follower = start_operator(plane, kubeconfig=account, namespace="usual", watch_namespace="usual")
    wait_until("two minutes have passed", lambda: time.monotonic() - stopped_s >= 120.0, timeout_s=200.0)
    assert patient.child.ended() is None and follower.child.ended() is None
    assert httpx.get(f"{patient.url}/healthz").is_success
    plane.start_component(API_SERVER)
    for namespace in ("team", "usual"):
        plane.kubectl("scale", "workerpool", "llama-decode", "--replicas=3", "-n", namespace)
    view.wait_ready("3/3")
    other.wait_ready("3/3")
    assert pods < {raw["metadata"]["uid"] for raw in view.pods() + other.pods()}, "no Pod of before was touched"
    assert patient.child.ended() is None and follower.child.ended() is None
