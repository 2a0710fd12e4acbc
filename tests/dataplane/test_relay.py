"""The relay between an upstream and a client: nothing lost, nothing held in memory, every ending told."""

import asyncio
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from penstock_dataplane.client import Client, ClientLimits, Origin
from penstock_dataplane.errors import ConnectionLost, DeadlineExceeded, ProtocolGarbage
from penstock_dataplane.relay import Ending, RelayResult, Tap, relay
from penstock_dataplane.server import Exchange, ServerLimits
from penstock_dataplane.sse import SseSplitter

Play = Callable[[Callable[[Any], Any]], None]
GET = b"GET /v1/x HTTP/1.1\r\nHost: h\r\n\r\n"
CHUNKED = b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n"


def relaying(client: Client, upstream: Origin, results: list[RelayResult], tap: Tap | None = None, stall_s: float | None = None) -> Any:
    """A handler that relays whatever `upstream` answers and notes how it ended."""

    async def handle(exchange: Exchange) -> None:
        response = await client.request(upstream, "POST", exchange.request.path, [], exchange.request.body)
        response.set_waits(None, stall_s)
        exchange.start(response.status, response.headers)
        result = await relay(response, exchange, tap)
        results.append(result)
        if result.ending in (Ending.UPSTREAM_FAILED, Ending.STALLED):
            exchange.write(b"event: error\n\n")
            exchange.abort() if exchange.request.path == "/v1/cut" else exchange.finish()

    return handle


@settings(deadline=None, max_examples=15, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.binary(min_size=1, max_size=50), max_size=12), st.lists(st.integers(1, 80), max_size=12))
def test_a_body_arrives_whole_however_the_upstream_cuts_it(play: Play, chunks: list[bytes], cuts: list[int]) -> None:
    """Chunks of any size, in writes of any size."""
    results: list[RelayResult] = []

    async def scenario(world: Any) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            raw = CHUNKED + b"".join(b"%x\r\n%b\r\n" % (len(c), c) for c in chunks) + b"0\r\n\r\n"
            for size in cuts:
                writer.write(raw[:size])
                raw = raw[size:]
                await asyncio.sleep(0.001)
            writer.write(raw)
            await reader.read(1000)

        upstream = await world.serve_script(script)
        peer = await world.peer(await world.serve(relaying(world.client(), upstream, results)))
        peer.send(GET)
        assert (await peer.response())[2] == b"".join(chunks)

    play(scenario)
    assert [r.ending for r in results] == [Ending.FINISHED]


def test_each_chunk_goes_on_at_once(play: Play) -> None:
    """The upstream writes its next event only when the client has the one before: nothing is held back."""
    results: list[RelayResult] = []

    async def scenario(world: Any) -> None:
        turn = asyncio.Event()

        async def stream(exchange: Exchange) -> None:
            exchange.start(200)
            for number in range(20):
                await turn.wait()
                turn.clear()
                exchange.write(b"data: %02d\n\n" % number)
            exchange.finish()

        upstream = await world.serve(stream)
        peer = await world.peer(await world.serve(relaying(world.client(), upstream, results)))
        peer.send(GET)
        for number in range(20):
            turn.set()
            if number == 0:
                await peer.head()
            assert await peer.reader.readuntil(b"\n\n\r\n") == b"a\r\ndata: %02d\n\n\r\n" % number

    play(scenario)


def test_a_tap_may_rewrite_and_drop(play: Play) -> None:
    """It sees whole events through a splitter, takes one out and changes another."""
    results: list[RelayResult] = []

    class Editor:
        def __init__(self) -> None:
            self.splitter = SseSplitter()

        def on_chunk(self, data: bytes) -> bytes | None:
            events = [event for event in self.splitter.feed(data) if b"secret" not in event]
            return b"".join(events).upper() or None

    async def scenario(world: Any) -> None:
        async def stream(exchange: Exchange) -> None:
            exchange.start(200)
            for piece in (b"data: a\n\nda", b"ta: secret\n\n", b"data: ", b"b\n\n"):
                exchange.write(piece)
                await asyncio.sleep(0.01)
            exchange.finish()

        upstream = await world.serve(stream)
        peer = await world.peer(await world.serve(relaying(world.client(), upstream, results, Editor())))
        peer.send(GET)
        assert (await peer.response())[2] == b"DATA: A\n\nDATA: B\n\n"

    play(scenario)


