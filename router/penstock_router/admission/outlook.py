"""The gate's judgement on one placement, and its booking, computed over the flat arrays like the kernel, in one call.

Beyond the cost of the placement it looks at the decode step when the prefill will have ended, at the least wait anywhere, and
weighs what a policy has not. In numba's subset of Python; no request, no clock, no queue. What the words mean: `gate`.
"""

import math
from pathlib import Path

import numpy as np

from penstock_router import columns as col
from penstock_router.kernel import SOURCES
from penstock_router.kernel.compiled import Floats, Rows
from penstock_router.kernel.costs import NO_ROOM, weigh
from penstock_router.kernel.durations import decode_s, through_s
from penstock_router.kernel.misses import others_miss
from penstock_router.kernel.passes import advance, batch, book_prompt, queue
from penstock_router.machine_code import Compiler

compiled = Compiler(Path(__file__), *SOURCES)
_LEAST_STEP_S = 1e-3

HELD_SHARE = 0.25
"""Of the TTFT target: how much may wait at every endpoint before requests wait here instead."""
_LOST = 0.5
_DOUBTFUL = 0.1
_HARMLESS = 0.05

TIMELY, CROWDED, LATE, OWED, UNJUDGED = range(5)
"""What a request may ask for: it can meet its target; so can others that wait (no room for doubtful ones); its target is lost (it starts
where it does no harm); it must be served, whatever it does to others' targets; it starts where the policy says, at once."""
ROOM, BUSY, NO_KV, TOO_LATE, TOO_SLOW, HARM = range(6)
"""Verdicts: it may start; or why not, see `gate.Declined`."""


@compiled
def least_wait_s(rows: Floats, candidates: Rows, now: float) -> float:
    """Seconds of work that waits at the least loaded of the candidates; infinite for none."""
    least = math.inf
    for r in candidates:
        advance(rows, r, now)
        left, waiting, step, budget, _b, _c = queue(rows, r, now)
        least = min(least, left + through_s(rows, r, waiting, budget, step))
    return least


@compiled
def surviving(rows: Floats, r: int, horizon_s: float, mean_tokens: float) -> float:
    """Share of the streams at endpoint r that will still decode after `horizon_s`, lengths being geometric."""
    b, c = batch(rows, r)
    step = max(_LEAST_STEP_S, decode_s(rows, r, b, c))
    return math.exp(-horizon_s / (step * max(1.0, mean_tokens)))


@compiled
def slowness(rows: Floats, streams: Floats, r: int) -> float:
    """How much slower than a bare decode step the streams at endpoint r have come along, because of the prefills between; ≥ 1."""
    seconds, gaps = 0.0, 0.0
    for j in range(int(rows[r, col.CELLS_USED])):
        if streams[r, j, col.TOKENS] > 1.0:
            seconds += streams[r, j, col.LAST_S] - streams[r, j, col.FIRST_S]
            gaps += streams[r, j, col.TOKENS] - 1.0
    b, c = batch(rows, r)
    step = decode_s(rows, r, b, c)
    return max(1.0, seconds / (gaps * step)) if gaps > 0.0 and step > 0.0 else 1.0


@compiled
def whole_step_s(rows: Floats, streams: Floats, r: int, n: float, horizon_s: float, mean_tokens: float) -> float:
    """Decode step at endpoint r in `horizon_s`, when a prompt of n tokens placed there now, and all before it, will decode."""
    b, c = batch(rows, r)
    share = surviving(rows, r, horizon_s, mean_tokens)
    step = decode_s(rows, r, b * share + rows[r, col.PROMPTS] + 1.0, c * share + rows[r, col.BOOKED] + n)
    return step * slowness(rows, streams, r)


@compiled
def divided_step_s(rows: Floats, p: int, prefills: Rows, decodes: Rows, n: float, horizon_s: float, mean_tokens: float) -> float:
    """The least decode step in `horizon_s` among endpoints that can take KV from p, when all that is being prefilled decodes there.

    Prompts that are being prefilled, and the newcomer's, spread evenly over the decode endpoints.
    """
    prompts, context, takers = 1.0, n, 0.0
    for r in prefills:
        prompts += rows[r, col.PROMPTS]
        context += rows[r, col.KV_BOOKED]
    for d in decodes:
        if rows[d, col.GROUP] == rows[p, col.GROUP]:
            takers += 1.0
    least = math.inf
    for d in decodes:
        if rows[d, col.GROUP] == rows[p, col.GROUP]:
            b, c = batch(rows, d)
            share = surviving(rows, d, horizon_s, mean_tokens)
            least = min(least, decode_s(rows, d, b * share + max(1.0, prompts / takers), c * share + max(n, context / takers)))
    return least


