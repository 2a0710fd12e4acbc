"""Wrong manifests that a user would write, and the words in which the real API server refuses them.

The table is what a user reads after `kubectl apply`: a row whose message does not say what to do is a defect of the rule.
"""

import copy
from typing import Any

import pytest
from control_plane import ControlPlane, Object, accepted, refused
from resource_objects import DECODE, PREFILL, pools, service, worker_pool

HUB: Object = {"hub": {}}

WRONG: list[tuple[str, Object, str]] = [
    ("no pools at all", service(pools=[]), "spec.pools in body should have at least 1 items"),
    ("pools left out", service(pools=None), "spec.pools: Required value"),
    ("no pool decodes", service(pools=[PREFILL]), "spec.pools: Invalid value: nothing would decode: add a pool with role Decode or Both"),
    ("two pools of one name", service(pools=[DECODE, DECODE]), 'spec.pools[1]: Duplicate value: {"name":"decode"}'),
    (
        "200 pools",
        service(pools=[{"name": f"p{number}", "role": "Both"} for number in range(200)]),
        "spec.pools: Too many: 200: must have at most 16 items",
    ),
    ("a pool without a role", service(pools=[{"name": "decode"}]), "spec.pools[0].role: Required value"),
    (
        "an unknown role",
        service(pools=pools(role="decode")),
        'spec.pools[1].role: Unsupported value: "decode": supported values: "Prefill", "Decode", "Both"',
    ),
    (
        "a pool's name in capitals",
        service(pools=pools(name="Decode")),
        "spec.pools[1].name: Invalid value: \"Decode\": a pool's name is part of its Pods' names: lower-case letters, digits and '-'",
    ),
    ("a pool's name of 17 letters", service(pools=pools(name="d" * 17)), "spec.pools[1].name: Too long: may not be more than 16 bytes"),
    ("negative replicas", service(pools=pools(replicas=-1)), "spec.pools[1].replicas in body should be greater than or equal to 0"),
    ("replicas as a text", service(pools=pools(replicas="two")), "spec.pools[1].replicas in body must be of type integer"),
    ("a million replicas", service(pools=pools(replicas=1_000_000)), "spec.pools[1].replicas in body should be less than or equal to 1000"),
    (
        "bounds the wrong way round",
        service(pools=pools(autoscaling={"minReplicas": 5, "maxReplicas": 2})),
        "spec.pools[1].autoscaling: Invalid value: minReplicas must be at most maxReplicas",
    ),
    (
        "a budget below the lower bounds",
        service(pools=pools(autoscaling={"minReplicas": 3, "maxReplicas": 4}, parallelism={"tensor": 2}), scaling={"maxAccelerators": 5}),
        "scaling.maxAccelerators is less than the minReplicas of the pools take: raise it or lower them",
    ),
    ("no upper bound", service(pools=pools(autoscaling={"minReplicas": 5})), "spec.pools[1].autoscaling.maxReplicas: Required value"),
    (
        "a gang that does not divide",
        service(pools=pools(parallelism={"tensor": 4}, accelerator={"count": 3})),
        "parallelism.tensor × parallelism.pipeline must be a multiple of accelerator.count",
    ),
    (
        "a gang of 128 ranks",
        service(pools=pools(parallelism={"tensor": 16, "pipeline": 8})),
        "spec.pools[1].parallelism: Invalid value: tensor × pipeline may be 64 at most",
    ),
    (
        "a gang without Ray",
        service(engine={"type": "Sim", "host": "Process"}, pools=pools(parallelism={"tensor": 2})),
        "engine.host Process serves replicas of one Pod: set accelerator.count to tensor × pipeline, or engine.host to Ray",
    ),
    (
        "more devices than ranks without Ray",
        service(engine={"type": "Sim", "host": "Process"}, pools=pools(accelerator={"count": 2})),
        "spec.pools[1]: Invalid value: parallelism.tensor × parallelism.pipeline must be a multiple of accelerator.count",
    ),
    (
        "no devices in a Pod",
        service(pools=pools(accelerator={"count": 0})),
        "spec.pools[1].accelerator.count in body should be greater than or equal to 1",
    ),
    ("an empty model name", service(model={"name": ""}), "spec.model.name in body should be at least 1 chars long"),
    ("no model name", service(model={}), "spec.model.name: Required value"),
    ("a model name with braces", service(model={"name": "a{b}"}), "a model's name takes letters, digits and . _ : / @ -"),
    ("a model name of 201 letters", service(model={"name": "m" * 201}), "spec.model.name: Too long: may not be more than 200 bytes"),
    (
        "two sources",
        service(model={"name": "m", "source": {"hub": {}, "oci": {"image": "i"}}}),
        "spec.model.source: Invalid value: source takes one of pvc, hub and oci: remove the others",
    ),
    (
        "vLLM without weights",
        service(engine={"type": "VLLM"}),
        "an engine other than Sim needs weights: set model.source to one of pvc, hub",
    ),
    (
        "an unknown engine",
        service(engine={"type": "vllm"}),
        'spec.engine.type: Unsupported value: "vllm": supported values: "Sim", "VLLM", "SGLang"',
    ),
    ("no engine type", service(engine={"host": "Ray"}), "spec.engine.type: Required value"),
    (
        "a connector of another engine",
        service(transfer={"connector": "SGLang"}),
        "transfer.connector does not fit engine.type: leave it out",
    ),
    (
        "SGLang with Nixl",
        service(engine={"type": "SGLang"}, model={"name": "m", "source": HUB}, transfer={"connector": "Nixl"}),
        "transfer.connector does not fit engine.type: leave it out",
    ),
    (
        "a variable with two values",
        service(engine={"type": "Sim", "env": [{"name": "A", "value": "1", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}}]}),
        "spec.engine.env[0]: Invalid value: a variable takes one of value and valueFrom",
    ),
    (
        "a variable set twice",
        service(engine={"type": "Sim", "env": [{"name": "A", "value": "1"}, {"name": "A", "value": "2"}]}),
        'spec.engine.env[1]: Duplicate value: {"name":"A"}',
    ),
    ("a target of 0 ms", service(slo={"ttftMilliseconds": 0}), "spec.slo.ttftMilliseconds in body should be greater than or equal to 1"),
    ("a target with a fraction", service(slo={"itlMilliseconds": 0.5}), "spec.slo.itlMilliseconds in body must be of type integer"),
    (
        "more than all requests",
        service(slo={"attainmentPercent": 101}),
        "spec.slo.attainmentPercent in body should be less than or equal to 100",
    ),
    (
        "a rollout that cannot move",
        service(rollout={"maxUnavailable": 0, "maxSurge": 0}),
        "maxUnavailable and maxSurge cannot both be 0: the rollout could never take a step",
    ),
    ("a negative drain", service(drain={"deadlineSeconds": -1}), "spec.drain.deadlineSeconds in body should be greater than or equal to 0"),
    (
        "a drain of two days",
        service(drain={"deadlineSeconds": 172_800}),
        "spec.drain.deadlineSeconds in body should be less than or equal to 86400",
    ),
    ("a misspelt field", service(slos={"ttftMilliseconds": 1}), 'unknown field "spec.slos"'),
    ("a name of 37 letters", service(name="l" * 37), "metadata.name: Too long: may not be more than 36 bytes"),
    (
        "a name with a dot",
        service(name="llama.8b"),
        "metadata.name becomes part of other names: lower-case letters, digits and '-', a letter first",
    ),
    (
        "a name that begins with a digit",
        service(name="8b"),
        "metadata.name becomes part of other names: lower-case letters, digits and '-', a letter first",
    ),
]


