"""The routers in front of the simulated fleet: one or several schedulers, and what they tell one another.

The cluster asks it to place and hands it reports; with one router it is that router's scheduler and nothing more. News
between routers take the set delay in virtual time.
"""

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from random import Random

from penstock_core.endpoint import Endpoint, Load
from penstock_core.profile_fit import PoolFit, best_fits
from penstock_router.booking import Booking
from penstock_router.books import Books, Bound, News, Placed, Progress, Shared
from penstock_router.scheduling import Ask, Options, Scheduler

from penstock_simulator.clock import Clock
from penstock_simulator.setup import Bookings, Setup


class Routers:
    """State: the schedulers, their books where they exchange any, and which router serves which request."""

    def __init__(self, setup: Setup, requests: int, clock: Clock, sync: Callable[[], None]) -> None:
        """`sync` is called before streams are looked at: it brings own bookings up to date."""
        self.many = setup.routers
        options = Options(turn_order=setup.turn_order, fitted=setup.fitted)
        # Random: ties between equal costs, and who serves what; nothing secret.
        self.schedulers = [
            Scheduler(setup.make_policy() if setup.make_policy else setup.policy, rng=Random(setup.seed + 7_919 * r), options=options)  # noqa: S311
            for r in range(self.many)
        ]
        spread = Random(setup.seed + 2)  # noqa: S311
        self.serving = [spread.randrange(self.many) for _ in range(requests)] if self.many > 1 else [0] * requests
        """Router number by request."""
        self._clock, self._sync, self._setup = clock, sync, setup
        self._books: list[Books] = []
        if self.many > 1 and setup.bookings != Bookings.NONE:
            mirrors = self.many - 1 if setup.bookings == Bookings.MIRRORED else 0
            self._books = [
                Books(scheduler, partial(self._told, r), mirrors=mirrors, mirror_s=setup.exchange_s)
                for r, scheduler in enumerate(self.schedulers)
            ]
            if setup.exchange_s > 0.0:
                clock.at(0.0, self._tell_progress)

    def set_endpoints(self, endpoints: Sequence[Endpoint], now: float) -> None:
        """To all routers at once."""
        for scheduler in self.schedulers:
            scheduler.set_endpoints(endpoints, now)

    def report(self, worker_id: str, load: Load, now: float) -> None:
        """To all routers at once."""
        for scheduler in self.schedulers:
            scheduler.report(worker_id, load, now)

    def fits(self) -> tuple[PoolFit, ...]:
        """What all of them together have learned of how fast engines compute, a pool each."""
        return best_fits(fit for scheduler in self.schedulers for fit in scheduler.profiles.told())

    def place(self, requests: Sequence[int], asks: Sequence[Ask], now: float) -> list[tuple[int, Booking | Shared | None]]:
        """(request, booking) of all `requests` of one turn, in the order in which they are placed; router by router."""
        if self.many == 1:
            return list(_in_turn(self.schedulers[0], requests, asks, now))
        if self._setup.exchange_s == 0.0:
            for books in self._books:
                books.progress()
        placed: list[tuple[int, Booking | Shared | None]] = []
        ask_of = dict(zip(requests, asks, strict=True))
        for r, scheduler in enumerate(self.schedulers):
            mine = [request for request in requests if self.serving[request] == r]
            if not mine:
                continue
            if self._books:
                self._books[r].settle(now)
            for request, booking in _in_turn(scheduler, mine, [ask_of[request] for request in mine], now):
                if booking is None or not self._books:
                    placed.append((request, booking))
                else:
                    placed.append((request, self._books[r].share(booking, ask_of[request], now)))
        return placed

    def _told(self, router: int, news: News) -> None:
        """Router `router` has news for the others."""
        at_s = self._clock.now if isinstance(news, Progress) else news.at_s
        booked = self._setup.bookings == Bookings.SHARED and isinstance(news, Placed | Bound)
        if booked or self._setup.exchange_s == 0.0:
            self._hear(router, news)
        else:
            self._clock.at(max(self._clock.now, at_s + self._setup.exchange_s), lambda _now: self._hear(router, news))

    def _hear(self, router: int, news: News) -> None:
        for r, books in enumerate(self._books):
            if r != router:
                books.hear(str(router), news)

    def _tell_progress(self, now: float) -> None:
        self._sync()
        for books in self._books:
            books.progress()
        self._clock.at(now + self._setup.exchange_s, self._tell_progress)


def _in_turn(scheduler: Scheduler, requests: Sequence[int], asks: Sequence[Ask], now: float) -> Iterator[tuple[int, Booking | None]]:
    """As the router's own turn places them: in the scheduler's order."""
    order = scheduler.order(asks)
    return zip((requests[at] for at in order), scheduler.place([asks[at] for at in order], now), strict=True)
