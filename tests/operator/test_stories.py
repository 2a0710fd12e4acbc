"""What happens to a ModelService over its life, told step by step on a cluster in memory."""

from collections.abc import Callable
from typing import Any

import pytest
from memory_cluster import MemoryCluster, Operator, model_service
from penstock_operator import names
from penstock_operator.kinds import MODEL_SERVICE, NETWORK_POLICY, POD, REVISION, SECRET, SERVICE, WORKER_POOL

KEY_NAME = "llama"


def image(name: str) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["spec"]["engine"].update(image=name)


def replicas(count: int) -> Callable[[dict[str, Any]], None]:
    return lambda raw: raw["spec"].update(replicas=count)


def condition(cluster: Any, type_: str) -> dict[str, Any]:
    return next(c for c in cluster.objects[MODEL_SERVICE, KEY_NAME]["status"]["conditions"] if c["type"] == type_)


def row(cluster: Any, pool: str) -> dict[str, Any]:
    return next(r for r in cluster.objects[MODEL_SERVICE, KEY_NAME]["status"]["pools"] if r["name"] == pool)


def images(cluster: Any, pool: str) -> list[str]:
    return sorted(raw["spec"]["containers"][0]["image"] for raw in cluster.pods(pool))


@pytest.fixture
def running() -> Any:
    """(cluster, operator) of 2P2D at rest."""
    cluster = MemoryCluster()
    cluster.create(MODEL_SERVICE, model_service())
    operator = Operator(cluster)
    operator.settle()
    return cluster, operator


def test_a_new_service_gets_its_pods_and_says_so(running: Any) -> None:
    """2P2D is created with every child, is Ready, and at rest nothing more is written."""
    cluster, operator = running
    assert (cluster.ready("prefill"), cluster.ready("decode")) == (2, 2)
    assert condition(cluster, "Ready")["status"] == "True"
    assert cluster.objects[MODEL_SERVICE, KEY_NAME]["status"]["decode"] == "2/2"
    for kind, name in (
        (SERVICE, "llama-workers"),
        (NETWORK_POLICY, "llama-workers"),
        (SECRET, "llama-workers"),
        (WORKER_POOL, "llama-decode"),
    ):
        assert (kind, name) in cluster.objects
    written = len(cluster.log)
    for _ in range(5):
        operator.step()
        cluster.tick(700.0)
    assert cluster.log[written:] == []


def test_what_is_deleted_or_edited_by_hand_comes_back(running: Any) -> None:
    """Each child is deleted, then spoilt; a field that somebody else has added stays."""
    cluster, operator = running
    for kind, name in [place for place in cluster.objects if place[0] not in (MODEL_SERVICE, POD, WORKER_POOL)]:
        cluster.take_away(kind, name)
    cluster.tick(700.0)  # the Secret is not watched: it is looked at with each resync
    operator.settle()
    assert (SECRET, "llama-workers") in cluster.objects and (SERVICE, "llama-workers") in cluster.objects
    cluster.edit(SERVICE, "llama-workers", lambda raw: raw["spec"].update(selector={"app": "other"}))
    operator.settle()
    assert cluster.objects[SERVICE, "llama-workers"]["spec"]["selector"] == {names.SERVICE_LABEL: KEY_NAME}
    cluster.edit(SERVICE, "llama-workers", lambda raw: raw["spec"]["selector"].update(narrower="yes"))
    cluster.edit(SERVICE, "llama-workers", lambda raw: raw["metadata"]["annotations"].update(theirs="kept"))
    cluster.edit(POD, cluster.pods("decode")[0]["metadata"]["name"], lambda raw: raw["spec"]["containers"][0].update(image="evil"))
    operator.settle()
    service = cluster.objects[SERVICE, "llama-workers"]
    assert service["spec"]["selector"] == {names.SERVICE_LABEL: KEY_NAME}
    assert service["metadata"]["annotations"]["theirs"] == "kept"
    assert images(cluster, "decode") == ["penstock:1"] * 2
    cluster.take_away(POD, cluster.pods("decode")[0]["metadata"]["name"])
    operator.settle()
    assert cluster.ready("decode") == 2


