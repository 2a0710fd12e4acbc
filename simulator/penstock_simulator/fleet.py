"""The flat arrays that the compiled pass loop works on: legs, workers, KV blocks, log.

`engine_model` changes them, `cluster` reads them between events. A leg is one request's work on one worker: every request
has one, and in divided placements a second one for its prefill. Nothing here knows time, policies or traces.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from penstock_core.profile import COEFFICIENTS, EngineProfile

from penstock_simulator.workload import BLOCK_TOKENS, Workload

Ints = NDArray[np.int64]
Small = NDArray[np.int32]
Floats = NDArray[np.float64]

# Columns of `legs` (int64).
PROMPT, OUTPUT = 0, 1  # tokens
CHAIN = 2  # where its block ids begin in `chain`
TABLE = 3  # where its physical blocks begin in `table`
COMPUTED = 4  # tokens whose KV is there
GENERATED = 5  # tokens emitted
CHUNK = 6  # tokens it computes in the running pass
HELD = 7  # entries of its table in use
KEYED = 8  # of them, those whose content is known to the cache
HIT = 9  # tokens found in the cache when it was last admitted
WORKER = 10  # −1: nowhere
NEXT = 11  # behind it in the waiting queue, −1: nobody
ARRIVES_FULL = 12  # 1: its prompt's KV comes from a prefill leg
PREFILLS = 13  # 1: a prefill leg: its blocks stay until they are handed over
STATE = 14
PREEMPTIONS = 15
GIVEN = 16  # prompt tokens whose KV any worker has at once, whatever its cache holds
LEG = 17

IDLE, WAITING, RUNNING_LEG, KEPT, OVER = range(5)
"""STATE: not with a worker, in a waiting queue, in a batch, done with its KV kept for a transfer, done."""

# Columns of `times` (float64), one row a leg.
FIRST_S, LAST_S = 0, 1
TIMES = 2

# Columns of `workers` (int64).
RUNNING, QUEUED, QUEUE_HEAD, QUEUE_TAIL = range(4)
BLOCKS = 4  # KV blocks in all
SPARE = 5  # of them, empty
CACHED = 6  # of them, unreferenced but with known content
BUDGET, MOST_STREAMS = 7, 8
DECODING, CONTEXT = 9, 10  # streams of the running pass that decode, and their tokens
LEAP = 11  # passes of exactly these streams that may follow before a leg needs looking at
AHEAD = 12  # passes that have ended and are not yet written into the legs
DECIDES = 13  # 1: the cluster has something to do when a leg ends here
EVICTIONS, PREEMPTED, PASSES = 14, 15, 16
HIT_TOKENS, PROMPT_TOKENS = 17, 18  # over all admissions
OUTPUT_TOKENS = 19
FIRST_CHANGE, LAST_CHANGE = 20, 21  # of the ring of changes: oldest not yet seen, and one after the newest
WORKER_ROW = 22

# Columns of `seconds` (float64), one row a worker.
PASS_START_S, PASS_END_S, BUSY_S = range(3)
NOW_S = 3  # when its cache last changed
SECONDS = 4

# Columns of `blocks` (int32), one row a physical block; the row after the last is the ring's anchor.
KEY, REFS, OLDER, NEWER = range(4)

# Kinds of log entries.
FIRST_TOKEN, DONE, PREFILLED = range(3)

# Inter-token gaps are counted in logarithmic bins: 0.4 % wide, from 10 µs to 1.8e3 s.
GAP_LEAST_S = 1e-5
GAP_BINS_PER_E = 256
GAP_BINS = 4864


class Fleet(NamedTuple):
    """All state of the engines. Shapes: legs (L, LEG), workers (W, WORKER_ROW), blocks (W, B + 1, 4), resident (D, W)."""

    legs: Ints
    times: Floats
    workers: Ints
    seconds: Floats
    rows: Floats
    """Coefficients of each worker's profile, (W, COEFFICIENTS)."""
    running: Small
    """Leg numbers in order of admission, (W, most streams)."""
    blocks: Small
    spare: Small
    """Stack of empty blocks, (W, B)."""
    chain: Small
    """Block ids of all requests, one after the other: equal id, equal tokens from the prompt's start."""
    table: Small
    """Physical blocks of all legs."""
    resident: Small
    """Physical block + 1 that holds block id d at worker w; 0: not cached.

    Negative: not cached, but announced: −(t · routers + router) by that router until t ms."""
    viewed: Small
    """The same as routers see it; without index lag it is `resident` itself."""
    changes: Small
    """(block id, entry of `resident`) on their way to the routers, a ring a worker, (W, CHANGES, 2); no rows without lag."""
    changes_s: Floats
    gaps: Ints
    """Inter-token gaps by bin, (GAP_BINS,)."""
    log: Ints
    """(kind, leg) of what happened in one call of the loop, (2 L, 2): a leg begins and ends at most once in it."""
    log_s: Floats


