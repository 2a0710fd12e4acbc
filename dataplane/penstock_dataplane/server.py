"""The HTTP/1.1 server of a Penstock process.

Router and worker build one, give it a handler for the paths they serve themselves, and mount an ASGI app (FastAPI: admin, metrics,
health) for all others. It owns the connections, their one shared timer, and draining. It knows nothing of models or endpoints.
"""

import asyncio
import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from math import ceil, inf
from typing import Any

from penstock_dataplane.asgi import AsgiApp, serve_app
from penstock_dataplane.connection import Phase, ServerConnection
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.limits import ServerLimits
from penstock_dataplane.request_parser import Request
from penstock_dataplane.wire import RESPONSE_FRAMING, Headers, header_block, status_line

__all__ = ["Exchange", "Handler", "Request", "Server", "ServerLimits"]

Handler = Callable[[Exchange], Awaitable[None]]
RenderError = Callable[[int, str], tuple[Headers, bytes]]

log = logging.getLogger(__name__)

_BACKLOG = 4096
_KEEP_ALIVE_MARGIN_S = 15


def plain_error(status: int, message: str) -> tuple[Headers, bytes]:
    """The default look of an error the server itself answers: the message as a line of text."""
    return [(b"content-type", b"text/plain; charset=utf-8")], f"{message}\n".encode()


def _keep_alive(listener: asyncio.Server, idle_timeout_s: float) -> None:
    """TCP keep-alive for all accepted sockets (they inherit it): ends streams whose client host vanished without a word.

    Silent for somewhat longer than the idle time-out, then probes every 10 s, then the end after 3. Idle connections are the sweep's:
    the kernel probes thousands of them in one tick, which overflows its own queue (netdev_max_backlog, 1,000 packets) and cuts
    clients that are there; measured with 10,000 over loopback: 6,000 cut without a word.
    """
    options = (("TCP_KEEPIDLE", min(32_767, ceil(idle_timeout_s) + _KEEP_ALIVE_MARGIN_S)), ("TCP_KEEPINTVL", 10), ("TCP_KEEPCNT", 3))
    known = [(getattr(socket, name), value) for name, value in options if hasattr(socket, name)]
    for sock in listener.sockets:
        if sock.family in (socket.AF_INET, socket.AF_INET6):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
            for option, value in known:
                sock.setsockopt(socket.IPPROTO_TCP, option, value)