@compiled
def appraise(rows: Floats, streams: Floats, table: Floats, r: int, q: Floats, divided: bool) -> None:
    """Leave all terms of placing the request at endpoint r in its columns."""
    weigh(rows, r, q, divided)
    harm = others_miss(rows, streams, table, r, q)
    rows[r, col.OTHERS_MISS] = harm
    rows[r, col.COST] += harm + rows[r, col.OTHERS_WAIT]


@compiled
def step_at_end_s(
    rows: Floats, streams: Floats, prefills: Rows, decodes: Rows, r: int, n: float, divided: bool, most_s: float, mean_tokens: float
) -> float:
    """Decode step where the request will decode, when its prefill at endpoint r has ended; of no more use than its being above most_s."""
    horizon_s = rows[r, col.TTFT_S]
    if divided:
        return divided_step_s(rows, r, prefills, decodes, n, horizon_s, mean_tokens)
    # If all that wait there joined and none ended:
    step = rows[r, col.ITL_S] * (1.0 + rows[r, col.PROMPTS] / (1.0 + (rows[r, col.STREAMS] + rows[r, col.FOREIGN_STREAMS])))
    return step if step <= 0.5 * most_s else whole_step_s(rows, streams, r, n, horizon_s, mean_tokens)


@compiled
def verdict(
    rows: Floats, streams: Floats, table: Floats, starters: Rows, prefills: Rows, decodes: Rows, r: int, q: Floats, divided: bool,
    unweighed_hit: float, stance: int, target_s: float, margin: float, mean_tokens: float,
) -> int:  # fmt: skip
    """Whether the request may start at endpoint r, whose columns hold the terms of its cost.

    `unweighed_hit`: tokens of its hit where they do not, because the policy predicts nothing; else −1. `target_s`: its TTFT target from
    its arrival. `margin`: share of its ITL target that a predicted decode step may take.
    """
    if not divided and rows[r, col.RUNNING] + rows[r, col.FOREIGN_STREAMS] <= 0.0:
        return ROOM  # an idle endpoint is never kept waiting, whatever the profile says
    if unweighed_hit >= 0.0:
        rows[r, col.HELD_CHUNKS] = unweighed_hit / q[col.CHUNK_TOKENS]
        appraise(rows, streams, table, r, q, divided)
        rows[r, col.HELD_CHUNKS] = 0.0
    if rows[r, col.WAIT_S] > HELD_SHARE * target_s and least_wait_s(rows, starters, q[col.NOW_S]) - HELD_SHARE * target_s > 0.0:
        return BUSY
    if rows[r, col.COST] >= NO_ROOM and rows[r, col.KV_REPORTED] > 0.0:
        return NO_KV
    if stance == OWED:
        return ROOM
    too_long = rows[r, col.ALONE_S] >= target_s  # no endpoint can meet it: not its fault
    own = 0.0 if too_long else rows[r, col.OWN_MISS]
    if stance != LATE and own > (_DOUBTFUL if stance == CROWDED else _LOST):
        return TOO_LATE
    most_s = margin * q[col.TARGET_S]
    if step_at_end_s(rows, streams, prefills, decodes, r, q[col.PROMPT], divided, most_s, mean_tokens) > most_s:
        # A target below the step with no other stream cannot be met, and is no reason to wait.
        alone = decodes[0] if divided and len(decodes) > 0 else r
        if most_s >= decode_s(rows, alone, 1.0, q[col.PROMPT]):
            return TOO_SLOW
    return HARM if rows[r, col.OTHERS_MISS] > (_HARMLESS if stance == LATE else 1.0 - own) else ROOM


@compiled
def start(
    rows: Floats, streams: Floats, table: Floats, starters: Rows, prefills: Rows, decodes: Rows, r: int, q: Floats, divided: bool,
    weighed: bool, stance: int, target_s: float, margin: float, mean_tokens: float,
) -> int:  # fmt: skip
    """The verdict on placing the request at endpoint r, whose HIT_TOKENS hold; where it is ROOM, the prompt is booked there.

    `weighed`: the policy has left all terms of its cost there. The rest: `verdict`.
    """
    hit, found = rows[r, col.HIT_TOKENS], ROOM
    if stance != UNJUDGED:
        unweighed = -1.0 if weighed else hit
        found = verdict(
            rows, streams, table, starters, prefills, decodes, r, q, divided, unweighed, stance, target_s, margin, mean_tokens
        )  # fmt: skip
    if found == ROOM:
        book_prompt(rows, streams, r, hit, q, divided)
    return found


def warm_up() -> None:
    """Compile, or load from the cache, before the first request."""
    rows, streams = np.zeros((2, col.ROW)), np.zeros((2, 2, col.CELL))
    both, numbers, table = np.arange(2), np.ones(col.ASK), np.zeros((1, 2, col.LONGEST_TOKENS + 1))
    least_wait_s(rows, both, 0.0)
    start(rows, streams, table, both, both, both, 0, numbers, False, False, TIMELY, 1.0, 1.0, 1.0)
