"""What goes wrong on either side of the router: upstreams that break, clients that dawdle or leave."""

import asyncio
import json

import pytest

from tests.router.conftest import CHAT, STREAM_HEAD, delta, event, piece, says, waits_for, whole

FAILURES = {
    "connection_lost": says(b"HTTP/1.1 200 O", close=True),
    "garbage": says(b"EHLO nonsense\r\n\r\n", close=True),
    "server_error": says(whole(500, b"<html>oops</html>", kind="text/html")),
    "busy": says(whole(408, b"{}")),
    "html_with_200": says(whole(200, b"<html>welcome</html>", kind="text/html")),
    "html_with_404": says(whole(404, b"<html>no such page</html>", kind="text/html")),
    "nothing_with_200": says(whole(200, b"")),
    "mid_body": says(whole(200, b'{"cut": 1}')[:-3], close=True),
    "empty_stream": says(STREAM_HEAD + b"0\r\n\r\n"),
    "cut_before_first_byte": says(STREAM_HEAD, close=True),
}


@pytest.mark.parametrize("kind", FAILURES)
def test_an_upstream_that_fails_everywhere_is_502_in_json(play, kind):
    """After all attempts: 502, OpenAI's form even where the upstream spoke HTML, and the number of placements tried."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        for one in ones:
            one.behaviour = FAILURES[kind]
        router = await world.start_router(*(one.url for one in ones))
        answer = await world.chat(stream=kind in ("empty_stream", "cut_before_first_byte"))
        assert (answer.status, answer.error["code"], answer.error["type"]) == (502, "upstream_failed", "api_error")
        assert "2 placements tried" in answer.error["message"] and b"html" not in answer.body
        assert not any(word.encode() in answer.body for word in (*(one.url.rpartition("/")[2] for one in ones), "EHLO"))
        assert sorted(len(one.seen) for one in ones) == [1, 1]
        assert sum(router.figures.retries.values()) == 1 and world.outcomes() == {"upstream_failed": 1}

    play(scenario)


def test_when_every_upstream_has_too_many_requests_it_is_429_with_the_soonest_retry_after(play):
    """Not the router's failure and not the upstreams': the client is told when the first of them wants to be asked again."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        for one, seconds in zip(ones, (30, 7), strict=True):
            one.behaviour = says(whole(429, b"{}", f"retry-after: {seconds}"))
        await world.start_router(*(one.url for one in ones))
        answer = await world.chat()
        assert (answer.status, answer.error["code"], answer.error["type"]) == (429, "queue_full", "rate_limit_error")
        assert answer.headers["retry-after"] == "7"
        assert "has too many requests" in answer.error["message"] and "2" in answer.error["message"]
        ones[0].behaviour = says(whole(500, b"{}"))
        assert (await world.chat()).status == 502, "one of them failed: no use in promising anything"

    play(scenario)


@pytest.mark.parametrize("kind", FAILURES)
def test_a_failure_before_the_first_byte_is_tried_elsewhere(play, kind):
    """One bad answer costs the client nothing; the retry is counted with its reason."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        router = await world.start_router(*(one.url for one in ones))
        for one in ones:
            one.plan = [FAILURES[kind]] if one is ones[0] else []
        answers = [await world.chat(stream=True) for _ in range(4)]
        assert [answer.text for answer in answers if answer.status == 200].count("from b") >= 2
        assert [answer.status for answer in answers] == [200] * 4
        reasons = {"mid_body": "connection_lost", "cut_before_first_byte": "connection_lost"}
        reasons |= dict.fromkeys(("empty_stream", "html_with_200", "html_with_404", "nothing_with_200"), "garbage")
        assert router.figures.retries == {reasons.get(kind, kind): 1}
        assert world.outcomes() == {"ok": 4}

    play(scenario)


def test_a_dead_server_is_left_out_and_comes_back(play):
    """Nobody can connect: one retry, then the endpoint is out; when it answers again it is used again."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        router = await world.start_router(*(one.url for one in ones), probe_s=60.0)
        port = int(ones[0].url.rpartition(":")[2])
        await ones[0].stop()
        assert [(await world.chat()).text for _ in range(6)] == ["from b"] * 6
        assert router.figures.retries == {"connect": 1}
        await ones[0].start(port)
        await world.until(lambda: len(router.directory.models["m"].live) == 2, "back")
        assert {(await world.chat()).text for _ in range(4)} == {"from a", "from b"}

    play(scenario)


