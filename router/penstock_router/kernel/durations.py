"""Seconds of passes and decode steps by an endpoint's profile, whose coefficients begin its row.

The simulator's engines live by the same functions. They know no queue and no request.
"""

import math

from penstock_core import profile as pc

from penstock_router.kernel.compiled import Floats, compiled


@compiled
def prefill_s(rows: Floats, r: int, new: float, cached: float) -> float:
    """Seconds of a pass over `new` prompt tokens after `cached` cached ones at endpoint r; 0 for none."""
    if new <= 0.0:
        return 0.0
    knots = int(rows[r, pc.KNOT_COUNT])
    if knots == 0:
        return float(
            rows[r, pc.PREFILL_CONSTANT]
            + (rows[r, pc.PREFILL_TOKEN] + rows[r, pc.PREFILL_SQUARE] * new + rows[r, pc.PREFILL_PAIR] * cached) * new
        )
    x0, y0 = rows[r, pc.FIRST_KNOT], rows[r, pc.FIRST_KNOT + 1]
    if new <= x0 or knots == 1:
        return float(y0)
    for knot in range(1, knots):
        x1, y1 = rows[r, pc.FIRST_KNOT + 2 * knot], rows[r, pc.FIRST_KNOT + 2 * knot + 1]
        if new <= x1 or knot == knots - 1:
            return float(y0 + (y1 - y0) * (new - x0) / (x1 - x0))
        x0, y0 = x1, y1
    return float(y0)


@compiled
def decode_s(rows: Floats, r: int, streams: float, context: float) -> float:
    """Seconds of a decode step of `streams` streams over `context` tokens at endpoint r; 0 for none."""
    if streams <= 0.0:
        return 0.0
    c = min(context, rows[r, pc.DECODE_CAP])
    piece = pc.DECODE_LARGE if streams >= rows[r, pc.DECODE_SPLIT] else pc.DECODE_SMALL
    seconds = rows[r, piece] + rows[r, piece + 1] * streams + (rows[r, piece + 2] + rows[r, piece + 3] * c) * c
    return float(max(rows[r, pc.DECODE_FLOOR], seconds))


@compiled
def through_s(rows: Floats, r: int, tokens: float, budget: float, step: float) -> float:
    """Seconds until `tokens` waiting tokens are through, in passes of `budget` with a decode step of `step` in each."""
    if tokens <= 0.0:
        return 0.0
    full = math.floor(tokens / budget)
    rest = tokens - full * budget
    seconds = prefill_s(rows, r, rest, 0.0)
    if rest > 0.0:
        seconds += step
    if full > 0.0:
        seconds += full * (prefill_s(rows, r, budget, 0.0) + step)
    return seconds
