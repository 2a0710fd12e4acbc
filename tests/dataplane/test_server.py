"""The server as its clients see it: keep-alive, pipelining, bodies, HEAD, HTTP/1.0, interim answers."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_dataplane.server import Exchange, ServerLimits

Play = Callable[[Callable[[Any], Any]], None]
POST = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nContent-Length: %d\r\n\r\n%b"


async def echo(exchange: Exchange) -> None:
    """Answers method, path, query and body, so that a mix-up shows."""
    r = exchange.request
    text = b"%b %b %b|%b" % (r.method.encode(), r.path.encode(), r.query, r.body)
    exchange.respond(200, [(b"content-type", b"text/plain")], text)


async def stream_three(exchange: Exchange) -> None:
    exchange.start(200, [(b"content-type", b"text/event-stream")])
    for number in range(3):
        exchange.write(b"data: %d\n\n" % number)
        await asyncio.sleep(0)
    exchange.finish()


def test_a_connection_serves_one_request_after_another(play: Play) -> None:
    """Keep-alive, with bodies fixed and chunked, each answered in one segment of its own."""

    async def scenario(world: Any) -> None:
        peer = await world.peer(await world.serve(echo))
        peer.send(POST % (3, b"abc"))
        assert (await peer.response())[2] == b"POST /v1/x |abc"
        peer.send(b"PUT /v1/y?a=b HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n2\r\nab\r\n1\r\nc\r\n0\r\n\r\n")
        assert (await peer.response())[2] == b"PUT /v1/y a=b|abc"
        peer.send(b"GET /v1/z HTTP/1.1\r\nHost: h\r\nConnection: close\r\n\r\n")
        status, head, body = await peer.response()
        assert (status, body) == (200, b"GET /v1/z |")
        assert b"connection: close" in head
        assert await peer.rest() == b""

    play(scenario)


def test_pipelined_requests_are_answered_in_order_one_at_a_time(play: Play) -> None:
    """Five hundred requests in one write, the first ones slowest; never two handlers at once on a connection."""
    at_once = []

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            at_once.append(server.exchanges)
            number = int(exchange.request.body)
            for _ in range(max(0, 5 - number)):
                await asyncio.sleep(0)
            exchange.respond(200, [], exchange.request.body)

        origin = await world.serve(handle)
        (server,) = world.servers
        peer = await world.peer(origin)
        peer.send(b"".join(POST % (4, b"%04d" % number) for number in range(500)))
        assert [int((await peer.response())[2]) for _ in range(500)] == list(range(500))

    play(scenario)
    assert max(at_once) <= 2  # one serving, and at most the one before it returning


def test_pipelined_input_is_bounded_while_an_exchange_runs(play: Play) -> None:
    """A client that goes on sending is stopped by its own socket, and served when the exchange ends."""

    async def scenario(world: Any) -> None:
        go = asyncio.Event()
        served = 0

        async def handle(exchange: Exchange) -> None:
            nonlocal served
            await go.wait()
            served += 1
            exchange.respond(200)

        peer = await world.peer(await world.serve(handle, limits=ServerLimits(pipeline_bytes=1024)))
        (server,) = world.servers
        request = POST % (4000, b"x" * 4000)
        peer.send(request * 4000)  # 16 MB
        await world.until(lambda: server.exchanges == 1, "the first request")
        for _ in range(50):
            await asyncio.sleep(0.001)
        (connection,) = server._connections
        assert len(connection._held) <= 1024 + 256 * 1024  # what one read may bring on top
        assert peer.writer.transport.get_write_buffer_size() > 0
        go.set()
        await world.until(lambda: served == 4000, "all served")

    play(scenario)


def test_expect_100_continue_gets_the_interim_answer_before_the_body(play: Play) -> None:
    """Asked for, sent once; not sent when the body is there already; 413 instead when the body would be too large."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(echo, limits=ServerLimits(body_bytes=100))
        peer = await world.peer(origin)
        head = b"POST /v1/x HTTP/1.1\r\nHost: h\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n"
        peer.send(head % 3)
        assert (await peer.response())[0] == 100
        peer.send(b"abc")
        assert (await peer.response())[2] == b"POST /v1/x |abc"
        peer.send(head % 3 + b"abc")
        assert (await peer.response())[0] == 200
        peer.send(head % 101)
        assert (await peer.response())[0] == 413
        assert await peer.rest() == b""

    play(scenario)


def test_head_gets_the_head_only(play: Play) -> None:
    """No body and no chunk follows, and the connection lives on."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            await (stream_three if exchange.request.path == "/v1/stream" else echo)(exchange)

        peer = await world.peer(await world.serve(handle))
        peer.send(b"HEAD /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"content-length: 12\r\n" in await peer.head()
        peer.send(b"HEAD /v1/stream HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"text/event-stream" in await peer.head()
        peer.send(POST % (1, b"x"))
        assert (await peer.response())[2] == b"POST /v1/x |x"

    play(scenario)


def test_http_1_0_clients_are_served(play: Play) -> None:
    """A stream ends with the connection and is not chunked; keep-alive only when asked for."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            await (stream_three if exchange.request.path == "/v1/stream" else echo)(exchange)

        origin = await world.serve(handle)
        peer = await world.peer(origin)
        peer.send(b"GET /v1/stream HTTP/1.0\r\n\r\n")
        raw = await peer.rest()
        assert raw.endswith(b"\r\n\r\ndata: 0\n\ndata: 1\n\ndata: 2\n\n")
        assert b"chunked" not in raw
        peer = await world.peer(origin)
        peer.send(b"GET /v1/a HTTP/1.0\r\nConnection: keep-alive\r\n\r\n")
        status, head, body = await peer.response()
        assert (status, body) == (200, b"GET /v1/a |")
        assert b"connection: keep-alive" in head
        peer.send(b"GET /v1/b HTTP/1.0\r\n\r\n")
        assert (await peer.rest()).endswith(b"GET /v1/b |")

    play(scenario)


