"""Whether this process may scale a model now: the lease in the store, renewed by a task of its own.

`loop` asks `held` before every change. The lease is counted from before the renewal was sent, so it is never thought to be ours for
longer than the store says. It knows no decision.
"""

import asyncio
import logging
import math
import secrets
from collections.abc import Callable

from penstock_core.errors import IndexUnavailable

from penstock_autoscaler.ports import Store

log = logging.getLogger(__name__)


class Lease:
    """State: until when it is held (loop time), and whether the store said that somebody else holds it."""

    def __init__(self, store: Store, model: str, *, lease_s: float = 10.0, changed: Callable[[bool], None] = lambda held: None) -> None:
        """`changed` is called with every gain and loss that is noticed."""
        self.who = secrets.token_hex(8)
        self.others = False
        self._store = store
        self._model = model
        self._lease_s = lease_s
        self._changed = changed
        self._until_s = -math.inf
        self._told = False

    @property
    def held(self) -> bool:
        return asyncio.get_running_loop().time() < self._until_s

    async def renew(self) -> bool:
        """Ask the store once; whether it is held. A store that is away leaves it to run out by itself."""
        begin_s = asyncio.get_running_loop().time()
        try:
            mine = await self._store.hold(self.who, self._lease_s)
        except IndexUnavailable as error:
            self.others = False
            log.debug("lease not renewed: %s", error)
        else:
            self.others = not mine
            self._until_s = begin_s + self._lease_s if mine else -math.inf
        self._tell()
        return self.held

    def lost(self) -> None:
        """The store has said elsewhere that it is not ours."""
        self.others, self._until_s = True, -math.inf
        self._tell()

    async def run(self) -> None:
        """Renew until cancelled, three times a lease."""
        while True:
            await asyncio.sleep(self._lease_s / 3)
            try:
                await self.renew()
            except Exception:  # the task's top: the next renewal may work
                log.exception("renewing the lease failed")

    async def release(self) -> None:
        """Give it back at the end, so that another autoscaler need not wait."""
        if self.held:
            self._until_s = -math.inf
            try:
                await self._store.release(self.who)
            except IndexUnavailable:
                pass  # it runs out by itself

    def _tell(self) -> None:
        if self.held != self._told:
            self._told = self.held
            log.info("scaling is ours" if self._told else "scaling is no longer ours", extra={"facts": {"model": self._model}})
            self._changed(self._told)
