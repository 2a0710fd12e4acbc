"""The network link over which an engine pulls KV: its bandwidth, shared equally by the pulls under way.

Pure: `now` (seconds, monotonic) is passed in. Processor sharing in virtual time: each pull has the point of the common
per-pull progress at which it is through, so a start or an end costs no walk over the others.
"""

from collections.abc import Hashable


class Link:
    """Pulls under way. `_progress` is how many bytes each of them would have got so far had it been there all the time."""

    def __init__(self, bytes_per_s: float) -> None:
        self._bytes_per_s = bytes_per_s
        self._progress = 0.0
        self._at_s = 0.0
        self._ends: dict[Hashable, float] = {}

    def start(self, pull: Hashable, size_bytes: float, now: float) -> None:
        self._advance(now)
        self._ends[pull] = self._progress + size_bytes

    def drop(self, pull: Hashable, now: float) -> None:
        """It was given up (or ended): its share goes to the others."""
        self._advance(now)
        self._ends.pop(pull, None)

    def left_s(self, pull: Hashable, now: float) -> float:
        """Seconds until `pull` is through if nothing else starts; 0 when it is."""
        self._advance(now)
        end = self._ends.get(pull)
        if end is None:
            return 0.0
        seconds, progress, sharing = 0.0, self._progress, len(self._ends)
        for other in sorted(self._ends.values()):
            if other > end:
                break
            seconds += (other - progress) * sharing / self._bytes_per_s
            progress, sharing = other, sharing - 1
        return seconds

    def _advance(self, now: float) -> None:
        while self._ends:
            first = min(self._ends.values())
            seconds = (first - self._progress) * len(self._ends) / self._bytes_per_s
            if self._at_s + seconds > now:
                self._progress += (now - self._at_s) * self._bytes_per_s / len(self._ends)
                break
            self._at_s += seconds
            self._progress = first
            self._ends = {pull: end for pull, end in self._ends.items() if end > first}
        self._at_s = max(self._at_s, now)
