"""KV blocks of the simulated engines: prefix look-up, references, eviction. Compiled; called by `engine_model` alone.

Unreferenced blocks with known content form a ring from the oldest to the newest; a request gives its blocks back tail
first, so the tail of a prompt goes before its head. Invariant per worker: spare + cached + referenced = all blocks.
"""

from penstock_simulator import fleet as fl
from penstock_simulator.compiled import compiled, compiled_part
from penstock_simulator.fleet import Fleet, Ints, Small
from penstock_simulator.workload import BLOCK_TOKENS


@compiled
def cached_blocks(f: Fleet, w: int, leg: int, most: int) -> int:
    """Leading blocks of the leg's chain that worker w holds, at most `most`."""
    at = f.legs[leg, fl.CHAIN]
    count = 0
    while count < most and f.resident[f.chain[at + count], w] > 0:
        count += 1
    return count


@compiled
def believed_hits(legs: Ints, chain: Small, viewed: Small, leg: int, now_ms: int, router: int, routers: int, counts: Ints) -> None:
    """Write into counts (W,) how many leading full blocks of the leg's prompt that router believes at each worker.

    Those the worker holds, and those that a placement of its own has announced (negative entries) beyond `now_ms` milliseconds.
    Called for every request, so it is handed these arrays alone: to hand over the whole Fleet costs as much as the search.
    """
    at, most = legs[leg, fl.CHAIN], legs[leg, fl.PROMPT] // BLOCK_TOKENS
    workers = len(counts)
    counts[:] = most
    going = workers if most > 0 else 0
    depth = 0
    while going > 0 and depth < most:
        block = chain[at + depth]
        for w in range(workers):
            if counts[w] == most and viewed[block, w] <= 0:
                announced = -viewed[block, w]
                if announced // routers <= now_ms or announced % routers != router:
                    counts[w] = depth
                    going -= 1
        depth += 1