def test_a_failing_tap_ends_the_relay_and_the_upstream(play: Play, caplog: pytest.LogCaptureFixture) -> None:
    """Its exception comes up in the handler; an endless event is upstream garbage."""
    results: list[RelayResult] = []

    class Broken:
        def on_chunk(self, data: bytes) -> bytes | None:
            raise LookupError("tap is broken")

    class Splitting:
        def __init__(self) -> None:
            self.splitter = SseSplitter(max_event_bytes=100)

        def on_chunk(self, data: bytes) -> bytes | None:
            return b"".join(self.splitter.feed(data))

    async def scenario(world: Any) -> None:
        async def flood(exchange: Exchange) -> None:
            exchange.start(200)
            while not exchange.gone:
                exchange.write(b"x" * 1000)
                await exchange.drain()
                await asyncio.sleep(0)

        upstream = await world.serve(flood)
        client = world.client()
        for tap in (Broken(), Splitting()):
            peer = await world.peer(await world.serve(relaying(client, upstream, results, tap)))
            peer.send(GET)
            await peer.rest() if isinstance(tap, Broken) else await peer.response()
            assert client.open_connections == 0
        await world.until(lambda: world.servers[0].exchanges == 0, "upstream told")

    play(scenario)
    assert "tap is broken" in caplog.text
    (result,) = results
    assert result.ending is Ending.UPSTREAM_FAILED
    assert isinstance(result.error, ProtocolGarbage)


def test_a_slow_client_pauses_the_upstream_and_memory_stays_bounded(play: Play) -> None:
    """200 MB wait in the upstream's own process; when the client reads on, every byte comes."""
    results: list[RelayResult] = []
    total = 60_000_000

    async def scenario(world: Any) -> None:
        sent = 0
        held: list[int] = []

        async def flood(exchange: Exchange) -> None:
            nonlocal sent
            exchange.start(200)
            while sent < total and not exchange.gone:
                exchange.write(b"x" * 100_000)
                sent += 100_000
                await exchange.drain()
            exchange.finish()

        upstream = await world.serve(flood)
        client = world.client(ClientLimits(read_high_water_bytes=100_000))
        front = await world.serve(relaying(client, upstream, results), limits=ServerLimits(write_high_water_bytes=100_000))
        proxy = world.servers[1]
        peer = await world.peer(front, receive_buffer_bytes=4096)
        peer.writer.transport.pause_reading()
        peer.send(GET)
        await world.until(lambda: proxy.exchanges == 1 and sent > 0, "running")
        before = -1
        while before != sent:
            before = sent
            await asyncio.sleep(0.15)
            (connection,) = proxy._connections
            held.append(connection._transport.get_write_buffer_size())
        assert sent < total / 2
        assert max(held) <= 100_000 + 2 * 262_144  # the mark, and what one read of the upstream may add
        (upstream_connection,) = client._pools[upstream].open
        assert upstream_connection._paused
        peer.writer.transport.resume_reading()
        received = 0
        while received < total:
            data = await peer.reader.read(1_000_000)
            assert data
            received += len(data)
        await world.until(lambda: bool(results), "relay ends")

    play(scenario)
    assert results[0].ending is Ending.FINISHED


@pytest.mark.parametrize(("how", "talking"), [("reset", True), ("reset", False), ("close", True)])
def test_a_client_that_leaves_ends_the_upstream(play: Play, how: str, talking: bool) -> None:
    """While chunks flow, and while the upstream is thinking: its handler is cancelled, no connection is kept."""
    results: list[RelayResult] = []

    async def scenario(world: Any) -> None:
        async def stream(exchange: Exchange) -> None:
            exchange.start(200)
            exchange.write(b"first")
            while True:
                await asyncio.sleep(0.02)
                if talking:
                    exchange.write(b"more")

        upstream = await world.serve(stream)
        client = world.client()
        peer = await world.peer(await world.serve(relaying(client, upstream, results)))
        peer.send(GET)
        await peer.reader.readuntil(b"first")
        if how == "reset":
            peer.reset()
        else:
            peer.writer.close()
        await world.until(lambda: bool(results), "relay ends")
        assert client.open_connections == 0
        await world.until(lambda: world.servers[0].exchanges == 0, "upstream told")

    play(scenario)
    assert [result.ending for result in results] == [Ending.CLIENT_GONE]


