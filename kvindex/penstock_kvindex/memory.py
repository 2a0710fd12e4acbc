"""The shared index inside one process: for tests, for the simulator's clock, and for a router without a Redis.

It ships with the product and passes the same contract suite as `redis`. Everything changes in synchronous code, so each
call is atomic; the clock is handed in, so leases run out by arithmetic.
"""

import asyncio
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from penstock_core.endpoint import Load, WorkerRecord
from penstock_core.kv_events import Keys, KvBatch, KvState

from penstock_kvindex.index import (
    DEFAULT_MAX_CHUNKS,
    FORGET_S,
    LEASE_S,
    MOST_SLOTS,
    Lease,
    NoFreeSlot,
    Registered,
    Registry,
    Tail,
    TailEntry,
    Warm,
)

_MOST_TAILED = 256


@dataclass
class _Row:
    record: WorkerRecord
    lease_until_s: float
    load: Load | None = None
    sequence: int = 0


@dataclass
class _Pass:
    """One walk of the janitor: the slots it takes out, and the keys still to look at."""

    slots: frozenset[int]
    keys: list[int] = field(default_factory=list)


class MemoryIndex:
    """Implements `SharedIndex`; see there for every method. `now` is in seconds and never goes back."""

    def __init__(
        self,
        *,
        now: Callable[[], float] = time.monotonic,
        incarnation: str = "memory",
        lease_s: float = LEASE_S,
        forget_s: float = FORGET_S,
        max_chunks: int = DEFAULT_MAX_CHUNKS,
        most_slots: int = MOST_SLOTS,
        kept_batches: int = 10_000,
    ) -> None:
        self._now = now
        self._incarnation = incarnation
        self._lease_s = lease_s
        self._forget_s = forget_s
        self._max_chunks = max_chunks
        self._rows: dict[int, _Row] = {}
        self._free = list(range(most_slots - 1, -1, -1))
        self._dead: set[int] = set()
        """Slots that wait for the janitor."""
        self._table: dict[int, set[int]] = {}
        self._stream: deque[tuple[int, int, KvBatch, float, bool]] = deque(maxlen=kept_batches)
        self._serial = 0
        self._appended = asyncio.Event()
        self._pass: _Pass | None = None

    async def register(self, record: WorkerRecord) -> Lease:
        slot = next((slot for slot, row in self._rows.items() if row.record.id == record.id), None)
        if slot is not None and self._rows[slot].record.epoch != record.epoch:
            self._give_up(slot)
            slot = None
        if slot is None:
            if not self._free:
                raise NoFreeSlot(f"no free slot for worker {record.id!r}: {len(self._rows)} taken, {len(self._dead)} wait for the janitor")
            slot = self._free.pop()
            self._rows[slot] = _Row(record, 0.0)
        self._rows[slot].record = record
        self._rows[slot].lease_until_s = self._now() + self._lease_s
        return Lease(slot, self._incarnation)

    async def renew(self, lease: Lease, epoch: int, load: Load | None) -> bool:
        row = self._row(lease.slot, epoch)
        if row is None:
            return False
        row.lease_until_s = self._now() + self._lease_s
        row.load = load if load is not None else row.load
        return True

    async def publish(self, lease: Lease, batch: KvBatch) -> bool:
        row = self._row(lease.slot, batch.epoch)
        if row is None or batch.sequence > row.sequence + 1:
            return False
        if batch.sequence <= row.sequence:
            return True
        if batch.cleared:
            self._take_out(lease.slot, list(self._table))
        self._take_out(lease.slot, batch.removed.tolist())
        for key in batch.added.tolist():
            self._table.setdefault(key, set()).add(lease.slot)
        row.sequence = batch.sequence
        self._append(lease.slot, batch, republished=False)
        return True

    async def republish(self, lease: Lease, state: KvState) -> bool:
        row = self._row(lease.slot, state.epoch)
        if row is None:
            return False
        self._take_out(lease.slot, list(self._table))
        for key in state.keys.tolist():
            self._table.setdefault(key, set()).add(lease.slot)
        row.sequence = state.sequence
        self._append(lease.slot, KvBatch(state.epoch, state.sequence), republished=True)
        return True

    async def leave(self, lease: Lease, epoch: int) -> None:
        if self._row(lease.slot, epoch) is not None:
            self._give_up(lease.slot)

    async def registry(self) -> Registry:
        now_s = self._now()
        rows = tuple(Registered(slot, row.record, row.lease_until_s - now_s, row.load, row.sequence) for slot, row in self._rows.items())
        return Registry(self._incarnation, rows)

    async def tail(self, position: str, wait_s: float) -> Tail:
        after = int(position)
        if self._serial <= after:
            self._appended.clear()
            try:
                async with asyncio.timeout(wait_s):
                    await self._appended.wait()
            except TimeoutError:
                return Tail(position, (), trimmed=False)
        now_s = self._now()
        kept = [entry for entry in self._stream if entry[0] > after][:_MOST_TAILED]
        entries = tuple(TailEntry(str(serial), slot, batch, now_s - at_s, republished) for serial, slot, batch, at_s, republished in kept)
        return Tail(entries[-1].position, entries, trimmed=after > 0 and kept[0][0] > after + 1)

    async def warm(self) -> Warm:
        offsets = np.zeros(len(self._table) + 1, np.int64)
        np.cumsum([len(slots) for slots in self._table.values()], out=offsets[1:])
        return Warm(
            self._incarnation,
            str(self._serial),
            {slot: (row.record.epoch, row.sequence) for slot, row in self._rows.items()},
            np.array(list(self._table), np.uint64),
            offsets,
            np.array([slot for slots in self._table.values() for slot in sorted(slots)], np.uint16),
        )

    async def state_of(self, slot: int) -> KvState | None:
        row = self._rows.get(slot)
        return None if row is None else KvState(row.record.epoch, row.sequence, self._keys_of(slot))

    async def sweep(self, budget: int) -> int:
        now_s = self._now()
        for slot in [slot for slot, row in self._rows.items() if row.lease_until_s + self._forget_s < now_s]:
            self._give_up(slot)
        if self._pass is None:
            if not self._dead and len(self._table) <= self._max_chunks:
                return 0
            self._pass = _Pass(frozenset(self._dead), sorted(self._table, key=lambda key: -len(self._table[key])))
        dropped = 0
        for _ in range(min(budget, len(self._pass.keys))):
            dropped += self._clean(self._pass.keys.pop())
        if not self._pass.keys:
            self._dead -= self._pass.slots
            self._free = sorted(self._pass.slots, reverse=True) + self._free
            self._pass = None
        return dropped

    async def holders(self, keys: Sequence[int]) -> list[tuple[int, ...]]:
        return [tuple(sorted(self._table.get(key, ()))) for key in keys]

    async def chunks(self) -> int:
        return len(self._table)

    async def aclose(self) -> None:
        """Nothing to give back."""

    def _row(self, slot: int, epoch: int) -> _Row | None:
        row = self._rows.get(slot)
        return row if row is not None and row.record.epoch == epoch else None

    def _give_up(self, slot: int) -> None:
        del self._rows[slot]
        self._dead.add(slot)

    def _take_out(self, slot: int, keys: list[int]) -> None:
        for key in keys:
            slots = self._table.get(key)
            if slots is not None:
                slots.discard(slot)
                if not slots:
                    del self._table[key]

    def _clean(self, key: int) -> int:
        """Look at one chunk of the pass: take dead slots out, drop it if the table is still too full. Entries dropped."""
        slots = self._table.get(key)
        if slots is None or self._pass is None:
            return 0
        dead = slots & self._pass.slots
        slots -= dead
        if slots and (self._pass.slots or len(self._table) <= self._max_chunks):  # first what nobody holds, in a pass of its own
            return len(dead)
        del self._table[key]
        return len(dead) + len(slots)

    def _append(self, slot: int, batch: KvBatch, *, republished: bool) -> None:
        self._serial += 1
        self._stream.append((self._serial, slot, batch, self._now(), republished))
        self._appended.set()

    def _keys_of(self, slot: int) -> Keys:
        return np.array([key for key, slots in self._table.items() if slot in slots], np.uint64)