def test_a_worker_pool_recreated_keeps_its_size(running: Any) -> None:
    """Scaled to 5 and deleted with all its Pods, it comes back with 5, not with the size of the spec."""
    cluster, operator = running
    cluster.edit(WORKER_POOL, "llama-decode", replicas(5))
    operator.settle()
    assert row(cluster, "decode")["desired"] == 5 and cluster.ready("decode") == 5
    cluster.take_away(WORKER_POOL, "llama-decode")
    operator.settle()
    assert cluster.objects[WORKER_POOL, "llama-decode"]["spec"]["replicas"] == 5 and cluster.ready("decode") == 5


def test_the_scale_is_owned_by_whoever_scales(running: Any) -> None:
    """A change of the spec does not undo a scale; a changed start size is applied once."""
    cluster, operator = running
    cluster.edit(WORKER_POOL, "llama-decode", replicas(4))
    operator.settle()
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"].update(slo={"ttftMilliseconds": 900}))
    operator.settle()
    assert cluster.objects[WORKER_POOL, "llama-decode"]["spec"]["replicas"] == 4
    assert cluster.objects[WORKER_POOL, "llama-decode"]["spec"]["slo"]["ttftMilliseconds"] == 900
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"]["pools"][1].update(replicas=3))
    operator.settle()
    assert cluster.ready("decode") == 3
    cluster.edit(WORKER_POOL, "llama-decode", replicas(6))
    operator.settle()
    assert cluster.ready("decode") == 6


def test_an_autoscaled_pool_ignores_a_changed_start_size() -> None:
    """With autoscaling the spec's number counts at the start only, and within the bounds."""
    cluster = MemoryCluster()
    decode = {"name": "decode", "role": "Decode", "replicas": 1, "autoscaling": {"minReplicas": 2, "maxReplicas": 4}}
    cluster.create(MODEL_SERVICE, model_service(pools=[decode]))
    operator = Operator(cluster)
    operator.settle()
    assert cluster.ready("decode") == 2
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"]["pools"][0].update(replicas=4))
    operator.settle()
    assert cluster.ready("decode") == 2


def test_scale_in_drains_the_least_busy_worker_and_cuts_nothing(running: Any) -> None:
    """Of two workers with 5 and 1 streams the second leaves, and only when its stream has ended."""
    cluster, operator = running
    busy, idle = sorted(raw["metadata"]["name"] for raw in cluster.pods("decode"))
    cluster.running = {busy: 5, idle: 1}
    cluster.edit(WORKER_POOL, "llama-decode", replicas(1))
    operator.step()
    for _ in range(5):
        operator.step()
        cluster.tick()
    assert cluster.objects[POD, idle]["metadata"]["annotations"][names.DRAIN_ANNOTATION] == "ScaleIn"
    assert condition(cluster, "Draining")["message"] == "decode 1"
    assert row(cluster, "decode") | {"generation": ""} == {
        "name": "decode",
        "role": "Decode",
        "desired": 1,
        "ready": 1,
        "draining": 1,
        "generation": "",
    }
    cluster.running[idle] = 0
    operator.settle()
    assert [raw["metadata"]["name"] for raw in cluster.pods("decode")] == [busy]
    assert cluster.cut == 0


def test_a_drain_ends_at_its_deadline(running: Any) -> None:
    """A stream that never ends is cut after drain.deadlineSeconds, not before."""
    cluster, operator = running
    cluster.running = dict.fromkeys((raw["metadata"]["name"] for raw in cluster.pods("decode")), 1)
    cluster.edit(WORKER_POOL, "llama-decode", replicas(1))
    began = cluster.now
    while len(cluster.pods("decode")) == 2:
        assert cluster.now < began + 40
        operator.step()
        cluster.tick()
    assert cluster.now >= began + 30 and cluster.cut == 1


