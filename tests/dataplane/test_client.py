"""The client: warm connections, bounds, cancellation, and bodies whole, piece by piece or into a sink."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from penstock_dataplane.client import ClientLimits, Origin, Response
from penstock_dataplane.errors import (
    ConnectionLost,
    PoolFull,
    UpstreamError,
)
from penstock_dataplane.server import Exchange, ServerLimits

Play = Callable[[Callable[[Any], Any]], None]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


async def echo(exchange: Exchange) -> None:
    r = exchange.request
    exchange.respond(200, [(b"x-seen", b"%b %b" % (r.method.encode(), r.path.encode()))], r.body)


def answering(data: bytes, *, then_close: bool = False) -> Any:
    """A script that answers each request (bodyless or with its body in one read) with `data`."""

    async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while await reader.read(65_536):
            writer.write(data)
            await writer.drain()
            if then_close:
                writer.close()
                return

    return script


def test_connections_are_reused_last_in_first_out(play: Play) -> None:
    """Twenty calls in a row use one connection, five at once use five; afterwards one is enough again."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(echo)
        (server,) = world.servers
        client = world.client()
        for _ in range(20):
            response = await client.request(origin, "POST", "/v1/x", [], b"abc")
            assert await response.read() == b"abc"
            assert response.header(b"x-seen") == b"POST /v1/x"
        assert (client.open_connections, server.connections) == (1, 1)
        await asyncio.gather(*(client.request(origin, "GET", "/v1/x") for _ in range(5)))
        assert client.open_connections == 5
        pool = client._pools[origin]
        newest = pool.idle[-1]
        await client.request(origin, "GET", "/v1/x")
        assert pool.idle[-1] is newest

    play(scenario)


def test_large_bodies_go_both_ways(play: Play) -> None:
    """Ten megabytes out and back, beyond every buffer."""

    async def scenario(world: Any) -> None:
        response = await world.client().request(await world.serve(echo), "POST", "/v1/x", [], b"z" * 10_000_000)
        assert len(await response.read()) == 10_000_000

    play(scenario)


