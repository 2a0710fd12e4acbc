"""The list of served models and their targets, on a real Redis: who gets on it, who drops off, and what is written."""

import asyncio
from collections.abc import Callable

import pytest
from penstock_cli.redis_server import RedisServer
from penstock_core.endpoint import WorkerRecord
from penstock_core.errors import IndexUnavailable
from penstock_core.slo import Slo
from penstock_kvindex import redis as kv_redis
from penstock_kvindex.calls import connect
from penstock_kvindex.models import KEY, KNOWN_S, SLO_KEY, ServedModels
from penstock_kvindex.redis import RedisIndex


def test_a_registered_workers_model_is_listed_until_nobody_renews(
    make_redis_server: Callable[[], RedisServer], make_record: Callable[..., WorkerRecord], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Registering puts it there, renewing keeps it there, and one not heard of for KNOWN_S is no longer given."""

    async def scenario() -> None:
        url = make_redis_server().url
        index, models, redis = RedisIndex(url, "llama/{x}"), ServedModels(url), connect(url, 2.0)
        try:
            assert await models.names() == ()
            lease = await index.register(make_record(1))
            assert await models.names() == ("llama/{x}",)
            age_ms = (KNOWN_S + 5) * 1_000
            await redis.zincrby(KEY, -age_ms, "llama/{x}")
            assert await models.names() == ()
            monkeypatch.setattr(kv_redis, "ANNOUNCE_S", 0.0)
            assert await index.renew(lease, 1_001, None)
            assert await models.names() == ("llama/{x}",)
        finally:
            for one in (index, models, redis):
                await one.aclose()

    asyncio.run(scenario())


def test_an_old_name_goes_when_another_is_announced(
    make_redis_server: Callable[[], RedisServer], make_record: Callable[..., WorkerRecord]
) -> None:
    """The list holds what is served, not everything that ever was."""

    async def scenario() -> None:
        url = make_redis_server().url
        redis, index = connect(url, 2.0), RedisIndex(url, "new")
        try:
            await redis.zadd(KEY, {"old": 1})
            await index.register(make_record(1))
            assert await redis.zrange(KEY, 0, -1) == [b"new"]
        finally:
            await redis.aclose()
            await index.aclose()

    asyncio.run(scenario())


def test_targets_are_what_was_set_last(make_redis_server: Callable[[], RedisServer]) -> None:
    """All of them, those set before and not again are gone, and what nobody can read counts as none."""

    async def scenario() -> None:
        url = make_redis_server().url
        models, redis = ServedModels(url), connect(url, 2.0)
        try:
            assert await models.targets(()) == await models.targets(("a",)) == {}
            assert await models.set_targets({"a": Slo(0.5, 0.05), "llama/{x}": Slo(9.0, 0.1)}) == 2
            assert await models.targets(("llama/{x}", "none", "a")) == {"a": Slo(0.5, 0.05), "llama/{x}": Slo(9.0, 0.1)}
            assert await models.set_targets({"a": Slo(0.7, 0.05)}) == 2
            assert await models.targets(("a", "llama/{x}")) == {"a": Slo(0.7, 0.05)}
            for spoilt in (b"\xff", b"{}x", b'{"ttft_s": -1}', b'{"ttft_s": "1"}'):
                await redis.hset(SLO_KEY, "a", spoilt)
                assert await models.targets(("a",)) == {}
        finally:
            await models.aclose()
            await redis.aclose()

    asyncio.run(scenario())


def test_targets_are_written_only_where_redis_differs(make_redis_server: Callable[[], RedisServer]) -> None:
    """Set again they write nothing, by Redis' own count; in an emptied Redis they are written again; a client that is lent stays open."""

    async def scenario() -> None:
        url = make_redis_server().url
        redis = connect(url, 2.0)
        models, wanted = ServedModels(url, client=redis), {"a": Slo(0.5, 0.05), "b": Slo(0.6, 0.05)}

        async def changes() -> int:
            return int((await redis.info("persistence"))["rdb_changes_since_last_save"])

        try:
            assert await models.set_targets(wanted) == 2
            before = await changes()
            assert await models.set_targets(wanted) == 0 and await changes() == before
            assert await models.set_targets(wanted | {"b": Slo(0.7, 0.05)}) == 1 and await changes() == before + 1
            await redis.flushall()
            assert await models.set_targets(wanted) == 2 and await models.targets(("a", "b")) == wanted
            await models.aclose()
            assert await redis.ping()
        finally:
            await redis.aclose()

    asyncio.run(scenario())


def test_redis_away_is_said_so() -> None:
    """Not an empty list, on which routers would leave their models."""

    async def scenario() -> None:
        models = ServedModels("redis://127.0.0.1:1/0", timeout_s=1.0)
        try:
            with pytest.raises(IndexUnavailable, match="penstock:models"):
                await models.names()
            with pytest.raises(IndexUnavailable, match="penstock:slo"):
                await models.targets(("a",))
            with pytest.raises(IndexUnavailable, match="penstock:slo"):
                await models.set_targets({})
        finally:
            await models.aclose()

    asyncio.run(scenario())
