"""One suite for every implementation of `SharedIndex`: memory, and Redis as a real server."""

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AbstractAsyncContextManager, asynccontextmanager

import numpy as np
import pytest
from penstock_core.endpoint import Load, WorkerRecord
from penstock_core.kv_events import KvBatch, KvState
from penstock_kvindex.index import Lease, NoFreeSlot, SharedIndex
from penstock_kvindex.memory import MemoryIndex
from penstock_kvindex.redis import RedisIndex

MakeRecord = Callable[..., WorkerRecord]
OpenIndex = Callable[..., AbstractAsyncContextManager[SharedIndex]]


@pytest.fixture(params=["memory", "redis"])
def open_index(request: pytest.FixtureRequest) -> OpenIndex:
    """Opens an empty index with the settings given."""
    if request.param == "redis":
        url, model = request.getfixturevalue("redis_url"), request.getfixturevalue("unused_model")

    @asynccontextmanager
    async def opened(**settings: float) -> AsyncIterator[SharedIndex]:
        index: SharedIndex = RedisIndex(url, model, timeout_s=30.0, **settings) if request.param == "redis" else MemoryIndex(**settings)
        yield index
        await index.aclose()

    return opened


def keys(*numbers: int) -> np.ndarray:
    """Keys spread over all buckets."""
    return np.array([number * 0x9E3779B97F4A7C15 % 2**64 for number in numbers], np.uint64)


async def held(index: SharedIndex, *numbers: int) -> list[tuple[int, ...]]:
    return await index.holders(keys(*numbers).tolist())


async def until(met: Callable[[], Awaitable[bool]]) -> None:
    """Poll a condition that must come true."""
    deadline = time.monotonic() + 60
    while not await met():
        assert time.monotonic() < deadline
        await asyncio.sleep(0.005)


async def swept(index: SharedIndex, slot: int) -> None:
    """Let the janitor finish the pass that takes the slot out."""

    async def free() -> bool:
        await index.sweep(1 << 20)
        return not any(slot in slots for slots in await index.holders(keys(*range(1, 200)).tolist()))

    await until(free)
    await index.sweep(1 << 20)


