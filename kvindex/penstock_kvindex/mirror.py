"""A router's own copy of the index: which of its slots hold how many leading chunks of a prompt, asked in microseconds.

`tail` keeps it in step with the shared index, `scheduling` asks it, a router's bookings go into it ahead of the workers'
own word. Slots here are the router's own numbers (see `tail`), not the shared index's. It knows nothing of sequences,
epochs, leases or Redis, and it is not to be shared between threads. The arrays are described in `chunk_table`.
"""

import math
from collections.abc import Mapping
from types import ModuleType
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.kv_events import KvBatch, KvState

from penstock_kvindex import chunk_table

Keys = NDArray[np.uint64]

BOOKING_GRAIN_S = 0.5
"""Bookings lapse together, at the next multiple of this after their time."""

_LEAST_PLACES = 1 << 12
_FULL = 0.75  # linear probing: 2.5 looks a hit and 8.5 a miss at this load, half of that on average while it fills
_SHRINK_BELOW = 0.1
_MOST_HOLDERS = 1 << 16
_LEAST_SLOTS = 16
_SWEEP_CHUNKS = 1 << 16


class Hits(msgspec.Struct, frozen=True):
    """Slots that hold the first chunk or more, those that hold most last: slots[i] holds the first chunks[i] chunks. Both shape (hits,)."""

    slots: NDArray[np.uint16]
    chunks: NDArray[np.int32]


NO_HITS = Hits(np.zeros(0, np.uint16), np.zeros(0, np.int32))


