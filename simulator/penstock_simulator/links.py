"""KV transfers from prefill to decode workers: every prefill worker has one link, shared evenly by what it sends.

The cluster starts transfers and asks when the next one ends. A decode worker takes what comes, at most at its own rate a
transfer: sharing its side too was tried and is a TTFT 4 % off the calibration. It knows bytes and seconds only.
"""

import math
from collections import Counter

_ENDED_BYTES = 1e-3
_ENDED_S = 1e-9
"""A transfer with less left than this, or than the bytes of so much time, is over: sums of floats do not end at 0."""


class _Transfer:
    __slots__ = ("left_bytes", "rate", "request", "sink", "source")

    def __init__(self, request: int, source: int, sink: int, left_bytes: float) -> None:
        self.request, self.source, self.sink, self.left_bytes, self.rate = request, source, sink, left_bytes, 0.0

    @property
    def ended(self) -> bool:
        return self.left_bytes <= max(_ENDED_BYTES, self.rate * _ENDED_S)


class Links:
    """Bandwidth in bytes a second by worker number. State: active transfers, whose bytes are right as of `_at_s`."""

    def __init__(self, bandwidth: list[float]) -> None:
        self._bandwidth = bandwidth
        self._active: list[_Transfer] = []
        self._at_s = 0.0
        self.next_end_s = math.inf
        """When the next active transfer ends, if none begins before."""

    def start(self, request: int, source: int, sink: int, transfer_bytes: float, now: float) -> None:
        """Begin to move `transfer_bytes` from worker `source` to worker `sink`."""
        self._move(now)
        self._active.append(_Transfer(request, source, sink, transfer_bytes))
        self._share()

    def take_ended(self, now: float) -> list[int]:
        """Requests whose transfers are over by `now`, in the order they began; they are forgotten here."""
        self._move(now)
        return self._take([one for one in self._active if one.ended])

    def drop(self, worker: int, now: float) -> list[int]:
        """Requests whose transfers go with a worker that is gone."""
        self._move(now)
        return self._take([one for one in self._active if worker in (one.source, one.sink)])

    def forget(self, request: int, now: float) -> None:
        """Nobody wants the transfer of this request any more."""
        self._move(now)
        self._take([one for one in self._active if one.request == request])

    def _take(self, gone: list[_Transfer]) -> list[int]:
        self._active = [one for one in self._active if one not in gone]
        self._share()
        return [one.request for one in gone]

    def _move(self, now: float) -> None:
        for one in self._active:
            one.left_bytes -= one.rate * (now - self._at_s)
        self._at_s = now

    def _share(self) -> None:
        senders = Counter(one.source for one in self._active)
        ends_s = math.inf
        for one in self._active:
            one.rate = min(self._bandwidth[one.source] / senders[one.source], self._bandwidth[one.sink])
            ends_s = min(ends_s, self._at_s + max(0.0, one.left_bytes) / one.rate)
        self.next_end_s = ends_s
