"""Answers that are lost, events that come late, and a scale that the operator has not seen yet."""

import pytest
from memory_cluster import MemoryCluster, Operator, model_service
from penstock_operator.api_server import ApiError, Conflict
from penstock_operator.kinds import MODEL_SERVICE, WORKER_POOL


def at_rest() -> tuple[MemoryCluster, Operator]:
    """2P2D with nothing left to do."""
    cluster = MemoryCluster()
    cluster.create(MODEL_SERVICE, model_service())
    operator = Operator(cluster)
    operator.settle()
    return cluster, operator


def test_answers_and_events_that_are_late_make_no_second_pod() -> None:
    """Each write is done but its answer is lost, and no event arrives: the same writes again, by the same names."""
    cluster, operator = at_rest()
    cluster.edit(WORKER_POOL, "llama-decode", lambda raw: raw["spec"].update(replicas=5))
    cluster.hold_events()
    cluster.answers_lost = True
    for _ in range(5):
        with pytest.raises(ApiError):
            operator.step()
    cluster.answers_lost = False
    operator.step()
    assert len(cluster.pods("decode")) == 5
    cluster.deliver_events()
    operator.settle()
    assert cluster.ready("decode") == 5 and cluster.cut == 0


def test_a_scale_that_we_have_not_seen_yet_is_not_undone() -> None:
    """Somebody scales to 5 while a change of the spec is being written from an older view: the write is refused, the 5 stay."""
    cluster, operator = at_rest()
    cluster.edit(MODEL_SERVICE, "llama", lambda raw: raw["spec"].update(slo={"ttftMilliseconds": 900}))
    cluster.hold_events()
    cluster.edit(WORKER_POOL, "llama-decode", lambda raw: raw["spec"].update(replicas=5))
    with pytest.raises(Conflict):
        operator.step()
    cluster.deliver_events()
    operator.settle()
    pool = cluster.objects[WORKER_POOL, "llama-decode"]["spec"]
    assert pool["replicas"] == 5 and pool["slo"]["ttftMilliseconds"] == 900 and cluster.ready("decode") == 5
