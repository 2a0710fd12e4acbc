"""What a worker without a registry knows of its chunks: enough for `GET /penstock/kv`, published to nobody.

`assembly` uses it where no Redis is configured; with one, kvindex's publisher stands in its place.
"""

from collections.abc import Iterable

import numpy as np
from penstock_core.kv_events import KvState


class LocalKv:
    """Implements `kv_follow.Publishing`. Its state changes in `publish` and `cleared`."""

    def __init__(self, epoch: int) -> None:
        self._epoch = epoch
        self._sequence = 0
        self._keys: set[int] = set()

    def publish(self, added: Iterable[int], removed: Iterable[int]) -> None:
        self._sequence += 1
        self._keys.difference_update(removed)
        self._keys.update(added)

    def cleared(self) -> None:
        self._sequence += 1
        self._keys.clear()

    def state(self) -> KvState:
        keys = np.fromiter(self._keys, dtype=np.uint64, count=len(self._keys))
        return KvState(self._epoch, self._sequence, keys)

    async def leave(self) -> None:
        """Nobody to leave."""
