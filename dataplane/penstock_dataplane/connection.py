"""One client connection of the server: whole requests to exchanges, one at a time, and every way a connection ends.

Made by `server.Server` for each accepted socket. Holds pipelined input back (bounded) while an exchange runs, refuses bad input,
and notices clients that leave, stall or only half-close. It does not know what a handler does.
"""

import asyncio
import enum
import math
import socket
from typing import TYPE_CHECKING, Any

from penstock_dataplane.exchange import Exchange
from penstock_dataplane.request_parser import RequestParser

if TYPE_CHECKING:
    from penstock_dataplane.server import Server

_CONTINUE = b"HTTP/1.1 100 Continue\r\n\r\n"
_TCP_CLOSED = 7
_TCP_CLOSE_WAIT = 8
_INTERNET = (socket.AF_INET, socket.AF_INET6)


class Phase(enum.Enum):
    """What a connection waits for; its `deadline_s` is the end of that wait."""

    IDLE = "idle"  # the first byte of a request
    HEAD = "head"  # the rest of a head
    BODY = "body"  # the rest of a body
    RUNNING = "running"  # the handler: no deadline of ours unless the client does not read
    CLOSING = "closing"  # the client to read what was written, or to notice a refusal


class ServerConnection(asyncio.Protocol):
    """The protocol of one accepted socket. Its state changes only in loop callbacks and in the synchronous calls of its exchange."""

    __slots__ = (
        "_eof",
        "_exchange",
        "_held",
        "_loop",
        "_now",
        "_parser",
        "_peer",
        "_probed",
        "_reading",
        "_transport",
        "deadline_s",
        "phase",
        "server",
        "write_stalled",
    )

    def __init__(self, server: "Server", loop: asyncio.AbstractEventLoop) -> None:
        self.server = server
        self._loop = loop
        self._now = loop.time
        self._transport: Any = None
        self._parser = RequestParser(server.limits)
        self._peer: str | None = None
        self._exchange: Exchange | None = None
        self._held = bytearray()  # input behind the running exchange, not parsed yet
        self._eof = False
        self._probed = False
        self._reading = True
        self.phase = Phase.IDLE
        self.deadline_s = math.inf
        self.write_stalled = False

    # transport callbacks

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self._transport = transport
        self._transport.set_write_buffer_limits(high=self.server.limits.write_high_water_bytes)
        self._wait(Phase.IDLE)
        if not self.server.admit(self):
            if self.server.crowded:
                self.phase = Phase.CLOSING
                self._transport.abort()
            else:
                self._refuse(503, "too many connections")

    def connection_lost(self, exc: Exception | None) -> None:
        self.phase = Phase.CLOSING
        self.server.forget(self)
        self._parser.close()
        self._held.clear()
        exchange, self._exchange = self._exchange, None
        if exchange is not None:
            self.server.report(self.peer, "client gone")
            exchange.client_gone()

    def pause_writing(self) -> None:
        self.write_stalled = True
        self.deadline_s = self._now() + self.server.limits.write_stall_timeout_s
        if self._exchange is not None:
            self._exchange.pause()

    def resume_writing(self) -> None:
        self.write_stalled = False
        if self.phase is not Phase.CLOSING:
            self._wait(self.phase)
        if self._exchange is not None:
            self._exchange.resume()

    def data_received(self, data: bytes) -> None:
        if self._exchange is not None:
            self._hold(data)
        elif self.phase is not Phase.CLOSING:
            self._feed(data)

    def eof_received(self) -> bool:
        self._eof = True
        exchange = self._exchange
        if exchange is None:
            self.phase = Phase.CLOSING
            return False
        # The client has closed, or has ended only its sending side and still reads. Serve on; an interim response, which every
        # HTTP/1.1 client ignores, makes a closed one answer with a reset.
        self._probe(exchange)
        self.server.watch_departure(self)
        return True

    def _probe(self, exchange: Exchange) -> None:
        self._probed = True
        if not exchange.started and exchange.request.http11:
            self._transport.write(_CONTINUE)

    # requests

    def _hold(self, data: bytes) -> None:
        self._held += data
        if self._reading and len(self._held) > self.server.limits.pipeline_bytes:
            self._reading = False
            self._transport.pause_reading()
            self.server.watch_departure(self)  # a paused reader is told of no end

    def _feed(self, data: bytes) -> None:
        parser = self._parser
        rest = parser.feed(data)
        if rest:
            self._hold(rest)
        if parser.ready:
            self._begin()
        else:
            self._settle()

    def _begin(self) -> None:
        request = self._parser.ready.popleft()
        request.peer = self._peer or self.peer
        request.received_s = self._now()
        self.phase = Phase.RUNNING
        exchange = Exchange(self, request, self._transport.write, self._now)
        self._exchange = exchange
        if self.write_stalled:
            exchange.writable = False
        else:
            self.deadline_s = math.inf
        self.server.run(exchange)

    def response_finished(self, keep_alive: bool) -> None:
        """The exchange has handed its last byte to the transport: take the next request, wait for one, or close."""
        self._exchange = None
        if keep_alive and not (self._parser.begun or self._held or self._eof):
            # The common case: nothing more has come.
            self.phase = Phase.IDLE
            if not self.write_stalled:
                server = self.server
                self.deadline_s = server.now_s + server.idle_timeout_s
        elif not keep_alive:
            self._close()
        elif self._parser.ready:
            self._begin()
        elif self._held and self._parser.refusal is None:
            data = bytes(self._held)
            self._held.clear()
            self._resume_reading()
            self._feed(data)
        else:
            self._settle()

    def _settle(self) -> None:
        """No request is whole and no exchange runs: refuse, close, or set the wait that holds now."""
        parser = self._parser
        if parser.refusal is not None:
            self._refuse(*parser.refusal)
        elif self._eof:
            self._close()
        elif parser.head_done:
            if self.phase is not Phase.BODY:
                self._wait(Phase.BODY)
            if parser.expects_continue:
                parser.expects_continue = False
                if not parser.body_begun:
                    self._transport.write(_CONTINUE)
        elif parser.begun:
            if self.phase is not Phase.HEAD:
                self._wait(Phase.HEAD)
        else:
            self._wait(Phase.IDLE)

    def _wait(self, phase: Phase) -> None:
        """Enter a phase and set its deadline; while the client is not reading, that deadline holds instead."""
        self.phase = phase
        if self.write_stalled:
            return
        server = self.server
        if phase is Phase.IDLE:
            self.deadline_s = server.now_s + server.idle_timeout_s
        elif phase is Phase.HEAD:
            self.deadline_s = self._now() + server.limits.header_timeout_s
        elif phase is Phase.BODY:
            self.deadline_s = self._now() + server.limits.body_timeout_s
        else:
            self.deadline_s = math.inf

    def _resume_reading(self) -> None:
        if not self._reading:
            self._reading = True
            if not self._eof:
                self._transport.resume_reading()

    # endings

    def _refuse(self, status: int, message: str) -> None:
        """Answer an error, end our sending side, and listen on (to nothing) until the client has read it.

        Closing with unread input would reset the connection and destroy the answer.
        """
        self.server.report(self.peer, message)
        self.phase = Phase.CLOSING
        self.deadline_s = self._now() + self.server.limits.linger_timeout_s
        self._transport.write(self.server.refusal(status, message))
        self._resume_reading()
        if self._eof:
            self._transport.close()
        else:
            self._transport.write_eof()

    def _close(self) -> None:
        self.phase = Phase.CLOSING
        self.deadline_s = self._now() + self.server.limits.write_stall_timeout_s
        self._transport.close()

    def cut(self) -> None:
        """Drop the connection and everything not yet sent."""
        self.phase = Phase.CLOSING
        self._exchange = None
        self._transport.abort()

    def cut_off(self) -> None:
        """Drop the connection from outside: a running exchange is told that its client has gone."""
        self._transport.abort()

    def close_if_idle(self) -> None:
        """Close if no exchange is running."""
        if self._exchange is None and self.phase is not Phase.CLOSING:
            self._close()

    def expire(self) -> None:
        """`deadline_s` has passed without what was waited for."""
        limits = self.server.limits
        if self.write_stalled or self.phase is Phase.CLOSING:
            self.server.report(self.peer, "client does not read")
            self._transport.abort()
        elif self.phase is Phase.HEAD:
            self._refuse(408, f"request head took longer than {limits.header_timeout_s:g} s")
        elif self.phase is Phase.BODY:
            self._refuse(408, f"request body took longer than {limits.body_timeout_s:g} s")
        elif self._transport.get_write_buffer_size():
            self._transport.abort()
        else:
            self._close()

    def departed(self) -> bool | None:
        """For a client that has ended its sending side, or that is not being read: True and cut if it is gone for good.

        None if there is nothing to watch any more. The kernel knows of a reset that a paused or ended reader is not told of.
        """
        if self._exchange is None or self._transport.is_closing() or (self._reading and not self._eof):
            return None
        sock = self._transport.get_extra_info("socket")
        if sock is None or sock.family not in _INTERNET or not hasattr(socket, "TCP_INFO"):
            return None
        state = sock.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 1)[0]
        if state == _TCP_CLOSED:
            self._transport.abort()
            return True
        if state == _TCP_CLOSE_WAIT and not self._probed:
            self._probe(self._exchange)  # its end of sending lies behind input that we are not reading
        return False

    @property
    def peer(self) -> str:
        """`address:port` of the client; empty on a unix socket."""
        if self._peer is None:
            name = self._transport.get_extra_info("peername")
            self._peer = f"{name[0]}:{name[1]}" if isinstance(name, tuple) else ""
        return self._peer
