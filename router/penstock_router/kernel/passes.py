"""What an endpoint's engine is believed to be doing: passes over booked prompt tokens as time goes by.

Bookings and beliefs move it, the costs read it. U, D, X, t_e, b and C are the columns of `columns`; formulas: design, "Placement".
"""

import math

from penstock_core import profile as pc

from penstock_router import columns as col
from penstock_router.kernel.compiled import Floats, compiled
from penstock_router.kernel.durations import decode_s, prefill_s


@compiled
def batch(rows: Floats, r: int) -> tuple[float, float]:
    """(b, C) of endpoint r, ours and foreign."""
    return rows[r, col.STREAMS] + rows[r, col.FOREIGN_STREAMS], rows[r, col.CONTEXT] + rows[r, col.FOREIGN_CONTEXT]


@compiled
def trim(rows: Floats, r: int) -> None:
    """Keep D ≤ U and X ≤ what is not computed.

    Foreign prompts never get a first token that we see, so what is computed beyond our own bookings is taken for theirs.
    """
    foreign = rows[r, col.COMPUTED] - rows[r, col.BOOKED]
    if foreign > 0.0:
        rows[r, col.FOREIGN_PROMPT] = max(0.0, rows[r, col.FOREIGN_PROMPT] - foreign)
        rows[r, col.COMPUTED] = rows[r, col.BOOKED]
    waiting = rows[r, col.BOOKED] + rows[r, col.FOREIGN_PROMPT] - rows[r, col.COMPUTED]
    rows[r, col.PASSING] = min(rows[r, col.PASSING], waiting)


@compiled
def advance(rows: Floats, r: int, now: float) -> None:
    """Let the passes that are over by `now` be over: D += X, and the next one forms.

    A pass that forms at this very instant has not formed yet (X = 0), so that all placements of an instant join it.
    """
    waiting = rows[r, col.BOOKED] + rows[r, col.FOREIGN_PROMPT] - rows[r, col.COMPUTED]
    if waiting <= 0.0:
        return
    b, c = batch(rows, r)
    step = decode_s(rows, r, b, c)
    budget = max(1.0, rows[r, pc.PASS_TOKENS] - b)
    while waiting > 0.0:
        if rows[r, col.PASSING] <= 0.0:
            if now <= rows[r, col.PASS_START_S]:
                break
            rows[r, col.PASSING] = min(waiting, budget)
        x = rows[r, col.PASSING]
        end = rows[r, col.PASS_START_S] + prefill_s(rows, r, x, 0.0) + step
        if now < end:
            break
        rows[r, col.COMPUTED] += x
        rows[r, col.PASSED] = x
        rows[r, col.PASSING] = 0.0
        rows[r, col.PASS_START_S] = end
        waiting -= x
    trim(rows, r)


@compiled
def queue(rows: Floats, r: int, now: float) -> tuple[float, float, float, float, float, float]:
    """(left, W, step, budget, b, C) of endpoint r after `advance`."""
    b, c = batch(rows, r)
    step = decode_s(rows, r, b, c)
    budget = max(1.0, rows[r, pc.PASS_TOKENS] - b)
    x = rows[r, col.PASSING]
    waiting = rows[r, col.BOOKED] + rows[r, col.FOREIGN_PROMPT] - rows[r, col.COMPUTED] - x
    if x > 0.0:
        left = max(0.0, prefill_s(rows, r, x, 0.0) + step - (now - rows[r, col.PASS_START_S]))
    elif waiting > 0.0:
        left = max(0.0, rows[r, col.PASS_START_S] - now)
    else:
        left = 0.5 * step
    return left, max(0.0, waiting), step, budget, b, c


@compiled
def book(rows: Floats, r: int, new: float, kv: float, now: float) -> None:
    """A leg that computes `new` prompt tokens is placed at endpoint r; `kv` tokens of KV are set aside."""
    advance(rows, r, now)
    left, waiting, _step, _budget, _b, _c = queue(rows, r, now)
    if rows[r, col.PASSING] <= 0.0 and waiting <= 0.0:
        rows[r, col.PASS_START_S] = now + left
    rows[r, col.BOOKED] += new
    rows[r, col.EVER] += new
    if new > 0.0:
        rows[r, col.PROMPTS] += 1.0
    rows[r, col.KV_BOOKED] += kv
    rows[r, col.RUNNING] += 1.0


@compiled
def book_prompt(rows: Floats, streams: Floats, r: int, hit: float, q: Floats, divided: bool) -> None:
    """`book` the prompt, of which endpoint r holds `hit` tokens; it waits there from now on, in the row's next cell, which is free.

    `divided`: it decodes elsewhere, so that no target ITL counts here, and its KV must have been handed over in time.
    """
    n, due_s, target_itl_s = q[col.PROMPT], q[col.DUE_AT_S], q[col.TARGET_S]
    if divided:
        due_s, target_itl_s = due_s - n * rows[r, pc.TRANSFER_TOKEN], math.inf
    book(rows, r, n - hit, n if divided else q[col.KV_NEED], q[col.NOW_S])
    j = int(rows[r, col.CELLS_USED])
    streams[r, j, col.DUE_S], streams[r, j, col.END_TOKENS], streams[r, j, col.TOKENS] = due_s, rows[r, col.EVER], 0.0
    streams[r, j, col.TARGET_ITL_S] = target_itl_s
    streams[r, j, col.MOST_TOKENS], streams[r, j, col.LENGTH_CLASS] = q[col.MOST_OUTPUT], q[col.OUTPUT_CLASS]
    rows[r, col.CELLS_USED] = j + 1.0


@compiled
def computed(rows: Floats, r: int, new: float, now: float) -> None:
    """A prompt of `new` booked tokens turns out to be through: a pass has just ended at endpoint r."""
    advance(rows, r, now)
    if rows[r, col.COMPUTED] < new:  # the engine is ahead of the belief
        rows[r, col.PASSED] = rows[r, col.PASSING]
        rows[r, col.COMPUTED] = max(new, rows[r, col.COMPUTED] + rows[r, col.PASSING])
        rows[r, col.PASSING], rows[r, col.PASS_START_S] = 0.0, now
    elif rows[r, col.COMPUTED] - new > rows[r, col.PASSED]:  # behind: at most the rest of one pass lies after this prompt
        rows[r, col.COMPUTED] = new + rows[r, col.PASSED]
        rows[r, col.PASSING], rows[r, col.PASS_START_S] = 0.0, now
    elif rows[r, col.COMPUTED] - new < rows[r, col.PASSED] and rows[r, col.PASSING] > 0.0:
        rows[r, col.PASS_START_S] = now  # it came from the pass before: the running one begins now
    rows[r, col.COMPUTED] = max(0.0, rows[r, col.COMPUTED] - new)
    rows[r, col.BOOKED] -= new
    if new > 0.0:
        rows[r, col.PROMPTS] -= 1.0
    trim(rows, r)


@compiled
def withdraw(rows: Floats, r: int, new: float, now: float) -> None:
    """A prompt of `new` booked tokens is given up before its end: what waits goes first, then what is in the pass."""
    advance(rows, r, now)
    rows[r, col.BOOKED] -= new
    if new > 0.0:
        rows[r, col.PROMPTS] -= 1.0
    trim(rows, r)
