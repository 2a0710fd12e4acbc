"""When an autoscaler process calls itself alive and ready; `penstock_dataplane.probes` tells it to who asks.

Alive is: the event loop turns in time. Ready is: it is known what is to be sized. `process` keeps Health up to date.
"""

import time
from collections.abc import Callable

from penstock_dataplane.probes import loop_troubles


class Health:
    """What is looked at. Everything is asked at the moment of the probe."""

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self.beat_at = clock()
        """When the event loop last turned."""
        self.listed: Callable[[], bool] = lambda: False
        self.models: Callable[[], int] = lambda: 0

    def troubles(self) -> list[str]:
        """What is wrong, in words; empty: alive."""
        return loop_troubles(self._clock() - self.beat_at)

    def unready(self) -> list[str]:
        return [] if self.listed() else ["it is not known yet which ModelServices there are"]

    def facts(self) -> dict[str, int]:
        return {"models": self.models()}