def test_idle_connections_are_closed_after_their_time(play: Play) -> None:
    """And a closed one is not handed out."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(echo)
        client = world.client(ClientLimits(idle_timeout_s=0.2))
        await asyncio.gather(*(client.request(origin, "GET", "/v1/x") for _ in range(3)))
        assert client.open_connections == 3
        await world.until(lambda: client.open_connections == 0, "swept")
        assert (await client.request(origin, "GET", "/v1/x")).status == 200

    play(scenario)


def test_interim_answers_head_requests_and_bodiless_statuses_keep_the_connection(play: Play) -> None:
    """100 and 103 are skipped; HEAD, 204 and 304 have no body whatever their length says."""

    async def scenario(world: Any) -> None:
        client = world.client()
        for method, data, status in [
            ("GET", b"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nlink: a\r\n\r\n" + OK, 200),
            ("HEAD", b"HTTP/1.1 200 OK\r\ncontent-length: 500\r\n\r\n", 200),
            ("HEAD", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n", 200),
            ("GET", b"HTTP/1.1 204 No Content\r\n\r\n", 204),
            ("GET", b"HTTP/1.1 304 Not Modified\r\ncontent-length: 500\r\n\r\n", 304),
        ]:
            origin = await world.serve_script(answering(data))
            before = client.open_connections
            for _ in range(3):
                response = await client.request(origin, method, "/v1/x")
                assert (response.status, await response.read()) == (status, b"ok" if b"ok" in data else b"")
                assert response.header(b"link") is None
            assert client.open_connections == before + 1

    play(scenario)


def test_a_full_pool_says_so_and_recovers(play: Play) -> None:
    """No queue hides here: the third call of two fails at once."""

    async def scenario(world: Any) -> None:
        go = asyncio.Event()

        async def wait(exchange: Exchange) -> None:
            await go.wait()
            exchange.respond(200)

        client = world.client(ClientLimits(max_connections_per_origin=2))
        origin = await world.serve(wait)
        calls = [asyncio.create_task(client.request(origin, "GET", "/v1/x")) for _ in range(2)]
        await world.until(lambda: world.servers[0].exchanges == 2, "both busy")
        with pytest.raises(PoolFull, match="2 connections"):
            await client.request(origin, "GET", "/v1/x")
        go.set()
        assert [r.status for r in await asyncio.gather(*calls)] == [200, 200]
        assert (await client.request(origin, "GET", "/v1/x")).status == 200
        assert client.open_connections == 2

    play(scenario)


@pytest.mark.parametrize("when", ["connecting or waiting for the head", "reading the body"])
def test_cancelling_a_call_closes_its_connection(play: Play, when: str) -> None:
    """The upstream hears of it, and the connection is never used with an answer pending."""

    async def scenario(world: Any) -> None:
        cancelled = asyncio.Event()

        async def wait(exchange: Exchange) -> None:
            if when == "reading the body":
                exchange.start(200)
                exchange.write(b"x")
            try:
                while True:
                    await asyncio.sleep(0.02)
                    if exchange.started:
                        exchange.write(b"x")
            except asyncio.CancelledError:
                cancelled.set()
                raise

        async def call() -> bytes:
            return await (await client.request(origin, "POST", "/v1/x", [], b"{}")).read()

        client = world.client()
        origin = await world.serve(wait)
        task = asyncio.create_task(call())
        await world.until(lambda: world.servers[0].exchanges == 1, "running")
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert client.open_connections == 0
        await world.until(cancelled.is_set, "the upstream hears of it")

    play(scenario)


def test_a_forgotten_origin_keeps_only_its_busy_connections(play: Play) -> None:
    """Idle ones close now, busy ones when their answers are whole."""

    async def scenario(world: Any) -> None:
        go = asyncio.Event()

        async def handle(exchange: Exchange) -> None:
            if exchange.request.path == "/v1/wait":
                await go.wait()
            exchange.respond(200, [], b"done")

        client = world.client()
        origin = await world.serve(handle)
        waiting = asyncio.create_task(client.request(origin, "GET", "/v1/wait"))
        await world.until(lambda: world.servers[0].exchanges == 1, "running")
        await client.request(origin, "GET", "/v1/x")
        assert client.open_connections == 2
        client.forget(origin)
        assert client.open_connections == 1
        go.set()
        assert await (await waiting).read() == b"done"
        assert client.open_connections == 0

    play(scenario)


def test_closing_the_client_fails_calls_under_way(play: Play) -> None:
    """Nobody waits for ever on a closed client."""

    async def scenario(world: Any) -> None:
        client = world.client()
        origin = await world.serve(lambda exchange: asyncio.Event().wait())
        call = asyncio.create_task(client.request(origin, "GET", "/v1/x"))
        await world.until(lambda: world.servers[0].exchanges == 1, "running")
        await client.aclose()
        with pytest.raises(UpstreamError, match="closed"):
            await call
        with pytest.raises(RuntimeError, match="closed"):
            await client.request(origin, "GET", "/v1/x")

    play(scenario)


def test_closing_a_response_ends_whoever_awaits_its_body(play: Play) -> None:
    """A reader that waits, one that comes later, and one that wants the whole get an error, not silence."""

    async def scenario(world: Any) -> None:
        async def endless(exchange: Exchange) -> None:
            exchange.start(200)
            exchange.write(b"begun")
            await asyncio.Event().wait()

        async def pieces(response: Response) -> list[bytes]:
            return [piece async for piece in response]

        client = world.client()
        origin = await world.serve(endless)
        for reader in (pieces, Response.read):
            response = await client.request(origin, "GET", "/v1/x")
            waits = asyncio.create_task(reader(response))
            await world.until(lambda r=response: r._wake is not None, "the reader waits")
            response.close()
            with pytest.raises(ConnectionLost, match="given up"):
                await asyncio.wait_for(waits, 60)
            with pytest.raises(ConnectionLost, match="given up"):
                await asyncio.wait_for(reader(response), 60)

    play(scenario)


def test_a_sink_gets_what_was_buffered_first_and_one_end(play: Play) -> None:
    """Whether it comes before, during or after the body."""

    async def scenario(world: Any) -> None:
        async def stream(exchange: Exchange) -> None:
            exchange.start(200)
            for number in range(20):
                exchange.write(b"%02d" % number)
                await asyncio.sleep(0.002)
            exchange.finish()

        class Sink:
            def __init__(self) -> None:
                self.data = b""
                self.ends: list[str] = []

            def on_data(self, data: bytes) -> None:
                assert data
                self.data += data

            def on_end(self) -> None:
                self.ends.append("end")

            def on_error(self, error: UpstreamError) -> None:
                self.ends.append("error")

        client = world.client()
        origin = await world.serve(stream)
        for ready in (lambda r: True, lambda r: r._buffered_bytes > 10, lambda r: r.complete):
            response: Response = await client.request(origin, "GET", "/v1/x")
            await world.until(lambda r=response, ready=ready: ready(r), "arrived so far")
            sink = Sink()
            response.stream_to(sink)
            await world.until(lambda s=sink: bool(s.ends), "end")
            assert (sink.data, sink.ends) == (b"".join(b"%02d" % n for n in range(20)), ["end"])

    play(scenario)


@pytest.mark.parametrize("target", ["/a b", "/a\r\nx: y", "", "/é", "/a\x7f", b"/a\0"])
def test_a_target_that_is_not_one_word_is_refused(play: Play, target: Any) -> None:
    """Nothing from outside can add a header to our request."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(echo)
        with pytest.raises(ValueError):
            await world.client().request(origin, "GET", target)
        with pytest.raises(ValueError, match="CR, LF or NUL"):
            await world.client().request(origin, "GET", "/", [(b"x-a", b"b\r\nhost: evil")])

    play(scenario)


