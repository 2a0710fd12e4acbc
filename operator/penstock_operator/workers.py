"""Reconciles what the queue says is due, in one event loop, several keys at a time.

The process assembly runs `serve` while it leads. A failure is logged, counted and backed off; it ends nothing.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from typing import Generic

from penstock_operator.queue import K, KeyedQueue

log = logging.getLogger(__name__)

Reconcile = Callable[[K], Awaitable[float | None]]
"""Makes one key true; gives the seconds after which it wants to look again, or None. Raises whatever went wrong."""


class Workers(Generic[K]):
    """The queue with the loop that empties it. Use from that event loop."""

    def __init__(
        self,
        queue: KeyedQueue[K],
        reconcile: Reconcile[K],
        *,
        on_failure: Callable[[K, Exception], None],
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._queue = queue
        self._reconcile = reconcile
        self._on_failure = on_failure
        self._clock = clock
        self._wake = asyncio.Event()
        self._tasks: set[asyncio.Task[None]] = set()

    def add(self, key: K, *, generation: int = -1, delay_s: float = 0.0) -> None:
        """As KeyedQueue.add, at this moment."""
        self._queue.add(key, self._clock(), generation=generation, delay_s=delay_s)
        self._wake.set()

    async def serve(self) -> None:
        """Run until cancelled; what runs then is cancelled and waited for."""
        try:
            while True:
                self._wake.clear()
                while (key := self._queue.take(self._clock())) is not None:
                    task = asyncio.create_task(self._run(key), name=f"reconcile {key}")
                    self._tasks.add(task)
                    task.add_done_callback(self._tasks.discard)
                await self._sleep()
        finally:
            for task in self._tasks:
                task.cancel()
            if self._tasks:
                await asyncio.wait(self._tasks)

    async def _sleep(self) -> None:
        """Until something is added or ends, or the next key is due; that may be now, though it was not when last looked."""
        next_at = self._queue.next_at()
        pause_s = None if next_at is None or not self._queue.has_room else max(0.0, next_at - self._clock())
        try:
            await asyncio.wait_for(self._wake.wait(), pause_s)
        except TimeoutError:
            pass

    async def _run(self, key: K) -> None:
        failed, after_s = False, None
        try:
            after_s = await self._reconcile(key)
        except Exception as error:  # noqa: BLE001 -- the task's top: `on_failure` logs it
            failed = True
            self._on_failure(key, error)
        finally:
            self._queue.done(key, self._clock(), failed=failed, after_s=after_s)
            self._wake.set()
