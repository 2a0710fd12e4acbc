"""A server at its bound of connections: those without a request make room, those at work do not."""

import asyncio

from penstock_dataplane.limits import ServerLimits
from penstock_dataplane.loop import run
from penstock_dataplane.server import Server

GET = b"GET /v1/x HTTP/1.1\r\nhost: x\r\n\r\n"


async def until(condition) -> None:
    for _ in range(10_000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("never came true")


async def answered(server_at):
    reader, writer = await asyncio.open_connection(*server_at)
    writer.write(GET)
    head = await reader.readuntil(b"\r\n\r\n")
    return head, reader, writer


def test_the_longest_idle_connection_makes_room_for_a_newcomer():
    """Two idle keep-alive clients fill the server; the third is served, and the first of the two is closed, not the second."""

    async def story():
        async def handler(exchange):
            exchange.respond(200, [], b"")

        server = Server(handler, limits=ServerLimits(max_connections=2, spare_idle_s=1e-6, linger_timeout_s=0.08))
        at = await server.start()
        async with asyncio.timeout(60):
            _, first, first_writer = await answered(at)
            await until(lambda swept=server.now_s: server.now_s > swept)
            _, _, second_writer = await answered(at)
            head, _, third_writer = await answered(at)
            assert head.startswith(b"HTTP/1.1 200")
            assert await first.read() == b"", "the longest idle is closed"
            second_writer.write(GET)
            assert server.connections == 2
        for writer in (first_writer, second_writer, third_writer):
            writer.close()
        await server.close()

    run(story())


def test_connections_at_work_are_not_closed_for_a_newcomer():
    """Where nobody is idle the newcomer is refused as before."""

    async def story():
        begun, gate = asyncio.Event(), asyncio.Event()

        async def handler(exchange):
            begun.set()
            await gate.wait()
            exchange.respond(200, [], b"")

        server = Server(handler, limits=ServerLimits(max_connections=1, spare_idle_s=1e-6))
        at = await server.start()
        async with asyncio.timeout(60):
            working = asyncio.ensure_future(answered(at))
            await begun.wait()
            head, _, refused = await answered(at)
            assert head.startswith(b"HTTP/1.1 503")
            gate.set()
            head, _, writer = await working
            assert head.startswith(b"HTTP/1.1 200")
        for one in (refused, writer):
            one.close()
        await server.close()

    run(story())
