"""Cuts a stream of server-sent events into whole events, wherever the network cut it.

Used by the router's taps. An event ends with an empty line (LF or CRLF line ends, mixed too). Events keep their terminators, so
the joined output plus `carry` is always the joined input. It does not look into an event.
"""

import re

_END = re.compile(rb"\n\r?\n")


class EventTooLarge(ValueError):
    """An event went over `max_event_bytes` without ending."""


class SseSplitter:
    """Incremental splitter; one a stream.

    `carry` holds the beginning of an event that has not ended, at most `max_event_bytes` (EventTooLarge beyond).
    """

    __slots__ = ("_carry", "_max_event_bytes")

    def __init__(self, max_event_bytes: int = 1024 * 1024) -> None:
        self._carry = bytearray()
        self._max_event_bytes = max_event_bytes

    @property
    def carry(self) -> bytes:
        """What has arrived of the event that is not whole yet."""
        return bytes(self._carry)

    def feed(self, data: bytes) -> list[bytes]:
        """The events that became whole with `data`, terminators included."""
        if not self._carry and data.find(b"\n\n") == len(data) - 2 and len(data) >= 2 and b"\r" not in data:
            return [data]  # the common case: one read is one event
        return self._split(data)

    def _split(self, data: bytes) -> list[bytes]:
        carry = self._carry
        scan_from = max(0, len(carry) - 2)  # a terminator is at most 3 bytes, so at most 2 of it can be in the carry
        carry += data
        events: list[bytes] = []
        start = 0
        for match in _END.finditer(bytes(carry[scan_from:])):
            end = scan_from + match.end()
            events.append(bytes(carry[start:end]))
            start = end
        if start:
            del carry[:start]
        if len(carry) > self._max_event_bytes:
            raise EventTooLarge(f"an event of more than {len(carry)} bytes has not ended; the limit is {self._max_event_bytes}")
        return events
