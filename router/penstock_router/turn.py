"""Brings requests to their model's line and keeps the line moving: those of one turn of the event loop together, and a timer.

The director awaits `enter` for a request's first placement, dispatch calls `place` for the next ones; it knows no HTTP. It is the
one place that measures how long a decision takes. No booking gets lost: that of a request cancelled meanwhile is released here.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter

from penstock_router.admission.line import Line, Waiting
from penstock_router.metrics import Histogram
from penstock_router.scheduling import Ask, Booking, Scheduler


class Turn:
    """State: the requests of the present turn, emptied by each flush; who waits for his fate; the timer while somebody does."""

    def __init__(self, scheduler: Scheduler, line: Line, decision_s: Histogram, more_coming: Callable[[], bool]) -> None:
        """`more_coming`: whether requests of this turn have not begun yet; without any, nobody need wait for the turn's end."""
        self._scheduler = scheduler
        self._line = line
        self._decision_s = decision_s
        self._more_coming = more_coming
        self._coming: list[Waiting] = []
        self._fates: dict[Waiting, asyncio.Future[None]] = {}
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None  # from the first request on

    @property
    def waiting(self) -> int:
        """Requests in the line."""
        return self._line.waiting

    def place(self, ask: Ask) -> Booking | None:
        """The booking of a request that has begun before, or None where no endpoint qualifies."""
        started_s = perf_counter()
        booking = self._scheduler.place_one(ask, asyncio.get_running_loop().time())
        self._decision_s.observe(perf_counter() - started_s)
        return booking

    async def enter(self, waiting: Waiting) -> None:
        """Until the request's fate is decided: it has a booking, is turned away, or there is no endpoint. Then `over` must follow."""
        loop = self._loop = self._loop or asyncio.get_running_loop()  # asking for it is a call of the kernel in Python 3.11
        if not self._coming and not self._more_coming():
            started_s = perf_counter()
            settled = self._line.arrive((waiting,), loop.time())
            self._decision_s.observe(perf_counter() - started_s)
            if waiting.settled and len(settled) == 1 and not self._line.waiting:
                return
            self._tell(settled, loop)
            if waiting.settled:
                return
        else:
            if not self._coming:
                loop.call_soon(self._flush, loop)
            self._coming.append(waiting)
        fate = self._fates[waiting] = loop.create_future()
        try:
            await fate
        except asyncio.CancelledError:
            if waiting.booking is not None:
                waiting.booking.done(loop.time())
            raise
        finally:
            self._fates.pop(waiting, None)

    def over(self, waiting: Waiting, prompt_tokens: int, output_tokens: int | None, now: float) -> None:
        """The request has ended, wherever it stood; its tokens as counted, None where the answer has not come to its end."""
        if not waiting.settled and waiting in self._coming:
            self._coming.remove(waiting)
            return
        self._line.over(waiting, prompt_tokens, output_tokens, now)
        if self._line.waiting:
            self._look_again(asyncio.get_running_loop())

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        coming, self._coming = self._coming, []
        if not coming:
            return
        started_s = perf_counter()
        try:
            settled = self._line.arrive(coming, loop.time())
        except Exception as error:  # noqa: BLE001  raised again where each request awaits its fate
            for one in coming:
                self._fates[one].set_exception(error)
            return
        self._decision_s.observe_times((perf_counter() - started_s) / len(coming), len(coming))
        self._tell(settled, loop)

    def _settle(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        self._tell(self._line.settle(loop.time()), loop)

    def _tell(self, settled: list[Waiting], loop: asyncio.AbstractEventLoop) -> None:
        for one in settled:
            fate = self._fates.get(one)
            if fate is not None and not fate.done():
                fate.set_result(None)
        self._look_again(loop)

    def _look_again(self, loop: asyncio.AbstractEventLoop) -> None:
        """Let the timer stand at the line's next moment; none while nobody waits."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        if self._line.waiting:
            self._timer = loop.call_at(self._line.next_s, self._settle, loop)
