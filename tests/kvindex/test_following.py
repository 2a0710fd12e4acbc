"""Publishers, a real Redis and a follower together: whatever happens in between, in the end all three agree."""

import asyncio
import os
import random
import signal
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager

import numpy as np
import pytest
from penstock_cli.redis_server import RedisServer
from penstock_core.endpoint import Endpoint, Load, WorkerRecord
from penstock_core.kv_events import KvBatch, KvState
from penstock_kvindex.index import SharedIndex
from penstock_kvindex.janitor import run_janitor
from penstock_kvindex.memory import MemoryIndex
from penstock_kvindex.mirror import Mirror
from penstock_kvindex.publisher import Publisher
from penstock_kvindex.redis import RedisIndex
from penstock_kvindex.tail import Follower

MakeRecord = Callable[..., WorkerRecord]


async def until(met: Callable[[], bool], what: str) -> None:
    """Wait for a condition that must come true."""
    deadline = time.monotonic() + 60
    while not met():
        assert time.monotonic() < deadline, what
        await asyncio.sleep(0.01)


class Fleet:
    """Some publishers with random traffic and one follower, each with its own connection to the same store."""

    def __init__(self, open_index: Callable[[], SharedIndex], **follower: object) -> None:
        self.open_index = open_index
        self.publishers: dict[str, Publisher] = {}
        self.tasks: dict[str, asyncio.Task[None]] = {}
        self.indexes: list[SharedIndex] = []
        self.random = random.Random(11)
        self.sightings: list[int] = []
        self.follower = Follower(self.index(), Mirror(), on_endpoints=self.see, registry_interval_s=0.05, **follower)
        self.traffic_task: asyncio.Task[None] | None = None

    def index(self) -> SharedIndex:
        self.indexes.append(self.open_index())
        return self.indexes[-1]

    def see(self, endpoints: tuple[Endpoint, ...]) -> None:
        self.sightings.append(len(endpoints))

    def follow(self) -> None:
        self.tasks["follower"] = asyncio.create_task(self.follower.run())

    async def stop(self, name: str) -> None:
        task = self.tasks.pop(name)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)

    def start_worker(self, record: WorkerRecord, **settings: object) -> Publisher:
        publisher = Publisher(self.index(), record, jitter_s=0.05, **settings)
        self.publishers[record.id] = publisher
        self.tasks[record.id] = asyncio.create_task(publisher.run())
        return publisher

    def change_something(self) -> None:
        """Each worker gets some chunks of a common pool and loses some."""
        for publisher in self.publishers.values():
            some = [number * 0x9E3779B97F4A7C15 % 2**64 for number in self.random.sample(range(1, 400), 8)]
            publisher.publish(some[:5], some[5:])

    async def traffic(self) -> None:
        while True:
            self.change_something()
            await asyncio.sleep(0.002)

    def start_traffic(self) -> None:
        self.tasks["traffic"] = asyncio.create_task(self.traffic())

    def in_step(self) -> bool:
        """The mirror has exactly what each worker has."""
        slots = {endpoint.id: endpoint.slot for endpoint in self.follower.endpoints}
        return set(slots) == set(self.publishers) and all(
            self.follower.mirror.held_by(slots[name]).tolist() == sorted(publisher.state().keys.tolist())
            for name, publisher in self.publishers.items()
        )

    async def agrees(self) -> None:
        """Mirror = table = the workers' own lists, once the traffic has stopped."""
        if "traffic" in self.tasks:
            await self.stop("traffic")
        await until(lambda: all(publisher.settled for publisher in self.publishers.values()), "publishers settle")
        await until(self.in_step, "the mirror comes into step")
        for publisher in self.publishers.values():
            assert publisher.lease is not None
            state = await self.indexes[0].state_of(publisher.lease.slot)
            assert state is not None
            assert sorted(state.keys.tolist()) == sorted(publisher.state().keys.tolist())
            assert publisher.lag_s == 0.0 or publisher.settled

    async def fetch_state(self, record: WorkerRecord) -> KvState | None:
        """What `GET /penstock/kv` of a worker gives."""
        return self.publishers[record.id].state()


@asynccontextmanager
async def fleet_of(fleet: Fleet) -> AsyncIterator[Fleet]:
    try:
        yield fleet
    finally:
        for name in list(fleet.tasks):
            await fleet.stop(name)
        for index in fleet.indexes:
            await index.aclose()


