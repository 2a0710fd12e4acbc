"""Splices an upstream's body to a client, chunk by chunk, in the loop callback that read it.

The router's dispatch and the worker's front call `relay` once an upstream response head is in and the client's response is started.
Back-pressure goes both ways, so memory is bounded by the two high-water marks. A tap sees each chunk; meaning is the tap's affair.
"""

import asyncio
import enum
from dataclasses import dataclass
from typing import Protocol

from penstock_dataplane.errors import DeadlineExceeded, ProtocolGarbage, UpstreamError
from penstock_dataplane.exchange import Exchange
from penstock_dataplane.response import Response
from penstock_dataplane.sse import EventTooLarge


class Tap(Protocol):
    """Looks at a body on its way, in the loop callback of its arrival."""

    def on_chunk(self, data: bytes) -> bytes | None:
        """What to send instead of `data`: itself, a rewrite, or None to send nothing. EventTooLarge ends the relay as garbage."""


class Ending(enum.Enum):
    """How a relay ended."""

    FINISHED = "finished"  # the upstream's body was whole
    CLIENT_GONE = "client_gone"
    UPSTREAM_FAILED = "upstream_failed"
    STALLED = "stalled"  # the deadline passed, or the upstream was silent too long


@dataclass(frozen=True, slots=True)
class RelayResult:
    """`error` is set for UPSTREAM_FAILED and STALLED."""

    ending: Ending
    error: UpstreamError | None


async def relay(response: Response, exchange: Exchange, tap: Tap | None = None, *, finish: bool = True) -> RelayResult:
    """Send `response`'s body to `exchange`, which must be started, and say how it ended.

    Finished: the exchange is finished too, unless `finish` is False (the caller has more to write). Upstream failed or stalled: the
    exchange is left open, so that the caller can write an error event and then abort or finish. Client gone, or the awaiting task
    cancelled: the upstream is cut. An exception of the tap is raised here, after the upstream is cut.
    """
    splice = _Splice(response, exchange, tap, asyncio.get_running_loop().create_future())
    exchange.on_pause = response.pause
    exchange.on_resume = response.resume
    exchange.on_disconnect(splice.client_gone)
    try:
        if not splice.ended.done():
            if not exchange.writable:
                response.pause()
            response.stream_to(splice)
        result = await splice.ended
    except BaseException:
        response.close()
        raise
    finally:
        exchange.on_pause = exchange.on_resume = None
    if finish and result.ending is Ending.FINISHED:
        exchange.finish()
    return result


class _Splice:
    """The sink between the two sides."""

    __slots__ = ("_on_chunk", "_response", "_write", "ended")

    def __init__(self, response: Response, exchange: Exchange, tap: Tap | None, ended: "asyncio.Future[RelayResult]") -> None:
        self._response = response
        self._write = exchange.write
        self._on_chunk = tap.on_chunk if tap is not None else None
        self.ended = ended

    def on_data(self, data: bytes) -> None:
        if self._on_chunk is not None:
            try:
                sent = self._on_chunk(data)
            except EventTooLarge as error:
                self._response.close()
                self._end(Ending.UPSTREAM_FAILED, ProtocolGarbage(self._response.origin, str(error), before_head=False))
                return
            except Exception as error:  # noqa: BLE001  raised again where `relay` is awaited, which is the task's own code
                self._response.close()
                if not self.ended.done():
                    self.ended.set_exception(error)
                return
            if not sent:
                return
            data = sent
        self._write(data)

    def on_end(self) -> None:
        self._end(Ending.FINISHED, None)

    def on_error(self, error: UpstreamError) -> None:
        self._end(Ending.STALLED if isinstance(error, DeadlineExceeded) else Ending.UPSTREAM_FAILED, error)

    def client_gone(self) -> None:
        self._response.close()
        self._end(Ending.CLIENT_GONE, None)

    def _end(self, ending: Ending, error: UpstreamError | None) -> None:
        if not self.ended.done():
            self.ended.set_result(RelayResult(ending, error))
