"""Keeps a router's mirror and list of endpoints in step with the shared index, and goes on by itself without it.

The router runs one a served model. Slots in the mirror and in `Endpoint.slot` are this follower's own: a worker keeps its
number as long as its process lives, also when the store comes back empty and gives it another one. What it must not know:
prompts, policies, HTTP (the worker's own copy is fetched by a function handed in).
"""

import asyncio
import logging
import random
import time
from collections import Counter
from collections.abc import Awaitable, Callable

from penstock_core.endpoint import Endpoint, Load, WorkerRecord
from penstock_core.errors import IndexUnavailable
from penstock_core.kv_events import KvState

from penstock_kvindex.feed import Feed, Step
from penstock_kvindex.index import RENEW_S, Registered, Registry, SharedIndex, TailEntry
from penstock_kvindex.mirror import Mirror

_log = logging.getLogger(__name__)

GRACE_S = 10.0
"""After the store answers again, leases do not count for this long: it lost time, not the workers."""
_TAIL_WAIT_S = 1.0
_RELOAD_TIMEOUT_S = 5.0
_MOST_RELOADS_AT_ONCE = 4
_FIRST_BACKOFF_S, _MOST_BACKOFF_S = 0.05, 1.0
_HOUSEKEEPING_S = 0.1
_CAUGHT_UP_BELOW = 100
"""A read of the stream that gives fewer entries has read it to its end."""


class Followed:
    """One worker as the follower knows it."""

    def __init__(self, record: WorkerRecord, slot: int, shared_slot: int) -> None:
        self.record = record
        self.slot = slot
        """In the mirror."""
        self.shared_slot: int | None = shared_slot
        """In the store; None while the store does not list it."""
        self.lease_until_s = 0.0
        self.load: Load | None = None
        self.feed = Feed(record.epoch)
        self.reload_reason: str | None = None
        """Why the next reload will be needed, where that is known beforehand."""
        self.due: tuple[int, int] | None = None
        """A sequence the store had, and how often the stream had been read to its end by then."""
        self.endpoint = Endpoint(record, slot)


