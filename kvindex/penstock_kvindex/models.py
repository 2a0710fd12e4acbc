"""Which served models a Redis holds workers of: routers ask it, so that nobody has to tell them.

One sorted set, `penstock:models`: model → when one of its workers last said so, in milliseconds of Redis' own time. `RedisIndex`
announces when a worker registers and now and then while it renews; names that nobody has announced for long go by themselves.
A set of its own and not the models' keys, which are found only by a scan.
"""

from collections.abc import Awaitable
from typing import Any, cast

from penstock_kvindex.calls import bounded, connect

KEY = "penstock:models"
ANNOUNCE_S = 30.0
"""A worker says again after so long that its model is there."""
KNOWN_S = 600.0
"""A model counts as there for so long after the last word."""
MOST_MODELS = 10_000


class ServedModels:
    """The list, for reading. `names`, then `aclose`."""

    def __init__(self, url: str, *, timeout_s: float = 2.0) -> None:
        self._timeout_s = timeout_s
        self._redis = connect(url, timeout_s)

    async def names(self) -> tuple[str, ...]:
        """Every model announced lately, sorted; at most MOST_MODELS. Raises IndexUnavailable."""
        seconds, _ = await self._bounded(cast("Awaitable[Any]", self._redis.time()))
        since_ms = (seconds - KNOWN_S) * 1_000
        found = await self._bounded(self._redis.zrange(KEY, "+inf", since_ms, desc=True, byscore=True, offset=0, num=MOST_MODELS))
        return tuple(sorted(name.decode("utf-8", "replace") for name in found))

    async def aclose(self) -> None:
        await self._redis.aclose()

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        return await bounded(call, self._timeout_s, KEY)