CHANGES = 1 << 16
"""Changes on their way per worker; one more makes the oldest seen early."""
MOST_BYTES = 16 << 30


def build(
    workload: Workload, profiles: list[EngineProfile], *, divided: bool, lagging: bool = False, given_tokens: Sequence[int] = ()
) -> Fleet:
    """Empty engines for a workload: worker w lives by profiles[w]. `divided` makes room for prefill legs.

    `given_tokens`: by request, as Setup has them.

    `lagging`: what routers see of the caches comes later than it happens.

    Raises ValueError where the table of resident blocks would exceed 16 GiB.
    """
    count, requests = len(profiles), len(workload.prompt_tokens)
    if (needed := workload.distinct_blocks * count * 4) > MOST_BYTES:
        raise ValueError(
            f"{workload.distinct_blocks} distinct KV blocks on {count} workers need {needed >> 30} GiB; allowed: {MOST_BYTES >> 30} GiB"
        )
    most = max(profile.kv_tokens // BLOCK_TOKENS for profile in profiles)
    total = int(workload.offsets[-1])
    legs = np.zeros((requests * 2 if divided else requests, LEG), np.int64)
    legs[:requests, PROMPT] = workload.prompt_tokens
    legs[:requests, OUTPUT] = workload.output_tokens
    legs[:requests, CHAIN] = legs[:requests, TABLE] = workload.offsets[:-1]
    if given_tokens:
        legs[:requests, GIVEN] = given_tokens
    if divided:
        legs[requests:] = legs[:requests]
        legs[requests:, TABLE] += total
        legs[requests:, OUTPUT] = 1
        legs[requests:, PREFILLS] = 1
    legs[:, WORKER] = legs[:, NEXT] = -1
    resident = np.zeros((workload.distinct_blocks, count), np.int32)
    ring = CHANGES if lagging else 0
    fleet = Fleet(
        legs=legs,
        times=np.full((len(legs), TIMES), np.nan),
        workers=np.zeros((count, WORKER_ROW), np.int64),
        seconds=np.zeros((count, SECONDS)),
        rows=np.zeros((count, COEFFICIENTS)),
        running=np.zeros((count, max(profile.max_streams for profile in profiles)), np.int32),
        blocks=np.zeros((count, most + 1, 4), np.int32),
        spare=np.zeros((count, most), np.int32),
        chain=workload.chain,
        table=np.zeros(total * 2 if divided else total, np.int32),
        resident=resident,
        viewed=np.zeros_like(resident) if lagging else resident,
        changes=np.zeros((count, ring, 2), np.int32),
        changes_s=np.zeros((count, ring)),
        gaps=np.zeros(GAP_BINS, np.int64),
        log=np.zeros((2 * len(legs), 2), np.int64),
        log_s=np.zeros(2 * len(legs)),
    )
    for w, profile in enumerate(profiles):
        _empty(fleet, w, profile)
    return fleet


def reset_worker(fleet: Fleet, w: int, profile: EngineProfile) -> None:
    """An empty engine in place of worker w; what it held is forgotten, its legs are not touched."""
    fleet.resident[:, w] = fleet.viewed[:, w] = 0
    fleet.workers[w, FIRST_CHANGE] = fleet.workers[w, LAST_CHANGE]
    _empty(fleet, w, profile)


def _empty(fleet: Fleet, w: int, profile: EngineProfile) -> None:
    count = profile.kv_tokens // BLOCK_TOKENS
    fleet.rows[w] = profile.coefficients()
    fleet.workers[w, RUNNING : AHEAD + 1] = 0
    fleet.workers[w, [QUEUE_HEAD, QUEUE_TAIL]] = -1
    fleet.workers[w, [BLOCKS, SPARE]] = count
    fleet.workers[w, BUDGET] = profile.pass_tokens
    fleet.workers[w, MOST_STREAMS] = profile.max_streams
    fleet.seconds[w, PASS_END_S] = np.inf
    fleet.blocks[w] = (-1, 0, 0, 0)
    anchor = fleet.blocks.shape[1] - 1
    fleet.blocks[w, anchor] = (-1, 1, anchor, anchor)
    fleet.spare[w, :count] = np.arange(count - 1, -1, -1)