def test_a_rollout_keeps_every_role_serving_and_pairs_generations(running: Any) -> None:
    """A new image: one new replica of each role first, never fewer than 2 serving in either, at the end only the new one."""
    cluster, operator = running
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:2"))
    seen: list[tuple[int, int]] = []

    def look() -> None:
        assert cluster.ready("prefill") >= 2 and cluster.ready("decode") >= 2
        assert len(cluster.pods("prefill")) <= 3 and len(cluster.pods("decode")) <= 3
        old = tuple(images(cluster, pool).count("penstock:1") for pool in ("prefill", "decode"))
        new = tuple(images(cluster, pool).count("penstock:2") for pool in ("prefill", "decode"))
        assert 0 not in old or 0 not in new
        seen.append(old)

    operator.settle(each=look)
    assert images(cluster, "prefill") == images(cluster, "decode") == ["penstock:2"] * 2
    assert all(abs(prefill - decode) <= 1 for prefill, decode in seen), "the pools move alternately"
    assert condition(cluster, "Progressing")["reason"] == "Complete"
    assert len([place for place in cluster.objects if place[0] is REVISION]) == 1


@pytest.mark.parametrize(("surge", "unavailable"), [(1, 0), (0, 1), (2, 1), (3, 0)])
@pytest.mark.parametrize("sizes", [(1, 1), (2, 5), (4, 1)])
def test_a_rollout_stays_within_its_limits(surge: int, unavailable: int, sizes: tuple[int, int]) -> None:
    """Whatever the sizes: no more than maxSurge extra, no more than maxUnavailable missing, and it ends."""
    cluster = MemoryCluster()
    pools = [
        {"name": "prefill", "role": "Prefill", "replicas": sizes[0]},
        {"name": "decode", "role": "Decode", "replicas": sizes[1]},
    ]
    cluster.create(MODEL_SERVICE, model_service(pools=pools, rollout={"maxSurge": surge, "maxUnavailable": unavailable}))
    operator = Operator(cluster)
    operator.settle()
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:2"))

    def look() -> None:
        for pool, size in zip(("prefill", "decode"), sizes, strict=True):
            assert cluster.ready(pool) >= size - unavailable
            assert len(cluster.pods(pool)) <= size + surge

    operator.settle(each=look)
    assert images(cluster, "prefill") == ["penstock:2"] * sizes[0] and images(cluster, "decode") == ["penstock:2"] * sizes[1]


def test_a_generation_that_never_serves_stops_at_its_deadline_and_the_old_one_goes_on(running: Any) -> None:
    """A broken image: one new replica a pool, a condition after 600 s, lost old replicas replaced by old ones; a rollback."""
    cluster, operator = running
    cluster.broken_images.add("penstock:bad")
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:bad"))
    for _ in range(70):
        operator.step()
        cluster.tick(10.0)
        assert cluster.ready("prefill") == 2 and cluster.ready("decode") == 2
    verdict = condition(cluster, "Progressing")
    assert verdict["reason"] == "ProgressDeadlineExceeded" and "ImagePullBackOff" in verdict["message"]
    assert condition(cluster, "Ready")["status"] == "True"
    assert images(cluster, "decode") == ["penstock:1", "penstock:1", "penstock:bad"]
    cluster.take_away(
        POD, next(r["metadata"]["name"] for r in cluster.pods("decode") if r["spec"]["containers"][0]["image"] == "penstock:1")
    )
    cluster.edit(WORKER_POOL, "llama-prefill", replicas(3))
    useless = next(raw["metadata"]["name"] for raw in cluster.pods("prefill") if raw["spec"]["containers"][0]["image"] == "penstock:bad")
    cluster.take_away(POD, useless)
    operator.settle()
    assert images(cluster, "prefill").count("penstock:bad") == 0, "what has stopped makes no further attempt"
    assert (cluster.ready("prefill"), cluster.ready("decode")) == (3, 2)
    assert images(cluster, "prefill").count("penstock:1") == 3
    cluster.edit(MODEL_SERVICE, KEY_NAME, image(""))
    operator.settle(each=lambda: None)
    assert images(cluster, "prefill") == ["penstock:1"] * 3 and images(cluster, "decode") == ["penstock:1"] * 2
    assert condition(cluster, "Progressing")["reason"] == "Complete"


