"""How many requests a second to be ready for: the trend carried on to when a replica asked for now would serve, and the time of day.

Pure; `scaler` calls it. A falling rate is not carried on: what is given up is judged by what is there.
"""

import msgspec

from penstock_autoscaler.trend import Trend

DAY_S = 86_400.0
SLOTS = 96
"""Of a day, a quarter of an hour each."""
_SLOT_S = DAY_S / SLOTS
_DAMPED = 0.5
"""How much of a slope's further rise is planned for: ramps end, and the more is asked for ahead the more it is that was not needed."""
_LEARN_RATIO = 0.3
"""How much of a day's slot replaces what earlier days said."""


class Season(msgspec.Struct, kw_only=True):
    """Rates by time of day, learned day after day; changed by `learn` only."""

    rates: list[float] = []
    """By slot; empty before the first."""
    days: list[int] = []
    """On how many days each slot was seen."""
    slot: int = -1
    """The one that is being filled, with what has been seen of it."""
    seen_s: float = 0.0
    arrivals: float = 0.0

    def learn(self, until_s: float, length_s: float, arrivals: int) -> None:
        """An interval's arrivals."""
        slot = int((until_s - length_s / 2.0) % DAY_S // _SLOT_S)
        if slot != self.slot:
            self._close()
            self.slot, self.seen_s, self.arrivals = slot, 0.0, 0.0
        self.seen_s += length_s
        self.arrivals += arrivals

    def _close(self) -> None:
        if self.seen_s < _SLOT_S / 2.0:
            return
        if not self.rates:
            self.rates, self.days = [0.0] * SLOTS, [0] * SLOTS
        share = _LEARN_RATIO if self.days[self.slot] else 1.0
        self.rates[self.slot] += share * (self.arrivals / self.seen_s - self.rates[self.slot])
        self.days[self.slot] += 1

    def rise(self, now_s: float, ahead_s: float) -> float:
        """By how much the rate usually grows from now on until then, as a factor of at least 1; 1 where the two were not seen before."""
        here, there = self._usual(now_s), self._usual(now_s + ahead_s)
        return 1.0 if not here or not there else max(1.0, there / here)

    def _usual(self, at_s: float) -> float | None:
        """Between the middles of two slots; None where one of them is unknown."""
        place = at_s % DAY_S / _SLOT_S - 0.5
        before, share = int(place // 1) % SLOTS, place % 1.0
        after = (before + 1) % SLOTS
        if not self.rates or not self.days[before] or not self.days[after]:
            return None
        return self.rates[before] * (1.0 - share) + self.rates[after] * share


class Forecast(msgspec.Struct, frozen=True, kw_only=True):
    """Requests a second."""

    now: float
    expected: float
    """When a replica that is asked for now is ready; at least `now`."""
    error: float
    """Standard error of both."""


def forecast(found: Trend, season: Season, now_s: float, ahead_s: float) -> Forecast:
    """A slope is carried on no longer than it has lasted, and damped."""
    risen = found.rate + _DAMPED * max(0.0, found.slope) * min(ahead_s, found.length_s)
    usual = found.rate * season.rise(now_s, ahead_s)
    return Forecast(now=found.rate, expected=max(risen, usual), error=found.error)
