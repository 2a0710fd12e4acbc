"""Requests that wait for room in a real router: order, priority, tenants, leaving, time-outs, draining, and what `explain` shows."""

import asyncio
import json

from penstock_router.metrics import registry_of
from prometheus_client import generate_latest

from tests.router.conftest import CHAT, waits_for


def words(world) -> list[str]:
    """What the upstream was asked, in order."""
    return [seen.body["messages"][0]["content"] for seen in world.upstreams[0].seen]


async def one_at_a_time(world, **settings):
    """A router that lets one request start at a time, and the event that ends the first; the others wait."""
    one = await world.upstream("a")
    gate = asyncio.Event()
    one.plan = [waits_for(gate)]
    router = await world.start_router(one.url, active_requests_per_model=1, **settings)
    first = asyncio.ensure_future(world.chat("first"))
    await world.until(lambda: len(one.seen) == 1, "first request")
    return router, gate, first


def queued(router) -> int:
    return router.directory.models["m"].waiting


async def wait_for_room(world, router, *asked) -> list[asyncio.Future]:
    """Requests sent one after the other, each in the line before the next."""
    tasks = []
    for content, headers in asked:
        before = queued(router)
        tasks.append(asyncio.ensure_future(world.chat(content, headers=headers)))
        await world.until(lambda before=before: queued(router) == before + 1, f"{content} waits")
    return tasks


def test_requests_wait_for_room_and_the_higher_priority_goes_first(play):
    """The later and more important one overtakes; both are answered, and the metrics and `explain` show that they waited."""

    async def scenario(world):
        router, gate, first = await one_at_a_time(world)
        tasks = await wait_for_room(world, router, ("plain", None), ("important", {"x-penstock-priority": "10"}))
        assert b'penstock_router_queued_requests{model="m"} 2.0' in generate_latest(registry_of(router.figures))
        gate.set()
        assert [answer.status for answer in await asyncio.gather(first, *tasks)] == [200] * 3
        assert words(world) == ["first", "important", "plain"]
        kept = (await world.send("/admin/decisions", method="GET")).json["decisions"]
        assert [one["priority"] for one in kept] == [0, 10, 0]
        assert all(one["queued_s"] > 0.0 for one in kept[:2])
        assert queued(router) == 0

    play(scenario)


def test_a_client_that_leaves_while_it_waits_leaves_the_queue_at_once(play):
    """It is never placed, its place is free, and the next one is served."""

    async def scenario(world):
        router, gate, first = await one_at_a_time(world)
        body = json.dumps({"model": "m", "messages": [{"role": "user", "content": "gone"}]}).encode()
        reader, writer = await asyncio.open_connection(world.origin.host, world.origin.port)
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await world.until(lambda: queued(router) == 1, "it waits")
        writer.close()
        await world.until(lambda: queued(router) == 0, "it has left")
        assert router.director._admission.active == 1
        (task,) = await wait_for_room(world, router, ("next", None))
        gate.set()
        assert [answer.status for answer in await asyncio.gather(first, task)] == [200, 200]
        assert words(world) == ["first", "next"]
        assert world.outcomes() == {"ok": 2, "client_gone": 1}
        assert await reader.read() == b""

    play(scenario)


def test_one_that_waits_too_long_is_503_queue_timeout(play):
    """With a Retry-After, counted, and in `explain` with the reason."""

    async def scenario(world):
        router, gate, first = await one_at_a_time(world, queue_timeout_s=0.2, shed_up_to_priority=-101)
        answer = await world.chat("second", headers={"x-request-id": "late"})
        assert (answer.status, answer.error["code"]) == (503, "queue_timeout")
        assert "allowed: 0.2 s" in answer.error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        (kept,) = (await world.send("/admin/decisions?request_id=late", method="GET")).json["decisions"]
        assert (kept["outcome"], kept["queued_s"]) == ("queue_timeout", None)
        assert kept["turned"]["retry_after_s"] == int(answer.headers["retry-after"])
        assert "placement" not in kept
        gate.set()
        assert (await first).status == 200
        assert world.outcomes() == {"ok": 1, "queue_timeout": 1}
        assert queued(router) == 0

    play(scenario)


