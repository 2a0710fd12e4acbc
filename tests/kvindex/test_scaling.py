"""The right to scale a model, and what its holder keeps, on a real Redis."""

import asyncio
from collections.abc import Awaitable, Callable

import pytest
from penstock_cli.redis_server import RedisServer
from penstock_core.errors import IndexUnavailable
from penstock_kvindex.calls import connect
from penstock_kvindex.scaling import MOST_MEMORY_BYTES, MOST_TOLD, MemoryTooLarge, ScalingStore

LONG_S = 600.0


def on_redis(url: str, model: str, story: Callable[[ScalingStore], Awaitable[None]]) -> None:
    async def told() -> None:
        store = ScalingStore(url, model, timeout_s=30.0)
        try:
            await story(store)
        finally:
            await store.aclose()

    asyncio.run(told())


def test_one_holds_the_right_until_it_gives_it_back(redis_url: str, unused_model: str) -> None:
    """Others are refused meanwhile, the holder renews, and what others give back is not theirs to give."""

    async def story(store: ScalingStore) -> None:
        assert await store.hold("a", LONG_S)
        assert not await store.hold("b", LONG_S)
        assert await store.hold("a", LONG_S)
        await store.release("b")
        assert not await store.hold("b", LONG_S)
        await store.release("a")
        assert await store.hold("b", LONG_S)

    on_redis(redis_url, unused_model, story)


def test_a_holder_that_died_is_replaced(redis_url: str, unused_model: str) -> None:
    """The right runs out by Redis' own clock."""

    async def story(store: ScalingStore) -> None:
        assert await store.hold("dead", 0.05)
        async with asyncio.timeout(60):
            while not await store.hold("b", LONG_S):  # noqa: ASYNC110 -- Redis tells nobody
                await asyncio.sleep(0.01)

    on_redis(redis_url, unused_model, story)


def test_only_the_holder_keeps_anything(redis_url: str, unused_model: str) -> None:
    """A former holder's memory and decision change nothing, in part or whole."""

    async def story(store: ScalingStore) -> None:
        assert await store.memory() is None
        assert not await store.keep("a", b"m", b"t", again=False)
        await store.hold("a", LONG_S)
        assert await store.keep("a", b"m1", b"t1", again=True)
        await store.release("a")
        await store.hold("b", LONG_S)
        assert not await store.keep("a", b"m2", b"t2", again=False)
        assert (await store.memory(), await store.told()) == (b"m1", [b"t1"])

    on_redis(redis_url, unused_model, story)


def test_decisions_are_kept_newest_first_and_repetitions_once(redis_url: str, unused_model: str) -> None:
    """A hundred rounds of the same take one place; the oldest go; all of it goes by itself in the end."""

    async def story(store: ScalingStore) -> None:
        redis = connect(redis_url, 30.0)
        try:
            await store.hold("a", LONG_S)
            for number in range(MOST_TOLD + 50):
                await store.keep("a", b"m", b"%d" % number, again=False)
            await store.keep("a", b"m", b"last, again", again=True)
            told = await store.told()
            assert (len(told), told[0], told[1]) == (MOST_TOLD, b"last, again", b"%d" % (MOST_TOLD + 48))
            assert await store.told(2) == told[:2]
            for key in ("scaler", "scaler-memory", "scaler-told"):
                assert await redis.pttl(f"penstock:{{{unused_model}}}:{key}") > 0
        finally:
            await redis.aclose()

    on_redis(redis_url, unused_model, story)


def test_a_memory_beyond_the_bound_is_refused(redis_url: str, unused_model: str) -> None:
    """Nothing of it reaches Redis."""

    async def story(store: ScalingStore) -> None:
        await store.hold("a", LONG_S)
        with pytest.raises(MemoryTooLarge, match="allowed: up to"):
            await store.keep("a", bytes(MOST_MEMORY_BYTES + 1), b"t", again=False)
        assert await store.memory() is None

    on_redis(redis_url, unused_model, story)


def test_redis_away_is_said(make_redis_server: Callable[[], RedisServer]) -> None:
    """Every call raises IndexUnavailable."""

    async def story() -> None:
        server = make_redis_server()
        store = ScalingStore(server.url, "m")
        try:
            server.stop()
            for call in (store.hold("a"), store.release("a"), store.keep("a", b"", b"", again=False), store.memory(), store.told()):
                with pytest.raises(IndexUnavailable):
                    await call
        finally:
            await store.aclose()

    asyncio.run(story())
