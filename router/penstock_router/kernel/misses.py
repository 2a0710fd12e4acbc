"""Chances that targets are missed: by the newcomer, by the streams it stalls, by the prompts whose pass it makes longer.

`costs` and `choices` add them up. Formulas: design, "Placement".
"""

import math

from penstock_router import columns as col
from penstock_router.kernel.compiled import Floats, compiled


@compiled
def shorter(table: Floats, kind: int, k: float, most: float) -> float:
    """P(length < k) for an output of length class `kind` and of at most (KNOWN: exactly) `most` tokens."""
    if k > most:
        return 1.0
    if kind < 0:
        return 0.0
    return float(table[kind, col.SHORTER, int(min(math.ceil(k), float(col.LONGEST_TOKENS)))])


@compiled
def missed_ttft(rows: Floats, r: int, ttft: float, target: float) -> float:
    """Chance that a TTFT predicted for endpoint r exceeds its target, residuals being normal with variance slip² + (sigma·ttft)²."""
    spare, deviation = target - ttft, 1.4142135623730951 * math.sqrt(rows[r, col.SLIP_S] ** 2 + (rows[r, col.SIGMA] * ttft) ** 2)
    if spare >= 6.0 * deviation:
        return 0.0  # less than 1e-16
    return 0.5 * math.erfc(spare / deviation)


@compiled
def waiting_miss(rows: Floats, streams: Floats, table: Floats, r: int, j: int, q: Floats) -> float:
    """E of the prompt that waits in cell j of endpoint r: its TTFT if the newcomer joins the pass it ends in, then its ITL as a stream.

    How much longer it waits then, as a share of the TTFT target, is added to OTHERS_WAIT.
    """
    total = 0.0
    if rows[r, col.EVER] - streams[r, j, col.END_TOKENS] < rows[r, col.LAST_TOKENS]:
        spare = streams[r, j, col.DUE_S] - q[col.NOW_S]
        rows[r, col.OTHERS_WAIT] += (rows[r, col.SHARED_S] - rows[r, col.WAIT_S]) / q[col.TARGET_TTFT_S]
        total += max(0.0, missed_ttft(rows, r, rows[r, col.SHARED_S], spare) - missed_ttft(rows, r, rows[r, col.WAIT_S], spare))
    room = streams[r, j, col.TARGET_ITL_S] - rows[r, col.ITL_S]
    if room > 0.0 and rows[r, col.REST_S] > 0.0:
        kind = int(streams[r, j, col.LENGTH_CLASS])
        total += shorter(table, kind, 1.0 + rows[r, col.REST_S] / room, streams[r, j, col.MOST_TOKENS])
    return total


@compiled
def others_miss(rows: Floats, streams: Floats, table: Floats, r: int, q: Floats) -> float:
    """Σ E_j after `weigh`: expected number of streams at endpoint r that come to miss their mean ITL by the newcomer; and OTHERS_WAIT.

    A stream's own stall is what it will be behind the present pace `itl` when the newcomer's passes begin: seconds from its
    first token to the end of the pass under way less (g − 1)·itl, and the passes that wait there already. Prompts that wait
    will be streams when the newcomer's passes come: they count with g = 1, no stall so far and REST_S. Foreign streams,
    unseen, count by the stationary form.
    """
    itl, stall, target_itl = rows[r, col.ITL_S], rows[r, col.STALL_S], q[col.TARGET_S]
    newest, ahead = rows[r, col.PASS_END_S] - itl, rows[r, col.AHEAD_S]
    total = 0.0
    rows[r, col.OTHERS_WAIT] = 0.0
    for j in range(int(rows[r, col.CELLS_USED])):
        room = streams[r, j, col.TARGET_ITL_S] - itl
        if streams[r, j, col.TOKENS] == 0.0:
            total += waiting_miss(rows, streams, table, r, j, q)
            continue
        if room <= 0.0:
            continue  # k is infinite before and after: lost already
        g = streams[r, j, col.TOKENS]
        late = max(0.0, max(streams[r, j, col.LAST_S], newest) - streams[r, j, col.FIRST_S] - (g - 1.0) * itl) + ahead
        must = 1.0 + (late + stall) / room
        if must <= g:
            continue
        most, kind = streams[r, j, col.MOST_TOKENS], int(streams[r, j, col.LENGTH_CLASS])
        more = shorter(table, kind, must, most) - shorter(table, kind, max(g, 1.0 + late / room), most)
        if more > 0.0:
            total += more / max(0.001, 1.0 - shorter(table, kind, g, most))
    if rows[r, col.FOREIGN_STREAMS] > 0.0 and target_itl > itl:
        must = 1.0 + stall / (target_itl - itl)
        total += rows[r, col.FOREIGN_STREAMS] * table[col.EVERYTHING, col.STATIONARY, int(min(math.ceil(must), float(col.LONGEST_TOKENS)))]
    return total
