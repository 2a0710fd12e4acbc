"""The warm connections to one origin, and the name of an origin.

`client.Client` holds one pool an origin. Idle connections are reused last in, first out, so that in quiet times the surplus grows old
and is swept. Deciding (take, put back, expire) is synchronous; only making a connection waits.
"""

import asyncio
import ssl
from collections.abc import Callable
from typing import NamedTuple
from urllib.parse import urlsplit

from penstock_dataplane.errors import ConnectFailed, DeadlineExceeded, PoolFull
from penstock_dataplane.limits import ClientLimits
from penstock_dataplane.upstream import UpstreamConnection
from penstock_dataplane.wire import request_line

_STARTS_KEPT = 64
_DEFAULT_PORTS = {"http": 80, "https": 443}


class Origin(NamedTuple):
    """Where requests go. A tuple, so that looking one up costs next to nothing."""

    scheme: str
    host: str
    port: int

    @classmethod
    def parse(cls, url: str) -> "Origin":
        """From `http://host[:port][/…]`; what follows the port is ignored. ValueError names what is wrong."""
        parts = urlsplit(url)
        if parts.scheme not in _DEFAULT_PORTS:
            raise ValueError(f"url {url!r}: scheme is {parts.scheme!r}; allowed: http, https")
        if not parts.hostname:
            raise ValueError(f"url {url!r}: it names no host")
        if parts.username is not None or parts.password is not None:
            raise ValueError(f"url of host {parts.hostname!r} holds a user name or password; none is allowed")
        return cls(parts.scheme, parts.hostname, parts.port or _DEFAULT_PORTS[parts.scheme])

    def __str__(self) -> str:
        host = f"[{self.host}]" if ":" in self.host else self.host
        return f"{self.scheme}://{host}:{self.port}"

    @property
    def host_header(self) -> bytes:
        """The value of the `host` header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return (host if self.port == _DEFAULT_PORTS[self.scheme] else f"{host}:{self.port}").encode(
            "idna" if not host.isascii() else "ascii"
        )


class OriginPool:
    """Connections to one origin: `open` ones, of which the `idle` ones are a stack, oldest at the bottom."""

    __slots__ = ("_expect_timeout", "_loop", "_making", "_ssl", "_starts", "forgotten", "idle", "limits", "open", "origin", "origin_text")

    def __init__(
        self,
        origin: Origin,
        limits: ClientLimits,
        loop: asyncio.AbstractEventLoop,
        ssl_context: ssl.SSLContext | None,
        expect_timeout: Callable[[float], None],
    ) -> None:
        self.origin = origin
        self.origin_text = str(origin)
        self._starts: dict[tuple[str, str | bytes], bytes] = {}  # a process calls few paths: their first lines are kept
        self.limits = limits
        self.open: set[UpstreamConnection] = set()
        self.idle: list[UpstreamConnection] = []
        self.forgotten = False
        self._making = 0
        self._loop = loop
        self._ssl = ssl_context
        self._expect_timeout = expect_timeout

    def request_start(self, method: str, target: str | bytes) -> bytes:
        """Request line and host header. ValueError if the target would not be one word of printable ASCII."""
        start = self._starts.get((method, target))
        if start is None:
            start = request_line(method, target) + b"host: %b\r\n" % self.origin.host_header
            if len(self._starts) >= _STARTS_KEPT:
                self._starts.clear()
            self._starts[method, target] = start
        return start

    def take(self) -> UpstreamConnection | None:
        """The idle connection used last, or None."""
        while self.idle:
            connection = self.idle.pop()
            if not connection.lost:
                return connection
        return None

    async def connect(self, deadline_s: float) -> UpstreamConnection:
        """A new connection. PoolFull, ConnectFailed, or DeadlineExceeded if `deadline_s` is nearer than the connect timeout."""
        if len(self.open) + self._making >= self.limits.max_connections_per_origin:
            raise PoolFull(self.origin_text, f"all {self.limits.max_connections_per_origin} connections are busy")
        give_up_s = self._loop.time() + self.limits.connect_timeout_s
        self._making += 1
        try:
            async with asyncio.timeout_at(min(give_up_s, deadline_s)):
                _, connection = await self._loop.create_connection(
                    lambda: UpstreamConnection(self, self._loop), self.origin.host, self.origin.port, ssl=self._ssl
                )
        except TimeoutError as error:
            if deadline_s < give_up_s:
                raise DeadlineExceeded(self.origin_text, "deadline passed while connecting") from error
            raise ConnectFailed(self.origin_text, f"no connection within {self.limits.connect_timeout_s:g} s") from error
        except OSError as error:
            raise ConnectFailed(self.origin_text, str(error) or type(error).__name__) from error
        finally:
            self._making -= 1
        self.open.add(connection)
        return connection

    def put_back(self, connection: UpstreamConnection) -> bool:
        """Take a connection whose response is whole; False if it is not wanted any more."""
        if self.forgotten:
            return False
        self.idle.append(connection)
        self._expect_timeout(connection.received_s + self.limits.idle_timeout_s)
        return True

    def forget_connection(self, connection: UpstreamConnection) -> None:
        """A connection is lost or dropped; a second call does nothing."""
        if connection in self.open:
            self.open.discard(connection)
            if connection in self.idle:
                self.idle.remove(connection)

    def expire(self, now_s: float) -> float:
        """Close what was idle too long, fail what is past its deadline; returns when to look again (loop time, inf: never)."""
        horizon_s = now_s - self.limits.idle_timeout_s
        stale = [connection for connection in self.idle if connection.received_s <= horizon_s]
        for connection in stale:
            connection.abandon()
        next_s = self.idle[0].received_s + self.limits.idle_timeout_s if self.idle else float("inf")
        for connection in [c for c in self.open if c.busy]:
            at_s = connection.timeout_at_s()
            if at_s <= now_s:
                before_head = connection.before_head
                where = "before the response head" if before_head else "inside the response body"
                connection.fail(DeadlineExceeded(self.origin_text, f"deadline passed {where}", before_head=before_head))
            else:
                next_s = min(next_s, at_s)
        return next_s

    def expect_timeout(self, at_s: float) -> None:
        """Ask the shared timer to look here no later than `at_s`."""
        self._expect_timeout(at_s)

    def close_idle(self) -> None:
        """Close idle connections; busy ones are closed when they come back if the pool is forgotten."""
        for connection in list(self.idle):
            connection.abandon()

    def close(self) -> None:
        """Cut every connection."""
        self.forgotten = True
        for connection in list(self.open):
            connection.fail(ConnectFailed(self.origin_text, "the client was closed", before_head=connection.before_head))
