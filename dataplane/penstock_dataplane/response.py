"""An upstream's response: its head, and three ways to take its body (whole, piece by piece, or pushed into a sink).

Made by `upstream.UpstreamConnection` when the head is in. Until somebody takes the body it is buffered up to a high-water mark, then
the transport stops reading. It does not know what the bytes mean.
"""

import asyncio
from collections.abc import AsyncIterator
from typing import TYPE_CHECKING, Protocol

from penstock_dataplane.errors import BodyTooLarge, ConnectionLost, UpstreamError

if TYPE_CHECKING:
    from penstock_dataplane.upstream import UpstreamConnection


class BodySink(Protocol):
    """Takes a body as it arrives, in the loop callback of its arrival; ends with exactly one of `on_end` and `on_error`."""

    def on_data(self, data: bytes) -> None:
        """Body bytes of one read, never empty."""

    def on_end(self) -> None:
        """The body is whole; the connection is free for the next request already."""

    def on_error(self, error: UpstreamError) -> None:
        """The body will not be whole."""


class Response:
    """One response. `headers` in order with lower-case names. Take the body once: `read`, `async for`, or `stream_to`."""

    __slots__ = (
        "_buffered_bytes",
        "_chunks",
        "_connection",
        "_error",
        "_full",
        "_limit_bytes",
        "_paused",
        "_sink",
        "_wake",
        "complete",
        "headers",
        "origin",
        "status",
    )

    def __init__(self, connection: "UpstreamConnection", status: int, headers: list[tuple[bytes, bytes]], high_water_bytes: int) -> None:
        self.status = status
        self.headers = headers
        self.origin = connection.origin_text
        self.complete = False
        self._connection: UpstreamConnection | None = connection
        self._chunks: list[bytes] = []
        self._buffered_bytes = 0
        self._limit_bytes = high_water_bytes
        self._sink: BodySink | None = None
        self._error: UpstreamError | None = None
        self._paused = False  # by the taker
        self._full = False  # by us, over the high-water mark
        self._wake: asyncio.Future[None] | None = None

    def header(self, name: bytes) -> bytes | None:
        """The first value of a header; `name` in lower case."""
        for key, value in self.headers:
            if key == name:
                return value
        return None

    @property
    def received_s(self) -> float:
        """`loop.time()` of the last bytes that came from the upstream; 0 when the connection is no longer this response's."""
        return self._connection.received_s if self._connection is not None else 0.0

    def set_waits(self, deadline_s: float | None, stall_timeout_s: float | None) -> None:
        """Replace the end set for the whole response (loop time), and how long the upstream may be silent. None: no such wait."""
        if self._connection is not None:
            self._connection.set_waits(deadline_s, stall_timeout_s)

    async def read(self, limit_bytes: int | None = None) -> bytes:
        """The whole body. BodyTooLarge beyond `limit_bytes` (default: the client's), or the UpstreamError that ended it."""
        if self._connection is not None and limit_bytes is None:
            limit_bytes = self._connection.body_limit_bytes
        try:
            while not self.complete and self._error is None and self._connection is not None:
                if limit_bytes is not None and self._buffered_bytes > limit_bytes:
                    break
                self._limit_bytes = max(self._limit_bytes, (limit_bytes or 0) + 1)
                self._buffer_full(False)
                await self._next_arrival()
        finally:
            if not self.complete:
                self.close()
        if self._error is not None:
            raise self._error
        if limit_bytes is not None and self._buffered_bytes > limit_bytes:
            raise BodyTooLarge(self.origin, f"response body is over the limit of {limit_bytes} bytes", before_head=False)
        if not self.complete:
            raise self._given_up()
        return self.take()

    def stream_to(self, sink: BodySink) -> None:
        """Push the body into `sink`: what is buffered now, the rest as it arrives."""
        data = self.take()
        if data:
            sink.on_data(data)
        if self.complete:
            sink.on_end()
        elif self._error is not None:
            sink.on_error(self._error)
        else:
            self._sink = sink
            self._buffer_full(False)

    async def __aiter__(self) -> AsyncIterator[bytes]:
        """The body as it arrives, one item a read. Leaving the loop early does not close the response: call `close`."""
        while True:
            data = self.take()
            if data:
                yield data
            elif self.complete:
                return
            elif self._error is not None:
                raise self._error
            elif self._connection is None:
                raise self._given_up()
            else:
                self._buffer_full(False)
                await self._next_arrival()

    def pause(self) -> None:
        """Stop reading from the upstream; its own flow control then stops it."""
        self._paused = True
        if self._connection is not None:
            self._connection.pause_reading()

    def resume(self) -> None:
        """Read on after `pause`."""
        self._paused = False
        if not self._full and self._connection is not None:
            self._connection.resume_reading()

    def close(self) -> None:
        """Give up an incomplete response: its connection is cut and no sink hears of it again; whoever awaits its body gets
        ConnectionLost. Does nothing to a complete one."""
        connection, self._connection = self._connection, None
        self._sink = None
        if connection is not None:
            connection.abandon()
            self._notify()

    # the connection's calls

    def arrived(self, data: bytes | None, complete: bool) -> None:
        """Body bytes of one read, and whether they were the last."""
        if complete:
            self.complete = True
            self._connection = None
        sink = self._sink
        if sink is not None:
            if data:
                sink.on_data(data)
            if complete and self._sink is sink:
                self._sink = None
                sink.on_end()
            return
        if data:
            self._chunks.append(data)
            self._buffered_bytes += len(data)
            if self._buffered_bytes > self._limit_bytes:
                self._buffer_full(True)
        self._notify()

    def failed(self, error: UpstreamError) -> None:
        """The connection ended before the body did."""
        self._connection = None
        self._error = error
        sink, self._sink = self._sink, None
        if sink is not None:
            sink.on_error(error)
        self._notify()

    def _given_up(self) -> UpstreamError:
        return ConnectionLost(self.origin, "the response was given up", before_head=False)

    def _buffer_full(self, full: bool) -> None:
        """Our own reason to stop reading, beside the taker's `pause`."""
        if full != self._full:
            self._full = full
            if self._connection is not None:
                if full:
                    self._connection.pause_reading()
                elif not self._paused:
                    self._connection.resume_reading()

    def take(self) -> bytes:
        """What has come of the body and was not taken yet: all of it, if the response is complete."""
        chunks = self._chunks
        if not chunks:
            return b""
        data = chunks[0] if len(chunks) == 1 else b"".join(chunks)
        self._chunks = []
        self._buffered_bytes = 0
        return data

    def _notify(self) -> None:
        if self._wake is not None and not self._wake.done():
            self._wake.set_result(None)

    async def _next_arrival(self) -> None:
        self._wake = asyncio.get_running_loop().create_future()
        await self._wake