@compiled
def announce(legs: Ints, chain: Small, viewed: Small, leg: int, w: int, until_ms: int, router: int, routers: int) -> None:
    """That router placed the leg on worker w: until then it counts the prompt's blocks as held there.

    A block has one announcement a worker: the newest router's.
    """
    at = legs[leg, fl.CHAIN]
    for i in range(legs[leg, fl.PROMPT] // BLOCK_TOKENS):
        block = chain[at + i]
        if viewed[block, w] <= 0:
            viewed[block, w] = -(until_ms * routers + router)


@compiled_part
def tell(f: Fleet, w: int, key: int) -> None:
    """The entry of block `key` at worker w has changed: routers see it later, if there is a lag."""
    size = f.changes.shape[1]
    if size == 0:
        return
    if f.workers[w, fl.LAST_CHANGE] - f.workers[w, fl.FIRST_CHANGE] == size:
        see_oldest(f, w)
    at = f.workers[w, fl.LAST_CHANGE] % size
    f.changes[w, at, 0], f.changes[w, at, 1] = key, f.resident[key, w]
    f.changes_s[w, at] = f.seconds[w, fl.NOW_S]
    f.workers[w, fl.LAST_CHANGE] += 1


@compiled_part
def see_oldest(f: Fleet, w: int) -> None:
    """The oldest change of worker w on its way arrives."""
    at = f.workers[w, fl.FIRST_CHANGE] % f.changes.shape[1]
    f.viewed[f.changes[w, at, 0], w] = f.changes[w, at, 1]
    f.workers[w, fl.FIRST_CHANGE] += 1


@compiled
def see_changes(f: Fleet, until: float) -> None:
    """All changes up to `until` arrive at the routers."""
    for w in range(len(f.workers)):
        while f.workers[w, fl.FIRST_CHANGE] < f.workers[w, fl.LAST_CHANGE]:
            if f.changes_s[w, f.workers[w, fl.FIRST_CHANGE] % f.changes.shape[1]] > until:
                break
            see_oldest(f, w)


@compiled_part
def available(f: Fleet, w: int) -> int:
    """Blocks that can be had: empty ones, and cached ones that nobody uses."""
    return int(f.workers[w, fl.SPARE] + f.workers[w, fl.CACHED])


@compiled_part
def unlink(f: Fleet, w: int, block: int) -> None:
    """Take a block out of the ring of unreferenced cached blocks."""
    older, newer = f.blocks[w, block, fl.OLDER], f.blocks[w, block, fl.NEWER]
    f.blocks[w, older, fl.NEWER] = newer
    f.blocks[w, newer, fl.OLDER] = older
    f.workers[w, fl.CACHED] -= 1


@compiled_part
def idle_hits(f: Fleet, w: int, leg: int, hit_blocks: int) -> int:
    """How many of the leg's first cached blocks nobody uses: taking them shrinks what is available."""
    at = f.legs[leg, fl.CHAIN]
    count = 0
    for i in range(hit_blocks):
        if f.blocks[w, f.resident[f.chain[at + i], w] - 1, fl.REFS] == 0:
            count += 1
    return count


@compiled_part
def take_hits(f: Fleet, w: int, leg: int, hit_blocks: int) -> None:
    """Reference the leg's first cached blocks."""
    at, table = f.legs[leg, fl.CHAIN], f.legs[leg, fl.TABLE]
    for i in range(hit_blocks):
        block = f.resident[f.chain[at + i], w] - 1
        if f.blocks[w, block, fl.REFS] == 0:
            unlink(f, w, block)
        f.blocks[w, block, fl.REFS] += 1
        f.table[table + i] = block
    f.legs[leg, fl.HELD] = f.legs[leg, fl.KEYED] = hit_blocks


@compiled_part
def take_block(f: Fleet, w: int) -> int:
    """An empty block, else the oldest unreferenced one, whose content is forgotten; −1: all are in use."""
    if f.workers[w, fl.SPARE] > 0:
        f.workers[w, fl.SPARE] -= 1
        return int(f.spare[w, f.workers[w, fl.SPARE]])
    if f.workers[w, fl.CACHED] == 0:
        return -1
    anchor = f.blocks.shape[1] - 1
    block = f.blocks[w, anchor, fl.NEWER]
    unlink(f, w, block)
    key = f.blocks[w, block, fl.KEY]
    f.resident[key, w] = 0
    f.blocks[w, block, fl.KEY] = -1
    tell(f, w, key)
    f.workers[w, fl.EVICTIONS] += 1
    return int(block)


@compiled_part
def extend(f: Fleet, w: int, leg: int, tokens: int) -> bool:
    """Give the leg blocks for its first `tokens` tokens; False when they ran out (what it got it keeps)."""
    need = (tokens + BLOCK_TOKENS - 1) // BLOCK_TOKENS
    table = f.legs[leg, fl.TABLE]
    while f.legs[leg, fl.HELD] < need:
        block = take_block(f, w)
        if block < 0:
            return False
        f.blocks[w, block, fl.REFS] = 1
        f.table[table + f.legs[leg, fl.HELD]] = block
        f.legs[leg, fl.HELD] += 1
    return True


@compiled_part
def make_visible(f: Fleet, w: int, leg: int, tokens: int) -> None:
    """From now on others may hit the leg's full blocks among its first `tokens` tokens."""
    at, table = f.legs[leg, fl.CHAIN], f.legs[leg, fl.TABLE]
    for i in range(f.legs[leg, fl.KEYED], tokens // BLOCK_TOKENS):
        key, block = f.chain[at + i], f.table[table + i]
        if f.resident[key, w] <= 0:
            f.resident[key, w] = block + 1
            f.blocks[w, block, fl.KEY] = key
            tell(f, w, key)
    f.legs[leg, fl.KEYED] = max(f.legs[leg, fl.KEYED], tokens // BLOCK_TOKENS)


@compiled
def give_back(f: Fleet, w: int, leg: int) -> None:
    """Drop the leg's references, tail first: known content stays cached, the rest is empty again."""
    anchor = f.blocks.shape[1] - 1
    table = f.legs[leg, fl.TABLE]
    for i in range(f.legs[leg, fl.HELD] - 1, -1, -1):
        block = f.table[table + i]
        f.blocks[w, block, fl.REFS] -= 1
        if f.blocks[w, block, fl.REFS] > 0:
            continue
        if f.blocks[w, block, fl.KEY] < 0:
            f.spare[w, f.workers[w, fl.SPARE]] = block
            f.workers[w, fl.SPARE] += 1
            continue
        newest = f.blocks[w, anchor, fl.OLDER]
        f.blocks[w, block, fl.OLDER], f.blocks[w, block, fl.NEWER] = newest, anchor
        f.blocks[w, newest, fl.NEWER] = f.blocks[w, anchor, fl.OLDER] = block
        f.workers[w, fl.CACHED] += 1
    f.legs[leg, fl.HELD] = f.legs[leg, fl.KEYED] = 0


@compiled_part
def used_blocks(f: Fleet, w: int) -> int:
    """Blocks that running legs hold."""
    return int(f.workers[w, fl.BLOCKS] - f.workers[w, fl.SPARE] - f.workers[w, fl.CACHED])
