"""What routers tell one another of their bookings, and what one makes of the news of the others.

Every router keeps the bookings of all in its beliefs: its own at once, the others' as their news come in. Whoever runs a
router makes one `Books` a scheduler, hands placed bookings through `share`, carries what `tell` is given to the other routers
(in order, each router's news on its own), and gives their news to `hear`. Nothing here sends or reads a clock. Why news of single
bookings and not sums: docs/decisions.
"""

from collections import deque
from collections.abc import Callable, Hashable, Sequence

import msgspec
from penstock_core.endpoint import Endpoint
from penstock_core.placement import Placement
from penstock_core.slo import Slo

from penstock_router.booking import Booking
from penstock_router.scheduling import Ask, Scheduler


class Placed(msgspec.Struct, frozen=True, tag=True):
    """A prompt is placed. Times are seconds of a clock that all routers share."""

    number: int
    """Of the router's bookings; never given twice."""
    endpoint: str
    whole: bool
    """Decoded there too."""
    prompt_tokens: int
    hit_tokens: int
    max_tokens: int | None
    length_class: Hashable
    slo: Slo
    waited_s: float
    """Of its TTFT target, spent before it was placed."""
    at_s: float


class Prefilled(msgspec.Struct, frozen=True, tag=True):
    """The prefill leg has answered."""

    number: int
    at_s: float


class Bound(msgspec.Struct, frozen=True, tag=True):
    """It is decoded there after its prefill elsewhere."""

    number: int
    endpoint: str
    at_s: float


class Streams(msgspec.Struct, frozen=True, tag=True):
    """Its first token has come."""

    number: int
    at_s: float


class Progress(msgspec.Struct, frozen=True, tag=True):
    """How far all streams of a router are, told every now and then; a stream's last token came at `last_s`."""

    numbers: Sequence[int]
    tokens: Sequence[float]
    last_s: Sequence[float]


class Ended(msgspec.Struct, frozen=True, tag=True):
    """Over; `output_tokens` where the answer came to its normal end."""

    number: int
    output_tokens: int | None
    at_s: float


News = Placed | Prefilled | Bound | Streams | Progress | Ended
Tell = Callable[[News], None]


class Shared:
    """A booking of this router whose every step is told to the others. Used in place of it, with the same methods."""

    __slots__ = ("_ask", "_booking", "_books", "_number")

    def __init__(self, books: "Books", booking: Booking, ask: Ask, number: int) -> None:
        self._books, self._booking, self._ask, self._number = books, booking, ask, number

    @property
    def placement(self) -> Placement:
        return self._booking.placement

    def bind_decode(self, now: float, excluded: frozenset[str] = frozenset()) -> Endpoint | None:
        self._books.settle(now)
        endpoint = self._booking.bind_decode(now, excluded)
        if endpoint is None:
            return None
        if self._booking.placement.prefill is None:  # the prefill failed: it begins anew there
            self._books.tell(Ended(self._number, None, now))
            self._number = self._books.open(self._booking, self._ask, now)
        else:
            self._books.tell(Bound(self._number, endpoint.id, now))
        return endpoint

    def prefilled(self, now: float) -> None:
        self._booking.prefilled(now)
        self._books.tell(Prefilled(self._number, now))

    def prefill_failed(self, now: float) -> None:
        self._booking.prefill_failed(now)

    def first_token(self, now: float) -> None:
        self._booking.first_token(now)
        self._books.tell(Streams(self._number, now))

    def answered(self, now: float) -> None:
        self._booking.answered(now)

    def token(self, now: float, tokens: float = 1.0) -> None:
        self._booking.token(now, tokens)

    def facts(self, hit_tokens: int, prompt_tokens: int, now: float) -> None:
        self._booking.facts(hit_tokens, prompt_tokens, now)

    def done(self, now: float, output_tokens: int | None = None) -> None:
        self._booking.done(now, output_tokens)
        self._books.close(self._number, output_tokens, now)