class Server:
    """Serves `handler` for paths that begin with one of `handler_prefixes`, `app` (or 404) for the rest.

    `render_error(status, message)` gives headers and body of what the server answers on its own: 400 malformed, 404, 408, 413, 417,
    431, 500, 503 too many connections, 505. `on_error(peer, kind)` hears of each of these and of clients that left, for metrics.
    """

    def __init__(
        self,
        handler: Handler,
        *,
        app: AsgiApp | None = None,
        handler_prefixes: Sequence[str] = ("/v1/",),
        limits: ServerLimits | None = None,
        render_error: RenderError = plain_error,
        on_error: Callable[[str, str], None] | None = None,
    ) -> None:
        self.limits = limits or ServerLimits()
        self.idle_timeout_s = self.limits.idle_timeout_s
        self.draining = False
        self.now_s = 0.0  # the loop's clock, as old as one sweep: good enough for idle waits
        self._handler = handler
        self._app = app
        self._prefixes = tuple(handler_prefixes)
        self._render_error = render_error
        self._on_error = on_error
        self._connections: set[ServerConnection] = set()
        self._tasks: set[asyncio.Task[None]] = set()
        self._watched: set[ServerConnection] = set()
        self._refused = 0
        self._listeners: list[asyncio.Server] = []
        self._loop: Any = None
        self._sweeper: asyncio.TimerHandle | None = None
        self._watcher: asyncio.TimerHandle | None = None
        self._idle: asyncio.Event | None = None
        self._idlest: list[tuple[float, ServerConnection]] = []  # found idle, with their deadlines then; the longest idle last
        self._idlest_s = -inf  # when they were looked for

    async def start(self, host: str = "127.0.0.1", port: int = 0) -> tuple[str, int]:
        """Listen on a TCP address; returns the bound (host, port). OSError if it cannot be had."""
        self._prepare()
        listener = await self._loop.create_server(self._protocol, host, port, backlog=_BACKLOG)
        self._listeners.append(listener)
        _keep_alive(listener, self.limits.idle_timeout_s)
        name = listener.sockets[0].getsockname()
        return str(name[0]), int(name[1])

    async def start_unix(self, path: str) -> None:
        """Listen on a unix socket as well, or instead."""
        self._prepare()
        self._listeners.append(await self._loop.create_unix_server(self._protocol, path, backlog=_BACKLOG))

    async def start_socket(self, sock: socket.socket) -> None:
        """Listen on a socket that is already bound, as one handed down by a parent."""
        self._prepare()
        listener = await self._loop.create_server(self._protocol, sock=sock, backlog=_BACKLOG)
        self._listeners.append(listener)
        _keep_alive(listener, self.limits.idle_timeout_s)

    def stop_accepting(self) -> None:
        """Close the listening sockets; open connections live on."""
        for listener in self._listeners:
            listener.close()
        self._listeners.clear()

    async def drain(self, deadline_s: float) -> bool:
        """Take no new connections, close idle ones, let running exchanges end, and close.

        At `deadline_s` (loop time) what still runs is cut. True if nothing had to be.
        """
        self.stop_accepting()
        self.draining = True
        for connection in list(self._connections):
            connection.close_if_idle()
        clean = True
        if self._connections or self._tasks:
            self._idle = asyncio.Event()
            try:
                async with asyncio.timeout_at(deadline_s):
                    await self._idle.wait()
            except TimeoutError:
                clean = False
        await self.close()
        return clean

    async def close(self) -> None:
        """Cut everything at once and wait until connections and handlers are gone."""
        self.stop_accepting()
        self.draining = True
        for connection in list(self._connections):
            connection.cut_off()
        tasks = list(self._tasks)
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks, timeout=5.0)
        self._idle = asyncio.Event()
        if self._connections:
            async with asyncio.timeout(5.0):
                await self._idle.wait()
        for timer in (self._sweeper, self._watcher):
            if timer is not None:
                timer.cancel()
        self._sweeper = self._watcher = None

    @property
    def connections(self) -> int:
        """Open client connections, closing ones included."""
        return len(self._connections)

    @property
    def crowded(self) -> bool:
        """An eighth over `max_connections`: refusals linger until they are read, and even those are bounded."""
        return len(self._connections) > max(self.limits.max_connections + 8, self.limits.max_connections * 9 // 8)

    @property
    def exchanges(self) -> int:
        """Handlers at work."""
        return len(self._tasks)

    def _prepare(self) -> None:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        if self._sweeper is None:
            self._sweep()

    def _protocol(self) -> ServerConnection:
        return ServerConnection(self, self._loop)

    # for connections

    def admit(self, connection: ServerConnection) -> bool:
        """Count a new connection in; False if it is over `max_connections` (it may stay only to read its refusal)."""
        self._connections.add(connection)
        return len(self._connections) <= self.limits.max_connections or self._close_idlest(connection)

    def _close_idlest(self, newcomer: ServerConnection) -> bool:
        """Close the connection that has been without a request longest, if there is one. Looked for at most once a sweep, all at once."""
        while True:
            while self._idlest:
                deadline_s, connection = self._idlest.pop()
                if connection.phase is Phase.IDLE and connection.deadline_s == deadline_s and connection in self._connections:
                    connection.close_if_idle()
                    return True
            now_s = self._loop.time()
            if now_s < self._idlest_s + self.limits.sweep_interval_s:
                return False
            self._idlest_s = now_s
            latest_s = now_s + self.idle_timeout_s - self.limits.spare_idle_s
            idle = [(one.deadline_s, one) for one in self._connections if one.phase is Phase.IDLE and one is not newcomer]
            self._idlest = sorted((pair for pair in idle if pair[0] <= latest_s), key=lambda pair: -pair[0])

    def forget(self, connection: ServerConnection) -> None:
        """A connection is lost."""
        self._connections.discard(connection)
        self._watched.discard(connection)
        self._tell_if_idle()

    def report(self, peer: str, kind: str) -> None:
        """Pass an ending that no handler sees on to `on_error`."""
        if self._on_error is not None:
            self._on_error(peer, kind)

    def refusal(self, status: int, message: str) -> bytes:
        """A whole response that ends the connection."""
        headers, body = self._render_error(status, message)
        head = status_line(status) + header_block(headers, RESPONSE_FRAMING)
        return b"%bconnection: close\r\ncontent-length: %d\r\n\r\n%b" % (head, len(body), body)

    def run(self, exchange: Exchange) -> None:
        """Start the handler of a whole request."""
        task = self._loop.create_task(self._serve(exchange))
        exchange.task = task
        self._tasks.add(task)

    async def _serve(self, exchange: Exchange) -> None:
        try:
            if exchange.request.path.startswith(self._prefixes):
                await self._handler(exchange)
            elif self._app is not None:
                await serve_app(self._app, exchange)
            else:
                headers, body = self._render_error(404, f"no such path: {exchange.request.path}")
                exchange.respond(404, headers, body)
            if not exchange.finished and not exchange.gone:
                raise RuntimeError("the handler returned without finishing its response")
        except Exception:
            log.exception("handler failed: %s %s", exchange.request.method, exchange.request.path)
            self._fail(exchange)
        finally:
            if not exchange.finished:
                exchange.abort()  # a cancelled handler leaves no half response behind
            self._tasks.discard(exchange.task)
            if self._idle is not None:
                self._tell_if_idle()

    def _fail(self, exchange: Exchange) -> None:
        self.report(exchange.request.peer, "handler failed")
        if exchange.started:
            exchange.abort()
        elif not exchange.gone:
            headers, body = self._render_error(500, "internal error")
            exchange.respond(500, headers, body)

    def _tell_if_idle(self) -> None:
        if self._idle is not None and not self._connections and not self._tasks:
            self._idle.set()

    # the shared timers

    def _sweep(self) -> None:
        """Look every connection over: one timer for all waits, as coarse as an eighth of the shortest."""
        now_s = self.now_s = self._loop.time()
        for connection in [c for c in self._connections if c.deadline_s < now_s]:
            connection.expire()
        self._sweeper = self._loop.call_later(self.limits.sweep_interval_s, self._sweep)

    def watch_departure(self, connection: ServerConnection) -> None:
        """Ask the kernel about this connection, a few times a second, while its exchange runs."""
        self._watched.add(connection)
        if self._watcher is None:
            self._watcher = self._loop.call_later(0.05, self._watch)

    def _watch(self) -> None:
        self._watched = {connection for connection in self._watched if connection.departed() is False}
        self._watcher = self._loop.call_later(0.05, self._watch) if self._watched else None
