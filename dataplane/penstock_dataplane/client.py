"""The HTTP/1.1 client of router and worker: one request, one response, over warm connections.

`Client.request` resolves when the response head is in; the body is then taken from the Response. One timer serves all deadlines and idle
waits. It does not know what is retried where: it replaces only a kept-alive connection that was dead before any response byte.
"""

import asyncio
import math
import ssl
from typing import Any

from penstock_dataplane.errors import ConnectionLost
from penstock_dataplane.limits import ClientLimits
from penstock_dataplane.pool import Origin, OriginPool
from penstock_dataplane.response import BodySink, Response
from penstock_dataplane.wire import REQUEST_FRAMING, Headers, header_block

__all__ = ["BodySink", "Client", "ClientLimits", "Origin", "Response"]

_JOIN_BYTES = 128 * 1024  # up to here head and body are joined into one buffer; beyond, the copy costs more than a second buffer
_TIMER_GRAIN_S = 0.01
_BODILESS_METHODS = frozenset({"GET", "HEAD", "DELETE", "OPTIONS"})


class Client:
    """Calls origins. Use from one event loop; `aclose` when done. `ssl_context` is for https origins (default: the system's trust)."""

    def __init__(self, limits: ClientLimits | None = None, *, ssl_context: ssl.SSLContext | None = None) -> None:
        self.limits = limits or ClientLimits()
        self._ssl = ssl_context
        self._pools: dict[Origin, OriginPool] = {}
        self._leaving: set[OriginPool] = set()  # forgotten, with connections still busy
        self._loop: Any = None
        self._timer: asyncio.TimerHandle | None = None
        self._timer_at_s = math.inf
        self._closed = False

    async def request(
        self,
        origin: Origin,
        method: str,
        target: str | bytes,
        headers: Headers = (),
        body: bytes = b"",
        *,
        deadline_s: float | None = None,
    ) -> Response:
        """Send a request and return its response when the head is in.

        `headers` have lower-case names; `host`, `content-length` and `connection` are the client's own. `deadline_s` (loop time) ends
        the whole call, body included, unless `Response.set_waits` replaces it. Raises an UpstreamError; ValueError for a header or
        target that would not be one line. When the awaiting task is cancelled the connection is closed.
        """
        pool = self._pools.get(origin) or self._open_pool(origin)
        until_s = math.inf if deadline_s is None else deadline_s
        rest: bytes | None = None
        head = pool.request_start(method, target) + header_block(headers, REQUEST_FRAMING)
        if len(body) > _JOIN_BYTES:
            head, rest = b"%bcontent-length: %d\r\n\r\n" % (head, len(body)), body
        elif body or method not in _BODILESS_METHODS:
            head = b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body)
        else:
            head += b"\r\n"
        connection = pool.take()
        while True:
            if connection is None:
                connection = await pool.connect(until_s)
            if until_s < self._timer_at_s:
                self._expect_timeout(until_s)
            try:
                return await connection.send(method, head, rest, until_s)
            except ConnectionLost as error:
                if not (error.untouched and connection.reused):
                    raise
                connection = None  # the upstream closed it as we reused it: once more, on a fresh one
            except asyncio.CancelledError:
                connection.abandon()
                raise

    @property
    def open_connections(self) -> int:
        """Connections open now, idle ones included."""
        return sum(len(pool.open) for pool in self._pools.values()) + sum(len(pool.open) for pool in self._leaving)

    def forget(self, origin: Origin) -> None:
        """Drop an origin's idle connections now and its busy ones when their responses end."""
        pool = self._pools.pop(origin, None)
        if pool is not None:
            pool.forgotten = True
            pool.close_idle()
            if pool.open:
                self._leaving.add(pool)
                self._expect_timeout(self._loop.time() + 1.0)

    async def aclose(self) -> None:
        """Cut every connection; calls under way fail. The client cannot be used after."""
        self._closed = True
        for pool in (*self._pools.values(), *self._leaving):
            pool.close()
        self._pools.clear()
        self._leaving.clear()
        if self._timer is not None:
            self._timer.cancel()
        await asyncio.sleep(0)  # the transports close their sockets in the loop's next turn
        await asyncio.sleep(0)

    def _open_pool(self, origin: Origin) -> OriginPool:
        if self._closed:
            raise RuntimeError("the client is closed")
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        context = None
        if origin.scheme == "https":
            context = self._ssl = self._ssl or ssl.create_default_context()
        pool = self._pools[origin] = OriginPool(origin, self.limits, self._loop, context, self._expect_timeout)
        return pool

    def _expect_timeout(self, at_s: float) -> None:
        """Have the shared timer fire no later than `at_s`. Later ends than its present one cost a comparison."""
        if at_s >= self._timer_at_s or self._closed:
            return
        if self._timer is not None:
            self._timer.cancel()
        at_s = max(at_s, self._loop.time() + _TIMER_GRAIN_S)
        self._timer_at_s = at_s
        self._timer = self._loop.call_at(at_s, self._tick)

    def _tick(self) -> None:
        now_s = self._loop.time()
        self._timer = None
        self._timer_at_s = math.inf
        next_s = math.inf
        for pool in list(self._pools.values()):
            next_s = min(next_s, pool.expire(now_s))
        for pool in list(self._leaving):
            next_s = min(next_s, pool.expire(now_s), now_s + 1.0)
            if not pool.open:
                self._leaving.discard(pool)
        if next_s < math.inf:
            self._expect_timeout(next_s)