def test_the_head_leaves_with_the_first_chunk_in_one_segment(play: Play) -> None:
    """`start` alone sends nothing; `flush` sends the head by itself."""
    writes: dict[str, list[bytes]] = {}

    async def scenario(world: Any) -> None:
        go = asyncio.Event()

        async def handle(exchange: Exchange) -> None:
            send = exchange._write

            def noted(data: bytes) -> None:
                writes.setdefault(exchange.request.path, []).append(data)
                send(data)

            exchange._write = noted
            exchange.start(200)
            if exchange.request.path == "/v1/flush":
                exchange.flush()
            await go.wait()
            exchange.write(b"abc")
            exchange.write(b"")  # must not end the stream
            exchange.finish(b"de")

        origin = await world.serve(handle)
        held, flushed = await world.peer(origin), await world.peer(origin)
        held.send(b"GET /v1/hold HTTP/1.1\r\nHost: h\r\n\r\n")
        flushed.send(b"GET /v1/flush HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"transfer-encoding: chunked" in await flushed.head()
        assert held.reader._buffer == b""  # type: ignore[attr-defined]
        go.set()
        first = await held.reader.read(4096)
        assert first.endswith((b"\r\n\r\n3\r\nabc\r\n", b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"))
        assert await flushed.reader.readexactly(20) == b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"

    play(scenario)
    assert [len(writes["/v1/hold"]), len(writes["/v1/flush"])] == [2, 3]  # one write for head and chunk, one for last piece and end


@pytest.mark.parametrize("value", [b"a\r\nset-cookie: x", b"a\nb", b"a\rb", b"a\0b", b"\r\n", b"a\r"])
def test_a_header_value_with_a_line_end_is_never_sent(play: Play, value: bytes) -> None:
    """ValueError in the handler, 500 at the client, no second header."""
    seen = []

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            for method in (exchange.start, exchange.respond):
                with pytest.raises(ValueError, match="CR, LF or NUL"):
                    method(200, [(b"x-a", value), (b"x-b", b"c")])
                seen.append(method.__name__)
            exchange.respond(204)

        peer = await world.peer(await world.serve(handle))
        peer.send(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
        assert (await peer.response())[0] == 204

    play(scenario)
    assert seen == ["start", "respond"]


def test_framing_headers_of_a_relayed_head_are_not_sent_twice(play: Play) -> None:
    """A handler may pass an upstream's headers on whole; connection and length are the server's own."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            exchange.respond(
                200, [(b"content-length", b"99"), (b"transfer-encoding", b"chunked"), (b"connection", b"close"), (b"x", b"y")], b"ab"
            )

        peer = await world.peer(await world.serve(handle))
        for _ in range(2):
            peer.send(b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n")
            _, head, body = await peer.response()
            assert body == b"ab"
            assert head == b"HTTP/1.1 200 OK\r\nx: y\r\ncontent-length: 2\r\n\r\n"

    play(scenario)


def test_a_failing_handler_is_answered_500_or_cut(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """Logged once; before the head a 500 and the connection lives, after it a cut, so a half answer cannot look whole."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            if exchange.request.path == "/v1/late":
                exchange.start(200)
                exchange.write(b"half")
                await asyncio.sleep(0.01)
            elif exchange.request.path == "/v1/silent":
                return
            raise RuntimeError("broken")

        origin = await world.serve(handle)
        peer = await world.peer(origin)
        for path in (b"early", b"silent"):
            peer.send(b"GET /v1/%b HTTP/1.1\r\nHost: h\r\n\r\n" % path)
            assert (await peer.response())[0] == 500
        peer.send(b"GET /v1/late HTTP/1.1\r\nHost: h\r\n\r\n")
        assert b"0\r\n\r\n" not in (await peer.rest())[-6:]

    play(scenario)
    assert len([record for record in caplog.records if record.levelname == "ERROR"]) == 3


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(st.tuples(st.binary(min_size=1, max_size=40), st.booleans()), min_size=1, max_size=5), st.lists(st.integers(1, 60), max_size=8)
)
def test_requests_in_any_cutting_get_the_same_answers(play: Play, bodies: list[tuple[bytes, bool]], cuts: list[int]) -> None:
    """Over real sockets: pipelined, cut into writes of any length, fixed and chunked mixed."""

    async def scenario(world: Any) -> None:
        peer = await world.peer(await world.serve(echo))
        stream = b""
        for body, chunked in bodies:
            if chunked:
                stream += b"POST /v1/x HTTP/1.1\r\nHost: h\r\nTransfer-Encoding: chunked\r\n\r\n%x\r\n%b\r\n0\r\n\r\n" % (len(body), body)
            else:
                stream += POST % (len(body), body)
        for size in cuts:
            peer.send(stream[:size])
            stream = stream[size:]
            await asyncio.sleep(0.001)
        peer.send(stream)
        for body, _ in bodies:
            assert (await peer.response())[2] == b"POST /v1/x |" + body

    play(scenario)
