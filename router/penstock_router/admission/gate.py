"""Whether a request should start where the policy would put it, or wait: the judgement on one placement, before it is booked.

The scheduler asks `Gate.judge` between choosing and booking. A request waits while every endpoint has more than a little work
queued (what waits here can still be ordered, what waits there cannot), and while starting it would make more targets missed
than met. The decode load is that of the moment when its prefill ends: judged by the load of now, prefill and decode take turns
in being full (Mooncake, section on overload). It books nothing and knows no queue.
"""

import math
from enum import Enum
from typing import NamedTuple

from penstock_router import columns as col
from penstock_router import kernel
from penstock_router.admission import outlook
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort
from penstock_router.kernel.costs import NO_ROOM
from penstock_router.length_classes import LengthClasses
from penstock_router.policies import Choice, Query
from penstock_router.residuals import ItlMargin

HELD_SHARE = 0.25
"""Of the TTFT target: how much may wait at every endpoint before requests wait here instead."""
_LOST = 0.5
_DOUBTFUL = 0.1
_HARMLESS = 0.05
_LEAST_AGAIN_S, _MOST_AGAIN_S = 0.002, 0.1


class Stance(Enum):
    """What a request may ask for."""

    TIMELY = 0  # it can still meet its target
    CROWDED = 1  # so can others that wait: no room for doubtful ones
    LATE = 2  # its target is lost: it starts where it does no harm
    OWED = 3  # it must be served, whatever it does to others' targets


class Declined(NamedTuple):
    """Why nothing was booked."""

    reason: str
    """`busy`: all endpoints have work enough; `decode`: the ITL target would be lost; `kv`: no room; `harm`: it costs more targets than
    it meets; `late`: its own target would be lost."""
    ttft_s: float
    """Predicted, had it been placed."""
    work_s: float
    """Of it, the prefill alone on an idle endpoint."""
    endpoints: int
    """Where it could have begun."""
    again_s: float
    """When another look may find it otherwise."""


class Gate:
    """Judges for one scheduler. State: the stance of the request being judged, set before each attempt."""

    def __init__(self, lengths: LengthClasses, margin: ItlMargin) -> None:
        self._lengths = lengths
        self._margin = margin
        self.stance = Stance.TIMELY
        self.target_s = math.inf
        """TTFT target of the request, from its arrival: the scale of what may wait at an endpoint."""

    def judge(self, choice: Choice, cohort: Cohort, query: Query, beliefs: Beliefs) -> Declined | None:
        """None: it may start at `choice.row`, whose columns hold the terms of its cost."""
        cells, base = beliefs.row_cells, choice.row * col.ROW
        if not choice.divided and cells[base + col.RUNNING] + cells[base + col.FOREIGN_STREAMS] <= 0.0:
            return None  # an idle endpoint is never kept waiting, whatever the profile says
        if choice.itl_s is None:
            _weigh(choice, query, beliefs)
        reason = self._reason(choice, cohort, query, beliefs)
        if reason is None:
            return None
        work_s = cells[base + col.WORK] * query.cells[col.TARGET_TTFT_S]
        again_s = self._excess_s(cohort, query, beliefs) if reason == "busy" else 0.25 * work_s
        again_s = min(_MOST_AGAIN_S, max(_LEAST_AGAIN_S, again_s))
        return Declined(reason, cells[base + col.TTFT_S], work_s, len(cohort.starters), again_s)

    def _reason(self, choice: Choice, cohort: Cohort, query: Query, beliefs: Beliefs) -> str | None:
        cells, base, stance = beliefs.row_cells, choice.row * col.ROW, self.stance
        if cells[base + col.WAIT_S] > HELD_SHARE * self.target_s and self._excess_s(cohort, query, beliefs) > 0.0:
            return "busy"
        if cells[base + col.COST] >= NO_ROOM and cells[base + col.KV_REPORTED] > 0.0:
            return "kv"
        if stance is Stance.OWED:
            return None
        too_long = cells[base + col.WORK] * query.cells[col.TARGET_TTFT_S] >= self.target_s  # no endpoint can meet it: not its fault
        own = 0.0 if too_long else cells[base + col.OWN_MISS]
        if stance is not Stance.LATE and own > (_DOUBTFUL if stance is Stance.CROWDED else _LOST):
            return "late"
        most_s = self._margin.value * query.cells[col.TARGET_S]
        if self._step_at_end_s(choice, cohort, query, beliefs, most_s) > most_s >= _alone_s(choice, cohort, query, beliefs):
            return "decode"
        worth = _HARMLESS if stance is Stance.LATE else 1.0 - own
        return "harm" if cells[base + col.OTHERS_MISS] > worth else None

    def _excess_s(self, cohort: Cohort, query: Query, beliefs: Beliefs) -> float:
        """By how much the least loaded endpoint has more waiting than it should; below 0: it has room."""
        least_s: float = outlook.least_wait_s(beliefs.rows, cohort.starters, query.cells[col.NOW_S])
        return least_s - HELD_SHARE * self.target_s

    def _step_at_end_s(self, choice: Choice, cohort: Cohort, query: Query, beliefs: Beliefs, most_s: float) -> float:
        """Predicted decode step where the request will decode, when its prefill has ended; of no more use than its being above most_s."""
        cells, base = beliefs.row_cells, choice.row * col.ROW
        step_s: float
        if not choice.divided:
            prompts, streams = cells[base + col.PROMPTS], cells[base + col.STREAMS] + cells[base + col.FOREIGN_STREAMS]
            step_s = cells[base + col.ITL_S] * (1.0 + prompts / (1.0 + streams))  # if all that wait there joined and none ended
            if step_s <= 0.5 * most_s:
                return step_s
        n, horizon_s, mean_tokens = query.cells[col.PROMPT], cells[base + col.TTFT_S], float(self._lengths.model.expected_tokens())
        if choice.divided:
            step_s = outlook.divided_step_s(beliefs.rows, choice.row, cohort.prefills, cohort.decodes, n, horizon_s, mean_tokens)
        else:
            step_s = outlook.whole_step_s(beliefs.rows, beliefs.streams, choice.row, n, horizon_s, mean_tokens)
        return step_s


def _weigh(choice: Choice, query: Query, beliefs: Beliefs) -> None:
    """The terms for a choice of a policy that has not weighed them; hits count as the policy found them."""
    cells, base = beliefs.row_cells, choice.row * col.ROW
    cells[base + col.HELD_CHUNKS] = choice.hit_tokens / query.cells[col.CHUNK_TOKENS]
    outlook.appraise(beliefs.rows, beliefs.streams, query.table, choice.row, query.numbers, choice.divided)
    cells[base + col.HELD_CHUNKS] = 0.0


def _alone_s(choice: Choice, cohort: Cohort, query: Query, beliefs: Beliefs) -> float:
    """Decode step with no other stream: a target below it cannot be met, and is no reason to wait."""
    row = int(cohort.decodes[0]) if choice.divided and len(cohort.decodes) else choice.row
    return float(kernel.decode_s(beliefs.rows, row, 1.0, query.cells[col.PROMPT]))