@pytest.fixture(params=["memory", "redis"])
def open_store(request: pytest.FixtureRequest) -> Callable[..., Callable[[], SharedIndex]]:
    """Gives, for some settings, a function that opens the same store each time it is called."""

    def store(**settings: float) -> Callable[[], SharedIndex]:
        if request.param == "memory":
            shared = MemoryIndex(**settings)
            return lambda: shared
        url, model = request.getfixturevalue("redis_url"), request.getfixturevalue("unused_model")
        return lambda: RedisIndex(url, model, timeout_s=30.0, **settings)

    return store


OpenStore = Callable[..., Callable[[], SharedIndex]]


def test_a_follower_that_comes_late_ends_with_what_the_workers_have(open_store: OpenStore, make_record: MakeRecord) -> None:
    """Warm start in the middle of traffic, then the stream alone: no reload is needed."""

    async def story() -> None:
        async with fleet_of(Fleet(open_store())) as fleet:
            for number in range(4):
                fleet.start_worker(make_record(number), load=lambda: Load(running=7))
            fleet.start_traffic()
            await until(lambda: all(publisher.state().sequence > 5 for publisher in fleet.publishers.values()), "batches are published")
            fleet.follow()
            await until(lambda: fleet.follower.warm and len(fleet.follower.endpoints) == 4, "the follower is warm")
            seen = fleet.publishers["worker-0"].state().sequence
            await until(lambda: fleet.publishers["worker-0"].state().sequence > seen + 10, "more batches")
            await fleet.agrees()
            assert fleet.follower.reloads == {}
            assert [endpoint.load for endpoint in fleet.follower.endpoints] == [Load(running=7)] * 4

    asyncio.run(story())


def test_a_follower_that_missed_trimmed_batches_reloads_the_workers(open_store: OpenStore, make_record: MakeRecord) -> None:
    """Batches lost to the bound of the stream are made good from the workers' own lists, or from the table."""

    async def story() -> None:
        async with fleet_of(Fleet(open_store(kept_batches=8))) as fleet:
            fleet.start_worker(make_record(0), gather_s=0.0)
            fleet.follow()
            fleet.start_traffic()
            await until(lambda: fleet.follower.warm and fleet.follower.mirror.chunks > 0, "the follower is warm")
            await fleet.stop("follower")
            before = fleet.publishers["worker-0"].state().sequence
            await until(lambda: fleet.publishers["worker-0"].state().sequence > before + 300, "the stream is trimmed")
            fleet.follow()
            await fleet.agrees()
            assert fleet.follower.reloads["trimmed"] >= 1

    asyncio.run(story())


def test_a_follower_stopped_in_the_middle_of_a_reload_takes_it_up_again(open_store: OpenStore, make_record: MakeRecord) -> None:
    """Else everything that worker says would be held back for ever."""

    async def story() -> None:
        async with fleet_of(Fleet(open_store())) as fleet:
            fleet.start_worker(make_record(0))
            fleet.follow()
            fleet.start_traffic()
            await until(lambda: fleet.follower.mirror.chunks > 0, "the follower is warm")
            asked = asyncio.Event()

            async def never(_record: WorkerRecord) -> None:
                asked.set()
                await asyncio.Event().wait()

            fleet.follower._fetch_state = never
            fleet.follower._reload(fleet.follower._workers["worker-0"], "gap")
            await asked.wait()
            await fleet.stop("follower")
            fleet.follower._fetch_state = None
            fleet.follow()
            await fleet.agrees()

    asyncio.run(story())


def test_a_restarted_worker_starts_empty_in_the_mirror(open_store: OpenStore, make_record: MakeRecord) -> None:
    """Another epoch of the same id: nothing of the old process is credited to the new one."""

    async def story() -> None:
        async with fleet_of(Fleet(open_store())) as fleet:
            for number in range(2):
                fleet.start_worker(make_record(number))
            fleet.follow()
            fleet.start_traffic()
            await until(lambda: fleet.follower.mirror.chunks > 100, "chunks are mirrored")
            await fleet.stop("worker-1")
            fleet.start_worker(make_record(1, epoch=99))
            await until(lambda: any(endpoint.record.epoch == 99 for endpoint in fleet.follower.endpoints), "the new process is seen")
            await fleet.agrees()

    asyncio.run(story())