class Books:
    """State: own bookings by number, the others' by (router, number), and mirrored ones until they lapse."""

    def __init__(self, scheduler: Scheduler, tell: Tell, *, mirrors: int = 0, mirror_s: float = 0.0) -> None:
        """`mirrors`: each own booking counts at so many further endpoints for `mirror_s`, as the other routers are taken to do alike."""
        self.tell = tell
        self._scheduler = scheduler
        self._mirrors, self._mirror_s = mirrors, mirror_s
        self._opened = 0
        self._own: dict[int, Booking] = {}
        self._others: dict[tuple[str, int], Booking] = {}
        self._far: dict[str, Progress] = {}  # by router: heard and not yet believed
        self._mirrored: deque[tuple[float, Booking]] = deque()

    def share(self, booking: Booking, ask: Ask, now: float) -> Shared:
        """Tell the others of a placement just made."""
        return Shared(self, booking, ask, self.open(booking, ask, now))

    def open(self, booking: Booking, ask: Ask, now: float) -> int:
        """For `Shared`: the number under which the booking is told."""
        self._opened += 1
        placement = booking.placement
        endpoint = placement.prefill or placement.decode
        if endpoint is None:
            raise ValueError("placement has no endpoint; allowed: a booking that was placed")
        self._own[self._opened] = booking
        placed = Placed(
            self._opened, endpoint.id, placement.prefill is None, ask.prompt_tokens, placement.hit_tokens, ask.max_tokens,
            ask.length_class, ask.slo, ask.waited_s, now,
        )  # fmt: skip
        self.tell(placed)
        if self._mirrors:
            self._mirror(placed, now)
        return self._opened

    def close(self, number: int, output_tokens: int | None, now: float) -> None:
        """For `Shared`: the booking is over; a second time nothing happens."""
        if self._own.pop(number, None) is not None:
            self.tell(Ended(number, output_tokens, now))

    def progress(self) -> None:
        """Tell how far the own streams are."""
        rows = [(number, *far) for number, booking in self._own.items() if (far := booking.progress()) is not None]
        if rows:
            self.tell(Progress(*zip(*rows, strict=True)))

    def hear(self, router: str, news: News) -> None:
        """News of another router. What concerns endpoints that are not known here is passed over."""
        if isinstance(news, Progress):
            self._far[router] = news
            return
        if isinstance(news, Placed):
            placed = self._scheduler.elsewhere(_asked(news), news.endpoint, news.whole, news.hit_tokens, news.at_s)
            if placed is not None:
                self._others[router, news.number] = placed
            return
        booking = self._others.get((router, news.number))
        if booking is None:
            return
        if isinstance(news, Ended):
            del self._others[router, news.number]
            booking.done(news.at_s, news.output_tokens)
        elif isinstance(news, Streams):
            booking.first_token(news.at_s)
        elif isinstance(news, Prefilled):
            booking.prefilled(news.at_s)
        else:
            booking.bound_elsewhere(news.endpoint, news.at_s)

    def forget(self, router: str, now: float) -> None:
        """That router is gone, and its bookings with it."""
        self._far.pop(router, None)
        for key in [key for key in self._others if key[0] == router]:
            self._others.pop(key).done(now)

    def settle(self, now: float) -> None:
        """Before placing: mirrored bookings whose time is over are given back, and what was heard of streams is believed."""
        while self._mirrored and self._mirrored[0][0] <= now:
            self._mirrored.popleft()[1].done(now)
        for router, news in self._far.items():
            for number, tokens, last_s in zip(news.numbers, news.tokens, news.last_s, strict=True):
                booking = self._others.get((router, number))
                far = None if booking is None else booking.progress()
                if booking is not None and far is not None and tokens > far[0]:
                    booking.token(last_s, tokens - far[0])
        self._far.clear()

    def _mirror(self, placed: Placed, now: float) -> None:
        """Count the prompt at endpoints evenly spread from the chosen one, too."""
        alike = self._scheduler.alike(placed.endpoint)
        at = alike.index(placed.endpoint)
        for k in range(1, self._mirrors + 1):
            other = alike[(at + k * len(alike) // (self._mirrors + 1)) % len(alike)]
            booking = None if other == placed.endpoint else self._scheduler.elsewhere(_asked(placed), other, placed.whole, 0, now)
            if booking is not None:
                self._mirrored.append((now + self._mirror_s, booking))


def _asked(placed: Placed) -> Ask:
    return Ask(
        prompt_tokens=placed.prompt_tokens,
        max_tokens=placed.max_tokens,
        length_class=placed.length_class,
        slo=placed.slo,
        waited_s=placed.waited_s,
    )