def test_a_sheddable_request_is_429_when_its_target_has_passed(play):
    """A target of 0.2 s, patience 2: after 0.4 s in the line it is told so, and its target is named."""

    async def scenario(world):
        _, gate, first = await one_at_a_time(world)
        answer = await world.chat("second", headers={"x-penstock-slo-ttft-ms": "200"})
        assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "shed", "rate_limit_error")
        assert "0.2 s" in answer.error["message"]
        assert 1 <= int(answer.headers["retry-after"]) <= 60
        gate.set()
        assert (await first).status == 200
        assert world.outcomes() == {"ok": 1, "shed": 1}

    play(scenario)


def test_a_full_queue_is_429(play):
    """One may wait; of two the one with more slack is turned away, and the other is served."""

    async def scenario(world):
        router, gate, first = await one_at_a_time(world, queued_requests_per_model=1, shed_up_to_priority=-101)
        (second,) = await wait_for_room(world, router, ("second", None))
        third = await world.chat("third")
        assert (third.status, third.error["code"]) == (429, "queue_full")
        assert "allowed: 1" in third.error["message"]
        gate.set()
        assert [answer.status for answer in await asyncio.gather(first, second)] == [200, 200]
        assert words(world) == ["first", "second"]

    play(scenario)


def test_tenants_take_turns_and_weights_count(play, tmp_path):
    """Six of a heavy tenant wait, then two of a light one of twice the weight: these do not wait for all six."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("sk-heavy: {tenant: heavy}\nsk-light: {tenant: light, weight: 2}\n")

    async def scenario(world):
        one = await world.upstream("a")
        gate = asyncio.Event()
        one.plan = [waits_for(gate)]
        router = await world.start_router(one.url, active_requests_per_model=1, api_keys=str(keys), shed_up_to_priority=-101)
        heavy, light = {"authorization": "Bearer sk-heavy"}, {"authorization": "Bearer sk-light"}
        first = asyncio.ensure_future(world.chat("first", headers=heavy))
        await world.until(lambda: len(one.seen) == 1, "first request")
        asked = [(f"heavy{number}", heavy) for number in range(6)] + [("light0", light), ("light1", light)]
        tasks = await wait_for_room(world, router, *asked)
        gate.set()
        assert {answer.status for answer in await asyncio.gather(first, *tasks)} == {200}
        assert words(world).index("light1") <= 3

    play(scenario)


def test_a_tenant_over_its_quota_is_429_and_others_are_served(play, tmp_path):
    """Bound on requests at once: the message says how many are allowed; the other tenant does not notice."""
    keys = tmp_path / "keys.yaml"
    keys.write_text("sk-small: {tenant: small, most_requests: 1}\nsk-other: {tenant: other}\n")

    async def scenario(world):
        one = await world.upstream("a")
        gate = asyncio.Event()
        one.plan = [waits_for(gate)]
        await world.start_router(one.url, api_keys=str(keys))
        small, other = {"authorization": "Bearer sk-small"}, {"authorization": "Bearer sk-other"}
        first = asyncio.ensure_future(world.chat(headers=small))
        await world.until(lambda: len(one.seen) == 1, "first request")
        answer = await world.chat(headers=small)
        assert (answer.status, answer.error["code"]) == (429, "tenant_over_quota")
        assert "allowed: 1" in answer.error["message"] and "retry-after" in answer.headers
        assert (await world.chat(headers=other)).status == 200
        gate.set()
        assert (await first).status == 200
        assert (await world.chat(headers=small)).status == 200
        assert world.outcomes() == {"ok": 3, "tenant_over_quota": 1}

    play(scenario)


def test_a_drain_serves_those_that_wait(play):
    """SIGTERM's way: what waits is still placed and answered, and nothing is cut."""

    async def scenario(world):
        router, gate, first = await one_at_a_time(world)
        tasks = await wait_for_room(world, router, ("second", None), ("third", None))
        draining = asyncio.ensure_future(router.drain())
        await world.until(lambda: router.server.draining, "the drain has begun")
        gate.set()
        assert [answer.status for answer in await asyncio.gather(first, *tasks)] == [200] * 3
        assert await draining

    play(scenario)


def test_a_close_ends_those_that_wait(play):
    """Cut at once, and nothing is left behind: no task, no timer that fires later, no place in the queue."""

    async def scenario(world):
        router, gate, first = await one_at_a_time(world)
        tasks = await wait_for_room(world, router, ("second", None))
        await router.close()
        ended = await asyncio.gather(first, *tasks, return_exceptions=True)
        assert all(isinstance(one, Exception) for one in ended)
        assert queued(router) == 0
        gate.set()

    play(scenario)
