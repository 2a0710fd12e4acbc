"""Status and scale of the resources, and who owns which field, on a real API server."""

from typing import Any

import pytest
from control_plane import ControlPlane, Object, accepted, refused, wait_until
from resource_objects import DECODE, PREFILL, service, with_status, worker_pool

SCALE = "autoscaling/v1"


def read(plane: ControlPlane, manifest: Object) -> Object:
    return accepted(plane.client.get(plane.path_of(manifest)))


def condition(name: str, status: str = "True") -> Object:
    return {"type": name, "status": status, "reason": "Tested", "message": "", "lastTransitionTime": "2026-01-01T00:00:00Z"}


def scaled(plane: ControlPlane, manifest: Object, replicas: int) -> Any:
    """What an autoscaler sends: a PATCH of the scale subresource."""
    return plane.client.patch(
        plane.path_of(manifest) + "/scale",
        json={"spec": {"replicas": replicas}},
        headers={"content-type": "application/merge-patch+json"},
        params={"fieldManager": "autoscaler"},
    )


def test_kubectl_scale_sets_the_replicas_of_a_pool(control_plane: ControlPlane, namespace: str) -> None:
    """And nothing else of its spec; the generation says that something changed."""
    before = accepted(control_plane.apply(worker_pool(namespace=namespace)))
    control_plane.kubectl("scale", "wp/llama-decode", "-n", namespace, "--replicas=7")
    after = read(control_plane, before)
    assert after["spec"] == {**before["spec"], "replicas": 7}
    assert after["metadata"]["generation"] == before["metadata"]["generation"] + 1


def test_an_autoscaler_reads_and_writes_scale(control_plane: ControlPlane, namespace: str) -> None:
    """Observed replicas and selector come from the status, desired ones go to the spec, bounds hold."""
    pool = worker_pool(namespace=namespace, replicas=2)
    accepted(control_plane.apply(pool))
    accepted(control_plane.apply(with_status(pool, replicas=2, selector="a=b"), "operator", status=True))
    shown = accepted(control_plane.client.get(control_plane.path_of(pool) + "/scale"))
    assert (shown["apiVersion"], shown["kind"]) == (SCALE, "Scale")
    assert (shown["spec"], shown["status"]) == ({"replicas": 2}, {"replicas": 2, "selector": "a=b"})
    accepted(scaled(control_plane, pool, 5))
    assert read(control_plane, pool)["spec"]["replicas"] == 5
    assert "should be less than or equal to 1000" in refused(scaled(control_plane, pool, 1_001))
    assert "should be a non-negative integer" in refused(scaled(control_plane, pool, -1))


@pytest.mark.usefixtures("controllers")
def test_a_horizontal_pod_autoscaler_can_drive_a_pool(control_plane: ControlPlane, namespace: str) -> None:
    """The controller manager's own: it needs no metrics to lift a pool to its minimum."""
    pool = worker_pool(namespace=namespace)
    accepted(control_plane.apply(pool))
    accepted(control_plane.apply(with_status(pool, replicas=1, selector="pool=decode"), "operator", status=True))
    target = {"apiVersion": pool["apiVersion"], "kind": "WorkerPool", "name": "llama-decode"}
    spec = {"scaleTargetRef": target, "minReplicas": 3, "maxReplicas": 5}
    metadata = {"name": "decode", "namespace": namespace}
    accepted(control_plane.apply({"apiVersion": "autoscaling/v2", "kind": "HorizontalPodAutoscaler", "metadata": metadata, "spec": spec}))
    wait_until("3 replicas wanted", lambda: read(control_plane, pool)["spec"]["replicas"] == 3)


def test_a_model_service_is_not_scaled_as_a_whole(control_plane: ControlPlane, namespace: str) -> None:
    """Its pools are; one number for several roles would have no meaning."""
    accepted(control_plane.apply(service(namespace=namespace)))
    said = control_plane.kubectl("scale", "msvc/llama", "-n", namespace, "--replicas=3", check=False)
    assert "NotFound" in said
    assert control_plane.client.get(control_plane.path_of(service(namespace=namespace)) + "/scale").status_code == 404


def test_spec_and_status_are_written_apart(control_plane: ControlPlane, namespace: str) -> None:
    """A user's apply cannot forge the status, the operator's status cannot move the spec, and only the spec counts generations."""
    made = accepted(control_plane.apply({**service(namespace=namespace), "status": {"endpoint": "http://forged"}}))
    assert "status" not in made
    moved = {**service(namespace=namespace, slo={"ttftMilliseconds": 1}), "status": {"endpoint": "http://real"}}
    after = accepted(control_plane.apply(moved, "operator", status=True))
    assert after["status"]["endpoint"] == "http://real"
    assert after["spec"] == made["spec"]
    assert after["metadata"]["generation"] == made["metadata"]["generation"] == 1


def test_a_status_has_no_defaults_and_is_checked(control_plane: ControlPlane, namespace: str) -> None:
    """Only what the operator said stands there; a condition with a made-up status is refused."""
    manifest = service(namespace=namespace)
    accepted(control_plane.apply(manifest))
    after = accepted(control_plane.apply(with_status(manifest, prefill="0/1"), "operator", status=True))
    assert after["status"] == {"prefill": "0/1"}
    said = refused(control_plane.apply(with_status(manifest, conditions=[condition("Ready", "Maybe")]), "operator", status=True))
    assert 'supported values: "True", "False", "Unknown"' in said


