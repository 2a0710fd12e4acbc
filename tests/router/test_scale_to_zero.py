"""Requests of a model without replicas that is woken when asked for: they are held, counted, bounded, and answered by the first replica."""

import asyncio
import json
from contextlib import asynccontextmanager

from penstock_dataplane.client import Origin
from penstock_kvindex.models import ServedModels
from penstock_kvindex.redis import RedisIndex
from penstock_router.app import Router
from penstock_router.config import RouterConfig
from penstock_router.metrics import registry_of
from prometheus_client import generate_latest

from tests.router.conftest import CHAT, STREAM_HEAD, answer, refuses, says, whole
from tests.router.test_registered import SECRETS, record

COMMENT = b": waiting for a first replica"


@asynccontextmanager
async def asleep(world, url, **settings):
    """A router that knows of one model, without replicas, that is woken; gives it and the model's index, for workers to come."""
    models, index = ServedModels(url), RedisIndex(url, "m", lease_s=600)
    try:
        await models.say_wakeable(["m"])
        world.router = Router(RouterConfig(port=0, redis_url=url, **{"hold_comment_s": 0.05, **settings}), SECRETS)
        world.origin = Origin("http", *await world.router.start())
        directory = world.router.directory
        await world.until(lambda: "m" in directory.models and directory.models["m"].wakeable, "the router knows it")
        yield directory.models["m"], index
    finally:
        await models.aclose()
        await index.aclose()


def body(**fields):
    return json.dumps({"model": "m", "messages": [{"role": "user", "content": "hello"}], **fields}).encode()


def test_held_requests_are_answered_by_the_first_replica(play, make_redis_server):
    """Twenty streams and whole requests, targets long lost: none fails, none is shed; they count as waiting, and the model is listed."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url) as (served, index):
            assert [card["id"] for card in (await world.send("/v1/models", method="GET")).json["data"]] == ["m"]
            assert (await world.send("/readyz", method="GET")).status == 200
            target = {"x-penstock-slo-ttft-ms": "1"}
            asked = [asyncio.ensure_future(world.chat(stream=number % 2 == 0, headers=target)) for number in range(20)]
            await world.until(lambda: served.held == 20, "all are held")
            assert served.waiting == 20
            assert b'penstock_router_held_requests{model="m"} 20.0' in generate_latest(registry_of(world.router.figures))
            first = await world.upstream("first")
            await index.register(record(first, "m"))
            answers = await asyncio.gather(*asked)
            assert [answer.status for answer in answers] == [200] * 20
            assert {answer.text for answer in answers} == {"from first"}
            assert served.held == 0
            assert world.outcomes() == {"ok": 20}

    play(scenario)


def test_the_client_of_a_stream_hears_comments_and_then_the_answer(play, make_redis_server):
    """200 and comments while nothing serves; the answer follows in the same stream, with its request id."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url) as (_, index):
            response = await world.open(CHAT, body(stream=True), {"x-request-id": "early"})
            assert response.status == 200
            headers = dict(response.headers)
            assert (headers[b"content-type"], headers[b"x-request-id"]) == (b"text/event-stream", b"early")
            pieces = aiter(response)
            assert (await anext(pieces)).startswith(COMMENT)
            first = await world.upstream("first")
            await index.register(record(first, "m"))
            events = b"".join([piece async for piece in pieces]).split(b"\n\n")
            words = [json.loads(one[6:])["choices"][0]["delta"]["content"] for one in events if one.startswith(b"data: {")]
            assert "".join(words) == "from first"
            assert events[-2:] == [b"data: [DONE]", b""]

    play(scenario)


def test_what_fails_after_the_wait_is_an_event_of_the_stream(play, make_redis_server):
    """A refusal of the engine, an engine that answers whole, and a first try that fails: two errors in words, and one answer."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url, attempts=1) as (served, index):
            refusing = await world.upstream("refusing")
            refusing.plan = [says(whole(400, b'{"error": {"message": "too long",\n "type": "x", "param": null, "code": null}}'))]
            refusing.plan.append(says(whole(200, b'{"choices": []}')))
            answers = []
            for number in range(2):
                asked = asyncio.ensure_future(world.chat(stream=True))
                await world.until(lambda: served.held == 1, "held")
                await asyncio.wait((asked,), timeout=0.2)  # for a comment to be sent
                lease = await index.register(record(refusing, "m", epoch=number + 1))
                answers.append(await asked)
                await index.leave(lease, number + 1)
                await world.until(lambda: not served.serving, "gone again")
            assert [answer.status for answer in answers] == [200, 200]
            said = [answer.body.split(b"event: error\n")[1] for answer in answers]
            refusal = json.loads(b"".join(line.removeprefix(b"data: ") for line in said[0].splitlines()))
            assert refusal["error"]["message"] == "too long"
            assert b"no endpoint of m could answer" in said[1]
            assert world.outcomes() == {"bad_request": 1, "upstream_failed": 1}

    play(scenario)


def test_a_first_try_that_fails_after_the_wait_is_followed_by_another(play, make_redis_server):
    """The client has heard comments, but no byte of an answer: whichever replica is asked first dies, the other one answers."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url) as (served, index):
            asked: list[str] = []

            async def behave(upstream, seen, writer):
                asked.append(upstream.name)
                if len(asked) == 1:
                    await world.until(lambda: len(served.live) == 2, "the other one is known")
                    writer.write(STREAM_HEAD)
                    await writer.drain()
                    writer.close()
                else:
                    await answer(upstream, seen, writer)

            response = await world.open(CHAT, body(stream=True))
            for name in ("a", "b"):
                upstream = await world.upstream(name)
                upstream.behaviour = behave
                await index.register(record(upstream, "m"))
            data = await response.read()
            assert data.startswith(COMMENT) and data.endswith(b"data: [DONE]\n\n") and b"error" not in data
            assert sorted(asked) == ["a", "b"]
            assert world.outcomes() == {"ok": 1}

    play(scenario)


