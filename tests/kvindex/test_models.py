"""The list of served models, on a real Redis: who gets on it, and who drops off."""

import asyncio
from collections.abc import Callable

import pytest
from penstock_cli.redis_server import RedisServer
from penstock_core.endpoint import WorkerRecord
from penstock_core.errors import IndexUnavailable
from penstock_kvindex import redis as kv_redis
from penstock_kvindex.calls import connect
from penstock_kvindex.models import KEY, KNOWN_S, ServedModels
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


def test_redis_away_is_said_so() -> None:
    """Not an empty list, on which routers would leave their models."""

    async def scenario() -> None:
        models = ServedModels("redis://127.0.0.1:1/0", timeout_s=1.0)
        try:
            with pytest.raises(IndexUnavailable, match="penstock:models"):
                await models.names()
        finally:
            await models.aclose()

    asyncio.run(scenario())
