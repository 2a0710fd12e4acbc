"""Which served models a Redis holds workers of, their latency targets, and which of them are woken from zero replicas: routers ask it.

One sorted set, `penstock:models`: model → when one of its workers last said so, in milliseconds of Redis' own time. `RedisIndex`
announces when a worker registers and now and then while it renews; names that nobody has announced for long go by themselves.
A set of its own and not the models' keys, which are found only by a scan. Beside it one hash, `penstock:slo`: model → its `Slo` as
JSON. The operator writes it, one operator a Redis; a model that is not in it has nobody who sets its targets. And a second sorted set,
`penstock:wakeable`, of the same form: autoscalers say in it whose first replica they start when requests wait.
"""

from collections.abc import Awaitable, Mapping, Sequence
from typing import Any, cast

import msgspec
from penstock_core.slo import Slo
from redis.asyncio import Redis

from penstock_kvindex.calls import bounded, connect

KEY = "penstock:models"
SLO_KEY = "penstock:slo"
WAKEABLE_KEY = "penstock:wakeable"
ANNOUNCE_S = 30.0
"""A worker says again after so long that its model is there."""
KNOWN_S = 600.0
"""A model counts as there for so long after the last word."""
WAKEABLE_S = 60.0
"""That a model is woken is believed for so long after the last word; an autoscaler says it again three times as often."""
MOST_MODELS = 10_000


class ServedModels:
    """The list for reading, the targets for reading and writing; `aclose` at the end. Every call raises IndexUnavailable."""

    def __init__(self, url: str, *, timeout_s: float = 2.0, client: Redis | None = None) -> None:
        """`client`: one of `calls.connect` to use instead; it stays open."""
        self._timeout_s = timeout_s
        self._redis = connect(url, timeout_s) if client is None else client
        self._shared = client is not None

    async def names(self) -> tuple[str, ...]:
        """Every model announced lately, sorted; at most MOST_MODELS."""
        return await self._lately(KEY, KNOWN_S)

    async def wakeable(self) -> tuple[str, ...]:
        """Every model whose first replica somebody starts when requests wait for it, sorted; at most MOST_MODELS."""
        return await self._lately(WAKEABLE_KEY, WAKEABLE_S)

    async def say_wakeable(self, names: Sequence[str]) -> None:
        """Of these models whoever says so starts a first replica when requests wait; believed for WAKEABLE_S."""
        if not names:
            return
        now_ms = await self._now_ms(WAKEABLE_KEY)
        pipeline = self._redis.pipeline()
        pipeline.zadd(WAKEABLE_KEY, dict.fromkeys(names, now_ms))
        pipeline.zremrangebyscore(WAKEABLE_KEY, "-inf", now_ms - WAKEABLE_S * 1_000)
        await self._bounded(pipeline.execute(), WAKEABLE_KEY)

    async def targets(self, names: Sequence[str]) -> dict[str, Slo]:
        """The targets of those of these models that have any; what cannot be read counts as none."""
        if not names:
            return {}
        wires = await self._bounded(cast("Awaitable[Any]", self._redis.hmget(SLO_KEY, list(names))), SLO_KEY)
        found = {name: _decode(wire) for name, wire in zip(names, wires, strict=True) if wire is not None}
        return {name: slo for name, slo in found.items() if slo is not None}

    async def set_targets(self, wanted: Mapping[str, Slo]) -> int:
        """Make these all the targets there are. Writes what differs only, at once or not at all; gives how many models that were."""
        there = await self._bounded(cast("Awaitable[Any]", self._redis.hgetall(SLO_KEY)), SLO_KEY)
        wires = {name.encode(): msgspec.json.encode(slo) for name, slo in wanted.items()}
        fresh: dict[Any, Any] = {name: wire for name, wire in wires.items() if there.get(name) != wire}
        gone = there.keys() - wires.keys()
        if fresh or gone:
            pipeline = self._redis.pipeline()
            if fresh:
                pipeline.hset(SLO_KEY, mapping=fresh)
            if gone:
                pipeline.hdel(SLO_KEY, *gone)
            await self._bounded(pipeline.execute(), SLO_KEY)
        return len(fresh) + len(gone)

    async def aclose(self) -> None:
        if not self._shared:
            await self._redis.aclose()

    async def _lately(self, key: str, known_s: float) -> tuple[str, ...]:
        since_ms = await self._now_ms(key) - known_s * 1_000
        found = await self._bounded(self._redis.zrange(key, "+inf", since_ms, desc=True, byscore=True, offset=0, num=MOST_MODELS), key)
        return tuple(sorted(name.decode("utf-8", "replace") for name in found))

    async def _now_ms(self, key: str) -> float:
        seconds, micros = await self._bounded(cast("Awaitable[Any]", self._redis.time()), key)
        return float(seconds * 1_000 + micros // 1_000)

    async def _bounded(self, call: Awaitable[Any], key: str) -> Any:
        return await bounded(call, self._timeout_s, key)


def _decode(wire: bytes) -> Slo | None:
    try:
        return msgspec.json.decode(wire, type=Slo)
    except (msgspec.DecodeError, UnicodeDecodeError):
        return None