def test_request_framing_is_the_clients_own(play: Play) -> None:
    """Host, length and hop-by-hop names handed in by a caller are dropped."""
    seen: list[list[tuple[bytes, bytes]]] = []

    async def scenario(world: Any) -> None:
        async def note(exchange: Exchange) -> None:
            seen.append(exchange.request.headers)
            exchange.respond(200)

        origin = await world.serve(note)
        handed = [
            (b"host", b"evil"),
            (b"content-length", b"1"),
            (b"connection", b"close"),
            (b"x-a", b"b"),
            (b"transfer-encoding", b"chunked"),
        ]
        await world.client().request(origin, "POST", "/v1/x", handed, b"body")
        host = f"127.0.0.1:{origin.port}".encode()
        assert seen == [[(b"host", host), (b"x-a", b"b"), (b"content-length", b"4")]]

    play(scenario)


def test_origins_are_read_from_urls() -> None:
    """Ports default by scheme; other schemes, missing hosts and passwords are refused by name."""
    assert Origin.parse("http://h") == Origin("http", "h", 80)
    assert Origin.parse("https://h:8443/v1") == Origin("https", "h", 8443)
    assert str(Origin.parse("http://[::1]:9/")) == "http://[::1]:9"
    assert Origin.parse("http://[::1]:9/").host_header == b"[::1]:9"
    for url, words in [("ftp://h", "scheme"), ("http://", "host"), ("http://u:secret@h", "password"), ("h:80", "scheme")]:
        with pytest.raises(ValueError, match=words) as caught:
            Origin.parse(url)
        assert "secret" not in str(caught.value)


def test_limits_must_be_positive() -> None:
    """A zero or negative bound is a mistake, named with its value."""
    with pytest.raises(ValueError, match="body_bytes is 0"):
        ServerLimits(body_bytes=0)
    with pytest.raises(ValueError, match="idle_timeout_s is -1"):
        ClientLimits(idle_timeout_s=-1)