def test_two_managers_of_one_field_conflict_by_name(control_plane: ControlPlane, namespace: str) -> None:
    """The answer names the other manager and the field; `force` takes it over."""
    accepted(control_plane.apply(service(namespace=namespace, slo={"ttftMilliseconds": 800}), "alice"))
    other = service(namespace=namespace, slo={"ttftMilliseconds": 900})
    answer = control_plane.apply(other, "bob")
    assert answer.status_code == 409
    assert 'conflict with "alice"' in refused(answer)
    assert ".spec.slo.ttftMilliseconds" in refused(answer)
    assert accepted(control_plane.apply(other, "bob", force=True))["spec"]["slo"]["ttftMilliseconds"] == 900


def test_pools_are_merged_by_name(control_plane: ControlPlane, namespace: str) -> None:
    """A second manager adds a pool without touching the first one's, and takes away only its own."""
    accepted(control_plane.apply(service(namespace=namespace), "alice"))
    more = service(namespace=namespace, pools=[{"name": "long", "role": "Both"}], model=None, engine=None)
    together = accepted(control_plane.apply(more, "bob"))["spec"]["pools"]
    assert [pool["name"] for pool in together] == ["prefill", "decode", "long"]
    alone = accepted(control_plane.apply(service(namespace=namespace, pools=[DECODE]), "alice"))["spec"]["pools"]
    assert sorted(pool["name"] for pool in alone) == ["decode", "long"]
    assert PREFILL not in alone


def test_conditions_are_merged_by_type(control_plane: ControlPlane, namespace: str) -> None:
    """Operator and autoscaler each own theirs."""
    manifest = service(namespace=namespace)
    accepted(control_plane.apply(manifest))
    accepted(control_plane.apply(with_status(manifest, conditions=[condition("Ready")]), "operator", status=True))
    after = accepted(control_plane.apply(with_status(manifest, conditions=[condition("ScalingActive")]), "autoscaler", status=True))
    assert sorted(one["type"] for one in after["status"]["conditions"]) == ["Ready", "ScalingActive"]


def test_who_scaled_owns_the_replicas(control_plane: ControlPlane, namespace: str) -> None:
    """Where somebody had set them; a later apply with another number conflicts and says with whom."""
    accepted(control_plane.apply(worker_pool(namespace=namespace, replicas=2), "operator"))
    accepted(scaled(control_plane, worker_pool(namespace=namespace), 4))
    said = refused(control_plane.apply(worker_pool(namespace=namespace, replicas=2), "operator"))
    assert 'conflict with "autoscaler" with subresource "scale"' in said
    assert said.endswith(".spec.replicas")


def test_scaling_a_defaulted_number_leaves_no_owner(control_plane: ControlPlane, namespace: str) -> None:
    """Kubernetes takes note of a scaling only where the field had an owner: here an apply with `replicas` undoes it unasked."""
    accepted(control_plane.apply(worker_pool(namespace=namespace), "operator"))
    accepted(scaled(control_plane, worker_pool(namespace=namespace), 4))
    assert accepted(control_plane.apply(worker_pool(namespace=namespace, replicas=2), "operator"))["spec"]["replicas"] == 2


def test_replicas_begun_by_a_manager_of_their_own_stay_scaled(control_plane: ControlPlane, namespace: str) -> None:
    """The way for the operator: one apply under another manager's name sets the start, its own never names the field."""
    accepted(control_plane.apply(worker_pool(namespace=namespace, replicas=4), "operator-start"))
    own = worker_pool(namespace=namespace, drain={"deadlineSeconds": 5})
    assert accepted(control_plane.apply(own, "operator", force=True))["spec"]["replicas"] == 4
    accepted(scaled(control_plane, own, 6))
    assert accepted(control_plane.apply(worker_pool(namespace=namespace), "operator", force=True))["spec"]["replicas"] == 6


def test_replicas_given_up_by_their_only_owner_fall_back_to_the_default(control_plane: ControlPlane, namespace: str) -> None:
    """So whoever starts a pool with a number must not simply leave it out the next time."""
    accepted(control_plane.apply(worker_pool(namespace=namespace, replicas=4), "operator"))
    assert accepted(control_plane.apply(worker_pool(namespace=namespace), "operator"))["spec"]["replicas"] == 1


@pytest.mark.usefixtures("controllers")
def test_a_pool_goes_with_its_owner(control_plane: ControlPlane, namespace: str) -> None:
    """Garbage collection by ownerReferences; no finalizer is in the way."""
    owner = accepted(control_plane.apply(service(namespace=namespace)))
    pool = worker_pool(namespace=namespace)
    pool["metadata"]["ownerReferences"] = [
        {"apiVersion": owner["apiVersion"], "kind": "ModelService", "name": "llama", "uid": owner["metadata"]["uid"], "controller": True}
    ]
    accepted(control_plane.apply(pool))
    accepted(control_plane.client.delete(control_plane.path_of(owner)))
    wait_until("the pool gone", lambda: control_plane.client.get(control_plane.path_of(pool)).status_code == 404)