def create(plane: ControlPlane, namespace: str, manifest: Object) -> Any:
    """What `kubectl create` sends, with kubectl's strict check for unknown fields."""
    path = f"/apis/{manifest['apiVersion']}/namespaces/{namespace}/{manifest['kind'].lower()}s"
    return plane.client.post(path, json=manifest, params={"fieldValidation": "Strict"})


@pytest.mark.parametrize(("manifest", "message"), [row[1:] for row in WRONG], ids=[row[0] for row in WRONG])
def test_a_wrong_manifest_is_refused_in_words_that_help(
    control_plane: ControlPlane, namespace: str, manifest: Object, message: str
) -> None:
    """The API server itself says no, whether the operator runs or not."""
    assert message in refused(create(control_plane, namespace, manifest))


def test_the_manifest_that_the_wrong_ones_differ_from_is_taken(control_plane: ControlPlane, namespace: str) -> None:
    """Else every row of the table might be refused for one and the same reason."""
    accepted(create(control_plane, namespace, service()))


CHANGES: list[tuple[str, Object, str | None]] = [
    ("a pool's role", service(pools=pools(role="Both")), "role cannot be changed: add a pool of another name and remove this one"),
    ("the bounds", service(pools=pools(autoscaling={"minReplicas": 3, "maxReplicas": 2})), "minReplicas must be at most maxReplicas"),
    ("no decode pool left", service(pools=[PREFILL]), "nothing would decode: add a pool with role Decode or Both"),
    ("the pools' order", service(pools=[DECODE, PREFILL]), None),
    ("a pool replaced by one of another role and name", service(pools=[PREFILL, {"name": "both", "role": "Both"}]), None),
    ("the model's revision", service(model={"name": "llama", "revision": "v2"}), None),
]


@pytest.mark.parametrize(("manifest", "message"), [row[1:] for row in CHANGES], ids=[row[0] for row in CHANGES])
def test_a_change_is_judged_by_the_same_rules(control_plane: ControlPlane, namespace: str, manifest: Object, message: str | None) -> None:
    """What cannot be changed says so; what can is not caught by mistake."""
    before = accepted(create(control_plane, namespace, service()))
    after = {**copy.deepcopy(manifest), "metadata": {**before["metadata"], "name": "llama"}}
    answer = control_plane.client.put(control_plane.path_of(after), json=after)
    if message is None:
        accepted(answer)
    else:
        assert message in refused(answer)


WRONG_POOLS: list[tuple[str, Object, str]] = [
    ("a gang without Ray", worker_pool(engine={"type": "Sim", "host": "Process"}, parallelism={"tensor": 2}), "serves replicas of one Pod"),
    (
        "a gang that does not divide",
        worker_pool(parallelism={"tensor": 4}, accelerator={"count": 3}),
        "must be a multiple of accelerator.count",
    ),
    ("an unknown role", worker_pool(role="Draft"), 'supported values: "Prefill", "Decode", "Both"'),
    ("negative replicas", worker_pool(replicas=-1), "should be greater than or equal to 0"),
]


@pytest.mark.parametrize(("manifest", "message"), [row[1:] for row in WRONG_POOLS], ids=[row[0] for row in WRONG_POOLS])
def test_a_worker_pool_written_by_hand_is_checked_too(control_plane: ControlPlane, namespace: str, manifest: Object, message: str) -> None:
    """The rules of a pool hold on both kinds, so an operator cannot render what a user could not write."""
    assert message in refused(create(control_plane, namespace, manifest))


def test_the_role_of_a_worker_pool_stays(control_plane: ControlPlane, namespace: str) -> None:
    """Its running Pods were made for the old role."""
    made = accepted(create(control_plane, namespace, worker_pool()))
    made["spec"]["role"] = "Both"
    assert "role cannot be changed" in refused(control_plane.client.put(control_plane.path_of(made), json=made))
