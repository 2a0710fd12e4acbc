"""When the operator calls itself alive and ready; `penstock_dataplane.probes` tells it to who asks.

Alive is: the event loop turns in time, Kopf's thread lives, and each watch has said something (a bookmark will do) lately; while it
waits for the Lease only the loop counts. `process` keeps Health up to date.
"""

import time
from collections.abc import Callable, Mapping

from penstock_dataplane.probes import loop_troubles

MOST_WATCH_AGE_S = 180.0
"""Bookmarks come about every minute."""


class Health:
    """What is looked at. Everything is asked at the moment of the probe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.beat_at = clock()
        """When the loop last turned."""
        self.leading = False
        self.synced: Callable[[], bool] = lambda: False
        self.ages: Callable[[], Mapping[str, float]] = dict
        self.watching: Callable[[], bool] = lambda: True

    def troubles(self) -> list[str]:
        """What is wrong, in words; empty: alive."""
        found = loop_troubles(self._clock() - self.beat_at)
        if not self.leading:
            return found
        if not self.watching():
            found.append("the thread that watches has ended")
        for kind, age_s in self.ages().items():
            if age_s > MOST_WATCH_AGE_S:
                found.append(f"the watch of {kind} has said nothing for {age_s:.0f} s; allowed: {MOST_WATCH_AGE_S:.0f}")
        return found

    def unready(self) -> list[str]:
        """Who waits for the Lease is ready to take over."""
        return ["not everything has been listed yet"] if self.leading and not self.synced() else []

    def facts(self) -> dict[str, bool]:
        return {"leading": self.leading}
