"""A worker's place in the registry: kvindex's publisher with the task that runs it, behind `kv_follow.Publishing`.

`assembly` makes one where a Redis is configured. What is lost when the store is away, and how it comes back, is the publisher's.
"""

import asyncio
from collections.abc import Callable, Iterable

from penstock_core.endpoint import Load, WorkerRecord
from penstock_core.kv_events import KvState
from penstock_kvindex.index import SharedIndex
from penstock_kvindex.publisher import Publisher

_LEAVE_S = 5.0


class Registration:
    """Registered, or trying to be, from its making until `leave`."""

    def __init__(self, index: SharedIndex, record: WorkerRecord, load: Callable[[], Load]) -> None:
        """Call it in the event loop that will run it."""
        self._index = index
        self._publisher = Publisher(index, record, load=load)
        self._task = asyncio.get_running_loop().create_task(self._publisher.run(), name="registration")
        self._left = False

    @property
    def lag_s(self) -> float:
        """Seconds since the oldest change that is not yet in the index."""
        return self._publisher.lag_s

    def publish(self, added: Iterable[int], removed: Iterable[int]) -> None:
        self._publisher.publish(added, removed)

    def cleared(self) -> None:
        self._publisher.cleared()

    def state(self) -> KvState:
        return self._publisher.state()

    async def leave(self) -> None:
        """End the lease and give the connection back. Twice does nothing."""
        if self._left:
            return
        self._left = True
        try:
            async with asyncio.timeout(_LEAVE_S):
                await self._publisher.leave()
                await asyncio.wait((self._task,))
        except TimeoutError:
            pass  # the lease runs out by itself
        finally:
            self._task.cancel()
            await asyncio.wait((self._task,))
            await self._index.aclose()
