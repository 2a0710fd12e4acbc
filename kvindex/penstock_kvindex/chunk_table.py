"""The mirror's table as loops over flat arrays: chunk key → set of holders. Compiled by numba where it is installed.

`mirror` owns the arrays, makes them larger and calls these functions; nobody else does. The same source runs as plain
Python on memoryviews of the arrays, so every value is a signed integer that both arithmetics treat alike (no unsigned
word, no overflow that matters: what may wrap is masked at once). Nothing here allocates; a function that runs out of room
says so, has changed nothing for the key at hand, and is called again when there is more.

Layout:
`entries`  int32, three words a chunk: low half of the key, high half, set number (0: free; then the first word is the next free
           entry + 1). Chunks lie in the order in which they came, so the next chunk of a prompt is most often the next entry:
           one stretch of memory instead of a cache miss a chunk. They never move.
`index`    int32, two words a place: low half of the key, entry + 1 (0: empty). Linear probing from `low & mask`, no wrap-around
           (a tail of TAIL places behind the last home), deletion by shifting back.
`sets`     int64, two words a set: hash of its members, start · 2**17 + length. Set 0 is the empty one.
`members`  uint16, holders of all sets, each set's sorted. `intern` int32, open addressing: hash → set number.
`holders`  int32, by holder: the slot it stands for, + BOOKED for a speculative one, -1 when it stands for nobody (any more).
`head`     int64, the counters named below. `scratch` int32, room for one set's members.
"""

from collections.abc import Callable
from typing import Any, TypeVar

F = TypeVar("F", bound=Callable[..., Any])

try:
    from numba import njit

    COMPILED = True
except ImportError:  # the extra `fast` is not installed
    COMPILED = False


def _jit(function: F) -> F:
    if not COMPILED:
        return function
    compile_cached: Any = njit(cache=True)
    compiled: F = compile_cached(function)
    return compiled


Words = Any
"""A flat array: numpy's when compiled, a memoryview of it when not."""

CHUNKS, SETS, POOL, CURSOR, MASK, LIMIT, WANT, USED, FREE = range(9)
"""Places in `head`: chunks held, sets made, members used, sweep position, index mask, most chunks, what ran out, entries ever
used, first free entry + 1."""
HEAD_WORDS = 9
WANT_INDEX, WANT_SETS, WANT_ENTRIES = 1, 2, 3
ADD, REMOVE, BOOK, CLEAN = range(4)
TAIL = 512
"""Places behind the last home position; the last of them is always empty, so that every probe ends."""
TOUCHED_AHEAD = 64
BOOKED = 1 << 20
SLOT_MASK = BOOKED - 1
LENGTH_BITS = 17
LENGTH_MASK = (1 << LENGTH_BITS) - 1
_HASH_MASK = (1 << 62) - 1
_HASH_FACTOR = 0x1E3779B97F4A7C15


@_jit
def find(index: Words, entries: Words, mask: int, low: int, high: int) -> int:
    """Place of the key in `index`, or -1 - place of the empty one that ended the search."""
    at = low & mask
    while True:
        entry = index[2 * at + 1] - 1
        if entry < 0:
            return -1 - at
        if index[2 * at] == low and entries[3 * entry + 1] == high:
            return at
        at += 1


@_jit
def is_at(entries: Words, head: Words, entry: int, low: int, high: int) -> bool:
    """Whether the chunk is in this entry: the guess that comes before any search."""
    word = 3 * entry
    return bool(entry < head[USED] and entries[word] == low and entries[word + 1] == high and entries[word + 2] != 0)


@_jit
def intern_set(sets: Words, members: Words, intern: Words, head: Words, scratch: Words, count: int) -> int:
    """Number of the set of the `count` sorted members in `scratch`, made if new; -1 when there is no room for it."""
    if count == 0:
        return 0
    hashed = count
    for i in range(count):
        hashed = ((hashed ^ scratch[i]) * _HASH_FACTOR) & _HASH_MASK
        hashed ^= hashed >> 29
    intern_mask = len(intern) - 1
    at = hashed & intern_mask
    while intern[at] != 0:
        number: int = intern[at] + 0
        if sets[2 * number] == hashed and (sets[2 * number + 1] & LENGTH_MASK) == count:
            start = sets[2 * number + 1] >> LENGTH_BITS
            same = 0
            while same < count and members[start + same] == scratch[same]:
                same += 1
            if same == count:
                return number
        at = (at + 1) & intern_mask
    made: int = head[SETS] + 1
    start = head[POOL]
    if 2 * made + 1 >= len(sets) or start + count > len(members):
        return -1
    for i in range(count):
        members[start + i] = scratch[i]
    sets[2 * made] = hashed
    sets[2 * made + 1] = (start << LENGTH_BITS) + count
    intern[at] = made
    head[SETS] = made
    head[POOL] = start + count
    return made