def test_one_that_meets_the_last_replica_leaving_waits_for_the_next(play, make_redis_server):
    """Refused by a worker that drains, a moment before the registry says so; and sent to one that has ended without a word."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url) as (served, index):
            leaving = await world.upstream("leaving")
            leaving.behaviour = refuses("draining")
            lease = await index.register(record(leaving, "m"))
            await world.until(lambda: served.serving, "the last replica serves")
            asked = [asyncio.ensure_future(world.chat(stream=stream)) for stream in (False, True)]
            await world.until(lambda: len(leaving.seen) == 2, "both have been refused")
            await index.leave(lease, 1)
            await world.until(lambda: served.held == 2, "both are held")
            ended = await world.upstream("ended")
            await ended.stop()
            await index.register(record(ended, "m", epoch=2))
            await world.until(lambda: not served.serving and served.held == 2, "that one is noticed, and they wait on")
            await index.register(record(await world.upstream("next"), "m", epoch=3))
            assert [one.text for one in await asyncio.gather(*asked)] == ["from next"] * 2
            assert world.outcomes() == {"ok": 2}

    play(scenario)


def test_one_that_waits_too_long_is_told_so(play, make_redis_server):
    """A whole request gets 503 with Retry-After, a stream an error event; both are counted as having timed out."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url, hold_s=0.2, hold_whole_s=0.1) as (served, _):
            answer = await world.chat()
            assert (answer.status, answer.error["code"], answer.headers["retry-after"]) == (503, "queue_timeout", "10")
            assert "for a first replica of m; allowed: 0.1 s" in answer.error["message"]
            stream = await world.chat(stream=True)
            assert stream.status == 200 and stream.body.startswith(COMMENT)
            event = stream.body.rpartition(b"event: error\ndata: ")[2]
            assert json.loads(event)["error"]["code"] == "queue_timeout"
            assert served.held == 0 and world.outcomes() == {"queue_timeout": 2}

    play(scenario)


def test_no_more_than_the_bound_are_held_and_one_that_leaves_makes_room(play, make_redis_server):
    """The third of two is refused at once; a client that goes while it is held is forgotten."""

    async def scenario(world):
        async with asleep(world, make_redis_server().url, held_requests_per_model=2) as (served, index):
            stream = await world.open(CHAT, body(stream=True))
            asked = asyncio.ensure_future(world.chat())
            await world.until(lambda: served.held == 2, "both are held")
            third = await world.chat(stream=True)
            assert (third.status, third.error["code"]) == (429, "queue_full")
            assert "2 requests wait for a first replica of m; allowed: 2" in third.error["message"]
            stream.close()
            await world.until(lambda: served.held == 1, "one has left")
            await index.register(record(await world.upstream("first"), "m"))
            assert (await asked).text == "from first"
            assert world.outcomes() == {"ok": 1, "queue_full": 1, "client_gone": 1}

    play(scenario)


def test_without_anybody_who_wakes_it_nothing_is_held(play, make_redis_server):
    """A model whose last worker has gone, and of which no autoscaler has said anything: 503 at once, as ever."""

    async def scenario(world):
        url = make_redis_server().url
        index = RedisIndex(url, "m", lease_s=600)
        try:
            lease = await index.register(record(await world.upstream("only"), "m"))
            world.router = Router(RouterConfig(port=0, redis_url=url), SECRETS)
            world.origin = Origin("http", *await world.router.start())
            directory = world.router.directory
            await world.until(lambda: directory.ready, "found")
            await index.leave(lease, 1)
            await world.until(lambda: not directory.models["m"].live, "gone")
            answer = await world.chat()
            assert (answer.status, answer.error["code"]) == (503, "no_endpoint")
        finally:
            await index.aclose()

    play(scenario)


def test_what_is_said_of_waking_lapses(play, make_redis_server):
    """Redis gives back only what was said within the last minute, by whomever."""

    async def scenario(world):
        server = make_redis_server()
        models = ServedModels(server.url)
        try:
            await models.say_wakeable(["a", "b"])
            assert await models.wakeable() == ("a", "b")
            await models._redis.zincrby("penstock:wakeable", -61_000, "a")
            assert await models.wakeable() == ("b",)
            await models.say_wakeable([])
            await models.say_wakeable(["c"])
            assert await models.wakeable() == ("b", "c")
            assert await models._redis.zcard("penstock:wakeable") == 2
        finally:
            await models.aclose()

    play(scenario)
