"""A worker's side of the index: its chunks, numbered and pushed; its lease and load, renewed; begun anew when the store forgot it.

`kv_translate` calls `publish` and `cleared` from the worker's event loop, one task runs `run`. Losing the store stops
nothing: changes are merged while it is away (an add and a remove of one chunk are one entry), and what no longer fits in
the bound is replaced by one republish of everything. It knows nothing of tokens, engines or HTTP.
"""

import asyncio
import logging
import random
import time
from collections.abc import Callable, Iterable

import numpy as np
from penstock_core.endpoint import Load, WorkerRecord
from penstock_core.errors import IndexUnavailable
from penstock_core.kv_events import KvBatch, KvState

from penstock_kvindex.index import LEAST_LOAD_INTERVAL_S, RENEW_S, Lease, NoFreeSlot, SharedIndex

_log = logging.getLogger(__name__)

MOST_PENDING_KEYS = 200_000
"""Chunks with a change not yet numbered; beyond it, forget them and republish everything."""
_KEYS_A_BATCH = 1_024
_FIRST_BACKOFF_S, _MOST_BACKOFF_S = 0.05, 1.0


class Publisher:
    """See the module. State changes in `publish`, `cleared` (any time) and in `run`'s one task.

    Invariant: what the store has + the batch under way + `_pending` = `_held`, unless `_dirty`.
    """

    def __init__(
        self,
        index: SharedIndex,
        record: WorkerRecord,
        *,
        load: Callable[[], Load | None] = lambda: None,
        clock: Callable[[], float] = time.monotonic,
        jitter_s: float = 0.5,
        gather_s: float = 0.005,
        most_pending: int = MOST_PENDING_KEYS,
        on_registered: Callable[[Lease], None] = lambda lease: None,
    ) -> None:
        """`load` is asked every 100 ms. `jitter_s`: after losing its slot a worker waits up to this long before it comes back,
        so that a fleet does not come back in one instant. `gather_s`: how long changes are gathered into one batch.
        """
        self._index = index
        self._record = record
        self._load = load
        self._clock = clock
        self._jitter_s = jitter_s
        self._gather_s = gather_s
        self._most_pending = most_pending
        self._on_registered = on_registered
        self._held: dict[int, None] = {}
        """Chunks held, in the order in which they came: a prefix stays in order."""
        self._pending: dict[int, bool] = {}
        """Chunk → it is held now; not yet numbered."""
        self._pending_cleared = False
        self._pending_since_s: float | None = None
        self._under_way: KvBatch | None = None
        self._sequence = 0
        self._dirty = False
        """The store needs a republish."""
        self._forgot = False
        """Changes were given up without a number, so readers need a gap in the numbers to notice."""
        self._lease: Lease | None = None
        self._written_load: Load | None = None
        self._renewed_s = -float("inf")
        self._changed = asyncio.Event()
        self._leaving = False
        self.reloads = 0
        """Republishes of everything so far (the first one included when there was something to publish)."""

    @property
    def lease(self) -> Lease | None:
        """The slot the store gave, None before the first answer and while it has forgotten this worker."""
        return self._lease

    @property
    def lag_s(self) -> float:
        """Seconds since the oldest change that is not yet in the index; 0 when all are."""
        return 0.0 if self._pending_since_s is None else max(0.0, self._clock() - self._pending_since_s)

    @property
    def settled(self) -> bool:
        """All changes so far are in the index."""
        return self._lease is not None and not self._dirty and self._under_way is None and not self._pending and not self._pending_cleared

    def publish(self, added: Iterable[int], removed: Iterable[int] = ()) -> None:
        """Chunks that are now held, and chunks no longer held (taken away first). Never waits, never fails."""
        for key in removed:
            if key in self._held:
                del self._held[key]
                self._note(key, held=False)
        for key in added:
            if key not in self._held:
                self._held[key] = None
                self._note(key, held=True)
        if len(self._pending) > self._most_pending:
            self._pending.clear()
            self._dirty = self._forgot = True
        self._changed.set()

    def cleared(self) -> None:
        """Nothing is held any more."""
        self._held.clear()
        self._pending.clear()
        self._pending_cleared = True
        self._stamp()
        self._changed.set()

    def state(self) -> KvState:
        """Everything held, for `GET /penstock/kv`. Changes after its sequence may be in it: applying them again gives the same."""
        return KvState(self._record.epoch, self._sequence, np.fromiter(self._held, np.uint64, len(self._held)))

    async def run(self) -> None:
        """Register, then publish and renew until `leave`. Comes back by itself from anything the store does."""
        backoff_s = _FIRST_BACKOFF_S
        while not self._leaving:
            try:
                await self._step()
                backoff_s = _FIRST_BACKOFF_S
            except (IndexUnavailable, NoFreeSlot) as error:
                _log.warning("worker %s: index not updated, trying again in %.2f s: %s", self._record.id, backoff_s, error)
                await asyncio.sleep(backoff_s)
                backoff_s = min(_MOST_BACKOFF_S, 2 * backoff_s)
            except Exception:  # noqa: BLE001  the task's top: it logs and begins again
                _log.exception("worker %s: publishing failed, registering again", self._record.id)
                self._lease = None
                await asyncio.sleep(_MOST_BACKOFF_S)

    async def leave(self) -> None:
        """End the lease and `run`; for a drained worker. A store that cannot be reached forgets it by itself."""
        self._leaving = True
        self._changed.set()
        lease, self._lease = self._lease, None
        if lease is not None:
            try:
                await self._index.leave(lease, self._record.epoch)
            except IndexUnavailable as error:
                _log.info("worker %s: left without telling the index: %s", self._record.id, error)

    async def _step(self) -> None:
        """One turn: whatever is due, or a wait for it."""
        if self._lease is None:
            await self._register()
        elif self._renewal_is_due():
            await self._renew(self._lease)
        elif self._dirty:
            await self._republish(self._lease)
        elif self._under_way is not None or self._pending or self._pending_cleared:
            await self._push(self._lease)
        else:
            self._pending_since_s = None
            self._changed.clear()
            try:
                async with asyncio.timeout(LEAST_LOAD_INTERVAL_S):
                    await self._changed.wait()
            except TimeoutError:
                return
            await asyncio.sleep(self._gather_s)

    async def _register(self) -> None:
        lease = await self._index.register(self._record)
        if self._leaving:
            await self._index.leave(lease, self._record.epoch)
            return
        self._lease = lease
        self._renewed_s = -float("inf")
        self._dirty = self._dirty or self._sequence > 0
        self._on_registered(lease)

    def _renewal_is_due(self) -> bool:
        since_s = self._clock() - self._renewed_s
        return since_s >= RENEW_S or (since_s >= LEAST_LOAD_INTERVAL_S and self._load() != self._written_load)

    async def _renew(self, lease: Lease) -> None:
        now_s, load = self._clock(), self._load()
        if await self._index.renew(lease, self._record.epoch, load):
            self._renewed_s, self._written_load = now_s, load
        else:
            await self._forgotten()

    async def _push(self, lease: Lease) -> None:
        """Publish the batch under way, or number the next one. After an unknown outcome the same batch is published again."""
        if self._under_way is None:
            self._under_way = self._next_batch()
        if await self._index.publish(lease, self._under_way):
            self._under_way = None
        else:
            self._dirty = True  # a gap, or the slot is gone, which the renewal finds out
            self._renewed_s = -float("inf")

    def _next_batch(self) -> KvBatch:
        some = list(self._pending.items())[:_KEYS_A_BATCH]
        if len(some) == len(self._pending):
            self._pending.clear()
        else:
            for key, _ in some:
                del self._pending[key]
        self._sequence += 1
        batch = KvBatch(
            self._record.epoch,
            self._sequence,
            added=np.array([key for key, held in some if held], np.uint64),
            removed=np.array([key for key, held in some if not held], np.uint64),
            cleared=self._pending_cleared,
        )
        self._pending_cleared = False
        return batch

    async def _republish(self, lease: Lease) -> None:
        """Replace the slot's content by all that is held now. Interrupted, it stays dirty and begins again.

        Changes not yet numbered are in the state and stay pending too: a reader that stands at its sequence needs no reload.
        """
        self._under_way = None
        if self._forgot:
            self._sequence += 1
        self._dirty = self._forgot = False  # while waiting for the store it may become so again
        self.reloads += 1
        done = False
        try:
            done = await self._index.republish(lease, self.state())
        finally:
            self._dirty = self._dirty or not done
        if not done:
            await self._forgotten()

    async def _forgotten(self) -> None:
        """The store no longer knows this slot and epoch: it came back empty, or gave us up."""
        _log.info("worker %s: the index has forgotten this worker, registering again", self._record.id)
        self._lease = None
        await asyncio.sleep(random.uniform(0.0, self._jitter_s))  # noqa: S311  spreading a fleet, not guarding anything

    def _note(self, key: int, *, held: bool) -> None:
        self._pending.pop(key, None)  # so that it keeps the order of the newest changes
        self._pending[key] = held
        self._stamp()

    def _stamp(self) -> None:
        if self._pending_since_s is None:
            self._pending_since_s = self._clock()
