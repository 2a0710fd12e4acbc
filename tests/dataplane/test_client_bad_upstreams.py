"""Upstreams that close, stall, lie, flood or talk nonsense: what the client's callers are told, and what is left."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from penstock_dataplane.client import ClientLimits, Origin
from penstock_dataplane.errors import (
    BodyTooLarge,
    ConnectFailed,
    ConnectionLost,
    DeadlineExceeded,
    ProtocolGarbage,
    UpstreamError,
)
from penstock_dataplane.server import Exchange

Play = Callable[[Callable[[Any], Any]], None]
OK = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok"


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


def test_a_dead_kept_alive_connection_is_replaced_once(play: Play) -> None:
    """The upstream closes as the request goes out: the caller does not notice. A fresh connection that dies is an error."""
    requests = 0

    async def scenario(world: Any) -> None:
        async def one_answer_a_connection(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            nonlocal requests
            await reader.readuntil(b"\r\n\r\n")
            requests += 1
            writer.write(OK)
            await reader.readuntil(b"\r\n\r\n")  # takes the next request and closes without an answer

        client = world.client()
        origin = await world.serve_script(one_answer_a_connection)
        for _ in range(3):
            assert await (await client.request(origin, "GET", "/v1/x")).read() == b"ok"
        assert requests == 3

        async def close_at_once(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(100)

        origin = await world.serve_script(close_at_once)
        with pytest.raises(ConnectionLost, match="before any byte") as caught:
            await client.request(origin, "GET", "/v1/x")
        assert caught.value.before_head
        assert str(origin) in str(caught.value)

    play(scenario)


def test_nobody_listening_is_connect_failed(play: Play) -> None:
    """At once, naming the origin."""

    async def scenario(world: Any) -> None:
        origin = await world.serve(lambda exchange: asyncio.Event().wait())
        await world.servers[0].close()
        with pytest.raises(ConnectFailed, match=str(origin.port)):
            await world.client().request(origin, "GET", "/v1/x")
        with pytest.raises(ConnectFailed):
            await world.client().request(Origin("http", "no-such-host.invalid", 80), "GET", "/")

    play(scenario)


@pytest.mark.parametrize(
    ("where", "data"),
    [
        ("head", b""),
        ("head", b"HTTP/1.1 200 OK\r\ncontent-le"),
        ("body", b"HTTP/1.1 200 OK\r\ncontent-length: 10\r\n\r\nabc"),
        ("body", b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nabcde\r\n"),
    ],
)
def test_a_stalled_upstream_meets_the_deadline(play: Play, where: str, data: bytes) -> None:
    """Before the head and inside the body; the connection is not used again."""

    async def scenario(world: Any) -> None:
        async def stall(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(data)
            await asyncio.Event().wait()

        client = world.client()
        origin = await world.serve_script(stall)
        with pytest.raises(DeadlineExceeded) as caught:
            await (await client.request(origin, "GET", "/v1/x", deadline_s=world.now_s() + 0.2)).read()
        assert caught.value.before_head == (where == "head")
        assert client.open_connections == 0

    play(scenario)


def test_a_silent_stream_meets_the_stall_timeout_and_a_talking_one_does_not(play: Play) -> None:
    """`set_waits` replaces the deadline; each arrival starts the silence anew."""

    async def scenario(world: Any) -> None:
        async def talk(exchange: Exchange) -> None:
            exchange.start(200)
            for _ in range(8):
                exchange.write(b"x")
                await asyncio.sleep(0.05)
            await asyncio.sleep(30)

        client = world.client()
        origin = await world.serve(talk)
        response = await client.request(origin, "GET", "/v1/x", deadline_s=world.now_s() + 0.2)
        response.set_waits(None, 0.2)
        got = b""
        with pytest.raises(DeadlineExceeded):
            async for piece in response:
                got += piece
        assert got == b"x" * 8

    play(scenario)


NONSENSE = {
    "html": b"<html>500</html>\r\n\r\n",
    "other protocol": b"SSH-2.0-OpenSSH_9.2\r\n",
    "two lengths": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ncontent-length: 3\r\n\r\nok",
    "length and chunked": b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\ntransfer-encoding: chunked\r\n\r\n0\r\n\r\n",
    "endless head": b"HTTP/1.1 200 OK\r\nx: " + b"y" * 80_000,
    "unasked upgrade": b"HTTP/1.1 101 Switching\r\nupgrade: x\r\nconnection: upgrade\r\n\r\n",
    "binary": bytes(range(256)),
}


@pytest.mark.parametrize("data", NONSENSE.values(), ids=NONSENSE.keys())
def test_nonsense_is_protocol_garbage(play: Play, data: bytes) -> None:
    """Named as such, before a head, and the connection is gone."""

    async def scenario(world: Any) -> None:
        client = world.client()
        with pytest.raises(ProtocolGarbage) as caught:
            await client.request(await world.serve_script(answering(data)), "GET", "/v1/x")
        assert caught.value.before_head
        assert client.open_connections == 0

    play(scenario)


@pytest.mark.parametrize("close", [True, False])
def test_a_body_that_breaks_off_is_an_error_after_what_came(play: Play, close: bool) -> None:
    """Closed mid-body or bad chunk framing: the taker gets the good bytes, then the error."""
    broken = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\nabc\r\n"

    async def scenario(world: Any) -> None:
        client = world.client()
        origin = await world.serve_script(answering(broken if close else broken + b"zz\r\n", then_close=close))
        response = await client.request(origin, "GET", "/v1/x")
        got = b""
        with pytest.raises(ConnectionLost if close else ProtocolGarbage) as caught:
            async for piece in response:
                got += piece
        assert got == b"abc"
        assert not caught.value.before_head
        with pytest.raises(UpstreamError):
            await (await client.request(origin, "GET", "/v1/x")).read()

    play(scenario)


def test_responses_without_length_end_with_the_connection(play: Play) -> None:
    """HTTP/1.0 style; the connection is not kept."""

    async def scenario(world: Any) -> None:
        client = world.client()
        origin = await world.serve_script(answering(b"HTTP/1.0 200 OK\r\n\r\nall of it", then_close=True))
        assert await (await client.request(origin, "GET", "/v1/x")).read() == b"all of it"
        assert client.open_connections == 0

    play(scenario)


def test_bytes_nobody_asked_for_close_an_idle_connection(play: Play) -> None:
    """An answer too many must not be taken for the next request's."""

    async def scenario(world: Any) -> None:
        client = world.client()
        origin = await world.serve_script(answering(OK + OK.replace(b"ok", b"no")))
        for _ in range(5):
            response = await client.request(origin, "GET", "/v1/x")
            assert await response.read() == b"ok"

    play(scenario)


def test_a_body_over_the_limit_is_refused_and_memory_stays_bounded(play: Play) -> None:
    """`read(limit)` stops early; a body nobody takes pauses the upstream at the high-water mark."""

    async def scenario(world: Any) -> None:
        sent = 0

        async def flood(exchange: Exchange) -> None:
            nonlocal sent
            exchange.start(200)
            while not exchange.gone and sent < 500_000_000:
                exchange.write(b"x" * 50_000)
                sent += 50_000
                await exchange.drain()
            exchange.finish()

        client = world.client(ClientLimits(read_high_water_bytes=100_000))
        origin = await world.serve(flood)
        response = await client.request(origin, "GET", "/v1/x")
        connection = response._connection
        await world.until(lambda: connection._paused, "paused")
        before = -1
        while before != sent:  # the sockets' own buffers fill, then nothing moves
            before = sent
            await asyncio.sleep(0.1)
        assert sent < 50_000_000
        assert response._buffered_bytes < 100_000 + 300_000
        with pytest.raises(BodyTooLarge, match="200000"):
            await response.read(200_000)
        assert client.open_connections == 0

    play(scenario)
