"""What the gate must know of endpoints beyond the cost of one placement, computed over the flat arrays like the kernel.

The gate calls it, and only where there is load: the decode step when a prefill will have ended, the least wait anywhere, and
the terms of a placement that its policy has not weighed. In numba's subset of Python; no request, no clock, no queue.
"""

import math
from pathlib import Path

import numpy as np

from penstock_router import columns as col
from penstock_router.kernel import SOURCES
from penstock_router.kernel.compiled import Floats, Rows
from penstock_router.kernel.costs import weigh
from penstock_router.kernel.durations import decode_s, through_s
from penstock_router.kernel.misses import others_miss
from penstock_router.kernel.passes import advance, batch, queue
from penstock_router.machine_code import Compiler

compiled = Compiler(Path(__file__), *SOURCES)
_LEAST_STEP_S = 1e-3


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
    rows[r, col.COST] += harm


def warm_up() -> None:
    """Compile, or load from the cache, before the first request."""
    rows, streams = np.zeros((2, col.ROW)), np.zeros((2, 2, col.CELL))
    both, numbers, table = np.arange(2), np.ones(col.ASK), np.zeros((1, 2, col.LONGEST_TOKENS + 1))
    least_wait_s(rows, both, 0.0)
    whole_step_s(rows, streams, 0, 1.0, 1.0, 1.0)
    divided_step_s(rows, 0, both, both, 1.0, 1.0, 1.0)
    appraise(rows, streams, table, 0, numbers, False)
