"""Tells autoscalers what a model's requests were like: every few seconds a Window of its Tally goes to Redis, in one task off the path,
with what was learned of how fast its engines are.

`registered` makes one for each model it follows. Windows end at multiples of their length on Redis' own clock, so those of all routers
begin and end together. Redis away: requests go on, and what was measured meanwhile is lost.
"""

import asyncio
import logging
import math

import msgspec
from penstock_core.errors import IndexUnavailable
from penstock_kvindex.windows import Published, Windows

from penstock_router.endpoints import Served
from penstock_router.tally import Tally

log = logging.getLogger(__name__)

_ASLEEP_WINDOW_S = 1.0
"""Of a model that nobody serves: somebody may wait for its first replica."""
_DRIFT_S = 0.1
"""Clocks may differ by so much from what was found before they are set anew: a request's times are to stay on one clock."""


class TrafficPublisher:
    """State: Redis' clock minus ours, where the next window begins, and whether Redis was there the last time."""

    def __init__(self, served: Served, windows: Windows, *, router: str, window_s: float) -> None:
        """From now on the model's requests are tallied; `router` is this process' name among all routers."""
        self._served = served
        self._windows = windows
        self._router = router
        self._window_s = window_s
        self._tally = served.tally = Tally()
        self._ahead_s: float | None = None
        self._since_s = 0.0
        self._away = False

    async def run(self) -> None:
        """Publish until cancelled."""
        while True:
            try:
                if self._ahead_s is None:
                    await self._set_clock()
                await self._wait()
                await self._publish(last=False)
                self._away = False
            except IndexUnavailable as error:
                if not self._away:
                    log.warning("traffic is not told to autoscalers", extra={"facts": {"model": self._served.name, "error": str(error)}})
                self._away = True
                if self._ahead_s is None:
                    self._tally.clear()
                    await asyncio.sleep(self._window_s)
            except Exception:  # the task's top: requests go on, and so does the next window
                log.exception("telling autoscalers failed", extra={"facts": {"model": self._served.name}})
                self._tally.clear()  # what could not be cut once may never be
                await asyncio.sleep(self._window_s)

    async def end(self) -> None:
        """Tell what is left and that no more comes; requests are tallied no more."""
        self._served.tally = None
        if self._ahead_s is None:
            return
        try:
            await self._publish(last=True)
        except IndexUnavailable:
            pass  # autoscalers wait for a silent router for some seconds only

    @property
    def _length_s(self) -> float:
        return self._window_s if self._served.serving else min(self._window_s, _ASLEEP_WINDOW_S)

    def _now_s(self) -> float:
        assert self._ahead_s is not None  # noqa: S101 -- set before anything is published
        return asyncio.get_running_loop().time() + self._ahead_s

    async def _set_clock(self) -> None:
        begin_s = asyncio.get_running_loop().time()
        self._hear(await self._windows.clock(), begin_s)
        self._since_s = self._now_s()

    def _hear(self, redis_s: float, begin_s: float) -> None:
        """Redis said its time in answer to a call made at `begin_s`."""
        ahead_s = redis_s - (begin_s + asyncio.get_running_loop().time()) / 2
        if self._ahead_s is None or abs(ahead_s - self._ahead_s) > _DRIFT_S:
            self._ahead_s = ahead_s
            self._since_s = min(self._since_s, self._now_s())  # a clock that went back: the next window begins now

    async def _wait(self) -> None:
        """Until the next multiple of a window's length; a second at a time, since the length changes when the model falls asleep."""
        while True:
            end_s = (math.floor(self._since_s / self._length_s + 1e-6) + 1) * self._length_s
            left_s = end_s - self._now_s()
            if left_s <= 0.0:
                return
            await asyncio.sleep(min(left_s, _ASLEEP_WINDOW_S))

    async def _publish(self, *, last: bool) -> None:
        now_s, length_s = self._now_s(), self._length_s
        until_s = now_s if last else math.floor(now_s / length_s) * length_s
        if until_s <= self._since_s:
            return
        assert self._ahead_s is not None  # noqa: S101 -- set before anything is published
        served = self._served
        window = self._tally.cut(self._since_s, until_s, self._ahead_s, waiting=served.waiting, ttft_s=served.slo.ttft_s)
        window = msgspec.structs.replace(window, fits=served.scheduler.profiles.told())
        self._since_s = until_s
        begin_s = asyncio.get_running_loop().time()
        self._hear(await self._windows.publish(Published(self._router, window, last)), begin_s)
