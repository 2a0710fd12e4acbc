"""The engine model: continuous batching with chunked prefill, every pass stepped, all workers in one compiled loop.

The cluster puts legs into waiting queues and lets the loop run up to its next event. A pass lasts
prefill_s(new prompt tokens in it) + decode_s(its decoding streams, their context); a prompt that ends in a pass yields its
first token at the pass's end. It knows no policy, no router and no clock of its own. Mechanisms: docs/simulator.md.
"""

import math

import numpy as np
from penstock_core.profile import PREFILL_PAIR
from penstock_router.kernel import decode_s, prefill_s

from penstock_simulator import fleet as fl
from penstock_simulator.compiled import compiled, compiled_part
from penstock_simulator.fleet import Fleet, Ints
from penstock_simulator.kv_cache import available, cached_blocks, extend, give_back, idle_hits, make_visible, take_hits, used_blocks
from penstock_simulator.workload import BLOCK_TOKENS


@compiled
def enqueue(legs: Ints, workers: Ints, leg: int, w: int, arrives_full: bool) -> None:
    """Put a leg at the end of worker w's waiting queue. `arrives_full`: its prompt's KV was computed elsewhere."""
    legs[leg, fl.WORKER] = w
    legs[leg, fl.STATE] = fl.WAITING
    legs[leg, fl.ARRIVES_FULL] = 1 if arrives_full else 0
    legs[leg, fl.GENERATED] = legs[leg, fl.COMPUTED] = 0
    legs[leg, fl.NEXT] = -1
    tail = workers[w, fl.QUEUE_TAIL]
    if tail < 0:
        workers[w, fl.QUEUE_HEAD] = leg
    else:
        legs[tail, fl.NEXT] = leg
    workers[w, fl.QUEUE_TAIL] = leg
    workers[w, fl.QUEUED] += 1


@compiled_part
def preempt_last(f: Fleet, w: int) -> int:
    """Send the leg that was admitted last back to the head of the queue, without its blocks; gives the leg."""
    f.workers[w, fl.RUNNING] -= 1
    leg = f.running[w, f.workers[w, fl.RUNNING]]
    give_back(f, w, leg)
    f.legs[leg, fl.COMPUTED] = f.legs[leg, fl.CHUNK] = f.legs[leg, fl.ARRIVES_FULL] = 0
    f.legs[leg, fl.STATE] = fl.WAITING
    f.legs[leg, fl.PREEMPTIONS] += 1
    f.legs[leg, fl.NEXT] = f.workers[w, fl.QUEUE_HEAD]
    f.workers[w, fl.QUEUE_HEAD] = leg
    if f.workers[w, fl.QUEUE_TAIL] < 0:
        f.workers[w, fl.QUEUE_TAIL] = leg
    f.workers[w, fl.QUEUED] += 1
    f.workers[w, fl.PREEMPTED] += 1
    return int(leg)


