"""The contract of the shared index: registry with leases, KV batches, a warm copy and a tail. One instance a served model.

`memory.py` (one process) and `redis.py` (a fleet) implement it and pass the same contract suite. Workers call the first
half through `publisher`, routers the second half through `tail`. Slots are 0..65535; a slot is not given out again
until a janitor has taken it out of the table. All calls raise `IndexUnavailable` when the shared store cannot be
reached within their time-out, and have changed nothing then or the whole of it (`republish` and `sweep`: some pieces).
Calling again after that is always safe: a batch that has been applied is applied no second time.
"""

from collections.abc import Sequence
from typing import Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray
from penstock_core.endpoint import Load, WorkerRecord
from penstock_core.errors import PenstockError
from penstock_core.kv_events import KvBatch, KvState

LAYOUT_VERSION = 1
LEASE_S = 5.0
RENEW_S = 1.0
LEAST_LOAD_INTERVAL_S = 0.1
FORGET_S = 60.0
"""How long after its lease ran out a slot goes to the janitor; until then the worker may come back to what the table holds."""
DEFAULT_MAX_CHUNKS = 4_000_000
MOST_SLOTS = 1 << 16


class NoFreeSlot(PenstockError):
    """All slots are taken or wait for the janitor; register again after its next pass."""


class Lease(msgspec.Struct, frozen=True):
    """What registering gives: the worker's slot, and which incarnation of the store gave it."""

    slot: int
    incarnation: str


class Registered(msgspec.Struct, frozen=True):
    """One row of the registry: `lease_s` seconds are left (≤ 0: run out); `sequence` is the last batch applied."""

    slot: int
    record: WorkerRecord
    lease_s: float
    load: Load | None
    sequence: int


class Registry(msgspec.Struct, frozen=True):
    """All rows, and the incarnation they were read from (another one: the store came back empty in between)."""

    incarnation: str
    rows: tuple[Registered, ...]


class TailEntry(msgspec.Struct, frozen=True):
    """One batch of one slot from the stream; `age_s` is seconds since it was appended, by the store's clock.

    `republished`: not a change but the news that the slot's chunks were replaced as a whole as of this sequence; the batch is
    empty, and who does not already stand at its sequence reloads the slot.
    """

    position: str
    slot: int
    batch: KvBatch
    age_s: float
    republished: bool = False


class Tail(msgspec.Struct, frozen=True):
    """What came after a position. `trimmed`: entries between the position and the first one are lost; reload."""

    position: str
    entries: tuple[TailEntry, ...]
    trimmed: bool


class Warm(msgspec.Struct, frozen=True):
    """The table as of `position`: flat arrays, key i is held by slots[offsets[i]:offsets[i + 1]] (sorted).

    `heads`: epoch and last sequence by slot at that position, from which to follow the stream. The table may already have
    changes that come after it: applying them again gives the same.
    """

    incarnation: str
    position: str
    heads: dict[int, tuple[int, int]]
    keys: NDArray[np.uint64]
    offsets: NDArray[np.int64]
    slots: NDArray[np.uint16]


class SharedIndex(Protocol):
    """See the module. Every method is one round trip, except `warm`, `state_of` and `sweep`, which are incremental."""

    async def register(self, record: WorkerRecord) -> Lease:
        """Take a free slot and start it at sequence 0, or keep the slot and sequence this record's epoch already has; write
        record and lease. Another epoch of the same id loses its slot to the janitor at once.

        Raises NoFreeSlot when all are taken.
        """

    async def renew(self, lease: Lease, epoch: int, load: Load | None) -> bool:
        """Renew the lease and write the load. False: the store no longer knows this slot and epoch; register and republish."""

    async def publish(self, lease: Lease, batch: KvBatch) -> bool:
        """Apply to the table and append to the stream, atomically. False: unknown slot or epoch, or a sequence gap."""

    async def republish(self, lease: Lease, state: KvState) -> bool:
        """Replace all that the table holds of this slot and set its sequence, in bounded pieces. False: unknown slot or epoch."""

    async def leave(self, lease: Lease, epoch: int) -> None:
        """End the lease now; the slot goes to the janitor. Leaving twice, or with another's epoch, does nothing."""

    async def registry(self) -> Registry:
        """All registered workers, live or not."""

    async def tail(self, position: str, wait_s: float) -> Tail:
        """Batches after `position` (`"0"`: from the oldest kept), waiting up to `wait_s` for the first. Bounded in number.

        Positions are never used twice, not even by a store that came back empty: an old one shows as `trimmed` there.
        """

    async def warm(self) -> Warm:
        """The whole table, read incrementally; tailing from its position gives everything after it (at least once)."""

    async def state_of(self, slot: int) -> KvState | None:
        """What the table says one slot holds; None for an unknown slot. A reload when the worker itself cannot be asked."""

    async def sweep(self, budget: int) -> int:
        """Janitor: look at up to `budget` buckets, drop dead slots' entries, enforce `max_chunks`; gives entries dropped."""

    async def holders(self, keys: Sequence[int]) -> list[tuple[int, ...]]:
        """Slots that the table holds each key for, live or not; for `status`, tests and others, not for decisions."""

    async def chunks(self) -> int:
        """Distinct chunks in the table (approximate while a sweep runs)."""

    async def aclose(self) -> None:
        """Give back connections. Leases stay until they run out."""
