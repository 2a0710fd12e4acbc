"""What placing a request at one endpoint costs, term by term, left in the endpoint's row for `explain`.

`choices` compares endpoints by it. Formulas: design, "Placement".
"""

import math

from penstock_core import profile as pc

from penstock_router import columns as col
from penstock_router.kernel.compiled import Chunks, Floats, Owners, Rows, Slots, compiled
from penstock_router.kernel.durations import decode_s, prefill_s, through_s
from penstock_router.kernel.misses import missed_ttft
from penstock_router.kernel.passes import advance, queue

NO_ROOM = 1e6
"""Added to the cost of an endpoint without KV headroom: it is taken only when none has any."""


@compiled
def no_room(rows: Floats, r: int, kv: float) -> bool:
    """Whether endpoint r lacks KV for `kv` more tokens; an endpoint of unknown size has room."""
    total = rows[r, col.KV_TOTAL]
    return bool(total > 0.0 and kv > total - max(rows[r, col.KV_BOOKED], rows[r, col.KV_REPORTED]))


@compiled
def held_tokens(rows: Floats, r: int, q: Floats) -> float:
    """Tokens of the prompt that endpoint r holds; at least one is left to compute."""
    return float(min(float(math.floor(rows[r, col.HELD_CHUNKS] * q[col.CHUNK_TOKENS])), q[col.PROMPT] - 1.0))


@compiled
def work_price(rows: Floats, candidates: Rows, q: Floats) -> float:
    """What a second more of prefill costs a fleet, wherever it is: a share of the TTFT target of a prompt that waits, and of the
    seconds in which each stream of the mean worker must end (target ITL · expected length), because they all stand still."""
    streams = 0.0
    for r in candidates:
        streams += rows[r, col.STREAMS] + rows[r, col.FOREIGN_STREAMS]
    lasting_s = q[col.TARGET_S] * max(1.0, q[col.KV_NEED] - q[col.PROMPT])
    return float(1.0 / q[col.TARGET_TTFT_S] + streams / max(1, len(candidates)) / lasting_s)


@compiled
def weigh(rows: Floats, r: int, q: Floats, divided: bool) -> float:
    """Cost of prefilling at endpoint r without what it does to the streams there; leaves the terms in r's columns.

    `divided`: the prompt's KV goes to another endpoint, so this one's ITL for the newcomer does not count.
    """
    now, n, target = q[col.NOW_S], q[col.PROMPT], q[col.TARGET_TTFT_S]
    advance(rows, r, now)
    left, waiting, step, budget, b, c = queue(rows, r, now)
    hit = held_tokens(rows, r, q)
    new = n - hit
    before = through_s(rows, r, waiting, budget, step)
    after = through_s(rows, r, waiting + new, budget, step)
    ttft = left + after
    itl = decode_s(rows, r, b + 1.0, c + n)
    itl_miss = 1.0 if itl > q[col.TARGET_S] else 0.0
    if divided:
        ttft += n * rows[r, pc.TRANSFER_TOKEN]
        itl = step
        itl_miss = 0.0
    own = missed_ttft(rows, r, ttft, target)
    alone = prefill_s(rows, r, new, hit)
    # Seconds that the passes there become longer: a prompt that joins one saves its constant.
    passes = math.ceil((waiting + new) / budget) - math.ceil(waiting / budget)
    work = (after - before - passes * step + alone - prefill_s(rows, r, new, 0.0)) * q[col.WORK_PRICE]
    cost = ttft / target + own + itl_miss + work
    if no_room(rows, r, n if divided else q[col.KV_NEED]):
        cost += NO_ROOM
    rows[r, col.HIT_TOKENS] = hit
    rows[r, col.TTFT_S] = ttft
    rows[r, col.ITL_S] = itl
    rows[r, col.OWN_MISS] = own
    rows[r, col.OTHERS_MISS] = rows[r, col.OTHERS_WAIT] = 0.0
    rows[r, col.ITL_MISS] = itl_miss
    rows[r, col.WORK] = work
    rows[r, col.ALONE_S] = alone
    rows[r, col.STALL_S] = after - before
    rows[r, col.WAIT_S] = left + before
    rows[r, col.PASS_END_S] = now + left if rows[r, col.PASSING] > 0.0 else now
    rows[r, col.AHEAD_S] = before - math.ceil(waiting / budget) * step
    last = waiting - math.floor(waiting / budget) * budget
    rows[r, col.LAST_TOKENS] = last
    if rows[r, col.PROMPTS] > 0.0:
        # Those that wait end in a pass which the newcomer may fill up; only what comes after it stalls them as streams.
        rows[r, col.SHARED_S] = left + through_s(rows, r, min(waiting + new, math.ceil(waiting / budget) * budget), budget, step)
        rows[r, col.REST_S] = left + after - rows[r, col.SHARED_S]
    rows[r, col.COST] = cost
    rows[r, col.PARTNER] = -1.0
    return float(cost)


@compiled
def hold(rows: Floats, owners: Owners, slots: Slots, chunks: Chunks, factor: float) -> None:
    """Write who holds how many chunks into HELD_CHUNKS; factor 0 takes it out again."""
    for i in range(len(slots)):
        r = owners[slots[i]]
        if r >= 0:
            rows[r, col.HELD_CHUNKS] = chunks[i] * factor


@compiled
def decode_wait(rows: Floats, r: int, q: Floats) -> tuple[float, float]:
    """(step time with the newcomer, seconds that wait there first) of decoding at endpoint r."""
    now, n = q[col.NOW_S], q[col.PROMPT]
    advance(rows, r, now)
    left, waiting, step, budget, b, c = queue(rows, r, now)
    if rows[r, col.PASSING] <= 0.0 and waiting <= 0.0:
        left = 0.0  # nothing is prefilled there: the newcomer joins the next step
    return decode_s(rows, r, b + 1.0, c + n), left + through_s(rows, r, waiting, budget, step)
