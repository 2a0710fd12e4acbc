"""Looks at an answer stream on its way: stamps tokens, and edits the one chunk that holds usage.

Made by `deliver` for each stream; `relay` calls `on_chunk` in the loop callback that read the bytes. Per chunk it does no
parsing: a bytes test finds the usage chunk, everything else passes as it came. It knows no endpoints and no sockets but one.
"""

import asyncio

from penstock_dataplane.sse import SseSplitter
from penstock_dataplane.wire import EncodedHeaders

from penstock_router.call import Call
from penstock_router.metrics import Histogram
from penstock_router.openai import event_json, merge_usage, read_usage

_COMMENT = ord(":")
_END_MARK = b"data: [DONE]"
_USAGE = b'"usage"'


class StreamTap:
    """One stream. State: the time of the last content, and the beginning of an event that is not whole yet."""

    __slots__ = ("_call", "_headers", "_itl_s", "_last_s", "_now", "_splitter", "_status", "_tail", "_token", "edits")

    def __init__(self, call: Call, status: int, headers: EncodedHeaders, itl_s: Histogram, *, edits: bool) -> None:
        assert call.booking is not None  # noqa: S101 -- an answer comes from a placed request
        self._call = call
        self._status = status
        self._headers = headers
        self._itl_s = itl_s.observe
        self._token = call.booking.token
        self._now = asyncio.get_running_loop().time
        self._last_s = 0.0
        self._splitter: SseSplitter | None = None
        self._tail = b""
        self.edits = edits
        """False for answers that are not chat or text completions: stamped, never edited."""

    @property
    def ended_with_done(self) -> bool:
        """Whether the last that came was OpenAI's end mark."""
        return self._tail.rstrip().endswith(b"[DONE]")

    @property
    def rest(self) -> bytes:
        """What has been held back of an event that never became whole."""
        return self._splitter.carry if self._splitter is not None else b""

    def on_chunk(self, data: bytes) -> bytes | None:
        """The same bytes, or edited ones; None to send nothing."""
        now = self._now()
        if self._last_s:
            if data.startswith(_END_MARK) and self._splitter is None:
                self._tail = data  # no token, and no gap before one
                return data
            self._itl_s(now - self._last_s)
            self._token(now)
            self._last_s = now
        else:
            self._first(data, now)
        self._tail = data
        if not self.edits:
            return data
        if self._splitter is None and data.endswith(b"\n\n"):
            return data if _USAGE not in data else self._edit(SseSplitter().feed(data))
        splitter = self._splitter or SseSplitter()
        events = splitter.feed(data)
        self._splitter = splitter if splitter.carry else None
        return self._edit(events) or None

    def _first(self, data: bytes, now: float) -> None:
        call = self._call
        call.begun = True
        if not call.exchange.started:  # it is, where the client was told to wait for a first replica
            call.exchange.start(self._status, self._headers)
        if data[0] == _COMMENT and b"data:" not in data:
            return  # a keep-alive comment: the first byte, but no token
        self._last_s = call.first_s = now
        if call.booking is not None:
            call.booking.first_token(now)

    def _edit(self, events: list[bytes]) -> bytes:
        return b"".join(self._edit_usage(event) if _USAGE in event else event for event in events)

    def _edit_usage(self, event: bytes) -> bytes:
        """Note the usage; drop the chunk if the client did not ask for it; give a P/D answer its prefill's counts."""
        json = event_json(event)
        usage, alone = read_usage(json) if json is not None else (None, False)
        if usage is None or json is None:
            return event
        call = self._call
        call.usage = usage
        if alone and not call.chat.wants_usage:
            return b""
        if call.prefill_usage is not None:
            return b"data: " + merge_usage(json, call.prefill_usage) + b"\n\n"
        return event