@pytest.mark.parametrize("path", [b"/v1/finish", b"/v1/cut"])
@pytest.mark.parametrize(
    ("tail", "close", "ending", "error"),
    [
        (b"", True, Ending.UPSTREAM_FAILED, ConnectionLost),
        (b"garbage", False, Ending.UPSTREAM_FAILED, ProtocolGarbage),
        (b"", False, Ending.STALLED, DeadlineExceeded),
    ],
    ids=["closes", "garbage", "stalls"],
)
def test_an_upstream_that_fails_midway_leaves_the_ending_to_the_caller(
    play: Play, path: bytes, tail: bytes, close: bool, ending: Ending, error: type[Exception]
) -> None:
    """What came is delivered, the caller may add an error event, then end or cut."""
    results: list[RelayResult] = []

    async def scenario(world: Any) -> None:
        async def script(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            await reader.read(1000)
            writer.write(CHUNKED + b"4\r\ngood\r\n" + tail)
            if not close:
                await asyncio.Event().wait()
            await writer.drain()
            writer.close()

        upstream = await world.serve_script(script)
        client = world.client()
        peer = await world.peer(await world.serve(relaying(client, upstream, results, stall_s=0.2)))
        peer.send(GET.replace(b"/v1/x", path))
        raw = await peer.reader.readuntil(b"4\r\ngood\r\n")
        assert raw.endswith(b"4\r\ngood\r\n")
        if path == b"/v1/cut":
            assert not (await peer.rest()).endswith(b"0\r\n\r\n")
        else:
            assert await peer.reader.readuntil(b"0\r\n\r\n") == b"e\r\nevent: error\n\n\r\n0\r\n\r\n"
        assert client.open_connections == 0

    play(scenario)
    assert results[0].ending is ending
    assert isinstance(results[0].error, error)


def test_256_streams_at_once_all_end_whole(play: Play) -> None:
    """Many relays share one loop; each gets all of its own chunks in order, and the pool holds them all afterwards."""
    results: list[RelayResult] = []

    async def scenario(world: Any) -> None:
        async def stream(exchange: Exchange) -> None:
            exchange.start(200)
            for number in range(10):
                exchange.write(exchange.request.path.encode() + b" %d\n" % number)
                await asyncio.sleep(0.005)
            exchange.finish()

        upstream = await world.serve(stream)
        client = world.client()
        front = await world.serve(relaying(client, upstream, results))

        async def one(number: int) -> None:
            peer = await world.peer(front)
            peer.send(b"GET /v1/%d HTTP/1.1\r\nHost: h\r\n\r\n" % number)
            assert (await peer.response())[2] == b"".join(b"/v1/%d %d\n" % (number, n) for n in range(10))

        await asyncio.gather(*(one(number) for number in range(256)))
        assert client.open_connections <= 256

    play(scenario)
    assert {result.ending for result in results} == {Ending.FINISHED}
    assert len(results) == 256


def test_a_relay_that_is_cancelled_cuts_the_upstream(play: Play) -> None:
    """A handler's own time limit ends the upstream too, and the handler may still finish the answer."""

    async def scenario(world: Any) -> None:
        async def stream(exchange: Exchange) -> None:
            exchange.start(200)
            exchange.write(b"first")
            await asyncio.Event().wait()

        async def handle(exchange: Exchange) -> None:
            response = await client.request(upstream, "GET", "/v1/x")
            exchange.start(200)
            try:
                async with asyncio.timeout(0.1):
                    await relay(response, exchange)
            except TimeoutError:
                exchange.finish(b"late")

        upstream = await world.serve(stream)
        client = world.client()
        peer = await world.peer(await world.serve(handle))
        peer.send(GET)
        assert (await peer.response())[2] == b"firstlate"
        assert client.open_connections == 0
        await world.until(lambda: world.servers[0].exchanges == 0, "upstream told")

    play(scenario)
