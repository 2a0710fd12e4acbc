"""Latency targets of ModelServices: whose count, that they reach a real Redis and stay there, and that they roll nothing."""

import asyncio
from collections.abc import Callable
from typing import Any

from control_plane import accepted, wait_until
from penstock_cli.redis_server import RedisServer
from penstock_core.slo import Slo
from penstock_kvindex.calls import connect
from penstock_kvindex.models import ServedModels
from penstock_operator.cache import Cache
from penstock_operator.feed import Feed
from penstock_operator.kinds import MODEL_SERVICE
from penstock_operator.targets import Targets, targets_of
from test_on_api_server import OURS, Start, View, model_service, view

__all__ = ["view"]  # a fixture


def service(name: str, created: str, model: str, version: int = 1, **slo: Any) -> dict[str, Any]:
    metadata = {"name": name, "namespace": "team", "uid": name, "creationTimestamp": created, "resourceVersion": str(version)}
    return {"metadata": metadata, "spec": {"model": {"name": model}, "slo": slo}}


def test_the_oldest_of_those_that_serve_a_model_says() -> None:
    """By time, then by name; one that cannot be read is passed over, and what it does not say is as the resource's default."""
    young = service("a", "2026-01-02T00:00:00Z", "llama", ttftMilliseconds=100)
    old = service("b", "2026-01-01T00:00:00Z", "llama", ttftMilliseconds=900, itlMilliseconds=20)
    same = service("c", "2026-01-01T00:00:00Z", "llama", ttftMilliseconds=300)
    spoilt = service("d", "2025-01-01T00:00:00Z", "llama", ttftMilliseconds=-1)
    empty = {"metadata": spoilt["metadata"], "spec": {}}
    assert targets_of([young, same, spoilt, old, empty]) == {"llama": Slo(0.9, 0.02)}
    assert targets_of([young, service("e", "", "other")]) == {"llama": Slo(0.1, 0.05), "other": Slo(0.5, 0.05)}


def test_targets_lost_by_redis_are_written_again(make_redis_server: Callable[[], RedisServer]) -> None:
    """Emptied while nothing changes here; and a change is written at once, however long the next look would be."""
    server = make_redis_server()
    cache = Cache((MODEL_SERVICE,))
    cache.replace(MODEL_SERVICE, [service("a", "", "llama", ttftMilliseconds=100)], 1)

    async def story() -> None:
        redis, feed = connect(server.url, 2.0), Feed(cache, lambda *_: None)
        models = ServedModels(server.url, client=redis)

        async def there(ttft_s: float) -> None:
            async with asyncio.timeout(60):
                while await models.targets(("llama",)) != {"llama": Slo(ttft_s, 0.05)}:  # noqa: ASYNC110 -- Redis has no event for it
                    await asyncio.sleep(0.02)

        keeping = asyncio.create_task(Targets(cache, models, feed.services).keep(0.05))
        await there(0.1)
        await redis.flushall()
        await there(0.1)
        keeping.cancel()
        await asyncio.wait((keeping,))
        keeping = asyncio.create_task(Targets(cache, models, feed.services).keep(3_600.0))
        feed.changed(MODEL_SERVICE, [("MODIFIED", service("a", "", "llama", version=2, ttftMilliseconds=200))])
        await there(0.2)
        feed.changed(MODEL_SERVICE, [("MODIFIED", service("a", "", "llama", version=3, ttftMilliseconds=300))])
        await there(0.3)
        feed.listed(MODEL_SERVICE, [service("a", "", "llama", version=4, ttftMilliseconds=400)], 5)
        await there(0.4)
        keeping.cancel()
        await asyncio.wait((keeping,))
        await redis.aclose()

    asyncio.run(story())


def test_the_slo_of_a_model_service_reaches_redis_and_rolls_no_pod(
    view: View, start_operator: Start, make_redis_server: Callable[[], RedisServer]
) -> None:
    """Applied, changed, deleted, on the real API server: Redis follows, and the Pods are the same ones before and after the change."""
    url = make_redis_server().url

    def targets() -> dict[str, Slo]:
        async def read() -> dict[str, Slo]:
            models = ServedModels(url)
            try:
                return await models.targets(("llama",))
            finally:
                await models.aclose()

        return asyncio.run(read())

    def pods() -> set[str]:
        return {raw["metadata"]["uid"] for raw in view.pods()}

    operator = start_operator(view.plane, namespace=view.namespace, watch_namespace=view.namespace, redis_url=url)
    operator.wait_leading()
    accepted(view.plane.apply(model_service(view.namespace)))
    view.wait_ready()
    wait_until("the defaults", lambda: targets() == {"llama": Slo(0.5, 0.05)})
    before = pods()
    changed = accepted(view.plane.apply(model_service(view.namespace, slo={"ttftMilliseconds": 900, "itlMilliseconds": 25})))
    wait_until("the change", lambda: targets() == {"llama": Slo(0.9, 0.025)})
    generation = changed["metadata"]["generation"]
    wait_until("seen", lambda: view.service().get("status", {}).get("observedGeneration") == generation)
    wait_until("complete", lambda: view.condition("Progressing")["reason"] == "Complete")
    assert pods() == before
    accepted(view.plane.client.delete(f"{OURS}/namespaces/{view.namespace}/modelservices/llama"))
    wait_until("gone", lambda: targets() == {})
