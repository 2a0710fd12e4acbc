"""Virtual time: what is due when. The cluster advances it from event to event; nothing sleeps.

State: a heap of (time, order of planning, action). Actions due at the same instant run in the order they were planned.
"""

import heapq
import math
from collections.abc import Callable

Action = Callable[[float], None]


class Clock:
    """Begins at 0 seconds. `now` only grows."""

    def __init__(self) -> None:
        self.now = 0.0
        self._due: list[tuple[float, int, Action]] = []
        self._planned = 0

    @property
    def next_s(self) -> float:
        """When the next action is due; infinite when none is."""
        return self._due[0][0] if self._due else math.inf

    def at(self, time_s: float, action: Action) -> None:
        """Run `action(time_s)` then. Raises ValueError for a time that has passed."""
        if time_s < self.now:
            raise ValueError(f"time_s is {time_s!r}; allowed: now ({self.now!r}) or later")
        self._planned += 1
        heapq.heappush(self._due, (time_s, self._planned, action))

    def advance(self, time_s: float) -> None:
        """Let it be `time_s`, and run what is due by then, actions planned meanwhile included."""
        while self._due and self._due[0][0] <= time_s:
            due_s, _, action = heapq.heappop(self._due)
            self.now = max(self.now, due_s)
            action(due_s)
        self.now = max(self.now, time_s)
