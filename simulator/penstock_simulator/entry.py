"""The router's line in front of the simulated fleet: requests by their number, through the production objects.

The cluster brings arrivals, tells of ends, and looks in at `next_s`; it gets back what was decided of which request.
"""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from penstock_core.errors import Outcome
from penstock_router.admission.claim import Claim, LineLimits
from penstock_router.admission.line import Line, Waiting
from penstock_router.booking import Booking
from penstock_router.scheduling import Ask, Scheduler

Fate = Booking | Outcome
"""A placement, or how the request ended without one."""


class Entry:
    """State: the line, and which of its requests is which number, until it is over."""

    def __init__(self, scheduler: Scheduler, limits: LineLimits, claims: Sequence[Claim], output_tokens: NDArray[np.int64]) -> None:
        self._line = Line(scheduler, limits)
        self._claims = claims
        self._output_tokens = output_tokens
        self._numbers: dict[Waiting, int] = {}
        self._begun: dict[int, Waiting] = {}

    @property
    def next_s(self) -> float:
        """When `settle` is due; infinite while nobody waits."""
        return self._line.next_s

    def arrive(self, requests: Sequence[int], asks: Sequence[Ask], now: float) -> list[tuple[int, Fate]]:
        """Requests of one turn; gives those decided, in the order in which they are sent."""
        coming = [Waiting(ask, self._claims[number] if self._claims else Claim(), now) for number, ask in zip(requests, asks, strict=True)]
        self._numbers.update(zip(coming, requests, strict=True))
        return [self._fate(one) for one in self._line.arrive(coming, now)]

    def settle(self, now: float) -> list[tuple[int, Fate]]:
        """Those decided by now among the ones that wait."""
        return [self._fate(one) for one in self._line.settle(now)]

    def over(self, number: int, served: bool, now: float) -> None:
        """A request has ended."""
        one = self._begun.pop(number, None)
        if one is not None:
            self._line.over(one, one.ask.prompt_tokens, int(self._output_tokens[number]) if served else None, now)

    def _fate(self, one: Waiting) -> tuple[int, Fate]:
        number = self._numbers.pop(one)
        if one.booking is not None:
            self._begun[number] = one
            return number, one.booking
        return number, one.turned.outcome if one.turned is not None else Outcome.NO_ENDPOINT
