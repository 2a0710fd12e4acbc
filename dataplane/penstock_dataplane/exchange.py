"""One request and its response, as a handler sees them.

Made by `connection.ServerConnection` when a whole request is in; handed to the server's handler. All sending is synchronous:
what the transport cannot take at once it buffers, `writable` says so, and `drain` or the pause hooks let the writer wait.
It knows nothing of parsing; it does not know who handles it.
"""

import asyncio
from collections.abc import Callable
from typing import TYPE_CHECKING

from penstock_dataplane.request_parser import Request
from penstock_dataplane.wire import RESPONSE_FRAMING, Headers, header_block, status_line

if TYPE_CHECKING:
    from penstock_dataplane.connection import ServerConnection

_join = b"".join
_LAST_CHUNK = b"0\r\n\r\n"
_BODILESS = frozenset({204, 304})


class Exchange:
    """A request and the response being made to it.

    Either `respond` once, or `start`, any number of `write`, then `finish`; `abort` cuts the connection at any point. After the
    client has gone every sending call does nothing. State changes only in the synchronous methods here and in the connection's callbacks.
    """

    __slots__ = (
        "_chunked",
        "_connection",
        "_disconnect",
        "_drained",
        "_flowing",
        "_head",
        "_keep_alive",
        "_silent",
        "_write",
        "finished",
        "gone",
        "now",
        "on_pause",
        "on_resume",
        "request",
        "started",
        "task",
        "writable",
    )

    def __init__(self, connection: "ServerConnection", request: Request, write: Callable[[bytes], None], now: Callable[[], float]) -> None:
        self.now = now
        """The loop's clock, seconds."""
        self.request = request
        self.started = False  # a head has been given (it may still be held back for the first chunk)
        self.finished = False
        self.gone = False  # the connection is lost or cut; nothing more can reach the client
        self.writable = True
        self.on_pause: Callable[[], None] | None = None
        self.on_resume: Callable[[], None] | None = None
        self.task: asyncio.Task[None] | None = None
        self._connection = connection
        self._write = write
        self._keep_alive = request.keep_alive
        self._head: bytes | None = None
        self._chunked = False
        self._flowing = False  # its head and a first chunk have been written, and more may follow
        self._silent = False  # a response that must not carry a body: HEAD, 204, 304
        self._disconnect: list[Callable[[], None]] | None = None
        self._drained: asyncio.Future[None] | None = None

    def respond(self, status: int, headers: Headers = (), body: bytes = b"") -> None:
        """Send a whole response in one write. RuntimeError if one was begun; ValueError for a bad status or header value."""
        if self.started:
            raise RuntimeError("a response to this request was already begun")
        head = status_line(status) + header_block(headers, RESPONSE_FRAMING) + self._connection_line()
        self.started = True
        if self.gone:
            return
        if status in _BODILESS:
            self._write(head + b"\r\n")
        elif self.request.method == "HEAD":
            length = None if body or isinstance(headers, bytes) else dict(headers).get(b"content-length")
            self._write(b"%bcontent-length: %b\r\n\r\n" % (head, length or str(len(body)).encode("ascii")))
        else:
            self._write(b"%bcontent-length: %d\r\n\r\n%b" % (head, len(body), body))
        self._end()

    def start(self, status: int, headers: Headers = ()) -> None:
        """Begin a streamed response. The head waits for the first `write`, `flush` or `finish`, to leave in one segment with it."""
        if self.started:
            raise RuntimeError("a response to this request was already begun")
        head = status_line(status) + header_block(headers, RESPONSE_FRAMING)
        self.started = True
        self._silent = self.request.method == "HEAD" or status in _BODILESS
        if self.request.http11:
            self._chunked = not self._silent
        elif not self._silent:
            self._keep_alive = False  # HTTP/1.0 knows the end of such a body only by the close
        self._head = _join((head, self._connection_line(), b"transfer-encoding: chunked\r\n\r\n" if self._chunked else b"\r\n"))

    def write(self, data: bytes) -> None:
        """Send a piece of the body: one chunk, one write. Empty data sends nothing."""
        if self._flowing and data:
            self._write(b"%x\r\n%b\r\n" % (len(data), data))
        else:
            self._begin_or_end(data)

    def _begin_or_end(self, data: bytes) -> None:
        """A `write` that is none of the many in the middle of a chunked body."""
        if not data or self.gone:
            return
        if self.finished or not self.started:
            raise RuntimeError("write needs a response that is begun and not finished")
        if self._silent:
            self.flush()
            return
        self._flowing = self._chunked
        if self._chunked:
            data = b"%x\r\n%b\r\n" % (len(data), data)
        head = self._head
        if head is not None:
            self._head = None
            data = head + data
        self._write(data)

    def flush(self) -> None:
        """Send the head now if it is still held back."""
        head = self._head
        if head is not None and not self.gone:
            self._head = None
            self._write(head)

    def finish(self, data: bytes = b"") -> None:
        """End a streamed response, with a last piece of the body if given. RuntimeError if none was begun; twice does nothing."""
        if not self.started:
            raise RuntimeError("finish needs a response that is begun")
        if self.finished or self.gone:
            return
        tail = b"" if self._silent else data
        if self._chunked:
            tail = b"%x\r\n%b\r\n%b" % (len(tail), tail, _LAST_CHUNK) if tail else _LAST_CHUNK
        if self._head is not None:
            tail = self._head + tail
            self._head = None
        if tail:
            self._write(tail)
        self._end()

    def abort(self) -> None:
        """Cut the connection without ending the response, so that the client can tell it is not whole."""
        if not self.gone and not self.finished:
            self._connection.cut()
            self.client_gone(cancel=False)

    async def drain(self) -> None:
        """Return when the client has taken enough (below the low-water mark) or has gone."""
        while not self.writable and not self.gone:
            if self._drained is None or self._drained.done():
                self._drained = asyncio.get_running_loop().create_future()
            await asyncio.shield(self._drained)

    def on_disconnect(self, callback: Callable[[], None]) -> None:
        """Call `callback` when the client goes before the response is finished (at once if it already has).

        With a callback registered the handler's task is not cancelled on disconnect: the callback decides what ends.
        """
        if self.gone:
            callback()
        elif self._disconnect is None:
            self._disconnect = [callback]
        else:
            self._disconnect.append(callback)

    def _connection_line(self) -> bytes:
        if self._keep_alive and not self._connection.server.draining:
            return b"" if self.request.http11 else b"connection: keep-alive\r\n"
        self._keep_alive = False
        return b"connection: close\r\n"

    def _end(self) -> None:
        self.finished = True
        self._flowing = False
        self._disconnect = None
        self._connection.response_finished(self._keep_alive)

    # The three calls below are the connection's.

    def pause(self) -> None:
        self.writable = False
        if self.on_pause is not None:
            self.on_pause()

    def resume(self) -> None:
        self.writable = True
        self._wake()
        if self.on_resume is not None:
            self.on_resume()

    def client_gone(self, *, cancel: bool = True) -> None:
        self.gone = True
        self._flowing = False
        self._wake()
        callbacks, self._disconnect = self._disconnect, None
        if callbacks is not None:
            for callback in callbacks:
                callback()
        elif cancel and self.task is not None and not self.finished:
            self.task.cancel()

    def _wake(self) -> None:
        if self._drained is not None and not self._drained.done():
            self._drained.set_result(None)
