"""How fast the line moves: seconds a unit of cost takes to start, and when one that is turned away now should come again.

`line` tells it of starts and of what the gate saw. Measured while somebody waits (without a queue, starts follow arrivals and say
nothing about what the fleet could do); until enough is measured, from the profile's prefill seconds spread over the endpoints.
"""

import math

_WINDOW_S = 10.0
_PRESSED_S = 2.0
_ENOUGH_S = 1.0
_ENOUGH_STARTS = 8.0
_NEWEST_WEIGHT = 0.1


class Pace:
    """State: decaying sums of cost started and of seconds in which somebody waited; the next promised moment."""

    def __init__(self) -> None:
        self._cost = self._starts = self._seconds = self._pressed = 0.0
        self._since = -math.inf
        self._waiting = self._timely = False
        self._work_per_cost = self._endpoints = 0.0
        self._promised_s = 0.0

    def judged(self, work_s: float, cost: float, endpoints: int) -> None:
        """The gate predicted `work_s` seconds of prefill for one of `cost`, of which `endpoints` can do one each."""
        seen = work_s / max(1.0, cost)
        self._work_per_cost = seen if not self._work_per_cost else self._work_per_cost + _NEWEST_WEIGHT * (seen - self._work_per_cost)
        self._endpoints = float(max(1, endpoints))

    def work_s(self, cost: float) -> float:
        """Seconds of prefill on an idle endpoint that one of `cost` has needed lately."""
        return self._work_per_cost * cost

    def tick(self, now: float, waiting: bool, timely: bool) -> None:
        """Whether somebody waits from now on, and whether somebody does who can still meet his target."""
        passed = max(0.0, min(_WINDOW_S, now - self._since))
        keep = 1.0 - passed / _WINDOW_S
        self._pressed = self._pressed * keep + (passed if self._timely else 0.0)
        if self._waiting:  # what was measured fades only with what is measured
            self._cost *= keep
            self._starts *= keep
            self._seconds = self._seconds * keep + passed
        self._since, self._waiting, self._timely = now, waiting, timely

    @property
    def pressed(self) -> bool:
        """Of the last 10 s a good part went by with requests waiting that could still meet their target."""
        return self._pressed > _PRESSED_S

    def started(self, cost: float) -> None:
        """One that had waited has started."""
        self._cost += cost
        self._starts += 1.0

    @property
    def seconds_per_cost(self) -> float:
        """Measured where there is enough, else by the profile; 0 before anything is known."""
        if self._seconds >= _ENOUGH_S and self._starts >= _ENOUGH_STARTS and self._cost > 0.0:
            return self._seconds / self._cost
        return self._work_per_cost / self._endpoints if self._endpoints else 0.0

    def promise(self, after_s: float, cost: float, now: float, most_s: float) -> float:
        """Seconds after which one that is turned away should fit: not before `after_s`, nor all in the same moment."""
        start_s = min(now + most_s, max(now + after_s, self._promised_s))
        self._promised_s = start_s + cost * self.seconds_per_cost
        return start_s - now
