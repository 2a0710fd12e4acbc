"""What the routers of a model measured, in Redis: each appends its Windows to a stream, an autoscaler reads those of all together.

`cli` makes one a model for its autoscaler and the router's publisher one for itself. The stream, `penstock:{model}:traffic`, holds the
latest KEPT_S seconds and goes by itself when nobody writes. All times are Redis' own clock, so that routers need not agree on theirs.
"""

import math
from collections.abc import Awaitable, Iterator, Sequence
from itertools import accumulate
from typing import Any, cast

import msgspec
from penstock_core.profile_fit import best_fits
from penstock_core.traffic import Window, joined
from redis.asyncio import Redis

from penstock_kvindex.calls import bounded, connect
from penstock_kvindex.registry import key_prefix
from penstock_kvindex.window_wire import decode_window, encode_window

KEPT_S = 900.0
"""Longer than an autoscaler needs to be started anew; what is older it has in its own memory."""
MOST_KEPT = 20_000
"""Windows of one model; more than that many routers would need another form."""
SILENT_S = 20.0
"""A router that has said nothing for so long is taken for gone, though it did not say so."""
_SAME_S = 1e-3
"""Three windows of 5 s are 15 s, though their ends are rounded."""
_A_PAGE = 64
_EARLY_S = 1.0
"""By how much a router's idea of Redis' clock may be late: windows are looked for so much before they should have come."""


class Published(msgspec.Struct, frozen=True):
    """One window of one router. `last`: it ends with this window, so that nobody waits for its next one."""

    router: str
    window: Window
    last: bool = False


class Windows:
    """One model's stream. Every call raises IndexUnavailable within `timeout_s` a round trip."""

    def __init__(self, url: str, model: str, *, timeout_s: float = 2.0, silent_s: float = SILENT_S, client: Redis | None = None) -> None:
        """`client`: one of `calls.connect` to use instead; it stays open."""
        self._key = key_prefix(model) + "traffic"
        self._timeout_s = timeout_s
        self._silent_s = silent_s
        self._redis = connect(url, timeout_s) if client is None else client
        self._shared = client is not None

    async def clock(self) -> float:
        """Redis' own time, in seconds since 1970."""
        return _seconds(await self._bounded(cast("Awaitable[Any]", self._redis.time())))

    async def publish(self, one: Published) -> float:
        """Append a window; what is too old goes. Gives Redis' time."""
        pipeline = self._redis.pipeline(transaction=False)
        oldest_ms = max(0, math.floor((one.window.until_s - KEPT_S) * 1_000))
        pipeline.xadd(self._key, {"w": encode_window(one.router, one.window, last=one.last)}, minid=oldest_ms, approximate=True)
        pipeline.xtrim(self._key, maxlen=MOST_KEPT, approximate=True)
        pipeline.pexpire(self._key, math.ceil(KEPT_S * 1_000))
        pipeline.time()
        return _seconds((await self._bounded(pipeline.execute()))[-1])

    async def since(self, since_s: float, period_s: float) -> tuple[float, list[Window]]:
        """(now_s, what all routers measured after since_s), as `successive` says: up to the latest moment that all of them have told of.

        Empty: nothing new is known of all of them; ask again with the same `since_s`. The next call's is the last interval's `until_s`.
        """
        now_s, wires = await self._wires(since_s)
        rows = [Published(*found) for found in map(decode_window, wires) if found is not None]
        return now_s, successive(rows, since_s, now_s - self._silent_s, period_s)

    async def aclose(self) -> None:
        if not self._shared:
            await self._redis.aclose()

    async def _wires(self, since_s: float) -> tuple[float, list[bytes]]:
        """Redis' time, and every entry that came in after since_s or lately enough to show who is there."""
        now_s = await self.clock()
        first_ms = max(0, math.floor((max(min(since_s, now_s - self._silent_s), now_s - KEPT_S) - _EARLY_S) * 1_000))
        wires: list[bytes] = []
        position = str(first_ms)
        while len(wires) < MOST_KEPT:
            page = await self._bounded(cast("Awaitable[Any]", self._redis.xrange(self._key, position, "+", count=_A_PAGE)))
            wires += [fields[b"w"] for _, fields in page if b"w" in fields]
            if len(page) < _A_PAGE:
                break
            position = f"({page[-1][0].decode()}"
        return now_s, wires

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        return await bounded(call, self._timeout_s, self._key)


def successive(rows: Sequence[Published], since_s: float, gone_s: float, period_s: float) -> list[Window]:
    """All windows that end after since_s, up to the latest moment that every router has told of, as intervals one after the other.

    They are cut where windows end: none is shorter than period_s but the last one, and one before a time of which nobody has told. That
    time is in no interval: it is not known to have been quiet. A router whose latest window ended before `gone_s`, or was its last, is
    waited for no more. So one that is slow delays the answer, and none makes it smaller than what arrived.
    """
    latest: dict[str, Published] = {}
    for row in rows:
        known = latest.get(row.router)
        if known is None or row.window.until_s >= known.window.until_s:
            latest[row.router] = row
    waited_for = [row.window.until_s for row in latest.values() if not row.last and row.window.until_s > gone_s]
    horizon_s = min(waited_for, default=math.inf)
    fresh = sorted((row for row in rows if since_s < row.window.until_s <= horizon_s), key=lambda row: row.window.until_s)
    if not fresh:
        return []
    parts = _cut([row.window for row in fresh], since_s, period_s)
    found = [msgspec.structs.replace(joined(some), since_s=begin_s) for begin_s, some in parts]
    ends = {row.router: row.window for row in fresh}
    still = sum(window.waiting for router, window in ends.items() if not latest[router].last)
    fits = best_fits(fit for window in ends.values() for fit in window.fits)
    return [*found[:-1], msgspec.structs.replace(found[-1], waiting=still, fits=fits)]


def _cut(windows: Sequence[Window], since_s: float, period_s: float) -> Iterator[tuple[float, list[Window]]]:
    """(where it begins, its windows) of each interval; `windows` are in the order of their ends."""
    begins_s = list(accumulate((one.since_s for one in reversed(windows)), min))[::-1]  # of each window and those after it, the earliest
    begin_s, some = max(since_s, begins_s[0]), [windows[0]]
    for one, rest_s in zip(windows[1:], begins_s[1:], strict=True):
        end_s = some[-1].until_s
        if one.until_s > end_s and (end_s - begin_s >= period_s - _SAME_S or rest_s > end_s + _SAME_S):
            yield begin_s, some
            begin_s, some = max(end_s, rest_s), []
        some.append(one)
    yield begin_s, some


def _seconds(time: tuple[int, int]) -> float:
    return time[0] + time[1] / 1e6