def test_a_probe_finds_a_death_without_traffic(play):
    """Health is looked at even when nobody asks."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        router = await world.start_router(*(one.url for one in ones))
        await ones[0].stop()
        await world.until(lambda: len(router.directory.models["m"].live) == 1, "out")
        assert router.figures.retries == {}

    play(scenario)


def test_the_clients_own_fault_comes_back_as_the_upstream_said_it(play):
    """A 4xx is not retried: the upstream knows better what was wrong."""
    said = json.dumps({"error": {"message": "context length is 8", "type": "BadRequestError", "param": None, "code": 400}}).encode()

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        for one in ones:
            one.behaviour = says(whole(400, said, "x-penstock-facts: v=1", "x-engine: yes"))
        await world.start_router(*(one.url for one in ones))
        answer = await world.chat()
        assert (answer.status, answer.body, answer.headers["x-engine"]) == (400, said, "yes")
        assert not any(name.startswith("x-penstock-") for name in answer.headers)
        assert sum(len(one.seen) for one in ones) == 1 and world.outcomes() == {"bad_request": 1}

    play(scenario)


def test_the_deadline_ends_a_request_that_stalls_before_its_head(play):
    """One deadline for all attempts: 504, and the upstream is left."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        for one in ones:
            one.behaviour = waits_for(asyncio.Event())
        await world.start_router(*(one.url for one in ones), deadline_s=0.3)
        answer = await world.chat()
        assert (answer.status, answer.error["code"]) == (504, "deadline_exceeded")
        assert "0.3 s" in answer.error["message"] and world.outcomes() == {"deadline_exceeded": 1}
        await world.until(lambda: sum(one.left for one in ones) == 1, "the upstream sees the router leave")

    play(scenario)


def test_a_head_that_takes_too_long_is_tried_elsewhere(play):
    """The wait for a head is bounded per attempt, the rest of the deadline is the next one's."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        ones[0].behaviour = waits_for(asyncio.Event())
        router = await world.start_router(*(one.url for one in ones), head_timeout_s=0.2)
        assert {(await world.chat()).text for _ in range(2)} == {"from b"}
        assert ones[0].seen and router.figures.retries == {"timeout": len(ones[0].seen)} and world.outcomes() == {"ok": 2}

    play(scenario)


CUTS = {
    "closed": (says(STREAM_HEAD + piece(event(delta("half"))), close=True), "upstream_failed"),
    "garbage": (says(STREAM_HEAD + piece(event(delta("half"))) + b"zz\r\n", close=True), "upstream_failed"),
    "no end mark": (
        says(b"HTTP/1.1 200 OK\r\ncontent-type: text/event-stream\r\n\r\n" + event(delta("half")), close=True),
        "upstream_failed",
    ),
    "stalled": (says(STREAM_HEAD + piece(event(delta("half")))), "deadline_exceeded"),
}


@pytest.mark.parametrize("kind", CUTS)
def test_a_stream_cut_after_its_first_byte_ends_with_an_error_event_and_a_close(play, kind):
    """Never a silent end, and never a retry: the client has seen half an answer already."""
    behaviour, outcome = CUTS[kind]

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        for one in ones:
            one.behaviour = behaviour
            if kind == "stalled":
                one.behaviour = waits_after(behaviour)
        await world.start_router(*(one.url for one in ones), deadline_s=0.5 if kind == "stalled" else 600.0)
        reader, writer = await asyncio.open_connection(world.origin.host, world.origin.port)
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        got = await reader.read()
        writer.close()
        assert b"half" in got and b"event: error\ndata: " in got and outcome.encode() in got
        assert not got.endswith(b"0\r\n\r\n")
        assert sum(len(one.seen) for one in ones) == 1 and world.outcomes() == {outcome: 1}

    play(scenario)


def waits_after(first):
    """Behaves so, and then goes silent."""

    async def behave(upstream, seen, writer):
        await first(upstream, seen, writer)
        await asyncio.Event().wait()

    return behave


async def goes_on(upstream, seen, writer):
    """A stream without an end."""
    writer.write(STREAM_HEAD)
    while True:
        writer.write(piece(event(delta("half"))))
        await writer.drain()
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("begun", [False, True])
def test_a_client_that_leaves_takes_the_upstream_request_with_it(play, begun):
    """Before the first byte and in the middle of a stream: the upstream sees its connection close, nothing is left."""

    async def scenario(world):
        one = await world.upstream("a")
        one.behaviour = goes_on if begun else waits_for(asyncio.Event())
        await world.start_router(one.url)
        reader, writer = await asyncio.open_connection(world.origin.host, world.origin.port)
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        if begun:
            await reader.readuntil(b"half")
        else:
            await world.until(lambda: len(one.seen) == 1, "the request")
        writer.transport.abort()
        await world.until(lambda: one.left == 1, "the upstream sees it")
        await world.until(lambda: world.outcomes() == {"client_gone": 1}, "the outcome")

    play(scenario)


@pytest.mark.parametrize("where", ["head", "body"])
def test_a_client_that_sends_a_byte_at_a_time_is_answered_408(play, where):
    """In OpenAI's form, and counted; the connection closes."""

    async def scenario(world):
        one = await world.upstream("a")
        await world.start_router(one.url, header_timeout_s=0.3, body_timeout_s=0.3)
        reader, writer = await asyncio.open_connection(world.origin.host, world.origin.port)
        head = b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: 100000\r\n" % CHAT.encode()
        writer.write(head if where == "head" else head + b"\r\n")
        reading = asyncio.ensure_future(reader.read())
        while not reading.done():
            writer.write(b"x")
            await asyncio.sleep(0.02)
        writer.close()
        assert reading.result().startswith(b"HTTP/1.1 408 ") and b'"code":"bad_request"' in reading.result()
        assert one.seen == [] and world.outcomes("unknown") == {"bad_request": 1}

    play(scenario)


