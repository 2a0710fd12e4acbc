"""The operator is ended after every single write, and started anew with nothing but what the API server holds."""

import contextlib
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from memory_cluster import Crash, MemoryCluster, Operator, model_service
from penstock_operator import names
from penstock_operator.api_server import ApiError
from penstock_operator.kinds import MODEL_SERVICE, POD, WORKER_POOL

SERVICE = "llama"


def create(cluster: Any) -> None:
    """Nothing: the ModelService is there, and that is all."""


def scale_out(cluster: Any) -> None:
    cluster.edit(WORKER_POOL, "llama-decode", lambda raw: raw["spec"].update(replicas=4))


def scale_in(cluster: Any) -> None:
    cluster.edit(WORKER_POOL, "llama-prefill", lambda raw: raw["spec"].update(replicas=1))


def roll_out(cluster: Any) -> None:
    cluster.edit(MODEL_SERVICE, SERVICE, lambda raw: raw["spec"]["engine"].update(image="penstock:2"))


def rename(cluster: Any) -> None:
    cluster.edit(MODEL_SERVICE, SERVICE, lambda raw: raw["spec"]["pools"][1].update(name="decode2"))


def scale_gangs_in(cluster: Any) -> None:
    cluster.edit(WORKER_POOL, "llama-decode", lambda raw: raw["spec"].update(replicas=1))


def lose_a_follower(cluster: Any) -> None:
    """Somebody deletes one Pod of a gang: the whole replica leaves, and another takes its place."""
    cluster.take_away(
        POD, next(raw["metadata"]["name"] for raw in cluster.pods("decode") if raw["metadata"]["labels"][names.RANK_LABEL] == "2")
    )


def roll_gangs_out(cluster: Any) -> None:
    roll_out(cluster)


GANGS = (scale_gangs_in, lose_a_follower, roll_gangs_out)


def prepared(change: Any) -> Any:
    """A cluster at the moment of the change."""
    cluster = MemoryCluster()
    spanning = {"name": "decode", "role": "Decode", "replicas": 2, "parallelism": {"tensor": 3}}
    pools = {"pools": [{"name": "prefill", "role": "Prefill"}, spanning]} if change in GANGS else {}
    cluster.create(MODEL_SERVICE, model_service(**pools))
    if change is not create:
        Operator(cluster).settle()
    change(cluster)
    return cluster


def end_state(cluster: Any) -> dict[str, Any]:
    """What counts: each object but Pods with its spec, the Pods by pool and generation, the status without times."""
    found: dict[str, Any] = {}
    for (kind, name), raw in cluster.objects.items():
        if kind is not POD:
            found[f"{kind.kind}/{name}"] = raw.get("spec") or raw.get("data")
    found["pods"] = sorted(
        (raw["metadata"]["labels"][names.POOL_LABEL], raw["metadata"]["labels"][names.TEMPLATE_HASH_LABEL]) for raw in cluster.pods()
    )
    status = cluster.objects[MODEL_SERVICE, SERVICE]["status"]
    found["status"] = status | {"conditions": [c | {"lastTransitionTime": ""} for c in status["conditions"]]}
    return found


@pytest.mark.parametrize("after_effect", [True, False], ids=["after-the-write", "before-the-write"])
@pytest.mark.parametrize("change", [create, scale_out, scale_in, roll_out, rename, *GANGS])
def test_an_operator_ended_at_any_write_leaves_the_same_end_state(change: Any, after_effect: bool) -> None:
    """For each write of the whole story: end there, start anew, and the end is the same, with not one Pod more than needed."""
    whole = prepared(change)
    before = len(whole.log)
    Operator(whole).settle()
    wanted, writes = end_state(whole), len(whole.log) - before
    made = sum(line.startswith("apply Pod") for line in whole.log)
    assert writes >= 4
    for number in range(1, writes + 1):
        cluster = prepared(change)
        cluster.crash_at, cluster.crash_after_effect = before + number - (not after_effect), after_effect
        with pytest.raises(Crash):
            Operator(cluster).settle(each=lambda cluster=cluster: serving(cluster, change))
        cluster.crash_at = None
        Operator(cluster).settle(each=lambda cluster=cluster: serving(cluster, change))
        assert end_state(cluster) == wanted, f"ended at write {number}: {cluster.log[before + number - 1]}"
        assert cluster.born <= whole.born, f"ended at write {number}: more objects were made than in one go ({made} Pod writes)"
        assert cluster.cut == 0