class Mirror:
    """See the module. State changes in `apply`, `load`, `put`, `drop`, `book`, `expire` and `sweep`, all synchronous.

    Every slot is held through a *holder*, a number that stands for it. Dropping a slot makes its holder stand for nobody
    and so takes no time however much the slot held; `sweep` takes such holders out of the table, a bounded piece at a time,
    and only then gives the number out again. A booking goes through a holder of its own, one for each slot and moment of
    lapsing, and lapses in the same way.
    """

    def __init__(self, chunks: int = 0, *, kernels: ModuleType = chunk_table) -> None:
        """`chunks`: expected number, to save growing. `kernels`: the compiled module, or another copy of it (tests)."""
        self._kernels = kernels
        self._head = np.zeros(chunk_table.HEAD_WORDS, np.int64)
        self._holders = np.full(64, -1, np.int32)
        self._holder_of: dict[int, int] = {}
        self._bookings: dict[int, dict[int, int]] = {}
        """Moment of lapsing (in BOOKING_GRAIN_S) → slot → holder."""
        self._free_holders: list[int] = []
        self._next_holder = 0
        self._retired: list[int] = []
        self._being_swept: list[int] = []
        self._cleaned = np.zeros(0, np.int32)
        self._entries = np.zeros(3 * max(_LEAST_PLACES, chunks), np.int32)
        self._make_index(_index_size(chunks))
        self._make_sets(1 << 10, 1 << 13)
        self._make_work(_LEAST_SLOTS)
        self._rebind()

    @property
    def chunks(self) -> int:
        """Distinct chunks; those that only dropped slots held count until they are swept."""
        return int(self._head[chunk_table.CHUNKS])

    @property
    def bytes_used(self) -> int:
        """Bytes of all arrays."""
        arrays = (*self._numpy_arrays(), self._work, self._cleaned)
        return sum(array.nbytes for array in arrays)

    def longest_prefix(self, keys: Keys) -> Hits:
        """For every slot that holds keys[0]: how many leading keys it holds (booked ones count).

        `keys`: shape (chunks of a prompt,), contiguous; only looked at up to the first that no remaining slot holds.
        """
        found = self._lookup(*self._lookup_arrays, self._words(keys))
        if found == 0:
            return NO_HITS
        size = self._slots
        work = self._work
        return Hits(work[1 : 1 + found].astype(np.uint16), work[1 + size : 1 + size + found].astype(np.int32))

    def apply(self, slot: int, batch: KvBatch) -> None:
        """One batch: if cleared all goes, then `removed` goes (booked or not), then `added` comes."""
        if batch.cleared:
            self.drop(slot)
        if len(batch.removed):
            self._change(chunk_table.REMOVE, slot, -1, batch.removed)
        if len(batch.added):
            self._change(chunk_table.ADD, slot, self._holder(slot), batch.added)

    def load(self, slot: int, state: KvState) -> None:
        """Replace all that the slot holds."""
        self.drop(slot)
        self.apply(slot, KvBatch(state.epoch, state.sequence, added=state.keys))

    def put(self, keys: Keys, offsets: NDArray[np.int64], slots: NDArray[np.uint16], numbers: Mapping[int, int] | None = None) -> None:
        """Many chunks at once, as `Warm` has them: key i gets slots[offsets[i]:offsets[i + 1]], in place of what it had.

        `numbers`: the mirror's slot for each slot in `slots`; those it lacks are left out. None: the same numbers.
        """
        self.reserve(self.chunks + len(keys))
        holder_of = np.full(_MOST_HOLDERS, -1, np.int32)
        for slot in np.unique(slots).tolist():
            if numbers is None or slot in numbers:
                holder_of[slot] = self._holder(slot if numbers is None else numbers[slot])
        held = holder_of[slots]
        rows = np.repeat(np.arange(len(keys)), np.diff(offsets))[held >= 0]
        held = held[held >= 0]
        if np.any((np.diff(held) <= 0) & (np.diff(rows) == 0)):
            held = held[np.lexsort((held, rows))]
        starts = np.zeros(len(keys) + 1, np.int64)
        np.cumsum(np.bincount(rows, minlength=len(keys)), out=starts[1:])
        self._all_of(self._kernels.put_all, (), self._words(keys), (self._wrap(starts), self._wrap(held)))

    def drop(self, slot: int) -> None:
        """The slot holds nothing any more, bookings included. Takes no time that grows with what it held."""
        holder = self._holder_of.pop(slot, None)
        if holder is not None:
            self._retire(holder)
        for by_slot in self._bookings.values():
            holder = by_slot.pop(slot, None)
            if holder is not None:
                self._retire(holder)

    def book(self, slot: int, keys: Keys, until_s: float) -> None:
        """Count the slot as holding `keys` until `until_s` or a little later (clock of `expire`); KV events make it certain.

        Does nothing when no holder is left to book with (65,536 waiting to be swept): bookings are a kindness, not a promise.
        """
        by_slot = self._bookings.setdefault(math.ceil(until_s / BOOKING_GRAIN_S), {})
        holder = by_slot.get(slot)
        if holder is None:
            if self._next_holder >= _MOST_HOLDERS - len(self._holder_of) and not self._free_holders:
                return
            holder = by_slot[slot] = self._take_holder(slot + chunk_table.BOOKED)
        self._change(chunk_table.BOOK, slot, holder, keys)

    def expire(self, now_s: float) -> None:
        """Let bookings lapse whose time has come."""
        for moment in [moment for moment in self._bookings if moment * BOOKING_GRAIN_S <= now_s]:
            for holder in self._bookings.pop(moment).values():
                self._retire(holder)

    def sweep(self, budget_chunks: int = _SWEEP_CHUNKS) -> bool:
        """Take holders of nobody off the next `budget_chunks` chunks (a few ns each). True: nothing is left to do."""
        if not self._being_swept:
            if not self._retired:
                return True
            self._being_swept, self._retired = self._retired, []
            self._head[chunk_table.CURSOR] = 0
            self._cleaned = np.zeros(len(self._sets) // 2, np.int32)
        done = self._kernels.sweep(*self._arrays, self._wrap(self._cleaned), budget_chunks)
        if done < 0:
            self._compact_sets()
        elif done:
            self._free_holders += self._being_swept
            self._being_swept = []
            self._cleaned = np.zeros(0, np.int32)
            if self.chunks < _SHRINK_BELOW * int(self._head[chunk_table.LIMIT]) and self._head[chunk_table.MASK] >= 2 * _LEAST_PLACES:
                self._resize_entries(2 * self.chunks)
                self._resize_index(_index_size(2 * self.chunks))
        return not self._being_swept and not self._retired

    def held_by(self, slot: int) -> Keys:
        """Keys the slot holds for certain, sorted; a walk over the whole table, for comparing and for `status`."""
        out = np.empty(max(1, self.chunks), np.uint64)
        count = self._kernels.held_by(*self._arrays[1:4], *self._arrays[5:7], slot, self._words(out))
        return np.sort(out[:count])

    def reserve(self, chunks: int) -> None:
        """Make room for so many chunks now rather than while a batch is applied."""
        if chunks > self._head[chunk_table.LIMIT]:
            self._resize_index(_index_size(chunks))
        if 3 * chunks > len(self._entries):
            self._resize_entries(chunks)

    def _change(self, op: int, slot: int, holder: int, keys: Keys) -> None:
        if slot >= self._slots:
            self._make_work(slot + 1)
            self._rebind()
        self._all_of(self._kernels.change, (op, slot, holder), self._words(keys), ())

    def _all_of(self, kernel: Any, operands: tuple[int, ...], words: Any, more: tuple[Any, ...]) -> None:
        """Call a kernel again and again, making room in between, until all keys are done."""
        count = len(words) // 2
        done = kernel(*self._arrays, *operands, words, *more, 0)
        while done < count:
            if self._head[chunk_table.WANT] == chunk_table.WANT_INDEX:
                self._resize_index(2 * (int(self._head[chunk_table.MASK]) + 1))
            elif self._head[chunk_table.WANT] == chunk_table.WANT_ENTRIES:
                self._resize_entries(len(self._entries) // 2)
            else:
                self._compact_sets()
            done = kernel(*self._arrays, *operands, words, *more, done)

    def _holder(self, slot: int) -> int:
        """The slot's certain holder."""
        holder = self._holder_of.get(slot)
        if holder is None:
            if slot >= self._slots:
                self._make_work(slot + 1)
                self._rebind()
            holder = self._holder_of[slot] = self._take_holder(slot)
        return holder

    def _take_holder(self, stands_for: int) -> int:
        if not self._free_holders and self._next_holder == _MOST_HOLDERS:
            while not self.sweep():
                pass
        if self._free_holders:
            holder = self._free_holders.pop()
        else:
            holder = self._next_holder
            self._next_holder += 1
            if holder >= len(self._holders):
                self._holders = np.concatenate([self._holders, np.full(len(self._holders), -1, np.int32)])
                self._rebind()
        self._holders[holder] = stands_for
        return holder

    def _retire(self, holder: int) -> None:
        self._holders[holder] = -1
        self._retired.append(holder)
        if len(self._cleaned):
            self._cleaned[:] = 0  # what a set becomes has changed

    def _make_index(self, size: int) -> None:
        self._index = np.zeros(2 * (size + chunk_table.TAIL), np.int32)
        self._head[chunk_table.MASK] = size - 1
        self._head[chunk_table.LIMIT] = int(size * _FULL)

    def _make_sets(self, sets: int, members: int) -> None:
        self._sets = np.zeros(2 * sets, np.int64)
        self._members = np.zeros(members, np.uint16)
        self._intern = np.zeros(2 * sets, np.int32)
        self._head[chunk_table.SETS] = self._head[chunk_table.POOL] = 0

    def _make_work(self, slots: int) -> None:
        self._slots = 1 << (slots - 1).bit_length()
        self._work = np.zeros(2 + 4 * self._slots, np.int64)
        self._scratch = np.zeros(self._slots + 1, np.int32)

    def _resize_index(self, size: int) -> None:
        self._make_index(size)
        while not self._kernels.fill_index(self._wrap(self._index), self._wrap(self._entries), self._wrap(self._head)):
            size *= 2
            self._make_index(size)
        self._rebind()

    def _resize_entries(self, chunks: int) -> None:
        """Room for so many. Growing copies, so entries stay where they are; shrinking packs, and the index must be filled anew."""
        old, used = self._entries, int(self._head[chunk_table.USED])
        self._entries = np.zeros(3 * max(_LEAST_PLACES, chunks), np.int32)
        if len(self._entries) >= len(old):
            self._entries[: 3 * used] = old[: 3 * used]
        else:
            self._kernels.pack(self._wrap(old), self._wrap(self._entries), self._wrap(self._head))
        self._rebind()

    def _compact_sets(self) -> None:
        """Forget the sets that no record has any more, and make room for as many again as are left."""
        used = np.zeros(len(self._sets) // 2, np.int32)
        entries, sets, members, head = (self._wrap(array) for array in (self._entries, self._sets, self._members, self._head))
        pooled = self._kernels.mark_used(entries, head, sets, self._wrap(used))
        count = int(np.count_nonzero(used))
        self._make_sets(1 << max(10, (2 * count + 1).bit_length()), max(1 << 13, 2 * pooled + 2 * self._slots))
        new = (self._wrap(self._sets), self._wrap(self._members), self._wrap(self._intern))
        self._kernels.move_sets(entries, sets, members, self._wrap(used), *new, head, self._wrap(self._scratch))
        if self._being_swept:
            self._cleaned = np.zeros(len(self._sets) // 2, np.int32)
        self._rebind()

    def _rebind(self) -> None:
        """Note the arrays in the order in which the kernels take them, after any of them has changed."""
        self._arrays = tuple(self._wrap(array) for array in self._numpy_arrays())
        self._lookup = self._kernels.lookup
        self._lookup_arrays = (*self._arrays[:4], *self._arrays[5:7], self._wrap(self._work))

    def _numpy_arrays(self) -> tuple[NDArray[Any], ...]:
        return (self._index, self._entries, self._sets, self._members, self._intern, self._head, self._holders, self._scratch)

    def _wrap(self, array: NDArray[Any]) -> Any:
        """The array as the kernels want it: itself when compiled, else a memoryview, which gives plain Python integers."""
        return array if self._kernels.COMPILED else array.data

    def _words(self, keys: Keys) -> Any:
        """The keys as int32 words, low half first. Compiled code wants them writable, of which one copy in need is the price."""
        if not keys.flags.writeable:
            keys = keys.copy()
        words = keys.view(np.int32)
        return words if self._kernels.COMPILED else words.data


def _index_size(chunks: int) -> int:
    """Homes, a power of two, for so many chunks without growing."""
    return max(_LEAST_PLACES, 1 << math.ceil(math.log2(max(1, chunks) / _FULL)))


def warm_up() -> None:
    """Compile everything now (seconds the first time, a moment from numba's cache), so that no request has to wait for it."""
    mirror = Mirror()
    keys = np.arange(1, 4 * _LEAST_PLACES, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    mirror.put(keys[:8], np.arange(9, dtype=np.int64), np.arange(8, dtype=np.uint16))
    mirror.apply(0, KvBatch(1, 1, added=keys, removed=keys[:2]))
    mirror.book(1, keys[:8], 1.0)
    mirror.expire(2.0)
    mirror.longest_prefix(keys[:8])
    mirror.held_by(0)
    mirror.drop(0)
    while not mirror.sweep():
        pass
    mirror._compact_sets()