def test_a_drained_worker_leaves_at_once_and_its_slot_is_clean_for_the_next(open_store: OpenStore, make_record: MakeRecord) -> None:
    """Leaving takes the endpoint away without waiting for the lease; the janitor clears the slot; a newcomer may get it."""

    async def story() -> None:
        async with fleet_of(Fleet(open_store(most_slots=2))) as fleet:
            for number in range(2):
                fleet.start_worker(make_record(number))
            fleet.follow()
            fleet.start_traffic()
            fleet.tasks["janitor"] = asyncio.create_task(run_janitor(fleet.index(), interval_s=0.01, buckets=1 << 20))
            await until(lambda: len(fleet.follower.endpoints) == 2 and fleet.follower.mirror.chunks > 100, "both are seen")
            await fleet.publishers.pop("worker-0").leave()
            await until(lambda: [endpoint.id for endpoint in fleet.follower.endpoints] == ["worker-1"], "it is gone")
            fleet.start_worker(make_record(5))
            await until(lambda: len(fleet.follower.endpoints) == 2, "the newcomer has the slot")
            await fleet.agrees()

    asyncio.run(story())


def test_a_publisher_that_cannot_keep_up_republishes_and_readers_notice(open_store: OpenStore, make_record: MakeRecord) -> None:
    """More changes than the bound are forgotten as changes and made good as a whole; the reader reloads for the gap."""

    async def story() -> None:
        async with fleet_of(Fleet(open_store())) as fleet:
            publisher = fleet.start_worker(make_record(0), most_pending=50)
            fleet.follow()
            publisher.publish(range(1, 11))
            await until(lambda: publisher.settled and fleet.follower.warm and fleet.in_step(), "a first batch")
            publisher.publish(range(100, 200), range(1, 5))
            publisher.publish(range(300, 310))
            await fleet.agrees()
            assert publisher.reloads == 1
            assert fleet.follower.reloads == {"gap": 1}
            publisher.cleared()
            publisher.publish([5, 6])
            await fleet.agrees()

    asyncio.run(story())


def test_redis_restarted_empty_under_traffic_is_filled_again(make_redis_server: Callable[[], RedisServer], make_record: MakeRecord) -> None:
    """No endpoint is lost for a moment, every worker comes back by itself, and all three agree in the end."""

    async def story() -> None:
        server = make_redis_server()
        fleet = Fleet(lambda: RedisIndex(server.url, "m", timeout_s=1.0))
        fleet.follower._fetch_state = fleet.fetch_state
        async with fleet_of(fleet):
            for number in range(4):
                fleet.start_worker(make_record(number))
            fleet.follow()
            fleet.start_traffic()
            await until(lambda: len(fleet.follower.endpoints) == 4 and fleet.follower.mirror.chunks > 100, "all are seen")
            leases = {name: publisher.lease for name, publisher in fleet.publishers.items()}
            fleet.sightings.clear()
            server.stop()
            await until(lambda: not fleet.follower.available, "the loss is noticed")
            assert fleet.follower.mirror.chunks > 100
            server.start()
            await until(
                lambda: all(p.lease is not None and p.lease.incarnation != leases[n].incarnation for n, p in fleet.publishers.items()),
                "all have registered again",
            )
            await fleet.agrees()
            assert set(fleet.sightings) <= {4}

    asyncio.run(story())


def test_redis_away_longer_than_a_lease_stops_nothing(make_redis_server: Callable[[], RedisServer], make_record: MakeRecord) -> None:
    """Paused for three leases under traffic: the same endpoints throughout, then the publishers resume without a republish."""

    async def story() -> None:
        server = make_redis_server()
        async with fleet_of(Fleet(lambda: RedisIndex(server.url, "m", timeout_s=0.3, lease_s=0.5))) as fleet:
            for number in range(3):
                fleet.start_worker(make_record(number))
            fleet.follow()
            fleet.start_traffic()
            await until(lambda: len(fleet.follower.endpoints) == 3 and fleet.follower.mirror.chunks > 100, "all are seen")
            fleet.sightings.clear()
            assert server.pid is not None
            os.kill(server.pid, signal.SIGSTOP)
            paused_s = time.monotonic()
            await until(lambda: not fleet.follower.available, "the loss is noticed")
            await until(lambda: time.monotonic() > paused_s + 1.5, "three leases pass")
            os.kill(server.pid, signal.SIGCONT)
            await until(lambda: fleet.follower.available, "it answers again")
            await fleet.agrees()
            assert set(fleet.sightings) <= {3}
            assert [publisher.reloads for publisher in fleet.publishers.values()] == [0, 0, 0]

    asyncio.run(story())