@compiled_part
def admit(f: Fleet, w: int, owed_blocks: int) -> int:
    """Move the head of the queue into the batch if its whole prompt fits beside what others still need; gives it or −1.

    A leg always leaves one token to compute: the token it emits comes out of that.
    """
    leg = f.workers[w, fl.QUEUE_HEAD]
    tokens = f.legs[leg, fl.PROMPT] + f.legs[leg, fl.GENERATED]
    full = f.legs[leg, fl.ARRIVES_FULL] == 1
    hits = cached_blocks(f, w, leg, (tokens - 1) // BLOCK_TOKENS)
    need = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS - hits
    if need + owed_blocks + idle_hits(f, w, leg, hits) > available(f, w):
        return -1
    f.workers[w, fl.QUEUE_HEAD] = f.legs[leg, fl.NEXT]
    if f.legs[leg, fl.NEXT] < 0:
        f.workers[w, fl.QUEUE_TAIL] = -1
    f.workers[w, fl.QUEUED] -= 1
    f.running[w, f.workers[w, fl.RUNNING]] = leg
    f.workers[w, fl.RUNNING] += 1
    take_hits(f, w, leg, hits)
    f.legs[leg, fl.STATE] = fl.RUNNING_LEG
    f.legs[leg, fl.HIT] = max(hits * BLOCK_TOKENS, min(f.legs[leg, fl.GIVEN], tokens - 1))
    f.legs[leg, fl.COMPUTED] = tokens - 1 if full else f.legs[leg, fl.HIT]
    if not full:
        f.workers[w, fl.HIT_TOKENS] += f.legs[leg, fl.HIT]
        f.workers[w, fl.PROMPT_TOKENS] += tokens
    return int(leg)


@compiled
def start_pass(f: Fleet, w: int, now: float) -> None:
    """Form worker w's next pass at `now`: running legs first, then waiting ones, within the token budget."""
    f.seconds[w, fl.NOW_S] = now
    budget = f.workers[w, fl.BUDGET]
    streams = 0
    context = 0
    new = 0
    pairs = 0.0
    owed = 0
    leap = BLOCK_TOKENS
    i = 0
    most = f.workers[w, fl.MOST_STREAMS]
    while i < f.workers[w, fl.RUNNING] or (f.workers[w, fl.QUEUED] > 0 and budget > 0 and f.workers[w, fl.RUNNING] < most):
        if i == f.workers[w, fl.RUNNING] and admit(f, w, owed) < 0:
            break
        leg = f.running[w, i]
        computed, generated = f.legs[leg, fl.COMPUTED], f.legs[leg, fl.GENERATED]
        want = f.legs[leg, fl.PROMPT] + generated - computed
        take = min(want, budget)
        f.legs[leg, fl.CHUNK] = take
        if not extend_or_preempt(f, w, leg, computed + take):
            break
        # Blocks are visible from the start of the pass that computes them; one that fills while decoding, with the next.
        make_visible(f, w, leg, computed if want == 1 and generated > 0 else computed + take)
        budget -= take
        if want == 1 and (generated > 0 or f.legs[leg, fl.ARRIVES_FULL] == 1):
            streams += take
            context += take * (computed + 1)
            if generated == 0:
                leap = 0
            leap = min(leap, BLOCK_TOKENS - 1 - computed % BLOCK_TOKENS, f.legs[leg, fl.OUTPUT] - generated - 1)
        else:
            new += take
            pairs += float(take) * computed
            owed += (want - take + BLOCK_TOKENS - 1) // BLOCK_TOKENS
        i += 1
    f.workers[w, fl.LEAP] = leap if new == 0 and streams == f.workers[w, fl.RUNNING] else 0
    f.workers[w, fl.DECODING] = streams
    f.workers[w, fl.CONTEXT] = context
    if new == 0 and streams == 0:
        f.seconds[w, fl.PASS_END_S] = np.inf
        return
    length = prefill_s(f.rows, w, float(new), 0.0) + decode_s(f.rows, w, float(streams), float(context))
    take_time(f, w, now, length + f.rows[w, PREFILL_PAIR] * pairs)


@compiled_part
def extend_or_preempt(f: Fleet, w: int, leg: int, tokens: int) -> bool:
    """Give the leg blocks for `tokens` tokens, sending the last admitted legs back while there are none; False: itself too."""
    while not extend(f, w, leg, tokens):
        if preempt_last(f, w) == leg:
            return False
    return True


@compiled_part
def take_time(f: Fleet, w: int, now: float, length_s: float) -> None:
    """The pass that starts now lasts so long."""
    f.workers[w, fl.PASSES] += 1
    f.seconds[w, fl.PASS_START_S] = now
    f.seconds[w, fl.PASS_END_S] = now + length_s
    f.seconds[w, fl.BUSY_S] += length_s


@compiled_part
def gap_bin(gap_s: float) -> int:
    """Bin of an inter-token gap."""
    if gap_s <= fl.GAP_LEAST_S:
        return 0
    return min(fl.GAP_BINS - 1, int(math.log(gap_s / fl.GAP_LEAST_S) * fl.GAP_BINS_PER_E))


@compiled
def settle(f: Fleet, w: int) -> None:
    """Write the passes that were only counted into the legs of worker w."""
    ahead = f.workers[w, fl.AHEAD]
    if ahead == 0:
        return
    f.workers[w, fl.AHEAD] = 0
    for i in range(f.workers[w, fl.RUNNING]):
        leg = f.running[w, i]
        f.legs[leg, fl.COMPUTED] += ahead
        f.legs[leg, fl.GENERATED] += ahead
        f.times[leg, fl.LAST_S] = f.seconds[w, fl.PASS_START_S]


@compiled_part
def next_alike(f: Fleet, w: int, now: float) -> None:
    """A pass of decoding streams alone ended and the next one has the same streams: count it, write it down later."""
    streams = f.workers[w, fl.DECODING]
    f.gaps[gap_bin(now - f.seconds[w, fl.PASS_START_S])] += streams
    f.workers[w, fl.OUTPUT_TOKENS] += streams
    f.workers[w, fl.AHEAD] += 1
    f.workers[w, fl.LEAP] -= 1
    f.workers[w, fl.CONTEXT] += streams
    take_time(f, w, now, decode_s(f.rows, w, float(streams), float(f.workers[w, fl.CONTEXT])))


@compiled_part
def end_pass(f: Fleet, w: int, now: float, logged: int) -> int:
    """Worker w's pass is over: tokens come out, finished legs leave. Gives the number of log entries after it."""
    settle(f, w)
    f.seconds[w, fl.NOW_S] = now
    kept = 0
    for i in range(f.workers[w, fl.RUNNING]):
        leg = f.running[w, i]
        chunk = f.legs[leg, fl.CHUNK]
        f.legs[leg, fl.CHUNK] = 0
        f.legs[leg, fl.COMPUTED] += chunk
        finished = False
        if chunk > 0 and f.legs[leg, fl.COMPUTED] == f.legs[leg, fl.PROMPT] + f.legs[leg, fl.GENERATED]:
            logged = emit(f, w, leg, now, logged)
            finished = f.legs[leg, fl.GENERATED] == f.legs[leg, fl.OUTPUT]
        if finished:
            logged = finish(f, w, leg, now, logged)
        else:
            f.running[w, kept] = leg
            kept += 1
    f.workers[w, fl.RUNNING] = kept
    f.workers[w, fl.DECODING] = 0
    f.seconds[w, fl.PASS_END_S] = np.inf
    return logged


@compiled_part
def emit(f: Fleet, w: int, leg: int, now: float, logged: int) -> int:
    """A token comes out of the leg."""
    f.legs[leg, fl.GENERATED] += 1
    f.workers[w, fl.OUTPUT_TOKENS] += 1
    if f.legs[leg, fl.GENERATED] > 1:
        f.gaps[gap_bin(now - f.times[leg, fl.LAST_S])] += 1
    else:
        f.times[leg, fl.FIRST_S] = now
        if f.legs[leg, fl.PREFILLS] == 0:
            logged = note(f, fl.FIRST_TOKEN, leg, now, logged)
    f.times[leg, fl.LAST_S] = now
    return logged


@compiled_part
def finish(f: Fleet, w: int, leg: int, now: float, logged: int) -> int:
    """The leg has emitted all its tokens; a prefill leg keeps its blocks until they are handed over."""
    if f.legs[leg, fl.PREFILLS] == 1:
        f.legs[leg, fl.STATE] = fl.KEPT
        return note(f, fl.PREFILLED, leg, now, logged)
    f.legs[leg, fl.STATE] = fl.OVER
    make_visible(f, w, leg, f.legs[leg, fl.COMPUTED])
    give_back(f, w, leg)
    return note(f, fl.DONE, leg, now, logged)


@compiled_part
def note(f: Fleet, kind: int, leg: int, now: float, logged: int) -> int:
    """Write one log entry."""
    f.log[logged, 0], f.log[logged, 1], f.log_s[logged] = kind, leg, now
    return logged + 1


@compiled
def start_idle(f: Fleet, now: float) -> None:
    """Every worker between passes starts one, if it has anything to do."""
    for w in range(len(f.workers)):
        if f.seconds[w, fl.PASS_END_S] == np.inf and f.workers[w, fl.RUNNING] + f.workers[w, fl.QUEUED] > 0:
            start_pass(f, w, now)


@compiled_part
def step(f: Fleet, w: int, logged: int) -> int:
    """End worker w's pass and start the next one."""
    now = f.seconds[w, fl.PASS_END_S]
    if f.workers[w, fl.LEAP] > 0 and f.workers[w, fl.QUEUED] == 0:
        next_alike(f, w, now)
        return logged
    logged = end_pass(f, w, now, logged)
    if f.workers[w, fl.RUNNING] + f.workers[w, fl.QUEUED] > 0:
        start_pass(f, w, now)
    return logged


@compiled
def run_passes(f: Fleet, until: float, stops: bool) -> tuple[int, float]:
    """Step every pass that ends up to and including `until`; gives (log entries, time reached).

    Workers do not touch one another, so each runs on its own and the log is in order of workers, not of time. Where
    `stops`, workers that DECIDE (what ends there makes somebody place or send something) run in step with one another
    and no worker runs beyond the first leg that ends there: that is the time reached.
    """
    logged = 0
    reached = until
    decide = False
    while stops and not decide:
        w, now = -1, until
        for other in range(len(f.workers)):
            if f.workers[other, fl.DECIDES] == 1 and f.seconds[other, fl.PASS_END_S] <= now and f.seconds[other, fl.PASS_END_S] < np.inf:
                w, now = other, f.seconds[other, fl.PASS_END_S]
        if w < 0:
            break
        before = logged
        logged = step(f, w, logged)
        for entry in range(before, logged):
            decide = decide or f.log[entry, 0] != fl.FIRST_TOKEN
        if decide:
            reached = now
    for w in range(len(f.workers)):
        if stops and f.workers[w, fl.DECIDES] == 1:
            continue
        while f.seconds[w, fl.PASS_END_S] <= reached and f.seconds[w, fl.PASS_END_S] < np.inf:
            logged = step(f, w, logged)
    return logged, reached


@compiled
def withdraw(f: Fleet, leg: int) -> None:
    """Take a leg from its worker, wherever it stands there; its emitted tokens stay counted."""
    w = f.legs[leg, fl.WORKER]
    settle(f, w)
    f.workers[w, fl.LEAP] = 0
    if f.legs[leg, fl.STATE] == fl.RUNNING_LEG:
        kept = 0
        for i in range(f.workers[w, fl.RUNNING]):
            if f.running[w, i] != leg:
                f.running[w, kept] = f.running[w, i]
                kept += 1
        f.workers[w, fl.RUNNING] = kept
    elif f.legs[leg, fl.STATE] == fl.WAITING:
        before, at = -1, f.workers[w, fl.QUEUE_HEAD]
        while at != leg:
            before, at = at, f.legs[at, fl.NEXT]
        if before < 0:
            f.workers[w, fl.QUEUE_HEAD] = f.legs[leg, fl.NEXT]
        else:
            f.legs[before, fl.NEXT] = f.legs[leg, fl.NEXT]
        if f.workers[w, fl.QUEUE_TAIL] == leg:
            f.workers[w, fl.QUEUE_TAIL] = before
        f.workers[w, fl.QUEUED] -= 1
    give_back(f, w, leg)
    f.legs[leg, fl.COMPUTED] = f.legs[leg, fl.CHUNK] = 0
    f.legs[leg, fl.WORKER] = -1
    f.legs[leg, fl.STATE] = fl.IDLE


@compiled
def settle_all(f: Fleet) -> None:
    """Bring the legs of all workers up to date, for whoever reads them."""
    for w in range(len(f.workers)):
        settle(f, w)


@compiled
def measure(f: Fleet, loads: Ints) -> None:
    """Write every worker's load into loads (W, 4): running, waiting, prompt tokens to compute, used KV blocks."""
    for w in range(len(f.workers)):
        settle(f, w)
        tokens = 0
        for i in range(f.workers[w, fl.RUNNING]):
            leg = f.running[w, i]
            want = f.legs[leg, fl.PROMPT] + f.legs[leg, fl.GENERATED] - f.legs[leg, fl.COMPUTED]
            tokens += want if want > 1 else 0
        leg = f.workers[w, fl.QUEUE_HEAD]
        while leg >= 0:
            tokens += 0 if f.legs[leg, fl.ARRIVES_FULL] == 1 else f.legs[leg, fl.PROMPT] + f.legs[leg, fl.GENERATED]
            leg = f.legs[leg, fl.NEXT]
        loads[w, 0] = f.workers[w, fl.RUNNING]
        loads[w, 1] = f.workers[w, fl.QUEUED]
        loads[w, 2] = tokens
        loads[w, 3] = used_blocks(f, w)