def test_registering_gives_distinct_slots_and_the_registry_shows_them(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """Each worker has a slot of its own, a running lease, its record as it wrote it, and no load until it reports one."""

    async def story() -> None:
        async with open_index() as index:
            leases = [await index.register(make_record(number)) for number in range(5)]
            assert len({lease.slot for lease in leases}) == 5
            rows = {row.slot: row for row in (await index.registry()).rows}
            for number, lease in enumerate(leases):
                row = rows[lease.slot]
                assert row.record == make_record(number)
                assert 0 < row.lease_s <= 5.0
                assert (row.load, row.sequence) == (None, 0)
            assert {lease.incarnation for lease in leases} == {(await index.registry()).incarnation}

    asyncio.run(story())


def test_registering_again_keeps_the_slot_and_another_epoch_gets_a_clean_one(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """A repeated call changes nothing; a restarted worker starts empty in another slot and the old one publishes no more."""

    async def story() -> None:
        async with open_index() as index:
            first = await index.register(make_record(1))
            assert await index.publish(first, KvBatch(1_001, 1, added=keys(1, 2)))
            assert await index.register(make_record(1)) == first
            assert await index.publish(first, KvBatch(1_001, 2, added=keys(3)))
            second = await index.register(make_record(1, epoch=2**64 - 1))
            assert second.slot != first.slot
            assert [row.slot for row in (await index.registry()).rows] == [second.slot]
            assert not await index.publish(first, KvBatch(1_001, 3, added=keys(4)))
            assert not await index.renew(first, 1_001, None)
            assert await index.publish(second, KvBatch(2**64 - 1, 1, added=keys(1)))
            assert (await index.state_of(second.slot)).keys.tolist() == keys(1).tolist()
            assert await index.state_of(first.slot) is None

    asyncio.run(story())


def test_batches_change_the_table_once_and_in_order(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """Removed goes before added, a repeated batch is applied no second time, a gap is refused and changes nothing."""

    async def story() -> None:
        async with open_index() as index:
            a, b = [await index.register(make_record(number)) for number in (1, 2)]
            assert await index.publish(a, KvBatch(1_001, 1, added=keys(1, 2, 3)))
            assert await index.publish(b, KvBatch(1_002, 1, added=keys(2, 3)))
            assert await held(index, 1, 2, 3, 4) == [(a.slot,), tuple(sorted((a.slot, b.slot))), tuple(sorted((a.slot, b.slot))), ()]
            assert await index.publish(a, KvBatch(1_001, 2, added=keys(3), removed=keys(1, 3)))
            assert await index.publish(a, KvBatch(1_001, 1, added=keys(1)))
            assert not await index.publish(a, KvBatch(1_001, 4, added=keys(9)))
            assert not await index.publish(a, KvBatch(77, 3, added=keys(9)))
            assert await held(index, 1, 3, 9) == [(), tuple(sorted((a.slot, b.slot))), ()]
            assert await index.chunks() == 2
            assert await index.publish(a, KvBatch(1_001, 3, added=keys(5), cleared=True))
            assert await index.publish(a, KvBatch(1_001, 3, added=keys(5), cleared=True))
            assert await held(index, 2, 3, 5) == [(b.slot,), (b.slot,), (a.slot,)]
            assert await index.chunks() == 3
            assert {row.slot: row.sequence for row in (await index.registry()).rows} == {a.slot: 3, b.slot: 1}

    asyncio.run(story())


def test_the_tail_gives_every_batch_in_order_with_its_age(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """A reader sees all batches after its position, exactly as published, and waits when there are none."""

    async def story() -> None:
        async with open_index() as index:
            lease = await index.register(make_record(1))
            start = (await index.warm()).position
            assert (await index.tail(start, 0.01)).entries == ()
            waiting = asyncio.create_task(index.tail(start, 30.0))
            await asyncio.sleep(0)
            await index.publish(lease, KvBatch(1_001, 1, added=keys(1, 2)))
            await index.publish(lease, KvBatch(1_001, 2, removed=keys(1)))
            await index.publish(lease, KvBatch(1_001, 3, cleared=True))
            first = await waiting
            entries = list(first.entries)
            while len(entries) < 3:
                entries += (await index.tail(entries[-1].position, 30.0)).entries
            assert [(entry.slot, entry.batch.epoch, entry.batch.sequence) for entry in entries] == [
                (lease.slot, 1_001, n) for n in (1, 2, 3)
            ]
            assert entries[0].batch.added.tolist() == keys(1, 2).tolist()
            assert entries[1].batch.removed.tolist() == keys(1).tolist()
            assert [entry.batch.cleared for entry in entries] == [False, False, True]
            assert not any(entry.republished for entry in entries)
            assert all(0 <= entry.age_s < 60 for entry in entries)
            assert not first.trimmed

    asyncio.run(story())


def test_a_reader_that_fell_behind_the_trimmed_stream_is_told(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """When entries after its position are gone, `trimmed` says so; a reader at the end is not told."""

    async def story() -> None:
        async with open_index(kept_batches=8) as index:
            lease = await index.register(make_record(1))
            assert await index.publish(lease, KvBatch(1_001, 1, added=keys(1)))
            old = (await index.tail("0", 30.0)).position
            for sequence in range(2, 400):  # Redis trims whole nodes, of 100 entries by default
                assert await index.publish(lease, KvBatch(1_001, sequence, added=keys(sequence)))
            recent = (await index.warm()).position
            assert await index.publish(lease, KvBatch(1_001, 400, added=keys(400)))
            assert (await index.tail(old, 30.0)).trimmed
            assert not (await index.tail(recent, 30.0)).trimmed

    asyncio.run(story())


def test_republishing_replaces_the_whole_of_a_slot_and_nothing_else(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """What the worker no longer holds goes, what others hold stays, numbering goes on from the state's sequence, readers are told."""

    async def story() -> None:
        async with open_index() as index:
            a, b = [await index.register(make_record(number)) for number in (1, 2)]
            await index.publish(a, KvBatch(1_001, 1, added=keys(*range(1, 60))))
            await index.publish(b, KvBatch(1_002, 1, added=keys(*range(1, 30))))
            position = (await index.warm()).position
            assert await index.republish(a, KvState(1_001, 9, keys(*range(20, 80))))
            assert await index.republish(a, KvState(1_001, 9, keys(*range(20, 80))))
            assert not await index.republish(a, KvState(5, 9, keys(1)))
            assert sorted((await index.state_of(a.slot)).keys.tolist()) == sorted(keys(*range(20, 80)).tolist())
            assert sorted((await index.state_of(b.slot)).keys.tolist()) == sorted(keys(*range(1, 30)).tolist())
            assert await index.chunks() == 79
            entry = (await index.tail(position, 30.0)).entries[0]
            assert (entry.slot, entry.batch.sequence, entry.republished) == (a.slot, 9, True)
            assert not await index.publish(a, KvBatch(1_001, 11))
            assert await index.publish(a, KvBatch(1_001, 10, added=keys(1)))

    asyncio.run(story())


def test_a_warm_start_reads_the_whole_table_with_heads_and_position(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """Keys, holders, epochs and sequences are those published; following from the position gives what came after."""

    async def story() -> None:
        async with open_index() as index:
            empty = await index.warm()
            assert (len(empty.keys), empty.offsets.tolist(), empty.heads) == (0, [0], {})
            leases = [await index.register(make_record(number)) for number in range(4)]
            expected: dict[int, set[int]] = {}
            for number, lease in enumerate(leases):
                some = keys(*range(1 + number, 1_500, 1 + number))
                assert await index.publish(lease, KvBatch(1_000 + number, 1, added=some))
                for key in some.tolist():
                    expected.setdefault(key, set()).add(lease.slot)
            warm = await index.warm()
            found = {key: set(warm.slots[warm.offsets[i] : warm.offsets[i + 1]].tolist()) for i, key in enumerate(warm.keys.tolist())}
            assert found == expected
            assert warm.heads == {lease.slot: (1_000 + number, 1) for number, lease in enumerate(leases)}
            await index.publish(leases[0], KvBatch(1_000, 2, removed=keys(1)))
            assert [entry.batch.sequence for entry in (await index.tail(warm.position, 30.0)).entries] == [2]

    asyncio.run(story())


def test_renewing_keeps_a_lease_and_brings_the_load(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """A lease that nobody renews runs out, a renewed one does not; the last load given is kept."""

    async def story() -> None:
        async with open_index(lease_s=0.2) as index:
            kept, lost = [await index.register(make_record(number)) for number in (1, 2)]
            load = Load(running=3, waiting=1, prefill_tokens=900, kv_used_tokens=5, kv_total_tokens=10, draining=True)
            assert await index.renew(kept, 1_001, load)

            async def ran_out() -> bool:
                assert await index.renew(kept, 1_001, None)
                rows = {row.slot: row for row in (await index.registry()).rows}
                assert rows[kept.slot].load == load
                return rows[lost.slot].lease_s <= 0 < rows[kept.slot].lease_s

            await until(ran_out)
            assert await index.renew(lost, 1_002, None), "nobody has given the slot up yet, so the worker may come back"
            assert not await index.renew(lost, 1, None)

    asyncio.run(story())


def test_a_slot_is_used_again_only_after_the_janitor_took_it_out(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """With three slots in all: one left is refused to a newcomer until swept, and then shows none of the dead worker's chunks."""

    async def story() -> None:
        async with open_index(most_slots=3) as index:
            leases = [await index.register(make_record(number)) for number in range(3)]
            for number, lease in enumerate(leases):
                await index.publish(lease, KvBatch(1_000 + number, 1, added=keys(*range(1, 100))))
            await index.leave(leases[1], 1_001)
            await index.leave(leases[1], 1_001)
            await index.leave(leases[2], 7)
            assert len((await index.registry()).rows) == 2
            with pytest.raises(NoFreeSlot):
                await index.register(make_record(8))
            await index.sweep(3)
            with pytest.raises(NoFreeSlot):
                await index.register(make_record(8))
            await swept(index, leases[1].slot)
            newcomer = await index.register(make_record(8))
            assert newcomer.slot == leases[1].slot
            assert (await index.state_of(newcomer.slot)).keys.tolist() == []
            assert await held(index, 1) == [tuple(sorted((leases[0].slot, leases[2].slot)))]

    asyncio.run(story())


def test_the_janitor_gives_up_workers_silent_for_long(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """A worker that stopped renewing loses its slot and its chunks; one that renews keeps both."""

    async def story() -> None:
        async with open_index(lease_s=0.05, forget_s=0.05) as index:
            silent = await index.register(make_record(1))
            await index.publish(silent, KvBatch(1_001, 1, added=keys(1, 2)))

            async def gone() -> bool:
                await index.sweep(1 << 20)
                return (await index.registry()).rows == () and await index.chunks() == 0

            await until(gone)
            assert not await index.renew(silent, 1_001, None)

    asyncio.run(story())


def test_an_overfull_table_loses_dead_chunks_first_then_the_least_shared(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """Over `max_chunks` the janitor drops what nobody holds, then what one worker holds, and stops at the bound."""

    async def story() -> None:
        async with open_index(max_chunks=150) as index:
            a, b, dead = [await index.register(make_record(number)) for number in (1, 2, 3)]
            await index.publish(a, KvBatch(1_001, 1, added=keys(*range(1, 301))))
            await index.publish(b, KvBatch(1_002, 1, added=keys(*range(1, 101))))
            await index.publish(dead, KvBatch(1_003, 1, added=keys(*range(1_000, 1_100))))
            await index.publish(dead, KvBatch(1_003, 2, added=keys(*range(200, 301))))
            await index.leave(dead, 1_003)
            assert await index.chunks() == 400

            async def within() -> bool:
                await index.sweep(1 << 20)
                return await index.chunks() <= 150

            await until(within)
            assert await index.chunks() == 150
            assert await held(index, *range(1, 101)) == [tuple(sorted((a.slot, b.slot)))] * 100
            assert await held(index, *range(1_000, 1_100)) == [()] * 100

    asyncio.run(story())


def test_a_wide_holder_list_stays_sorted_and_exact(open_index: OpenIndex, make_record: MakeRecord) -> None:
    """Three hundred workers come to and leave one chunk in any order; its holders are always the right ones."""

    async def story() -> None:
        async with open_index() as index:
            leases: list[Lease] = [await index.register(make_record(number)) for number in range(300)]
            order = np.random.default_rng(5).permutation(300).tolist()
            for number in order:
                await index.publish(leases[number], KvBatch(1_000 + number, 1, added=keys(7)))
            for number in order[:150]:
                await index.publish(leases[number], KvBatch(1_000 + number, 2, removed=keys(7)))
            assert await held(index, 7) == [tuple(sorted(leases[number].slot for number in order[150:]))]

    asyncio.run(story())
