"""Which key is reconciled next: each key once, never twice at a time, failing ones later and later.

Events and timers `add` keys; `workers.serve` takes them and says how each ended. Time comes from outside and only has to rise.
It knows nothing of what a key names.
"""

import heapq
from collections.abc import Hashable
from typing import Generic, TypeVar

K = TypeVar("K", bound=Hashable)

FIRST_BACKOFF_S = 0.5
LONGEST_BACKOFF_S = 60.0


def backoff_s(failures: int) -> float:
    """Seconds to wait after so many failures in a row (1 or more): doubling, bounded."""
    return min(LONGEST_BACKOFF_S, FIRST_BACKOFF_S * 2.0 ** min(failures - 1, 16))


class _Entry:
    """What is known of one key. Changed by KeyedQueue alone, between awaits."""

    __slots__ = ("again", "due", "failures", "generation", "not_before", "reset", "running")

    def __init__(self) -> None:
        self.due: float | None = None  # waiting until then; None: not waiting
        self.running = False
        self.again = False  # added while running
        self.reset = False  # a new generation came while running
        self.failures = 0
        self.not_before = 0.0
        self.generation = -1


class KeyedQueue(Generic[K]):
    """See the module. Invariants: a key is running at most once; a key that was added is waiting or running until it ends well."""

    def __init__(self, concurrency: int) -> None:
        """At most `concurrency` keys (1 or more) run at a time."""
        if concurrency < 1:
            raise ValueError(f"concurrency is {concurrency}; allowed: 1 or more")
        self._concurrency = concurrency
        self._entries: dict[K, _Entry] = {}
        self._heap: list[tuple[float, int, K]] = []  # an item counts only while its time is the entry's `due`
        self._added = 0
        self._running = 0
        self._waiting = 0

    @property
    def depth(self) -> int:
        """Keys waiting, those in back-off included."""
        return self._waiting

    @property
    def running(self) -> int:
        return self._running

    @property
    def has_room(self) -> bool:
        """Whether another key may run; where not, the end of one makes room."""
        return self._running < self._concurrency

    def add(self, key: K, now: float, *, generation: int = -1, delay_s: float = 0.0) -> None:
        """Have `key` reconciled, `delay_s` from now at the latest unless it is in back-off. A newer `generation` ends the back-off."""
        entry = self._entries.setdefault(key, _Entry())
        newer = generation > entry.generation >= 0
        entry.generation = max(entry.generation, generation)
        if newer:
            entry.failures, entry.not_before = 0, 0.0
        if entry.running:
            entry.again = True
            entry.reset = entry.reset or newer
        else:
            self._wait(key, entry, max(now + delay_s, entry.not_before))

    def take(self, now: float) -> K | None:
        """The key that has been due longest, now running; None if nothing is due or enough is running."""
        if not self.has_room:
            return None
        self._drop_outdated()
        if not self._heap or self._heap[0][0] > now:
            return None
        _, _, key = heapq.heappop(self._heap)
        entry = self._entries[key]
        entry.due, entry.running, entry.again, entry.reset = None, True, False, False
        self._running += 1
        self._waiting -= 1
        return key

    def done(self, key: K, now: float, *, failed: bool = False, after_s: float | None = None) -> None:
        """`key` has been reconciled: it failed, or it is due again `after_s` from now, or it is settled (None)."""
        entry = self._entries[key]
        entry.running = False
        self._running -= 1
        if failed:
            entry.failures += 1
            entry.not_before = 0.0 if entry.reset else now + backoff_s(entry.failures)
            return self._wait(key, entry, max(now, entry.not_before))
        entry.failures, entry.not_before = 0, 0.0
        if entry.again:
            return self._wait(key, entry, now)
        if after_s is not None:
            return self._wait(key, entry, now + after_s)
        del self._entries[key]
        return None

    def next_at(self) -> float | None:
        """When `take` will next have something, were there room; None: nothing waits."""
        self._drop_outdated()
        return self._heap[0][0] if self._heap else None

    def failures(self, key: K) -> int:
        """Failures in a row."""
        entry = self._entries.get(key)
        return entry.failures if entry else 0

    def _wait(self, key: K, entry: _Entry, at: float) -> None:
        if entry.due is None:
            self._waiting += 1
        elif entry.due <= at:
            return
        entry.due = at
        self._added += 1
        heapq.heappush(self._heap, (at, self._added, key))

    def _drop_outdated(self) -> None:
        while self._heap:
            at, _, key = self._heap[0]
            entry = self._entries.get(key)
            if entry is not None and entry.due == at:
                return
            heapq.heappop(self._heap)
