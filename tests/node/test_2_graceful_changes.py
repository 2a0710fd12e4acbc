"""Everything that is done on purpose, under 50 streams: no stream is cut, no request fails, no answer mixes two KV generations."""

import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager

import pytest
from installed import Penstock, ServedModel
from stream_clients import Ending, StreamClients, failures

UnderLoad = Callable[[], AbstractContextManager[list[Ending]]]
AFTERWARDS = 60
"""Requests that must end well after the change is complete."""


@pytest.fixture
def under_load(penstock: Penstock, sim: ServedModel, say: Callable[[str], None], request: pytest.FixtureRequest) -> UnderLoad:
    """`with under_load() as endings:` do something and wait for its end; then `endings` holds every request's, and all went well."""

    @contextmanager
    def loaded() -> Iterator[list[Ending]]:
        endings: list[Ending] = []
        generations = sim.generations()
        with StreamClients(penstock.url, "sim") as clients:
            clients.wait_under_way()
            began_s = time.monotonic()
            yield endings
            took_s = time.monotonic() - began_s
            generations |= sim.generations()
            clients.wait_finished(AFTERWARDS)
            endings += clients.stop()
        say(f"node: {request.node.name}: {len(endings)} streams, complete after {took_s:.0f} s")
        assert failures(endings) == []
        assert [ending.refused for ending in endings if ending.refused] == [], "a connection was refused"
        assert [ending for ending in endings if ending.written_by(generations) is None] == [], f"not of one of {generations}"

    return loaded


def cut_across(endings: list[Ending], moment_s: float) -> list[Ending]:
    """Those that ran at that moment."""
    return [ending for ending in endings if ending.began_s < moment_s < ending.ended_s]


def test_the_decode_pool_shrinks_from_three_to_one(sim: ServedModel, under_load: UnderLoad) -> None:
    """`kubectl scale`: the two that leave finish their streams first."""
    leaving = {pod["metadata"]["uid"] for pod in sim.pods("decode")}
    with under_load() as endings:
        moment_s = time.monotonic()
        sim.scale("decode", 1)
        sim.wait_settled(decode=1)
    leaving -= {pod["metadata"]["uid"] for pod in sim.pods("decode")}
    assert len(leaving) == 2
    assert [ending for ending in cut_across(endings, moment_s) if ending.worker("decode") in leaving], "no stream ran on them"


def test_a_rollout_to_another_kv_generation_and_back(sim: ServedModel, under_load: UnderLoad) -> None:
    """Both generations serve for a while; every answer is of one of them, whole. The way back is another rollout."""
    first = sim.generations()
    with under_load():
        sim.patch({"model": {"revision": "v2"}})
        sim.wait_settled()
    second = sim.generations()
    assert not first & second
    with under_load() as endings:
        sim.patch({"model": {"revision": None}})
        sim.wait_settled()
    assert sim.generations() == first
    assert {ending.written_by(first | second) for ending in endings} == first | second, "both were to answer"


@pytest.mark.parametrize("pool", ["prefill", "decode"])
def test_a_worker_pod_is_deleted(penstock: Penstock, sim: ServedModel, under_load: UnderLoad, pool: str) -> None:
    """`kubectl delete pod`: it drains in its grace period, and another takes its place."""
    victim = sim.pods(pool)[0]
    with under_load() as endings:
        moment_s = time.monotonic()
        penstock.delete_pod(victim)
        penstock.wait_gone(victim)
        sim.wait_settled(prefill=1, decode=3)
    assert [ending for ending in cut_across(endings, moment_s) if ending.worker(pool) == victim["metadata"]["uid"]], "no stream ran on it"


@pytest.mark.parametrize("component", ["router", "redis", "operator"])
def test_a_pod_of_the_release_is_deleted(penstock: Penstock, under_load: UnderLoad, component: str) -> None:
    """A router finishes its streams and gets no new ones; the index is published anew; nothing hangs on the operator."""
    victim = penstock.pods(component)[0]
    with under_load():
        if component == "router":
            assert penstock.metric([victim], "penstock_router_active_requests") > 0
        penstock.delete_pod(victim)
        penstock.wait_replaced(victim)


def test_helm_upgrade_replaces_every_component(penstock: Penstock, sim: ServedModel, under_load: UnderLoad) -> None:
    """Another image: routers, Redis, operator and all workers are others afterwards."""
    before = {pod["metadata"]["uid"] for pod in (*penstock.pods(), *sim.pods())}
    with under_load():
        penstock.upgrade_everything()
        penstock.wait_available()
        sim.wait_settled(prefill=1, decode=3)
    assert not before & {pod["metadata"]["uid"] for pod in (*penstock.pods(), *sim.pods())}
