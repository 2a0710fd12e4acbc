"""Ready Pods beside a real registry: what routers cannot find is named, and so is what has no Pod."""

import asyncio
from collections.abc import Callable
from typing import Any

from penstock_core.endpoint import WorkerRecord
from penstock_kvindex.redis import RedisIndex
from penstock_operator import names
from penstock_operator.cache import Cache
from penstock_operator.conditions import stamp
from penstock_operator.kinds import MODEL_SERVICE, POD
from penstock_operator.observe import Registered
from penstock_operator.registration import SETTLE_S, Registrations, compare
from penstock_operator.status import registered_verdict

KEY = ("team", "llama")
NOW = 1_000_000.0


def pod(uid: str, ready_since: float) -> dict[str, Any]:
    labels = {names.SERVICE_LABEL: "llama", names.POOL_LABEL: "decode", names.RANK_LABEL: "0", names.REPLICA_LABEL: uid}
    metadata = {"name": f"pod-{uid}", "namespace": "team", "uid": uid, "resourceVersion": "5", "labels": labels}
    ready = {"type": "Ready", "status": "True", "lastTransitionTime": stamp(ready_since)}
    return {"metadata": metadata, "status": {"phase": "Running", "podIP": "10.0.0.1", "conditions": [ready]}}


def test_only_what_has_had_time_is_missed() -> None:
    """Ready for a while and not there: missing; just ready: not yet; registered without a Pod: a stray."""
    ready = {KEY: {"a": ("pod-a", NOW - 2 * SETTLE_S), "b": ("pod-b", NOW - 1.0), "c": ("pod-c", NOW - 2 * SETTLE_S)}}
    found = compare(ready, {"a", "b", "c", "starting"}, {"c", "starting", "ghost"}, NOW)
    assert found.missing == {KEY: ("pod-a",)} and found.strays == ("ghost",)


def test_ready_pods_are_compared_with_the_real_registry(
    redis_url: str, unused_model: str, make_record: Callable[..., WorkerRecord]
) -> None:
    """One of two ready Pods has registered; the other is named and its service told; once it registers, that is told too."""
    cache = Cache((MODEL_SERVICE, POD))
    service = {
        "metadata": {"name": "llama", "namespace": "team", "uid": "s", "resourceVersion": "1"},
        "spec": {"model": {"name": unused_model}},
    }
    cache.replace(MODEL_SERVICE, [service], 9)
    cache.replace(POD, [pod("worker-1", NOW - 60.0), pod("worker-2", NOW - 60.0)], 9)
    told: list[tuple[str, str]] = []

    async def story() -> None:
        looking = Registrations(cache, lambda model: RedisIndex(redis_url, model), told.append, lambda: NOW)
        index = RedisIndex(redis_url, unused_model, lease_s=60.0)
        await index.register(make_record(1))
        assert looking.of(KEY) is None
        watching = asyncio.create_task(looking.watch(0.01))
        async with asyncio.timeout(60):
            while looking.of(KEY) != Registered(("pod-worker-2",), ()):  # noqa: ASYNC110 -- the loop is not ours to be woken by
                await asyncio.sleep(0.01)
            assert told == [KEY] and looking.counts == (1, 0)
            await index.register(make_record(2))
            await index.register(make_record(3))
            while looking.of(KEY) != Registered((), ("worker-3",)):  # noqa: ASYNC110 -- as above
                await asyncio.sleep(0.01)
            assert looking.counts == (0, 1) and len(told) >= 2
        watching.cancel()
        await asyncio.wait((watching,))
        await index.aclose()

    asyncio.run(story())


def test_the_status_names_what_is_not_found() -> None:
    """A few by name, the rest as others; what is registered beyond our Pods is told, and is no fault."""
    assert registered_verdict(Registered()).status == "True"
    verdict = registered_verdict(Registered(tuple(f"pod-{number}" for number in range(7))))
    assert verdict.status == "False" and "pod-4 and others" in verdict.message
    verdict = registered_verdict(Registered((), ("ghost",)))
    assert verdict.status == "True" and "without a Pod here: ghost" in verdict.message
    assert "without a Pod here: ghost" in registered_verdict(Registered(("pod-1",), ("ghost",))).message