def test_a_worker_that_died_while_redis_was_away_is_not_live_when_its_probes_fail(
    make_redis_server: Callable[[], RedisServer], make_record: MakeRecord
) -> None:
    """While leases do not count, the router's own word does; afterwards the lease counts again."""

    async def story() -> None:
        server = make_redis_server()
        dead: set[str] = set()
        fleet = Fleet(
            lambda: RedisIndex(server.url, "m", timeout_s=0.3, lease_s=1.0), is_alive=lambda endpoint: endpoint.id not in dead, grace_s=1.0
        )
        async with fleet_of(fleet):
            for number in range(2):
                fleet.start_worker(make_record(number))
            fleet.follow()
            await until(lambda: len(fleet.follower.endpoints) == 2, "all are seen")
            server.stop()
            await fleet.stop("worker-0")
            await until(lambda: not fleet.follower.available, "the loss is noticed")
            dead.add("worker-0")
            await until(lambda: [endpoint.id for endpoint in fleet.follower.endpoints] == ["worker-1"], "the dead one is gone")
            server.start()
            dead.clear()
            await until(lambda: fleet.publishers["worker-1"].settled, "the other one is back")
            await until(lambda: [endpoint.id for endpoint in fleet.follower.endpoints] == ["worker-1"], "and alone, by lease")

    asyncio.run(story())


def test_a_republish_cut_off_in_the_middle_is_made_whole_by_the_next(redis_url: str, unused_model: str, make_record: MakeRecord) -> None:
    """Whatever piece it stopped after: until it is done again nothing can be published, and then no stale chunk is left."""

    async def story() -> None:
        index = RedisIndex(redis_url, unused_model, timeout_s=30.0)
        numbers = np.random.default_rng(2)
        lease = await index.register(make_record(0))
        for attempt in range(6):
            state = KvState(1_000, 1, numbers.integers(0, 2**64, 30_000, dtype=np.uint64))
            republish = asyncio.create_task(index.republish(lease, state))
            before = await index.chunks()
            while not republish.done():
                if await index.chunks() != before:
                    break
            if attempt % 2:
                await asyncio.sleep(0.01)
            republish.cancel()
            done = (await asyncio.gather(republish, return_exceptions=True))[0] is True
            assert await index.publish(lease, KvBatch(1_000, 1)) is done
        final = KvState(1_000, 9, numbers.integers(0, 2**64, 5_000, dtype=np.uint64))
        assert await index.republish(lease, final)
        held = await index.state_of(lease.slot)
        assert held is not None
        assert sorted(held.keys.tolist()) == sorted(final.keys.tolist())
        assert await index.chunks() == 5_000
        await index.aclose()

    asyncio.run(story())


def test_bytes_a_chunk_in_redis_stay_within_their_bound(make_redis_server: Callable[[], RedisServer], make_record: MakeRecord) -> None:
    """100,000 chunks with two of 64 holders each, in a table made for 100,000: at most 40 bytes a chunk, all buckets compact."""

    async def story() -> None:
        server = make_redis_server()
        index = RedisIndex(server.url, "m", timeout_s=30.0, max_chunks=100_000)
        leases = [await index.register(make_record(number)) for number in range(64)]
        before = int((await index._redis.info("memory"))["used_memory"])
        keys = np.random.default_rng(4).integers(0, 2**64, 100_000, dtype=np.uint64)
        for number, lease in enumerate(leases):
            state = np.concatenate([np.array_split(keys, 64)[number], np.array_split(keys, 64)[(number + 7) % 64]])
            assert await index.republish(lease, KvState(1_000 + number, 1, state))
        assert await index.chunks() == 100_000
        assert int((await index._redis.info("memory"))["used_memory"]) - before <= 40 * 100_000
        encodings = {await index._redis.object("encoding", name) async for name in index._redis.scan_iter("*:t:*", count=1_000)}
        assert encodings <= {b"listpack", b"ziplist"}
        await index.aclose()

    asyncio.run(story())