class Follower:
    """See the module. Everything changes in its tasks' synchronous stretches; `endpoints` and the mirror may be read any time.

    Invariant: a worker in `_workers` has a mirror slot of its own and one Feed; `_by_shared` maps the store's slots of the
    present incarnation to them.
    """

    def __init__(
        self,
        index: SharedIndex,
        mirror: Mirror,
        *,
        fetch_state: Callable[[WorkerRecord], Awaitable[KvState | None]] | None = None,
        is_alive: Callable[[Endpoint], bool] = lambda endpoint: True,
        on_endpoints: Callable[[tuple[Endpoint, ...]], None] = lambda endpoints: None,
        clock: Callable[[], float] = time.monotonic,
        registry_interval_s: float = RENEW_S,
        grace_s: float = GRACE_S,
    ) -> None:
        """`fetch_state`: `GET /penstock/kv` of that worker, None or any error where it cannot be had (the table is read then).

        `is_alive`: whether own requests or probes to an endpoint succeed; asked only while leases do not count.
        """
        self._index = index
        self.mirror = mirror
        self._fetch_state = fetch_state
        self._is_alive = is_alive
        self._on_endpoints = on_endpoints
        self._clock = clock
        self._registry_interval_s = registry_interval_s
        self._grace_s = grace_s
        self._workers: dict[str, Followed] = {}
        self._by_shared: dict[int, Followed] = {}
        self._incarnation = ""
        self._position = "0"
        self._caught_up = 0
        self._grace_until_s = -float("inf")
        self._free_slots: list[int] = []
        self._next_slot = 0
        self._reloads_at_once = asyncio.Semaphore(_MOST_RELOADS_AT_ONCE)
        self._reloading: set[asyncio.Task[None]] = set()
        self.endpoints: tuple[Endpoint, ...] = ()
        """Live workers, ordered by id; replaced as a whole."""
        self.warm = False
        """The mirror has been filled once."""
        self.available = False
        """The last call to the store succeeded."""
        self.lag_s = 0.0
        """Age of the newest applied batch when it was applied."""
        self.reloads: Counter[str] = Counter()
        """Workers reloaded, by reason: gap, epoch, trimmed, incarnation."""

    async def run(self) -> None:
        """Follow until cancelled; a second time it goes on where it was."""
        for worker in self._workers.values():
            if worker.feed.reloading:  # cut short by the end of the last run
                self._fetch(worker, "again")
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._repeat("registry", self._follow_registry))
                group.create_task(self._repeat("stream", self._follow_stream))
                group.create_task(self._repeat("mirror", self._keep_house))
        finally:
            for task in self._reloading:
                task.cancel()

    async def _repeat(self, name: str, step: Callable[[], Awaitable[None]]) -> None:
        backoff_s = _FIRST_BACKOFF_S
        while True:
            try:
                await step()
                backoff_s = _FIRST_BACKOFF_S
                continue
            except IndexUnavailable as error:
                if self.available:
                    _log.warning(
                        "index not reachable, going on with %d chunks of %d workers: %s", self.mirror.chunks, len(self._workers), error
                    )
                self.available = False
                self._grace_until_s = float("inf")
                self._show_endpoints()
            except Exception:  # noqa: BLE001  the task's top: it logs and begins again
                _log.exception("following the %s failed, trying again", name)
                backoff_s = _MOST_BACKOFF_S
            await asyncio.sleep(random.uniform(0.5, 1.0) * backoff_s)  # noqa: S311  spreading routers, not guarding anything
            backoff_s = min(_MOST_BACKOFF_S, 2 * backoff_s)

    async def _follow_registry(self) -> None:
        await self._read_registry()
        await asyncio.sleep(self._registry_interval_s)

    async def _follow_stream(self) -> None:
        if not self.warm:
            await self._warm_up()
        position = self._position
        tail = await self._index.tail(position, _TAIL_WAIT_S)
        self._answered()
        if tail.trimmed:
            await self._read_registry()  # an emptied store shows as trimmed as well; the registry tells
        if position != self._position:
            return  # the registry found another incarnation and set the position to its beginning
        if tail.trimmed:
            for worker in list(self._workers.values()):
                self._reload(worker, "trimmed")
        for entry in tail.entries:
            sender = self._by_shared.get(entry.slot)
            if sender is None or sender.feed.epoch != entry.batch.epoch:
                await self._read_registry()
                sender = self._by_shared.get(entry.slot)
            if position != self._position:
                return
            if sender is not None:
                self._take(sender, entry)
        self._position = tail.position
        if len(tail.entries) < _CAUGHT_UP_BELOW:
            self._caught_up += 1

    async def _keep_house(self) -> None:
        self.mirror.expire(self._clock())
        self.mirror.sweep()
        await asyncio.sleep(_HOUSEKEEPING_S)

    async def _warm_up(self) -> None:
        """Fill the mirror from the table; from then on the stream is enough."""
        await self._read_registry()
        warm = await self._index.warm()
        self._position = warm.position
        if warm.incarnation == self._incarnation:
            known = {slot: worker for slot, worker in self._by_shared.items() if warm.heads.get(slot, (0, 0))[0] == worker.feed.epoch}
            self.mirror.put(warm.keys, warm.offsets, warm.slots, {slot: worker.slot for slot, worker in known.items()})
            for slot, worker in known.items():
                worker.feed.sequence = warm.heads[slot][1]
        self.warm = True

    def _take(self, worker: Followed, entry: TailEntry) -> None:
        step = worker.feed.step(entry.batch, republished=entry.republished)
        if step is Step.APPLY:
            self.mirror.apply(worker.slot, entry.batch)
            self.lag_s = entry.age_s
        elif step is Step.RELOAD:
            self._reload(worker, worker.reload_reason or ("gap" if worker.feed.sequence else "epoch"))
        worker.reload_reason = None

    def _reload(self, worker: Followed, reason: str) -> None:
        """Begin to fetch everything the worker holds; its batches wait for that."""
        if worker.feed.reloading:
            return
        self.reloads[reason] += 1
        worker.feed.begin_reload()
        self._fetch(worker, reason)

    def _fetch(self, worker: Followed, reason: str) -> None:
        task = asyncio.create_task(self._reload_until_done(worker, reason))
        self._reloading.add(task)
        task.add_done_callback(self._reloading.discard)

    async def _reload_until_done(self, worker: Followed, reason: str) -> None:
        feed = worker.feed
        while self._workers.get(worker.record.id) is worker and worker.feed is feed:
            async with self._reloads_at_once:
                state = await self._state_of(worker)
            if state is not None and not feed.overflowed:
                break
            feed.begin_reload()
            feed.held_back.clear()
            await asyncio.sleep(random.uniform(0.1, 0.5))  # noqa: S311
        else:
            return  # gone, or another process by now
        self.mirror.load(worker.slot, state)
        for batch, republished in feed.end_reload(state.sequence):
            self._take(worker, TailEntry("", 0, batch, 0.0, republished))
        _log.info("worker %s reloaded (%s): %d chunks as of batch %d", worker.record.id, reason, len(state.keys), state.sequence)

    async def _state_of(self, worker: Followed) -> KvState | None:
        """From the worker itself, else from the table; None when neither has this epoch now."""
        if self._fetch_state is not None:
            try:
                async with asyncio.timeout(_RELOAD_TIMEOUT_S):
                    state = await self._fetch_state(worker.record)
                if state is not None and state.epoch == worker.feed.epoch:
                    return state
            except Exception as error:  # noqa: BLE001  whatever a worker answers must not end the follower; the table is asked instead
                _log.info("worker %s does not give its chunks (%s: %s), reading the table", worker.record.id, type(error).__name__, error)
        if worker.shared_slot is None:
            return None
        try:
            state = await self._index.state_of(worker.shared_slot)
        except IndexUnavailable:
            return None
        return state if state is not None and state.epoch == worker.feed.epoch else None

    async def _read_registry(self) -> None:
        registry = await self._index.registry()
        self._answered()
        self._take_registry(registry)

    def _answered(self) -> None:
        if not self.available:
            self.available = True
            if self._grace_until_s == float("inf"):
                _log.info("index reachable again")
                self._grace_until_s = self._clock() + self._grace_s

    def _take_registry(self, registry: Registry) -> None:
        """Make the known workers those of the registry, keeping who is only missing because the store lost them."""
        now_s = self._clock()
        if registry.incarnation != self._incarnation:
            if self._incarnation:
                _log.warning("the index came back empty (incarnation %s, was %s)", registry.incarnation, self._incarnation)
                self._grace_until_s = max(self._grace_until_s, now_s + self._grace_s)
                self._position = "0"
                for worker in self._workers.values():
                    worker.reload_reason, worker.due = "incarnation", None
            self._incarnation = registry.incarnation
        for worker in self._workers.values():
            worker.shared_slot = None
        self._by_shared = {}
        for row in registry.rows:
            self._by_shared[row.slot] = self._take_row(row, now_s)
        for worker in [worker for worker in self._workers.values() if worker.shared_slot is None]:
            if now_s >= self._grace_until_s or not self._is_alive(worker.endpoint):
                self._forget(worker)
        self._show_endpoints()

    def _take_row(self, row: Registered, now_s: float) -> Followed:
        worker = self._workers.get(row.record.id)
        if worker is not None and worker.record.epoch != row.record.epoch:
            self._forget(worker)
            worker = None
        if worker is None:
            worker = self._workers[row.record.id] = Followed(row.record, self._take_slot(), row.slot)
        if worker.due is not None and self._caught_up > worker.due[1]:
            if worker.feed.sequence < worker.due[0] and self.warm:
                self._reload(worker, "gap")  # the stream has been read beyond it, and the batch was not there
            worker.due = None
        if worker.due is None and row.sequence > worker.feed.sequence:
            worker.due = (row.sequence, self._caught_up)
        worker.record, worker.shared_slot, worker.load = row.record, row.slot, row.load
        worker.lease_until_s = now_s + row.lease_s
        return worker

    def _forget(self, worker: Followed) -> None:
        del self._workers[worker.record.id]
        self.mirror.drop(worker.slot)
        self._free_slots.append(worker.slot)

    def _take_slot(self) -> int:
        if self._free_slots:
            return self._free_slots.pop()
        self._next_slot += 1
        return self._next_slot - 1

    def _show_endpoints(self) -> None:
        """Live: its lease runs; or, while leases do not count, requests or probes to it succeed."""
        now_s = self._clock()
        in_grace = now_s < self._grace_until_s
        live = []
        for _, worker in sorted(self._workers.items()):
            draining = worker.load.draining if worker.load is not None else False
            worker.endpoint = Endpoint(worker.record, worker.slot, worker.load, draining)
            if worker.lease_until_s > now_s or (in_grace and self._is_alive(worker.endpoint)):
                live.append(worker.endpoint)
        endpoints = tuple(live)
        if endpoints != self.endpoints:
            self.endpoints = endpoints
            self._on_endpoints(endpoints)
