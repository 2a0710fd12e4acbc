"""The cost of placing a request, computed over flat arrays in numba's subset of Python.

Compiled (and cached) where numba is installed, the same text run as plain Python where it is not. The policies and the
beliefs call it; it knows rows and columns, no endpoint, no request, no clock. Formulas: design, "Placement".
"""

import math
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from penstock_core import profile as pc

from penstock_router import columns as col
from penstock_router.machine_code import Compiler

Floats = NDArray[np.float64]
Rows = NDArray[np.int64]
Owners = NDArray[np.int32]
"""Row by index slot, shape (65536,); −1: none of ours."""
Slots = NDArray[np.uint16]
Chunks = NDArray[np.int32]

compiled = Compiler(Path(__file__), col, pc)
COMPILED = compiled.works
NO_ROOM = 1e6
"""Added to the cost of an endpoint without KV headroom: it is taken only when none has any."""


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
def shorter(table: Floats, kind: int, k: float, most: float) -> float:
    """P(length < k) for an output of length class `kind` and of at most (KNOWN: exactly) `most` tokens."""
    if k > most:
        return 1.0
    if kind < 0:
        return 0.0
    return float(table[kind, col.SHORTER, int(min(math.ceil(k), float(col.LONGEST_TOKENS)))])


@compiled
def missed_ttft(ttft: float, target: float, sigma: float) -> float:
    """Chance that the TTFT exceeds its target, residuals being normal with deviation sigma·ttft."""
    spare, deviation = target - ttft, 1.4142135623730951 * sigma * ttft
    if spare >= 6.0 * deviation:
        return 0.0  # less than 1e-16
    return 0.5 * math.erfc(spare / deviation)


@compiled
def others_miss(rows: Floats, streams: Floats, table: Floats, r: int, q: Floats) -> float:
    """Σ E_j after `weigh`: expected number of streams at endpoint r that come to miss their mean ITL by the newcomer.

    A stream's own stall is what it is behind the present pace `itl`: seconds since its first token less (g − 1)·itl, the
    gap still open counted once it is longer than a step. Prompts that wait will be streams when the newcomer's passes
    come: they count with g = 1, no stall so far and REST_S. Foreign streams, unseen, count by the stationary form.
    """
    now, itl, stall, target_itl = q[col.NOW_S], rows[r, col.ITL_S], rows[r, col.STALL_S], q[col.TARGET_S]
    total = 0.0
    for j in range(int(rows[r, col.CELLS_USED])):
        room = streams[r, j, col.TARGET_ITL_S] - itl
        if room <= 0.0:
            continue  # k is infinite before and after: lost already
        g = streams[r, j, col.TOKENS]
        late = max(0.0, max(streams[r, j, col.LAST_S], now - itl) - streams[r, j, col.FIRST_S] - (g - 1.0) * itl)
        must = 1.0 + (late + stall) / room
        if must <= g:
            continue
        most, kind = streams[r, j, col.MOST_TOKENS], int(streams[r, j, col.LENGTH_CLASS])
        more = shorter(table, kind, must, most) - shorter(table, kind, max(g, 1.0 + late / room), most)
        if more > 0.0:
            total += more / max(0.001, 1.0 - shorter(table, kind, g, most))
    if rows[r, col.PROMPTS] > 0.0 and target_itl > itl:
        total += rows[r, col.PROMPTS] * shorter(table, col.EVERYTHING, 1.0 + rows[r, col.REST_S] / (target_itl - itl), math.inf)
    if rows[r, col.FOREIGN_STREAMS] > 0.0 and target_itl > itl:
        must = 1.0 + stall / (target_itl - itl)
        total += rows[r, col.FOREIGN_STREAMS] * table[col.EVERYTHING, col.STATIONARY, int(min(math.ceil(must), float(col.LONGEST_TOKENS)))]
    return total


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
    own = missed_ttft(ttft, target, q[col.SIGMA])
    work = prefill_s(rows, r, new, hit) / target
    cost = ttft / target + own + itl_miss + work
    if no_room(rows, r, n if divided else q[col.KV_NEED]):
        cost += NO_ROOM
    rows[r, col.HIT_TOKENS] = hit
    rows[r, col.TTFT_S] = ttft
    rows[r, col.ITL_S] = itl
    rows[r, col.OWN_MISS] = own
    rows[r, col.OTHERS_MISS] = 0.0
    rows[r, col.ITL_MISS] = itl_miss
    rows[r, col.WORK] = work
    rows[r, col.STALL_S] = after - before
    rows[r, col.WAIT_S] = left + before
    if rows[r, col.PROMPTS] > 0.0:
        # Those that wait end in a pass which the newcomer may fill up; only what comes after it stalls them as streams.
        shared = min(waiting + new, math.ceil(waiting / budget) * budget)
        rows[r, col.REST_S] = after - through_s(rows, r, shared, budget, step)
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
        rows[r, col.COST] += harm
        cost = rows[r, col.COST]
        if cost < least:
            best, least, luck = i, cost, mix(seed, r)
        elif cost == least and mix(seed, r) > luck:
            best, luck = i, mix(seed, r)
    return best


@compiled
def decode_wait(rows: Floats, r: int, q: Floats) -> tuple[float, float]:
    """(step time with the newcomer, seconds that wait there first) of decoding at endpoint r."""
    now, n = q[col.NOW_S], q[col.PROMPT]
    advance(rows, r, now)
    left, waiting, step, budget, b, c = queue(rows, r, now)
    if rows[r, col.PASSING] <= 0.0 and waiting <= 0.0:
        left = 0.0  # nothing is prefilled there: the newcomer joins the next step
    return decode_s(rows, r, b + 1.0, c + n), left + through_s(rows, r, waiting, budget, step)


@compiled
def least_step(rows: Floats, candidates: Rows, q: Floats, seed: int) -> int:
    """Index of the decode endpoint with the least predicted step time and wait, ties to fewest tokens; −1 for none."""
    best, least, tokens, luck = -1, math.inf, math.inf, 0
    for i in range(len(candidates)):
        r = candidates[i]
        itl, wait = decode_wait(rows, r, q)
        rows[r, col.ITL_S] = itl
        cost = itl + wait
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
        for d in short:
            if p == d or rows[p, col.GROUP] != rows[d, col.GROUP] or rows[p, col.DEDICATED] + rows[d, col.DEDICATED] == 0.0:
                continue
            itl = rows[d, col.DECODE_ITL_S]
            ttft = alone + rows[d, col.DECODE_WAIT_S] + itl
            own = missed_ttft(ttft, target, q[col.SIGMA])
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


@compiled
def book(rows: Floats, r: int, new: float, kv: float, now: float) -> None:
    """A leg that computes `new` prompt tokens is placed at endpoint r; `kv` tokens of KV are set aside."""
    advance(rows, r, now)
    left, waiting, _step, _budget, _b, _c = queue(rows, r, now)
    if rows[r, col.PASSING] <= 0.0 and waiting <= 0.0:
        rows[r, col.PASS_START_S] = now + left
    rows[r, col.BOOKED] += new
    if new > 0.0:
        rows[r, col.PROMPTS] += 1.0
    rows[r, col.KV_BOOKED] += kv
    rows[r, col.RUNNING] += 1.0


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