@_jit
def transition(
    sets: Words, members: Words, intern: Words, head: Words, holders: Words, scratch: Words, old: int, op: int, slot: int, holder: int
) -> int:
    """The set that `old` becomes when `op` happens to `slot` through `holder`; holders of nobody fall out. -1: no room.

    ADD and BOOK put the holder in and REMOVE takes every holder of the slot out; so a set has at most one holder a slot.
    BOOK leaves a set alone that holds the slot for certain. CLEAN only drops the holders of nobody.
    """
    count = 0
    start = sets[2 * old + 1] >> LENGTH_BITS
    for i in range(start, start + (sets[2 * old + 1] & LENGTH_MASK)):
        member = members[i] + 0
        stands_for = holders[member] + 0
        if stands_for >= 0:
            if op != CLEAN and (stands_for & SLOT_MASK) == slot:
                if op == BOOK and stands_for < BOOKED:
                    return old
            else:
                scratch[count] = member
                count += 1
    if op in (ADD, BOOK):
        at = count
        while at > 0 and scratch[at - 1] > holder:
            scratch[at] = scratch[at - 1]
            at -= 1
        scratch[at] = holder
        count += 1
    return intern_set(sets, members, intern, head, scratch, count)


@_jit
def delete(index: Words, entries: Words, head: Words, entry: int) -> None:
    """Free an entry and its place; places behind it move back so that no search meets a gap before its key."""
    mask = head[MASK]
    hole = entries[3 * entry] & mask
    while index[2 * hole + 1] != entry + 1:
        hole += 1
    behind = hole + 1
    while index[2 * behind + 1] != 0:
        if (index[2 * behind] & mask) <= hole:
            index[2 * hole] = index[2 * behind]
            index[2 * hole + 1] = index[2 * behind + 1]
            hole = behind
        behind += 1
    index[2 * hole + 1] = 0
    entries[3 * entry] = head[FREE]
    entries[3 * entry + 2] = 0
    head[FREE] = entry + 1
    head[CHUNKS] -= 1


@_jit
def insert(index: Words, entries: Words, head: Words, at: int, low: int, high: int, number: int) -> int:
    """Give a new chunk an entry, behind the newest while there is room, and the empty place `at`. Gives the entry."""
    entry: int = head[USED] + 0
    if 3 * entry < len(entries):
        head[USED] = entry + 1
    else:
        entry = head[FREE] - 1
        head[FREE] = entries[3 * entry]
    entries[3 * entry] = low
    entries[3 * entry + 1] = high
    entries[3 * entry + 2] = number
    index[2 * at] = low
    index[2 * at + 1] = entry + 1
    head[CHUNKS] += 1
    return entry


@_jit
def lacks_room(index: Words, entries: Words, head: Words, at: int) -> bool:
    """Whether no chunk can be inserted at this place now; notes in head[WANT] what is missing."""
    if head[CHUNKS] >= head[LIMIT] or at >= len(index) // 2 - 1:
        head[WANT] = WANT_INDEX
        return True
    if 3 * head[USED] >= len(entries) and head[FREE] == 0:
        head[WANT] = WANT_ENTRIES
        return True
    return False