def test_a_client_that_never_reads_is_left_in_the_end(play):
    """After the stall time-out its connection is cut, and the upstream's with it."""

    async def scenario(world):
        one = await world.upstream("a")
        one.behaviour = goes_on_large
        await world.start_router(one.url, write_stall_timeout_s=0.3)
        _, writer = await asyncio.open_connection(world.origin.host, world.origin.port, limit=4096)
        writer.transport.pause_reading()
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await world.until(lambda: world.outcomes() == {"client_gone": 1}, "the outcome")
        await world.until(lambda: not one.flooding, "the upstream is left")
        writer.transport.abort()

    play(scenario)


async def goes_on_large(upstream, seen, writer):
    """A fat stream without an end."""
    upstream.flooding = True
    try:
        writer.write(STREAM_HEAD)
        while True:
            writer.write(piece(event(delta("x" * 60_000))))
            await writer.drain()
    finally:
        upstream.flooding = False


def test_a_client_that_leaves_during_the_second_try_ends_it(play):
    """The first try broke inside its answer; the second one hangs, and must not outlive the client."""

    async def scenario(world):
        ones = [await world.upstream(name) for name in "ab"]
        tries = []

        async def first_cut_then_hang(upstream, seen, writer):
            tries.append(upstream)
            await (FAILURES["cut_before_first_byte"] if len(tries) == 1 else waits_for(asyncio.Event()))(upstream, seen, writer)

        for one in ones:
            one.behaviour = first_cut_then_hang
        await world.start_router(*(one.url for one in ones))
        _, writer = await asyncio.open_connection(world.origin.host, world.origin.port)
        body = json.dumps({"model": "m", "stream": True, "messages": [{"role": "user", "content": "x"}]}).encode()
        writer.write(b"POST %b HTTP/1.1\r\nhost: x\r\ncontent-length: %d\r\n\r\n%b" % (CHAT.encode(), len(body), body))
        await world.until(lambda: len(tries) == 2, "the second try")
        writer.transport.abort()
        await world.until(lambda: tries[1].left == 1, "the second try is left")
        await world.until(lambda: world.outcomes() == {"client_gone": 1}, "the outcome")

    play(scenario)
