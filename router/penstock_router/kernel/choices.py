"""Which endpoint, or pair of endpoints, costs least. The policies call these; everything else of the kernel serves them."""

import math

import numpy as np
from penstock_core import profile as pc

from penstock_router import columns as col
from penstock_router.kernel.compiled import Chunks, Floats, Owners, Rows, Slots, compiled
from penstock_router.kernel.costs import NO_ROOM, decode_wait, held_tokens, hold, no_room, weigh, work_price
from penstock_router.kernel.misses import missed_ttft, others_miss


@compiled
def mix(seed: int, r: int) -> int:
    """A well-spread 31-bit number of (seed, r): equal costs are decided by the larger one."""
    x = (seed ^ (r * 2654435761)) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 73244475) & 0xFFFFFFFF
    x = ((x ^ (x >> 16)) * 73244475) & 0xFFFFFFFF
    return (x ^ (x >> 16)) >> 1


@compiled
def least_cost(
    rows: Floats, streams: Floats, table: Floats, candidates: Rows, owners: Owners, slots: Slots, chunks: Chunks,
    q: Floats, seed: int, divided: bool, everything: bool,
) -> int:  # fmt: skip
    """Index of the candidate with the least cost, exact ties at random; −1 for no candidates.

    The sum over streams only adds, so a candidate dearer without it than the best with it is not looked at further,
    unless `everything` asks for all terms.
    """
    q[col.WORK_PRICE] = work_price(rows, candidates, q)
    hold(rows, owners, slots, chunks, 1.0)
    first = -1
    for i in range(len(candidates)):
        cost = weigh(rows, candidates[i], q, divided)
        if first < 0 or cost < rows[candidates[first], col.COST]:
            first = i
    hold(rows, owners, slots, chunks, 0.0)
    best, least, luck = -1, math.inf, 0
    for step in range(len(candidates)):
        i = (first + step) % len(candidates)
        r = candidates[i]
        if rows[r, col.COST] > least and not everything:
            continue
        harm = others_miss(rows, streams, table, r, q)
        rows[r, col.OTHERS_MISS] = harm
        rows[r, col.COST] += harm + rows[r, col.OTHERS_WAIT]
        cost = rows[r, col.COST]
        if cost < least:
            best, least, luck = i, cost, mix(seed, r)
        elif cost == least and mix(seed, r) > luck:
            best, luck = i, mix(seed, r)
    return best


@compiled
def least_step(rows: Floats, candidates: Rows, owners: Owners, slots: Slots, chunks: Chunks, q: Floats, seed: int) -> int:
    """Index of the decode endpoint with the least step time and seconds to its first token, each as a share of its target.

    An endpoint that holds a part of the prompt is sent only the rest. Ties to fewest tokens; −1 for none.
    """
    best, least, tokens, luck = -1, math.inf, math.inf, 0
    hold(rows, owners, slots, chunks, 1.0)
    for r in candidates:
        rows[r, col.HIT_TOKENS] = held_tokens(rows, r, q)
    hold(rows, owners, slots, chunks, 0.0)
    for i in range(len(candidates)):
        r = candidates[i]
        itl, wait = decode_wait(rows, r, q)
        rows[r, col.ITL_S] = itl
        sent = q[col.PROMPT] - rows[r, col.HIT_TOKENS]
        cost = itl / q[col.TARGET_S] + (itl + wait + sent * rows[r, pc.TRANSFER_TOKEN]) / q[col.TARGET_TTFT_S]
        if no_room(rows, r, q[col.KV_NEED]):
            cost += NO_ROOM
        rows[r, col.COST] = cost
        c, draw = rows[r, col.CONTEXT] + rows[r, col.FOREIGN_CONTEXT], mix(seed, r)
        if cost < least or (cost == least and (c < tokens or (c == tokens and draw > luck))):
            best, least, tokens, luck = i, cost, c, draw
    return best


@compiled
def shortlist(rows: Floats, candidates: Rows, limit: int, by_hit: bool, seed: int) -> Rows:
    """At most `limit` of the candidates: best hits (where they count), least WAIT_S, two at random."""
    if len(candidates) <= limit:
        return candidates
    chosen = np.empty(limit, np.int64)
    taken = np.zeros(len(candidates), np.bool_)
    hits = (limit - 2) // 2 if by_hit else 0
    for k in range(limit):
        best, most = -1, -math.inf
        for i in range(len(candidates)):
            r = candidates[i]
            if taken[i]:
                continue
            if k < hits:
                worth = rows[r, col.HIT_TOKENS]
            elif k < limit - 2:
                worth = -rows[r, col.WAIT_S] if by_hit else -(rows[r, col.DECODE_ITL_S] + rows[r, col.DECODE_WAIT_S])
            else:
                worth = float(mix(seed + k, r))
            if worth > most:
                best, most = i, worth
        taken[best] = True
        chosen[k] = candidates[best]
    return chosen


