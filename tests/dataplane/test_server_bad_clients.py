"""Clients that are slow, silent, greedy, broken or gone: each has an outcome and leaves nothing."""

import asyncio
import socket
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_dataplane.server import Exchange, ServerLimits

Play = Callable[[Callable[[Any], Any]], None]
GET = b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n"


async def ok(exchange: Exchange) -> None:
    exchange.respond(200, [], b"ok")


@settings(deadline=None, max_examples=25, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(min_size=1, max_size=400))
def test_garbage_is_answered_400_or_closed(play: Play, data: bytes) -> None:
    """Random bytes and the end of input: never a hang, never a crash, never a 200."""

    async def scenario(world: Any) -> None:
        peer = await world.peer(await world.serve(ok))
        peer.send(data)
        peer.writer.write_eof()
        answer = await peer.rest()
        assert answer == b"" or answer.startswith((b"HTTP/1.1 400", b"HTTP/1.1 505"))

    play(scenario)


def test_a_good_request_before_garbage_is_still_answered(play: Play) -> None:
    """In order: 200 for the first, 400 for what follows it, then the end."""

    async def scenario(world: Any) -> None:
        peer = await world.peer(await world.serve(ok))
        peer.send(GET + b"\0\0\0 garbage\r\n\r\n")
        assert (await peer.response())[0] == 200
        assert (await peer.response())[0] == 400
        assert await peer.rest() == b""

    play(scenario)


@pytest.mark.parametrize(
    ("start", "drip"),
    [(b"POST /v1/x HTTP/1.1\r\nContent-Length: 100000\r\n\r\n", b"x"), (b"GET /v1/x HTTP/1.1\r\nX-A: ", b"y"), (b"GET /v1/", b"x")],
    ids=["body", "headers", "target"],
)
def test_a_client_that_drips_is_answered_408(play: Play, start: bytes, drip: bytes) -> None:
    """A byte now and then does not extend the wait: it is for the whole head, and for the whole body."""
    heard: list[str] = []

    async def scenario(world: Any) -> None:
        limits = ServerLimits(header_timeout_s=0.3, body_timeout_s=0.3)
        peer = await world.peer(await world.serve(ok, limits=limits, on_error=lambda _, kind: heard.append(kind)))
        peer.send(start)
        answer = asyncio.create_task(peer.response())
        while not answer.done():
            peer.send(drip)
            await asyncio.wait([answer], timeout=0.02)
        assert (await answer)[0] == 408
        assert await peer.rest() == b""

    play(scenario)
    assert "took longer than 0.3 s" in heard[0]


def test_a_refusal_reaches_a_client_that_is_still_sending(play: Play) -> None:
    """413 while megabytes are on their way: the answer is not destroyed by a reset."""

    async def scenario(world: Any) -> None:
        peer = await world.peer(await world.serve(ok, limits=ServerLimits(body_bytes=1000)))
        peer.writer.transport.pause_reading()  # a client that looks for an answer only when it has sent everything
        peer.send(b"POST /v1/x HTTP/1.1\r\nContent-Length: 5000000\r\n\r\n" + b"x" * 5_000_000)
        await world.until(lambda: peer.writer.transport.get_write_buffer_size() == 0, "sent")
        peer.writer.transport.resume_reading()
        status, head, _ = await peer.response()
        assert status == 413
        assert b"connection: close" in head

    play(scenario)


def test_a_client_that_never_reads_is_cut_and_costs_a_bounded_buffer(play: Play) -> None:
    """The writer is told to wait, its buffer stays at the high-water mark, and after the stall time the connection is cut."""
    heard: list[str] = []
    buffered: list[int] = []

    async def scenario(world: Any) -> None:
        limits = ServerLimits(write_high_water_bytes=65_536, write_stall_timeout_s=0.5)

        async def flood(exchange: Exchange) -> None:
            exchange.start(200)
            while not exchange.gone:
                exchange.write(b"x" * 10_000)
                buffered.append(exchange._connection._transport.get_write_buffer_size())
                await exchange.drain()
                await asyncio.sleep(0)

        origin = await world.serve(flood, limits=limits, on_error=lambda _, kind: heard.append(kind))
        (server,) = world.servers
        peer = await world.peer(origin, receive_buffer_bytes=4096)
        peer.writer.transport.pause_reading()
        peer.send(GET)
        await world.until(lambda: "client does not read" in heard, "cut")
        await world.until(lambda: server.connections == 0, "closed")

    play(scenario)
    assert max(buffered) <= 65_536 + 2 * 10_020


