"""Requests pending in the same turn of the event loop are placed together, so that the scheduler may order them.

The director awaits `place`; the first ask of a turn books the flush for its end. It knows no HTTP; it is the one place that
measures how long a decision takes. A booking never gets lost: one whose request was cancelled meanwhile is released here.
"""

import asyncio
from collections.abc import Callable
from time import perf_counter

from penstock_router.metrics import Histogram
from penstock_router.scheduling import Ask, Booking, Scheduler


class Turn:
    """The asks of the present turn for one scheduler. State: they and their futures, emptied by each flush."""

    def __init__(self, scheduler: Scheduler, decision_s: Histogram, more_coming: Callable[[], bool]) -> None:
        """`more_coming`: whether requests of this turn have not begun yet; without any, nobody need wait for the turn's end."""
        self._scheduler = scheduler
        self._decision_s = decision_s
        self._more_coming = more_coming
        self._asks: list[Ask] = []
        self._waiting: list[asyncio.Future[Booking | None]] = []

    async def place(self, ask: Ask) -> Booking | None:
        """The booking for `ask`, or None where no endpoint qualifies. Cancelled, it leaves nothing booked."""
        loop = asyncio.get_running_loop()
        if not self._asks and not self._more_coming():
            started_s = perf_counter()
            booking = self._scheduler.place((ask,), loop.time())[0]
            self._decision_s.observe(perf_counter() - started_s)
            return booking
        placed: asyncio.Future[Booking | None] = loop.create_future()
        if not self._asks:
            loop.call_soon(self._flush, loop)
        self._asks.append(ask)
        self._waiting.append(placed)
        try:
            return await placed
        except asyncio.CancelledError:
            if placed.done() and not placed.cancelled() and placed.exception() is None:
                booking = placed.result()
                if booking is not None:
                    booking.done(loop.time())
            raise

    def _flush(self, loop: asyncio.AbstractEventLoop) -> None:
        asks, self._asks = self._asks, []
        waiting, self._waiting = self._waiting, []
        now, started_s = loop.time(), perf_counter()
        try:
            order = self._scheduler.order(asks)
            bookings = self._scheduler.place([asks[at] for at in order], now)
        except Exception as error:  # noqa: BLE001  raised again where each request awaits its place
            for placed in waiting:
                if not placed.done():
                    placed.set_exception(error)
            return
        each_s = (perf_counter() - started_s) / len(asks)
        for at, booking in zip(order, bookings, strict=True):  # whoever is told first sends first
            placed = waiting[at]
            self._decision_s.observe(each_s)
            if not placed.done():
                placed.set_result(booking)
            elif booking is not None:
                booking.done(now)
