"""The contract between the fleet and what runs its workers: `process_host` (own OS processes) and `ray_host` (Ray actors).

Starting returns at once; whether a worker is ready, or has ended, is asked. Draining goes over the worker's own HTTP, alike for
all hosts. A host knows nothing of pools, desired counts or back-off.
"""

from typing import Protocol

from penstock_core.errors import PenstockError

from penstock_worker.config import WorkerConfig


class StartFailed(PenstockError):
    """A worker could not even be started; the message says why. Try again later."""


class StartedWorker(Protocol):
    """One started worker."""

    @property
    def ended(self) -> bool:
        """Whether its process is gone."""

    @property
    def pid(self) -> int | None:
        """Its OS process; None until it is known."""

    @property
    def url(self) -> str | None:
        """`http://host:port` once it is ready; None before."""

    def why(self) -> str:
        """After its end: the last it said, or how it ended."""

    async def stop(self, timeout_s: float) -> None:
        """Ask it to end, and after `timeout_s` end it; returns when its process is gone. Twice does nothing."""


class WorkerHost(Protocol):
    """Runs workers on this machine."""

    async def open(self) -> None:
        """Bring up what all workers need. Raises StartFailed."""

    async def start(self, config: WorkerConfig) -> StartedWorker:
        """Start one worker. Raises StartFailed."""

    async def aclose(self) -> None:
        """End everything, workers included; returns when no process is left."""
