"""What autoscalers keep in Redis: who of them may scale a model, what it remembers, and what it has decided lately.

The autoscaler's loop writes through one `ScalingStore` a model, `penstock explain scaling` and `status` read through another. What is
kept is bytes to this module. Everything goes by itself when no autoscaler has written for KEPT_S.
"""

import math
from collections.abc import Awaitable
from functools import cache
from pathlib import Path
from typing import Any, cast

from penstock_core.errors import PenstockError
from redis.asyncio import Redis

from penstock_kvindex.calls import bounded, connect
from penstock_kvindex.registry import key_prefix

LEASE_S = 10.0
KEPT_S = 7 * 86_400.0
MOST_TOLD = 200
"""Decisions kept; one that only repeats the one before it takes its place."""
MOST_MEMORY_BYTES = 4 << 20

_LUA = Path(__file__).parent / "lua" / "scaling"


class MemoryTooLarge(PenstockError):
    """What an autoscaler remembers does not fit; nothing was stored."""


@cache
def _texts() -> dict[str, str]:
    return {path.stem: path.read_text() for path in _LUA.glob("*.lua")}


class ScalingStore:
    """One model's. Every call is one round trip and raises IndexUnavailable within `timeout_s`."""

    def __init__(self, url: str, model: str, *, timeout_s: float = 2.0, client: Redis | None = None) -> None:
        """`client`: one of `calls.connect` to use instead; it stays open."""
        self._timeout_s = timeout_s
        self._redis = connect(url, timeout_s) if client is None else client
        self._shared = client is not None
        prefix = key_prefix(model)
        self._lease, self._memory, self._told = prefix + "scaler", prefix + "scaler-memory", prefix + "scaler-told"
        self._scripts = {name: self._redis.register_script(text) for name, text in _texts().items()}

    async def hold(self, who: str, lease_s: float = LEASE_S) -> bool:
        """Take or renew the right to scale; whether it is `who`'s for `lease_s` from now."""
        return bool(await self._script("hold", [self._lease], who, math.ceil(lease_s * 1_000)))

    async def release(self, who: str) -> None:
        """Give it back, if it is `who`'s, so that another need not wait."""
        await self._script("release", [self._lease], who)

    async def keep(self, who: str, memory: bytes, told: bytes, *, again: bool) -> bool:
        """Store what `who` remembers and its newest decision; `again`: in place of the newest. False: it holds the right no more.

        Raises MemoryTooLarge above MOST_MEMORY_BYTES.
        """
        if len(memory) > MOST_MEMORY_BYTES:
            raise MemoryTooLarge(f"memory is {len(memory)} bytes; allowed: up to {MOST_MEMORY_BYTES}")
        keys = [self._lease, self._memory, self._told]
        return bool(await self._script("keep", keys, who, memory, told, int(again), MOST_TOLD, math.ceil(KEPT_S * 1_000)))

    async def memory(self) -> bytes | None:
        """What was kept last; None where nothing is."""
        found: bytes | None = await self._bounded(cast("Awaitable[Any]", self._redis.get(self._memory)))
        return found

    async def decides(self) -> bool:
        """Whether anybody holds the right to scale."""
        return bool(await self._bounded(cast("Awaitable[Any]", self._redis.exists(self._lease))))

    async def told(self, most: int = MOST_TOLD) -> list[bytes]:
        """The latest decisions, newest first."""
        return list(await self._bounded(cast("Awaitable[Any]", self._redis.lrange(self._told, 0, most - 1))))

    async def aclose(self) -> None:
        if not self._shared:
            await self._redis.aclose()

    async def _script(self, name: str, keys: list[str], *arguments: str | bytes | int) -> Any:
        return await self._bounded(self._scripts[name](keys=keys, args=arguments))

    async def _bounded(self, call: Awaitable[Any]) -> Any:
        return await bounded(call, self._timeout_s, f"{self._lease}*")