def delete(cluster: Any) -> None:
    """What the API server does with a ModelService without finalizer: it is gone, and the garbage collector follows."""
    cluster.take_away(MODEL_SERVICE, SERVICE)


@pytest.mark.parametrize("change", [create, roll_out, lose_a_follower])
def test_a_deletion_after_any_write_leaves_nothing(change: Any) -> None:
    """Deleted after each write of another story, with the operator ended there or living on unaware: in the end nothing is left."""
    whole = prepared(change)
    before = len(whole.log)
    Operator(whole).settle()
    for number in range(1, len(whole.log) - before + 1):
        for lives_on in (False, True):
            cluster = prepared(change)
            cluster.crash_at = before + number
            operator = Operator(cluster)
            with pytest.raises(Crash):
                operator.settle()
            cluster.crash_at = None
            cluster.hold_events()  # it has not heard of the deletion yet, and goes on writing
            delete(cluster)
            if lives_on:
                with contextlib.suppress(ApiError):
                    operator.step()
            cluster.deliver_events()
            operator = operator if lives_on else Operator(cluster)
            operator.settle()
            assert cluster.objects == {}, f"deleted after write {number}: {cluster.log[before + number - 1 :]}"


def serving(cluster: Any, change: Any) -> None:
    """Nothing but a creation ever leaves a role without a replica."""
    if change is not create:
        assert cluster.ready("prefill") >= 1
        assert cluster.ready("decode") + cluster.ready("decode2") >= 1


EDITS = st.lists(
    st.one_of(
        st.tuples(st.just("image"), st.sampled_from(["", "penstock:2", "penstock:3", "penstock:bad"])),
        st.tuples(st.sampled_from(["prefill", "decode"]), st.integers(0, 4)),
        st.tuples(st.just("lose"), st.integers(0, 20)),
        st.tuples(st.just("paused"), st.booleans()),
        st.tuples(st.just("steps"), st.integers(1, 4)),
        st.tuples(st.just("crash"), st.integers(1, 6)),
    ),
    max_size=12,
)


@settings(max_examples=150, deadline=None)
@given(edits=EDITS)
def test_any_history_ends_as_if_there_had_been_none(edits: list[tuple[str, Any]]) -> None:
    """Images, sizes, lost Pods, pauses and crashes in any order: at rest it is what the last spec says, and planning again is empty."""
    cluster = MemoryCluster()
    cluster.broken_images.add("penstock:bad")
    cluster.create(MODEL_SERVICE, model_service())
    operator = Operator(cluster)
    for what, value in [*edits, ("image", "penstock:2"), ("paused", False)]:
        if what == "image":
            cluster.edit(MODEL_SERVICE, SERVICE, lambda raw, value=value: raw["spec"]["engine"].update(image=value))
        elif what == "paused":
            cluster.edit(MODEL_SERVICE, SERVICE, lambda raw, value=value: raw["spec"].update(rollout={"paused": value}))
        elif what in ("prefill", "decode") and (WORKER_POOL, f"llama-{what}") in cluster.objects:
            cluster.edit(WORKER_POOL, f"llama-{what}", lambda raw, value=value: raw["spec"].update(replicas=value))
        elif what == "lose" and cluster.pods():
            pods = sorted(raw["metadata"]["name"] for raw in cluster.pods())
            cluster.take_away(POD, pods[value % len(pods)])
        elif what == "crash":
            cluster.crash_at = len(cluster.log) + value
        for _ in range(value if what == "steps" else 1):
            try:
                operator.step()
            except Crash:
                cluster.crash_at = None
                operator = Operator(cluster)
            cluster.tick()
    cluster.crash_at = None
    operator = Operator(cluster)
    operator.settle()
    for pool in ("prefill", "decode"):
        wanted = cluster.objects[WORKER_POOL, f"llama-{pool}"]["spec"]["replicas"]
        assert [raw["spec"]["containers"][0]["image"] for raw in cluster.pods(pool)] == ["penstock:2"] * wanted
    written = len(cluster.log)
    Operator(cluster).settle()
    assert cluster.log[written:] == [], "planning again on the result is not empty"
