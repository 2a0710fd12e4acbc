"""The decode side of a hand-over: one task a pull, beside the running batch.

The engine starts a pull once the sequence has its blocks; the pull fetches the rows, lets the modelled time of the link
pass, and tells the engine. It knows nothing of batches or answers.
"""

import asyncio
import logging
import time
from collections.abc import Callable

from penstock_core.errors import TransferFailed

from penstock_worker.engines.sim.config import SimConfig
from penstock_worker.engines.sim.link import Link
from penstock_worker.engines.sim.request import RemoteKv
from penstock_worker.engines.sim.sequence import Sequence
from penstock_worker.engines.sim.transfer import Pulled, fetch

_log = logging.getLogger(__name__)


class Pulls:
    """Pulls under way. `arrived(sequence, rows, seconds)` or `failed(sequence, error)` is called once for each not cancelled."""

    def __init__(
        self,
        config: SimConfig,
        bytes_per_s: float,
        arrived: Callable[[Sequence, bytes, float], None],
        failed: Callable[[Sequence, TransferFailed], None],
    ) -> None:
        self._config = config
        self._link = Link(bytes_per_s)
        self._arrived = arrived
        self._failed = failed
        self._tasks: dict[Sequence, asyncio.Task[None]] = {}

    def __len__(self) -> int:
        return len(self._tasks)

    def start(self, sequence: Sequence, remote: RemoteKv, size_bytes: int) -> None:
        """Pull the rows of the blocks that the sequence did not find in its own cache; `size_bytes` is their modelled size."""
        self._link.start(sequence, size_bytes, time.monotonic())
        self._tasks[sequence] = asyncio.create_task(self._pull(sequence, remote))

    def cancel(self, sequence: Sequence) -> None:
        """Give a pull up, if there is one; neither callback follows."""
        task = self._tasks.pop(sequence, None)
        if task is not None:
            self._link.drop(sequence, time.monotonic())  # a task cancelled before its first step runs no `finally`
            task.cancel()

    async def stop(self) -> None:
        """Give every pull up."""
        tasks = list(self._tasks.values())
        for sequence in list(self._tasks):
            self.cancel(sequence)
        if tasks:
            await asyncio.wait(tasks)

    async def _pull(self, sequence: Sequence, remote: RemoteKv) -> None:
        began = time.monotonic()
        pulled: Pulled | None = None
        try:
            pulled = await fetch(self._config, remote, sequence.registered, sequence.block_count - sequence.registered)
            # A pull that starts beside this one makes it last longer: look again after the wait.
            while (left := self._link.left_s(sequence, time.monotonic())) > 0:  # noqa: ASYNC110 -- it waits for time
                await asyncio.sleep(left)
            self._tasks.pop(sequence, None)
            self._arrived(sequence, pulled.rows, time.monotonic() - began)
            pulled.taken()
            pulled = None
        except TransferFailed as failed:
            self._tasks.pop(sequence, None)
            self._failed(sequence, failed)
        except Exception as failed:  # noqa: BLE001 -- a task's top: logged, and the request ends with an error
            _log.exception("a pull failed in the engine itself")
            self._tasks.pop(sequence, None)
            self._failed(sequence, TransferFailed(f"KV could not be taken in: {failed}"))
        finally:
            self._link.drop(sequence, time.monotonic())
            if pulled is not None:
                pulled.drop()
