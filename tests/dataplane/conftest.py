"""A small world for data plane tests: real servers, clients and raw sockets in one loop, and proof that nothing is left of them."""

import asyncio
import socket
import struct
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from penstock_dataplane.client import Client, ClientLimits, Origin
from penstock_dataplane.loop import new_event_loop
from penstock_dataplane.server import Handler, Server, ServerLimits

TIME_LIMIT_S = 60.0  # generous: the machine may be busy; nothing waits for it unless something hangs


class Peer:
    """A raw TCP connection to a server."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader = reader
        self.writer = writer

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def head(self) -> bytes:
        """The next response head, terminator included."""
        return await self.reader.readuntil(b"\r\n\r\n")

    async def response(self) -> tuple[int, bytes, bytes]:
        """Status, head and body of the next response, read by its own framing."""
        head = await self.head()
        status = int(head.split(b" ", 2)[1])
        lower = head.lower()
        if b"transfer-encoding: chunked" in lower:
            body = b""
            while size := int(await self.reader.readuntil(b"\r\n"), 16):
                body += await self.reader.readexactly(size)
                assert await self.reader.readexactly(2) == b"\r\n"
            assert await self.reader.readexactly(2) == b"\r\n"
            return status, head, body
        if b"content-length: " in lower:
            length = int(lower.split(b"content-length: ")[1].split(b"\r\n")[0])
            return status, head, await self.reader.readexactly(length)
        return status, head, b"" if status in (100, 204, 304) else await self.reader.read()

    async def rest(self) -> bytes:
        """Everything up to the end of the connection; b"" if it was reset."""
        try:
            return await self.reader.read()
        except ConnectionError:
            return b""

    def reset(self) -> None:
        """Leave with a reset instead of an orderly end."""
        sock = self.writer.get_extra_info("socket")
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.writer.transport.abort()


class World:
    """Servers, clients and sockets of one test, closed and counted at its end."""

    def __init__(self) -> None:
        self.servers: list[Server] = []
        self.clients: list[Client] = []
        self.peers: list[Peer] = []
        self.scripted: list[asyncio.Server] = []
        self.script_tasks: list[asyncio.Task[None]] = []

    async def serve(self, handler: Handler, *, limits: ServerLimits | None = None, **options: Any) -> Origin:
        """A penstock server; where it is."""
        server = Server(handler, limits=limits, **options)
        self.servers.append(server)
        host, port = await server.start("127.0.0.1", 0)
        return Origin("http", host, port)

    async def serve_script(self, script: Callable[[asyncio.StreamReader, asyncio.StreamWriter], Awaitable[None]]) -> Origin:
        """A server that does on each connection what `script` says: the misbehaving upstream."""

        async def run(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            task = asyncio.current_task()
            assert task is not None
            self.script_tasks.append(task)
            try:
                await script(reader, writer)
            except (ConnectionError, asyncio.IncompleteReadError, asyncio.CancelledError):
                pass
            finally:
                writer.transport.abort()

        server = await asyncio.start_server(run, "127.0.0.1", 0)
        self.scripted.append(server)
        host, port = server.sockets[0].getsockname()
        return Origin("http", host, port)

    def client(self, limits: ClientLimits | None = None) -> Client:
        client = Client(limits)
        self.clients.append(client)
        return client

    async def peer(self, origin: Origin, *, receive_buffer_bytes: int | None = None) -> Peer:
        """A raw connection; with a small receive buffer it is a slow reader for certain."""
        sock = socket.socket()
        if receive_buffer_bytes is not None:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer_bytes)
        sock.setblocking(False)
        await asyncio.get_running_loop().sock_connect(sock, (origin.host, origin.port))
        peer = Peer(*await asyncio.open_connection(sock=sock, limit=4096))
        self.peers.append(peer)
        return peer

    async def until(self, condition: Callable[[], bool], what: str = "") -> None:
        """Poll until `condition` holds."""
        end_s = asyncio.get_running_loop().time() + TIME_LIMIT_S / 2
        while not condition():
            assert asyncio.get_running_loop().time() < end_s, f"never came true: {what}"
            await asyncio.sleep(0.005)

    def now_s(self) -> float:
        return asyncio.get_running_loop().time()

    async def close(self) -> None:
        for peer in self.peers:
            peer.writer.transport.abort()
        for client in self.clients:
            await client.aclose()
        for server in self.servers:
            await server.close()
        for scripted in self.scripted:
            scripted.close()
        for task in self.script_tasks:
            task.cancel()
        if self.script_tasks:
            await asyncio.wait(self.script_tasks)
        for server in self.servers:
            assert (server.connections, server.exchanges) == (0, 0)
        for client in self.clients:
            assert client.open_connections == 0
        await self.until(lambda: len(asyncio.all_tasks()) == 1, "no task left")


def open_sockets() -> int:
    """Sockets this process holds."""
    count = 0
    for link in Path("/proc/self/fd").iterdir():
        try:
            count += str(link.readlink()).startswith("socket:")
        except OSError:
            pass
    return count


Scenario = Callable[[World], Awaitable[None]]


@pytest.fixture(params=["uvloop", "asyncio"])
def play(request: pytest.FixtureRequest) -> Iterator[Callable[[Scenario], None]]:
    """Plays an async scenario on either loop; fails if a task, a connection or a socket is left, or a callback raised."""

    def run(scenario: Scenario) -> None:
        before = open_sockets()
        complaints: list[dict[str, Any]] = []

        async def main() -> None:
            asyncio.get_running_loop().set_exception_handler(lambda _, context: complaints.append(context))
            world = World()
            try:
                async with asyncio.timeout(TIME_LIMIT_S):
                    await scenario(world)
            finally:
                await world.close()

        factory = new_event_loop if request.param == "uvloop" else asyncio.new_event_loop
        with asyncio.Runner(loop_factory=factory) as runner:
            runner.run(main())
        assert complaints == []
        assert open_sockets() <= before

    yield run
