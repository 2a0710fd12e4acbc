"""Whether a request should start where the policy would put it, or wait: the judgement on one placement, and its booking.

The scheduler asks `Gate.start` after choosing. A request waits while every endpoint has more than a little work
queued (what waits here can still be ordered, what waits there cannot), and while starting it would make more targets missed
than met. The decode load is that of the moment when its prefill ends: judged by the load of now, prefill and decode take turns
in being full (Mooncake, section on overload). It knows no queue. The formulas: `outlook`.
"""

import math
from typing import NamedTuple

from penstock_router import columns as col
from penstock_router.admission import outlook
from penstock_router.beliefs import Beliefs
from penstock_router.cohorts import Cohort
from penstock_router.length_classes import LengthClasses
from penstock_router.policies import Choice, Query
from penstock_router.residuals import ItlMargin

_LEAST_AGAIN_S, _MOST_AGAIN_S = 0.002, 0.1
_WORDS = {outlook.BUSY: "busy", outlook.NO_KV: "kv", outlook.TOO_LATE: "late", outlook.TOO_SLOW: "decode", outlook.HARM: "harm"}


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
    """Judges for one scheduler. State: stance and target of the request being judged, set before each attempt."""

    def __init__(self, lengths: LengthClasses, margin: ItlMargin) -> None:
        self._lengths = lengths
        self._margin = margin
        self.stance = outlook.UNJUDGED
        self.target_s = math.inf
        """TTFT target of the request, from its arrival: the scale of what may wait at an endpoint."""

    def start(self, choice: Choice, cohort: Cohort, query: Query, beliefs: Beliefs) -> Declined | None:
        """None: it starts at `choice.row`, whose columns hold the terms of its cost, and where the arrays have it booked now."""
        verdict = outlook.start(
            beliefs.rows, beliefs.streams, query.table, cohort.starters, cohort.prefills, cohort.decodes, choice.row, query.numbers,
            choice.divided, choice.itl_s is not None, self.stance, self.target_s, self._margin.value, self._lengths.model.mean_tokens,
        )  # fmt: skip
        if verdict == outlook.ROOM:
            return None
        cells, base = beliefs.row_cells, choice.row * col.ROW
        work_s = cells[base + col.ALONE_S]
        again_s = 0.25 * work_s
        if verdict == outlook.BUSY:  # by how much the least loaded endpoint has more waiting than it should
            again_s = outlook.least_wait_s(beliefs.rows, cohort.starters, query.cells[col.NOW_S]) - outlook.HELD_SHARE * self.target_s
        again_s = min(_MOST_AGAIN_S, max(_LEAST_AGAIN_S, again_s))
        return Declined(_WORDS[verdict], cells[base + col.TTFT_S], work_s, len(cohort.starters), again_s)