@compiled
def least_pair(
    rows: Floats, streams: Floats, table: Floats, prefills: Rows, decodes: Rows, owners: Owners, slots: Slots, chunks: Chunks,
    q: Floats, seed: int, limit: int,
) -> int:  # fmt: skip
    """Row of the prefill side of the cheapest pair (its PARTNER is the decode side); −1 for no pair.

    Asked after `least_cost`, whose WORK_PRICE holds.
    The decode side adds its step, what waits there and the ITL misses lately seen there. One of the two is dedicated:
    between two endpoints that do both, the hand-over buys nothing that the choice of one of them does not.
    """
    hold(rows, owners, slots, chunks, 1.0)
    for r in prefills:
        weigh(rows, r, q, True)
    hold(rows, owners, slots, chunks, 0.0)
    for r in decodes:
        rows[r, col.DECODE_ITL_S], rows[r, col.DECODE_WAIT_S] = decode_wait(rows, r, q)
    n, kv, target, target_itl = q[col.PROMPT], q[col.KV_NEED], q[col.TARGET_TTFT_S], q[col.TARGET_S]
    best, least, luck = -1, math.inf, 0
    short = shortlist(rows, decodes, limit, False, seed)
    long = shortlist(rows, prefills, limit, True, seed)
    for r in prefills:
        rows[r, col.COST] = math.inf
    for p in long:
        full = NO_ROOM if no_room(rows, p, n) else 0.0
        harm = others_miss(rows, streams, table, p, q)
        alone = rows[p, col.TTFT_S]
        rows[p, col.OTHERS_MISS] = harm
        harm += rows[p, col.OTHERS_WAIT]
        for d in short:
            if p == d or rows[p, col.GROUP] != rows[d, col.GROUP] or rows[p, col.DEDICATED] + rows[d, col.DEDICATED] == 0.0:
                continue
            itl = rows[d, col.DECODE_ITL_S]
            ttft = alone + rows[d, col.DECODE_WAIT_S] + itl
            own = missed_ttft(rows, p, ttft, target)
            itl_miss = 1.0 if itl > target_itl else rows[d, col.MISS_RATIO]
            cost = ttft / target + own + harm + itl_miss + rows[p, col.WORK] + full + (NO_ROOM if no_room(rows, d, kv) else 0.0)
            if cost < rows[p, col.COST]:
                rows[p, col.COST], rows[p, col.PARTNER] = cost, float(d)
                rows[p, col.TTFT_S], rows[p, col.ITL_S], rows[p, col.OWN_MISS], rows[p, col.ITL_MISS] = ttft, itl, own, itl_miss
        if rows[p, col.COST] < least or (rows[p, col.COST] == least and rows[p, col.PARTNER] >= 0.0 and mix(seed, p) > luck):
            best, least, luck = p, rows[p, col.COST], mix(seed, p)
    return best


@compiled
def least_running(
    rows: Floats, candidates: Rows, owners: Owners, slots: Slots, chunks: Chunks, q: Floats, seed: int, imbalance: float
) -> int:
    """Index of the candidate with the fewest running legs, ties at random; leaves HIT_TOKENS; −1 for none.

    With `imbalance` ≥ 0 a prefix counts (AIBrix): unless the counts differ by more than that, the longest hit among
    those running at most mean + deviation wins, then the fewer running.
    """
    hold(rows, owners, slots, chunks, 1.0)
    fewest, most, total, squares = math.inf, -math.inf, 0.0, 0.0
    for r in candidates:
        running = rows[r, col.RUNNING]
        fewest, most = min(fewest, running), max(most, running)
        total += running
        squares += running * running
        rows[r, col.HIT_TOKENS] = held_tokens(rows, r, q)
    hold(rows, owners, slots, chunks, 0.0)
    mean = total / max(1, len(candidates))
    bound = mean + math.sqrt(max(0.0, squares / max(1, len(candidates)) - mean * mean))
    by_prefix = imbalance >= 0.0 and most - fewest <= imbalance
    best, best_hit, least, luck = -1, 0.0, math.inf, 0
    for i in range(len(candidates)):
        r = candidates[i]
        running, draw = rows[r, col.RUNNING], mix(seed, r)
        hit = rows[r, col.HIT_TOKENS] if by_prefix and running <= bound else 0.0
        if hit > best_hit or (hit == best_hit and (running < least or (running == least and draw > luck))):
            best, best_hit, least, luck = i, hit, running, draw
    return best