@_jit
def change(
    index: Words,
    entries: Words,
    sets: Words,
    members: Words,
    intern: Words,
    head: Words,
    holders: Words,
    scratch: Words,
    op: int,
    slot: int,
    holder: int,
    keys: Words,
    first: int,
) -> int:
    """Do `op` to keys[first:] (two int32 words a key). Gives the number of keys done; fewer than all: see head[WANT]."""
    mask = head[MASK]
    known_old = -1
    known_new = -1
    entry: int = head[USED] + 0
    for i in range(first, len(keys) // 2):
        low = keys[2 * i] + 0
        high = keys[2 * i + 1] + 0
        at = 0
        if is_at(entries, head, entry + 1, low, high):
            entry += 1
        else:
            at = find(index, entries, mask, low, high)
            if at >= 0:
                entry = index[2 * at + 1] - 1
            elif op == REMOVE:
                continue
            elif lacks_room(index, entries, head, -1 - at):
                return i
        old = 0 if at < 0 else entries[3 * entry + 2] + 0
        if old != known_old:
            new = transition(sets, members, intern, head, holders, scratch, old, op, slot, holder)
            if new < 0:
                head[WANT] = WANT_SETS
                return i
            known_old = old
            known_new = new
        if at < 0:
            entry = insert(index, entries, head, -1 - at, low, high, known_new)
        elif known_new == 0:
            delete(index, entries, head, entry)
        elif known_new != old:
            entries[3 * entry + 2] = known_new
    return len(keys) // 2


@_jit
def put_all(
    index: Words,
    entries: Words,
    sets: Words,
    members: Words,
    intern: Words,
    head: Words,
    holders: Words,
    scratch: Words,
    keys: Words,
    offsets: Words,
    held: Words,
    first: int,
) -> int:
    """Give key i the holders held[offsets[i]:offsets[i + 1]] (sorted), in place of what it had. Result as of `change`."""
    mask = head[MASK]
    for i in range(first, len(keys) // 2):
        low = keys[2 * i] + 0
        high = keys[2 * i + 1] + 0
        at = find(index, entries, mask, low, high)
        count = 0
        for j in range(offsets[i], offsets[i + 1]):
            scratch[count] = held[j]
            count += 1
        if at < 0 and count == 0:
            continue
        if at < 0 and lacks_room(index, entries, head, -1 - at):
            return i
        new = intern_set(sets, members, intern, head, scratch, count)
        if new < 0:
            head[WANT] = WANT_SETS
            return i
        if at < 0:
            insert(index, entries, head, -1 - at, low, high, new)
        elif new == 0:
            delete(index, entries, head, index[2 * at + 1] - 1)
        else:
            entries[3 * (index[2 * at + 1] - 1) + 2] = new
    return len(keys) // 2


@_jit
def lookup(index: Words, entries: Words, sets: Words, members: Words, head: Words, holders: Words, work: Words, keys: Words) -> int:
    """Count of slots that hold the first key, or more: work[1:] has the slots, work[1 + S:] how many leading keys each holds.

    `work` is int64: a word nobody reads, then four parts of S words: slots found, chunks found, slots still in, stamps by
    slot; then the stamp last used. A run of keys with one set costs one look at the set.
    """
    mask = head[MASK]
    size = (len(work) - 2) // 4
    inside = 1 + 2 * size
    stamps = 1 + 3 * size
    stamp = work[len(work) - 1]
    found = 0
    alive = 0
    known = -1
    count = len(keys) // 2
    depth = 0
    touched = 0
    seen = 0
    entry: int = head[USED] + 0
    while depth < count:
        if is_at(entries, head, entry + 1, keys[2 * depth], keys[2 * depth + 1]):
            entry += 1
        else:
            if depth >= touched:  # fetch the next places all at once: one after the other each would wait for the memory
                touched = min(count, depth + TOUCHED_AHEAD)
                for i in range(depth, touched):
                    seen ^= index[2 * (keys[2 * i] & mask)]
            at = find(index, entries, mask, keys[2 * depth], keys[2 * depth + 1])
            if at < 0:
                break
            entry = index[2 * at + 1] - 1
        number = entries[3 * entry + 2] + 0
        if number != known:
            known = number
            stamp += 1
            start = sets[2 * number + 1] >> LENGTH_BITS
            for i in range(start, start + (sets[2 * number + 1] & LENGTH_MASK)):
                slot = holders[members[i]] + 0
                if slot >= 0:
                    slot = slot & SLOT_MASK
                    work[stamps + slot] = stamp
                    if depth == 0:
                        work[inside + alive] = slot
                        alive += 1
            if depth > 0:
                i = 0
                while i < alive:
                    slot = work[inside + i]
                    if work[stamps + slot] == stamp:
                        i += 1
                    else:
                        work[1 + found] = slot
                        work[1 + size + found] = depth
                        found += 1
                        alive -= 1
                        work[inside + i] = work[inside + alive]
            if alive == 0:
                break
        depth += 1
    work[0] = seen  # so that the compiler does not leave the fetches out
    work[len(work) - 1] = stamp
    for i in range(alive):
        work[1 + found] = work[inside + i]
        work[1 + size + found] = depth
        found += 1
    return found


@_jit
def sweep(
    index: Words,
    entries: Words,
    sets: Words,
    members: Words,
    intern: Words,
    head: Words,
    holders: Words,
    scratch: Words,
    cleaned: Words,
    budget: int,
) -> int:
    """Drop holders of nobody from the next `budget` entries. 1: the pass is over, 0: there is more, -1: no room for a set.

    `cleaned` int32, by set: what it becomes + 1, 0 when not yet asked in this pass.
    """
    entry = head[CURSOR]
    stop = min(head[USED], entry + budget)
    while entry < stop:
        old = entries[3 * entry + 2] + 0
        if old != 0:
            if cleaned[old] == 0:
                new = transition(sets, members, intern, head, holders, scratch, old, CLEAN, -1, -1)
                if new < 0:
                    head[CURSOR] = entry
                    return -1
                cleaned[old] = new + 1
            new = cleaned[old] - 1
            if new == 0:
                delete(index, entries, head, entry)
            elif new != old:
                entries[3 * entry + 2] = new
        entry += 1
    head[CURSOR] = entry
    return 1 if entry >= head[USED] else 0


@_jit
def mark_used(entries: Words, head: Words, sets: Words, used: Words) -> int:
    """Write 1 into `used` (int32, by set) for every set some chunk has; gives the members they have together."""
    pooled = 0
    for entry in range(head[USED]):
        number = entries[3 * entry + 2] + 0
        if number != 0 and used[number] == 0:
            used[number] = 1
            pooled += sets[2 * number + 1] & LENGTH_MASK
    return pooled


@_jit
def move_sets(
    entries: Words,
    sets: Words,
    members: Words,
    used: Words,
    new_sets: Words,
    new_members: Words,
    new_intern: Words,
    head: Words,
    scratch: Words,
) -> None:
    """Copy the used sets into a new store (head[SETS] and head[POOL] count it from 0) and renumber the chunks'."""
    for number in range(1, len(used)):
        if used[number] != 0:
            start = sets[2 * number + 1] >> LENGTH_BITS
            count = sets[2 * number + 1] & LENGTH_MASK
            for i in range(count):
                scratch[i] = members[start + i]
            used[number] = intern_set(new_sets, new_members, new_intern, head, scratch, count)
    for entry in range(head[USED]):
        number = entries[3 * entry + 2] + 0
        if number != 0:
            entries[3 * entry + 2] = used[number]


@_jit
def fill_index(index: Words, entries: Words, head: Words) -> int:
    """Put every chunk into an empty index of head[MASK] + 1 homes. 0: one tail was too short, take a larger one; 1: done."""
    last = len(index) // 2 - 1
    mask = head[MASK]
    for entry in range(head[USED]):
        if entries[3 * entry + 2] != 0:
            at = entries[3 * entry] & mask
            while index[2 * at + 1] != 0:
                at += 1
            if at >= last:
                return 0
            index[2 * at] = entries[3 * entry]
            index[2 * at + 1] = entry + 1
    return 1


@_jit
def pack(entries: Words, new_entries: Words, head: Words) -> None:
    """Copy the entries in use into an empty array, one behind the other; the index is filled anew afterwards."""
    count = 0
    for entry in range(head[USED]):
        if entries[3 * entry + 2] != 0:
            for word in range(3):
                new_entries[3 * count + word] = entries[3 * entry + word]
            count += 1
    head[USED] = count
    head[FREE] = 0


@_jit
def held_by(entries: Words, sets: Words, members: Words, head: Words, holders: Words, slot: int, out: Words) -> int:
    """Write the keys that `slot` holds for certain into `out` (two int32 words a key); gives their number."""
    count = 0
    for entry in range(head[USED]):
        number = entries[3 * entry + 2] + 0
        if number == 0:
            continue
        start = sets[2 * number + 1] >> LENGTH_BITS
        for i in range(start, start + (sets[2 * number + 1] & LENGTH_MASK)):
            if holders[members[i]] == slot:
                out[2 * count] = entries[3 * entry]
                out[2 * count + 1] = entries[3 * entry + 1]
                count += 1
    return count
