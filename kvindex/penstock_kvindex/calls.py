"""One bounded call to Redis: every round trip of this package goes through `bounded`, every connection is made by `connect`.

`redis` and `models` use it. It knows no key and no script.
"""

import asyncio
from collections.abc import Awaitable
from typing import Any

from penstock_core.errors import IndexUnavailable
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError


def connect(url: str, timeout_s: float) -> Redis:
    """A client for `redis://`, `rediss://` or `unix://`. Retrying is for the callers, who know whether it is still worth it.
    RESP2: its answers have one shape everywhere."""
    return Redis.from_url(url, protocol=2, socket_connect_timeout=timeout_s, retry=Retry(NoBackoff(), 0))


async def bounded(call: Awaitable[Any], timeout_s: float, keys: str) -> Any:
    """The call's answer. A cancellation that the client library turns into an error of its own (it does, when the two meet)
    is a cancellation all the same: the caller's loop would go on for ever. Raises IndexUnavailable, naming `keys`.
    """
    task = asyncio.current_task()
    cancelled_before = task.cancelling() if task is not None else 0
    try:
        async with asyncio.timeout(timeout_s):
            answer = await call
    except (RedisError, OSError, TimeoutError) as error:
        if task is not None and task.cancelling() > cancelled_before:
            raise asyncio.CancelledError from error
        raise IndexUnavailable(f"Redis, keys {keys}: {type(error).__name__}: {error}") from error
    if task is not None and task.cancelling() > cancelled_before:
        raise asyncio.CancelledError
    return answer
