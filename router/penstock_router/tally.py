"""What came and what ended of one model's requests since the last look: two lists that the request path appends a tuple to.

`director` appends, `traffic` cuts a Window out of them every few seconds. Nothing is computed on the request path; what is counted, and
as what, is decided here when a Window is cut. Times are loop time until then.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple, TypeVar

import numpy as np
from penstock_core.errors import Outcome
from penstock_core.traffic import FAILED, SHED, Ended, Window

MOST_KEPT = 1_024
"""Arrivals, and endings, of one window that are kept one by one; of more an even sample."""

Row = TypeVar("Row")
Arrival = tuple[float, int]
"""(received, estimated prompt tokens)"""


class Ending(NamedTuple):
    """One request's end; the request path appends plain tuples of this form."""

    received_s: float
    prompt_tokens: int
    hit_tokens: int
    output_tokens: int
    """0 where the answer's usage is not known."""
    placed_s: float
    """0: it never was."""
    first_s: float
    """First content; 0: none, or a whole answer."""
    ended_s: float
    outcome: Outcome


class Tally:
    """State: the two lists, appended to from anywhere on the event loop, emptied by `cut` and `clear`."""

    __slots__ = ("arrivals", "endings")

    def __init__(self) -> None:
        self.arrivals: list[Arrival] = []
        self.endings: list[tuple[float, int, int, int, float, float, float, Outcome]] = []

    def clear(self) -> None:
        """Nobody can be told."""
        self.arrivals.clear()
        self.endings.clear()

    def cut(self, since_s: float, until_s: float, ahead_s: float, *, waiting: int, ttft_s: float) -> Window:
        """The Window [since_s, until_s). `ahead_s`: its clock minus loop time; `ttft_s`: how long a client that left had to wait.

        Arrivals after until_s stay for the next one. Of endings those count that say something of the fleet: served, turned away, failed,
        and left by their client after it had waited for longer than the target. What clients got wrong, or have no quota for, is left out.
        """
        bound_s = until_s - ahead_s
        came = [one for one in self.arrivals if one[0] < bound_s]
        self.arrivals = [one for one in self.arrivals if one[0] >= bound_s]
        went, self.endings = [Ending(*one) for one in self.endings], []
        counted = [one for one in went if _counts(one, ttft_s)]
        some = _even(came)
        return Window(
            since_s=since_s,
            until_s=until_s,
            arrival_s=np.array([one[0] for one in some], np.float64) + ahead_s,
            prompt_tokens=np.array([one[1] for one in some], np.int64),
            ended=_ended(_even(counted), ahead_s),
            arrivals=len(came),
            endings=len(counted),
            shed=sum(one.outcome in SHED for one in counted),
            failed=sum(one.outcome in FAILED for one in counted),
            queue_s=sum(one.placed_s - one.received_s for one in went if one.placed_s),
            waiting=waiting,
        )


def _counts(one: Ending, ttft_s: float) -> bool:
    if one.outcome is Outcome.CLIENT_GONE:
        return not one.first_s and one.ended_s - one.received_s > ttft_s
    return one.outcome is Outcome.OK or one.outcome in SHED or one.outcome in FAILED


def _ended(some: Sequence[Ending], ahead_s: float) -> Ended:
    return Ended(
        arrival_s=np.array([one.received_s for one in some], np.float64) + ahead_s,
        prompt_tokens=np.array([one.prompt_tokens for one in some], np.int64),
        hit_tokens=np.array([one.hit_tokens for one in some], np.int64),
        output_tokens=np.array([one.output_tokens for one in some], np.int64),
        ttft_s=np.array([one.first_s - one.received_s if one.first_s else math.nan for one in some], np.float64),
        tpot_s=np.array([_tpot_s(one) for one in some], np.float64),
        ok=np.array([one.outcome is Outcome.OK for one in some], np.bool_),
    )


def _tpot_s(one: Ending) -> float:
    """Seconds a token after the first; NaN where that is not known."""
    known = one.outcome is Outcome.OK and one.first_s and one.output_tokens > 1
    return (one.ended_s - one.first_s) / (one.output_tokens - 1) if known else math.nan


def _even(rows: Sequence[Row]) -> Sequence[Row]:
    """All, or MOST_KEPT of them at even steps."""
    return rows if len(rows) <= MOST_KEPT else [rows[i * len(rows) // MOST_KEPT] for i in range(MOST_KEPT)]
