"""Who sizes a pool, and what a changed or lost secret does, told on a cluster in memory."""

from typing import Any

import msgspec
import pytest
from memory_cluster import SECRETS, MemoryCluster, Operator, model_service
from penstock_operator import names
from penstock_operator.kinds import MODEL_SERVICE, POD, SECRET, WORKER_POOL


def scaling(cluster: Any) -> tuple[str, str]:
    """Status and reason of ScalingActive."""
    conditions = cluster.objects[MODEL_SERVICE, "llama"]["status"]["conditions"]
    found = next(condition for condition in conditions if condition["type"] == "ScalingActive")
    return found["status"], found["reason"]


def at_rest(**spec: Any) -> tuple[MemoryCluster, Operator]:
    cluster = MemoryCluster()
    cluster.create(MODEL_SERVICE, model_service(**spec))
    operator = Operator(cluster)
    operator.settle()
    return cluster, operator


@pytest.mark.parametrize(
    ("replicas", "said"),
    [(3, ("True", "WithinBounds")), (9, ("False", "OutOfBounds")), (0, ("False", "ScaledToZero")), (1, ("False", "OutOfBounds"))],
)
def test_scaling_is_active_within_the_bounds(replicas: int, said: tuple[str, str]) -> None:
    """A size that somebody has set beyond the autoscaler's bounds, and 0, are told."""
    decode = {"name": "decode", "role": "Decode", "replicas": 2, "autoscaling": {"minReplicas": 2, "maxReplicas": 4}}
    cluster, operator = at_rest(pools=[decode])
    assert scaling(cluster) == ("True", "WithinBounds")
    cluster.edit(WORKER_POOL, "llama-decode", lambda raw: raw["spec"].update(replicas=replicas))
    operator.settle()
    assert scaling(cluster) == said


def test_a_pause_is_told() -> None:
    """Whatever the sizes."""
    decode = {"name": "decode", "role": "Decode", "autoscaling": {"maxReplicas": 4}}
    assert scaling(at_rest(pools=[decode], scaling={"paused": True})[0]) == ("False", "Paused")


def test_asleep_within_its_bounds_is_ready_and_scaled_to_zero_by_hand_is_not() -> None:
    """Where one pool must have a replica, no request wakes the other."""
    for least, said in ((0, ("True", "Asleep")), (1, ("False", "ScaledToZero"))):
        pools = [
            {"name": "prefill", "role": "Prefill", "autoscaling": {"minReplicas": least, "maxReplicas": 2}},
            {"name": "decode", "role": "Decode", "autoscaling": {"minReplicas": 0, "maxReplicas": 2}},
        ]
        cluster, operator = at_rest(pools=pools)
        for name in ("llama-prefill", "llama-decode"):
            cluster.edit(WORKER_POOL, name, lambda raw: raw["spec"].update(replicas=0))
        operator.settle()
        conditions = cluster.objects[MODEL_SERVICE, "llama"]["status"]["conditions"]
        assert [(one["status"], one["reason"]) for one in conditions if one["type"] == "Ready"] == [said]
        assert scaling(cluster) == (("True", "WithinBounds") if least == 0 else ("False", "ScaledToZero"))


def test_scaling_by_hand_only_is_no_autoscaling() -> None:
    """No pool names bounds."""
    assert scaling(at_rest()[0]) == ("False", "NotConfigured")


def test_a_changed_secret_rolls_the_pods_without_a_gap() -> None:
    """An operator with a new fleet token: new Secret, new Pods one by one, the same KV generation, never fewer than two serve."""
    cluster, operator = at_rest()
    before = {raw["metadata"]["labels"][names.KV_GENERATION_LABEL] for raw in cluster.pods()}
    old = {raw["metadata"]["uid"] for raw in cluster.pods()}
    token = cluster.objects[SECRET, "llama-workers"]["data"]["fleet-token"]
    operator = Operator(cluster, secrets=msgspec.structs.replace(SECRETS, fleet_token="n" * 32))

    def look() -> None:
        assert cluster.ready("prefill") >= 2 and cluster.ready("decode") >= 2

    operator.settle(each=look)
    assert cluster.objects[SECRET, "llama-workers"]["data"]["fleet-token"] != token
    assert not old & {raw["metadata"]["uid"] for raw in cluster.pods()} and cluster.ready("decode") == 2
    assert {raw["metadata"]["labels"][names.KV_GENERATION_LABEL] for raw in cluster.pods()} == before


def test_no_pod_is_made_without_its_secret() -> None:
    """The Secret is deleted by hand, and then a Pod: the Secret is back before the Pod is."""
    cluster, operator = at_rest()
    cluster.take_away(SECRET, "llama-workers")
    cluster.take_away(POD, cluster.pods("decode")[0]["metadata"]["name"])
    cluster.tick(10.0)
    written = len(cluster.log)
    operator.settle()
    assert [line for line in cluster.log[written:] if line.startswith("apply")][:2][0] == "apply Secret llama-workers"
    assert cluster.ready("decode") == 2