def test_a_rollback_in_the_middle_cuts_nothing(running: Any) -> None:
    """The old spec applied again while the pools are mixed: back to the old generation, always 2 serving."""
    cluster, operator = running
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:2"))
    while images(cluster, "decode").count("penstock:1") == 2:
        operator.step()
        cluster.tick()
    cluster.edit(MODEL_SERVICE, KEY_NAME, image(""))

    def look() -> None:
        assert cluster.ready("prefill") >= 2 and cluster.ready("decode") >= 2

    operator.settle(each=look)
    assert images(cluster, "decode") == images(cluster, "prefill") == ["penstock:1"] * 2


def test_a_paused_rollout_stands_still_and_scaling_goes_on(running: Any) -> None:
    """Paused, nothing is replaced; a scale-out is made by the generation that serves."""
    cluster, operator = running
    cluster.edit(
        MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"].update(engine={"type": "Sim", "image": "penstock:2"}, rollout={"paused": True})
    )
    operator.settle()
    assert images(cluster, "decode") == ["penstock:1"] * 2
    assert condition(cluster, "Progressing")["reason"] == "Paused"
    cluster.edit(WORKER_POOL, "llama-decode", replicas(3))
    operator.settle()
    assert images(cluster, "decode") == ["penstock:1"] * 3
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"].update(rollout={"paused": False}))
    operator.settle()
    assert images(cluster, "decode") == ["penstock:2"] * 3


def test_a_gang_is_made_whole_and_serves_only_when_whole() -> None:
    """A replica of four Pods: same replica id, ranks 0 to 3, one leader's name; a lost rank is replaced under its own name."""
    cluster = MemoryCluster()
    pool = {"name": "decode", "role": "Decode", "replicas": 2, "parallelism": {"tensor": 2, "pipeline": 2}}
    cluster.create(MODEL_SERVICE, model_service(pools=[pool]))
    operator = Operator(cluster)
    operator.settle()
    assert len(cluster.pods("decode")) == 8 and row(cluster, "decode")["ready"] == 2
    lost = next(raw["metadata"]["name"] for raw in cluster.pods("decode") if raw["metadata"]["labels"][names.RANK_LABEL] == "3")
    del cluster.objects[POD, lost]
    cluster.fill(operator.cache)
    operator.step()
    assert row(cluster, "decode")["ready"] == 1
    operator.settle()
    assert (POD, lost) in cluster.objects and row(cluster, "decode")["ready"] == 2
    cluster.edit(WORKER_POOL, "llama-decode", replicas(1))
    operator.settle()
    assert len(cluster.pods("decode")) == 4 and len({raw["metadata"]["labels"][names.REPLICA_LABEL] for raw in cluster.pods("decode")}) == 1


def test_a_pool_taken_out_of_the_spec_leaves_when_the_others_serve(running: Any) -> None:
    """A decode pool renamed: the new one serves first, the old one is drained and its WorkerPool deleted."""
    cluster, operator = running
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"]["pools"][1].update(name="decode2"))

    def look() -> None:
        assert cluster.ready("decode") + cluster.ready("decode2") >= 1

    operator.settle(each=look)
    assert cluster.ready("decode2") == 2 and not cluster.pods("decode")
    assert (WORKER_POOL, "llama-decode") not in cluster.objects


