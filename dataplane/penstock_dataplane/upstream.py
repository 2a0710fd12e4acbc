"""One connection to an origin: a request out, a response in, then back to its pool.

Made by `pool.OriginPool`. A response body goes to its taker in the same loop callback that read it, one call a read. It does not
decide about retries or which connection is used next.
"""

import asyncio
import math
import socket
import struct
from typing import TYPE_CHECKING, Any

import httptools

from penstock_dataplane.errors import ConnectionLost, ProtocolGarbage, UpstreamError
from penstock_dataplane.response import Response

if TYPE_CHECKING:
    from penstock_dataplane.pool import OriginPool

_BODILESS = frozenset({204, 304})
_FRAMES_BODY = frozenset({b"content-length", b"transfer-encoding"})
_INTERNET = (socket.AF_INET, socket.AF_INET6)
_RESET_ON_CLOSE = struct.pack("ii", 1, 0)  # SO_LINGER on, for 0 s


class _StopParsing(Exception):
    pass


class UpstreamConnection(asyncio.Protocol):
    """The protocol of one client socket. Changes only in loop callbacks and synchronous calls."""

    __slots__ = (
        "_awaiting",
        "_body_done",
        "_close_delimited",
        "_deadline_s",
        "_flowing",
        "_framed",
        "_garbage",
        "_head_bytes",
        "_headers",
        "_keep_alive",
        "_loop",
        "_method",
        "_more",
        "_now",
        "_parser",
        "_paused",
        "_piece",
        "_pool",
        "_response",
        "_stall_timeout_s",
        "_transport",
        "busy",
        "lost",
        "received_s",
        "reused",
    )

    def __init__(self, pool: "OriginPool", loop: asyncio.AbstractEventLoop) -> None:
        self._pool = pool
        self._loop = loop
        self._now = loop.time
        self._transport: Any = None
        self._parser: Any = httptools.HttpResponseParser(self)
        self._awaiting: asyncio.Future[Response] | None = None
        self._response: Response | None = None
        self._garbage: str | None = None
        self._deadline_s: float = math.inf
        self._stall_timeout_s: float | None = None
        self._paused = False
        self.busy = False
        self.lost = False
        self.reused = False  # has carried a whole response before
        self.received_s = 0.0
        self._reset("")

    def _reset(self, method: str) -> None:
        self._method = method
        self._headers: list[tuple[bytes, bytes]] = []
        self._head_bytes = 0
        self._framed = False
        self._close_delimited = False
        self._keep_alive = False
        self._body_done = False
        self._flowing = False  # the head has been handed over, and the last read brought body alone, in one piece at most
        self._piece: bytes | None = None
        self._more: list[bytes] | None = None

    # the pool's and the client's calls

    def send(self, method: str, payload: bytes, body: bytes | None, deadline_s: float) -> "asyncio.Future[Response]":
        """Write a whole request; the future has the Response once its head is in, or an UpstreamError."""
        self._reset(method)
        self.busy = True
        self._deadline_s = deadline_s
        self._stall_timeout_s = None
        awaiting = self._awaiting = self._loop.create_future()
        if self.lost:
            awaiting.set_exception(ConnectionLost(self.origin_text, "closed while idle", untouched=True))
            return awaiting
        self._transport.write(payload)
        if body is not None:
            self._transport.write(body)
        return awaiting

    def abandon(self) -> None:
        """Cut the connection; nobody is told."""
        self._awaiting = None
        self._response = None
        self._drop()

    def fail(self, error: UpstreamError) -> None:
        """Cut the connection and tell whoever waits on it."""
        awaiting, self._awaiting = self._awaiting, None
        response, self._response = self._response, None
        self._drop()
        if awaiting is not None:
            if not awaiting.done():
                awaiting.set_exception(error)
        elif response is not None:
            response.failed(error)

    def set_waits(self, deadline_s: float | None, stall_timeout_s: float | None) -> None:
        """See `Response.set_waits`."""
        self._deadline_s = math.inf if deadline_s is None else deadline_s
        self._stall_timeout_s = stall_timeout_s
        self._pool.expect_timeout(self.timeout_at_s())

    def timeout_at_s(self) -> float:
        """When this connection is to be given up if nothing more happens (loop time); silence we asked for does not count."""
        if self._stall_timeout_s is None or self._paused:
            return self._deadline_s
        return min(self._deadline_s, self.received_s + self._stall_timeout_s)

    @property
    def before_head(self) -> bool:
        """True while a request is out and no response head is in."""
        return self._awaiting is not None

    @property
    def origin_text(self) -> str:
        return self._pool.origin_text

    @property
    def body_limit_bytes(self) -> int:
        return self._pool.limits.body_bytes

    def pause_reading(self) -> None:
        """Stop taking bytes from the socket."""
        if not self._paused and not self.lost:
            self._paused = True
            self._transport.pause_reading()

    def resume_reading(self) -> None:
        """Take bytes again."""
        if self._paused and not self.lost:
            self._paused = False
            self.received_s = self._now()
            self._transport.resume_reading()
            if self._stall_timeout_s is not None:
                self._pool.expect_timeout(self.timeout_at_s())

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self.received_s = self._now()

    def data_received(self, data: bytes) -> None:
        if not self.busy:
            self._drop()  # bytes nobody asked for
            return
        self.received_s = self._now()
        try:
            self._parser.feed_data(data)
        except httptools.HttpParserUpgrade:
            self._garbage, self._flowing = "switched protocols unasked", False
        except (httptools.HttpParserError, _StopParsing) as error:
            self._flowing = False
            if not self._body_done:  # bytes behind a response that ends the connection are ignored
                self._garbage = self._garbage or f"not HTTP/1.x: {error}; it began {data[:60]!r}"
        if not self._flowing:
            self._deliver(len(data))
            return
        piece, response = self._piece, self._response
        if piece is not None and response is not None:  # the common case: one more piece of a stream
            self._piece = None
            response.arrived(piece, False)

    def _deliver(self, size: int) -> None:
        response = self._response
        piece = self._piece
        if piece is not None:
            self._piece = None
            if self._more is not None:
                piece += b"".join(self._more)
                self._more = None
        if self._garbage is not None and not self._body_done:
            self._give_up_on_garbage(response, piece)
            return
        if response is None:
            self._head_bytes += size
            if self._head_bytes > self._pool.limits.header_bytes:
                self.fail(ProtocolGarbage(self.origin_text, f"response head is over the limit of {self._pool.limits.header_bytes} bytes"))
            return
        done = self._body_done
        if done:
            self._release()
        else:
            self._flowing = True
        awaiting = self._awaiting
        if awaiting is not None:
            self._awaiting = None
            response.arrived(piece, done)
            if not awaiting.done():
                awaiting.set_result(response)
        elif piece is not None or done:
            response.arrived(piece, done)

    def _give_up_on_garbage(self, response: Response | None, piece: bytes | None) -> None:
        error = ProtocolGarbage(self.origin_text, self._garbage or "", before_head=response is None)
        awaiting = self._awaiting
        if response is not None and awaiting is not None:
            # The head was good and the body went wrong in the same read: hand the response over, let its taker meet the error.
            self._awaiting = None
            if not awaiting.done():
                awaiting.set_result(response)
        if response is not None and piece is not None:
            response.arrived(piece, False)
        self.fail(error)

    def eof_received(self) -> bool:
        if self._close_delimited and self._response is not None:
            self._body_done = True
            self._keep_alive = False
            self._deliver(0)
        return False

    def connection_lost(self, exc: Exception | None) -> None:
        untouched = self._response is None and self._head_bytes == 0
        self.lost = True
        if self.busy:
            where = "before any byte of a response" if untouched else "inside the response"
            cause = f": {exc}" if exc else ""
            self.fail(ConnectionLost(self.origin_text, f"closed {where}{cause}", before_head=self.before_head, untouched=untouched))
        self._pool.forget_connection(self)
        self._parser = None

    # parser callbacks

    def on_header(self, name: bytes, value: bytes) -> None:
        if self._response is not None:
            return  # a trailer
        name = name.lower()
        self._headers.append((name, value))
        if name in _FRAMES_BODY:
            self._framed = True

    def on_headers_complete(self) -> None:
        status = self._parser.get_status_code()
        if self._body_done:
            self._keep_alive = False  # a second response to one request: this one is whole, but nothing here can be trusted any more
            raise _StopParsing
        if status < 200:
            if status == 101:
                self._garbage = "switched protocols unasked"
                raise _StopParsing
            self._headers = []
            self._framed = False
            return
        self._keep_alive = self._parser.should_keep_alive()
        headers, self._headers = self._headers, []
        self._response = Response(self, status, headers, self._pool.limits.read_high_water_bytes)
        if self._method == "HEAD":
            self._body_done = True
            if self._framed and status not in _BODILESS:
                self._parser = httptools.HttpResponseParser(self)  # the old one would wait for the body this length speaks of
        elif not self._framed and status not in _BODILESS:
            self._close_delimited = True
            self._keep_alive = False

    def on_body(self, data: bytes) -> None:
        if self._piece is None:
            self._piece = data
        elif self._more is None:
            self._more, self._flowing = [data], False
        else:
            self._more.append(data)

    def on_message_complete(self) -> None:
        if self._response is not None:
            self._body_done, self._flowing = True, False

    # endings

    def _release(self) -> None:
        """The response is whole: back to the pool, or closed if it cannot carry another."""
        self.busy = False
        self.reused = True
        self._response = None
        if self._paused:
            self._paused = False
            self._transport.resume_reading()
        if self._keep_alive and not self.lost and not self._transport.get_write_buffer_size() and self._pool.put_back(self):
            return
        self._drop()

    def _drop(self) -> None:
        """Close the connection; in the middle of a response with a reset, so that the upstream knows at once that nobody reads on."""
        if self._transport is not None and not self.lost:
            sock = self._transport.get_extra_info("socket") if self.busy else None
            if sock is not None and sock.family in _INTERNET:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
            self._transport.abort()
        self.busy = False
        self.lost = True
        self._pool.forget_connection(self)