def test_a_client_that_never_reads_a_whole_answer_is_cut_too(play: Play) -> None:
    """An answer larger than the socket takes, exchange finished: the connection does not wait for ever."""

    async def scenario(world: Any) -> None:
        async def large(exchange: Exchange) -> None:
            exchange.respond(200, [], b"x" * 20_000_000)

        origin = await world.serve(large, limits=ServerLimits(write_stall_timeout_s=0.3))
        (server,) = world.servers
        for request in (GET, GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n")):
            peer = await world.peer(origin, receive_buffer_bytes=4096)
            peer.writer.transport.pause_reading()
            peer.send(request)
            await world.until(lambda: server.connections == 1, "connected")
            await world.until(lambda: server.connections == 0, "cut")

    play(scenario)


def test_two_thousand_idle_connections_are_swept(play: Play) -> None:
    """Silent from the start or after a request, they end at the idle timeout; a busy one among them does not."""

    async def scenario(world: Any) -> None:
        go = asyncio.Event()

        async def handle(exchange: Exchange) -> None:
            if exchange.request.method == "POST":
                await go.wait()
            await ok(exchange)

        origin = await world.serve(handle, limits=ServerLimits(idle_timeout_s=1.0))
        (server,) = world.servers
        loop = asyncio.get_running_loop()
        busy = await world.peer(origin)
        busy.send(b"POST /v1/x HTTP/1.1\r\nContent-Length: 0\r\n\r\n")
        await world.until(lambda: server.exchanges == 1, "busy")
        socks = []
        try:
            for number in range(2000):
                sock = socket.socket()
                sock.setblocking(False)
                await loop.sock_connect(sock, (origin.host, origin.port))
                socks.append(sock)
                if number % 2:
                    await loop.sock_sendall(sock, GET)
            await world.until(lambda: server.connections == 1, "all idle ones swept")
            assert server.exchanges == 1
            go.set()
            assert (await busy.response())[0] == 200
        finally:
            for sock in socks:
                sock.close()

    play(scenario)


def test_connections_over_the_limit_are_answered_503(play: Play) -> None:
    """And a place that becomes free is taken again."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(ok, limits=ServerLimits(max_connections=3))
        (server,) = world.servers
        first = [await world.peer(origin) for _ in range(3)]
        for peer in first:
            peer.send(GET)
            assert (await peer.response())[0] == 200
        extra = await world.peer(origin)
        extra.send(GET)
        status, _, body = await extra.response()
        assert (status, body) == (503, b"too many connections\n")
        assert await extra.rest() == b""
        first[0].writer.close()
        extra.writer.close()
        await world.until(lambda: server.connections == 2, "places free")
        again = await world.peer(origin)
        again.send(GET)
        assert (await again.response())[0] == 200

    play(scenario)


@pytest.mark.parametrize("how", ["reset", "close"])
@pytest.mark.parametrize("started", [False, True])
def test_a_client_that_leaves_cancels_its_handler(play: Play, how: str, started: bool) -> None:
    """By reset or by close, while waiting for the answer or in the middle of it (the stream being silent)."""
    ends: list[str] = []

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            if started:
                exchange.start(200)
                exchange.write(b"first")
            try:
                while True:
                    await asyncio.sleep(0.05)
                    if started:
                        exchange.write(b"more")
            except asyncio.CancelledError:
                ends.append(f"cancelled gone={exchange.gone}")
                raise

        origin = await world.serve(handle)
        (server,) = world.servers
        peer = await world.peer(origin)
        peer.send(GET)
        if started:
            await peer.head()
        await world.until(lambda: server.exchanges == 1, "running")
        if how == "reset":
            peer.reset()
        else:
            peer.writer.close()
        await world.until(lambda: server.exchanges == 0 and server.connections == 0, "departure noticed")

    play(scenario)
    assert ends == ["cancelled gone=True"]


def test_a_departure_callback_replaces_the_cancellation(play: Play) -> None:
    """The handler that registers one decides itself, and what it sends to nobody is dropped."""
    heard: list[str] = []

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            gone = asyncio.Event()
            exchange.on_disconnect(gone.set)
            exchange.on_disconnect(lambda: heard.append("second callback"))
            await gone.wait()
            exchange.start(200)
            exchange.write(b"to nobody")
            exchange.finish()
            heard.append("handler went on")

        origin = await world.serve(handle)
        (server,) = world.servers
        peer = await world.peer(origin)
        peer.send(GET)
        await world.until(lambda: server.exchanges == 1, "running")
        peer.reset()
        await world.until(lambda: server.exchanges == 0, "done")

    play(scenario)
    assert heard == ["second callback", "handler went on"]


def test_a_half_closed_client_is_served_to_the_end(play: Play) -> None:
    """It has said all it has to say and still reads: unary, streamed, and pipelined requests already sent."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            await asyncio.sleep(0.2)  # longer than the look-out for departed clients takes
            exchange.start(200)
            exchange.write(b"a")
            await asyncio.sleep(0.2)
            exchange.finish(b"b")

        peer = await world.peer(await world.serve(handle))
        peer.send(GET + GET)
        peer.writer.write_eof()
        answers = [await peer.response(), await peer.response()]
        finals = [answer for answer in answers if answer[0] != 100]
        while len(finals) < 2:
            finals.append(await peer.response())
        assert [answer[2] for answer in finals] == [b"ab", b"ab"]
        assert await peer.rest() == b""

    play(scenario)


def test_a_client_that_leaves_behind_unread_pipelined_input_is_noticed(play: Play) -> None:
    """Reading is paused, so no end is reported; the kernel is asked instead."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(lambda exchange: asyncio.Event().wait(), limits=ServerLimits(pipeline_bytes=1000))
        (server,) = world.servers
        peer = await world.peer(origin)
        peer.send(b"GET /v1/x HTTP/1.1\r\n\r\n" + b"POST /v1/x HTTP/1.1\r\nContent-Length: 4000000\r\n\r\n" + b"x" * 4_000_000)
        await world.until(lambda: server.exchanges == 1, "running")
        peer.reset()
        await world.until(lambda: server.exchanges == 0, "departure noticed")

    play(scenario)


def test_a_client_that_closes_behind_held_input_is_noticed(play: Play) -> None:
    """All it sent has arrived and more is held than is read: its orderly end is seen in the kernel's state and probed."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(lambda exchange: asyncio.Event().wait(), limits=ServerLimits(pipeline_bytes=1000))
        (server,) = world.servers
        peer = await world.peer(origin)
        peer.send(GET + b"POST /v1/x HTTP/1.1\r\nContent-Length: 90000\r\n\r\n" + b"x" * 20_000)
        await world.until(lambda: server.exchanges == 1, "running")
        peer.writer.close()
        await world.until(lambda: server.exchanges == 0, "departure noticed")

    play(scenario)


def test_draining_finishes_exchanges_and_closes_idle_connections(play: Play) -> None:
    """No new connections, running answers end with `connection: close`, idle connections are closed at once."""

    async def scenario(world: Any) -> None:
        go = asyncio.Event()

        async def handle(exchange: Exchange) -> None:
            await go.wait()
            await ok(exchange)

        origin = await world.serve(handle)
        (server,) = world.servers
        idle, busy = await world.peer(origin), await world.peer(origin)
        busy.send(GET)
        await world.until(lambda: server.exchanges == 1 and server.connections == 2, "set up")
        draining = asyncio.create_task(server.drain(world.now_s() + 50))
        assert await idle.rest() == b""
        with pytest.raises(ConnectionRefusedError):
            await world.peer(origin)
        assert not draining.done()
        go.set()
        _, head, body = await busy.response()
        assert body == b"ok"
        assert b"connection: close" in head
        assert await draining is True

    play(scenario)


def test_draining_cuts_what_outlives_its_deadline(play: Play) -> None:
    """The deadline is kept, and the answer says that something was cut."""

    async def scenario(world: Any) -> None:
        async def handle(exchange: Exchange) -> None:
            await asyncio.Event().wait()

        origin = await world.serve(handle)
        (server,) = world.servers
        peer = await world.peer(origin)
        peer.send(GET)
        await world.until(lambda: server.exchanges == 1, "running")
        assert await server.drain(world.now_s() + 0.1) is False
        assert await peer.rest() == b""

    play(scenario)


def test_accepted_sockets_are_kept_alive_and_do_not_delay_small_writes(play: Play) -> None:
    """TCP keep-alive ends streams to hosts that vanished, and leaves idle connections to the sweep; TCP_NODELAY on both sides."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(ok)
        client = world.client()
        await client.request(origin, "GET", "/v1/x")
        (accepted,) = world.servers[0]._connections
        (made,) = client._pools[origin].open
        sock = accepted._transport.get_extra_info("socket")
        assert sock.getsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE)
        assert sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_KEEPIDLE) > world.servers[0].limits.idle_timeout_s + 1
        for transport in (accepted._transport, made._transport):
            assert transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)

    play(scenario)