def test_a_spec_that_cannot_be_read_touches_nothing(running: Any) -> None:
    """What runs goes on; the condition says what is wrong; a corrected spec goes on from there."""
    cluster, operator = running
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"].update(engine={"type": "Abacus"}))
    operator.settle()
    verdict = condition(cluster, "SpecValid")
    assert verdict["status"] == "False" and "engine.type" in verdict["message"]
    assert condition(cluster, "Ready")["status"] == "True" and cluster.ready("decode") == 2
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["spec"].update(engine={"type": "Sim"}))
    operator.settle()
    assert condition(cluster, "SpecValid")["status"] == "True"


def test_a_refused_pod_is_told_in_the_status_and_does_not_keep_others_back(running: Any) -> None:
    """An image that admission refuses: the old generation is still repaired, the message is the server's."""
    cluster, operator = running
    cluster.refused_images.add("penstock:evil")
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:evil"))
    cluster.take_away(POD, cluster.pods("decode")[0]["metadata"]["name"])
    operator.settle()
    assert cluster.ready("decode") == 2
    assert "not allowed" in condition(cluster, "SpecValid")["message"]
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:2"))
    operator.settle()
    assert condition(cluster, "SpecValid")["status"] == "True" and images(cluster, "decode") == ["penstock:2"] * 2


def test_a_service_that_is_being_deleted_is_left_alone(running: Any) -> None:
    """Nothing is written for it; its Pods drain by their own SIGTERM."""
    cluster, operator = running
    cluster.edit(MODEL_SERVICE, KEY_NAME, lambda raw: raw["metadata"].update(deletionTimestamp="2026-01-01T00:00:00Z"))
    cluster.take_away(POD, cluster.pods("decode")[0]["metadata"]["name"])
    written = len(cluster.log)
    operator.settle()
    assert cluster.log[written:] == []


def test_fifty_changes_of_status_are_not_fifty_writes(running: Any) -> None:
    """Pods that change nothing of what the status says cause no write at all."""
    cluster, operator = running
    written = len(cluster.log)
    name = cluster.pods("decode")[0]["metadata"]["name"]
    for step in range(50):
        cluster.edit(POD, name, lambda raw, step=step: raw["status"].update(hostIP=f"10.0.0.{step}"))
        cluster.edit(POD, name, lambda raw, step=step: raw["metadata"]["annotations"].update(number=str(step)))
        operator.step()
    assert cluster.log[written:] == []


def test_pools_of_different_sizes_move_together() -> None:
    """Two and six: neither pool is a step more ahead of the other than its own replicas force."""
    cluster = MemoryCluster()
    pools = [{"name": "prefill", "role": "Prefill", "replicas": 2}, {"name": "decode", "role": "Decode", "replicas": 6}]
    cluster.create(MODEL_SERVICE, model_service(pools=pools))
    operator = Operator(cluster)
    operator.settle()
    cluster.edit(MODEL_SERVICE, KEY_NAME, image("penstock:2"))

    def look() -> None:
        shares = [images(cluster, pool).count("penstock:1") / size for pool, size in (("prefill", 2), ("decode", 6))]
        assert abs(shares[0] - shares[1]) <= 0.51

    operator.settle(each=look)


def test_a_pool_is_known_by_its_name_whatever_its_labels_say(running: Any) -> None:
    """Somebody spoils the pool label of a WorkerPool by hand: the label comes back on the same object, and no Pod leaves."""
    cluster, operator = running
    before = cluster.objects[WORKER_POOL, "llama-decode"]["metadata"]["uid"]
    pods = {raw["metadata"]["uid"] for raw in cluster.pods("decode")}
    cluster.edit(WORKER_POOL, "llama-decode", lambda raw: raw["metadata"]["labels"].update({names.POOL_LABEL: "spoilt"}))
    operator.settle()
    metadata = cluster.objects[WORKER_POOL, "llama-decode"]["metadata"]
    assert metadata["uid"] == before and metadata["labels"][names.POOL_LABEL] == "decode"
    assert {raw["metadata"]["uid"] for raw in cluster.pods("decode")} == pods
