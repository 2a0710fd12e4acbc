"""What a follower knows of one worker's numbered batches, and what to do with the next one. Pure decisions.

`tail` keeps one Feed a worker, and acts. Nothing here waits or touches the mirror.
"""

from collections import deque
from enum import Enum

from penstock_core.kv_events import KvBatch

MOST_HELD_BACK = 4_096
"""Batches kept while a worker is being reloaded; more, and it is reloaded once again."""


class Step(Enum):
    """What to do with a batch."""

    APPLY = "apply"
    SKIP = "skip"
    """Known already, or of another process than the one registered."""
    HOLD_BACK = "hold back"
    """A reload is under way; it asks again afterwards."""
    RELOAD = "reload"


class Feed:
    """One worker: its epoch, the last sequence applied, and the batches held back while it is reloaded."""

    def __init__(self, epoch: int, sequence: int = 0) -> None:
        self.epoch = epoch
        self.sequence = sequence
        self.reloading = False
        self.held_back: deque[tuple[KvBatch, bool]] = deque()
        self.overflowed = False

    def step(self, batch: KvBatch, *, republished: bool) -> Step:
        """Decide, and note the sequence of a batch to apply."""
        if batch.epoch != self.epoch:
            return Step.SKIP
        if self.reloading:
            if len(self.held_back) >= MOST_HELD_BACK:
                self.overflowed = True
            else:
                self.held_back.append((batch, republished))
            return Step.HOLD_BACK
        if batch.sequence <= self.sequence:
            return Step.SKIP
        if batch.sequence > self.sequence + 1 or republished:
            return Step.RELOAD
        self.sequence = batch.sequence
        return Step.APPLY

    def begin_reload(self) -> None:
        self.reloading = True
        self.overflowed = False

    def end_reload(self, sequence: int | None) -> list[tuple[KvBatch, bool]]:
        """The reload gave a state as of `sequence` (None: it failed). Gives the batches to decide on again, in order."""
        self.reloading = False
        if sequence is not None:
            self.sequence = sequence
        again = list(self.held_back)
        self.held_back.clear()
        return again
