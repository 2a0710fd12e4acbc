"""One scaling loop for each ModelService with bounds: begun when one comes, ended when it goes or serves another model.

`process` runs it. What a loop is made of is handed in; who acts on a model, of several autoscalers, is each loop's own lease.
"""

import asyncio
import logging
from collections.abc import Callable
from typing import Protocol

from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.kube_scope import Key, KubeScope, Scaled
from penstock_autoscaler.kube_telling import Told
from penstock_autoscaler.ports import ScaleFailed

log = logging.getLogger(__name__)


class Running(Protocol):
    """A loop of one model."""

    async def run(self) -> None:
        """Until cancelled."""
        ...


class KubeLoops:
    """See the module. State: the tasks, and when a listing last succeeded."""

    def __init__(self, scope: KubeScope, make: Callable[[Scaled], Running], look_s: float) -> None:
        """`make` gives the loop of one ModelService; `look_s`: between two looks for new ones."""
        self._scope = scope
        self._make = make
        self._look_s = look_s
        self._tasks: dict[Scaled, asyncio.Task[None]] = {}
        self.listed = False
        """Whether it has ever been seen what there is."""

    @property
    def models(self) -> int:
        """ModelServices that are looked after."""
        return len(self._tasks)

    async def run(self) -> None:
        """Until cancelled; the loops have ended, and given back their leases, when it returns."""
        try:
            while True:
                try:
                    await self._follow(await self._scope.services())
                    self.listed = True
                except ScaleFailed as error:
                    log.warning("ModelServices cannot be listed", extra={"facts": {"error": str(error)}})
                await asyncio.sleep(self._look_s)
        finally:
            await self._end(list(self._tasks))

    async def _follow(self, wanted: tuple[Scaled, ...]) -> None:
        alone = {one for one in wanted if one.shadowed_by is None}
        await self._end([one for one in self._tasks if one not in alone or self._tasks[one].done()])
        for one in alone - self._tasks.keys():
            log.info("sizing begins", extra={"facts": {"service": "/".join(one.key), "model": one.model}})
            self._tasks[one] = asyncio.create_task(self._make(one).run(), name=f"scale {'/'.join(one.key)}")
        for one in wanted:
            if one.shadowed_by is not None:
                await self._tell_shadowed(one.key, one.model, one.shadowed_by)

    async def _tell_shadowed(self, key: Key, model: str, older: Key) -> None:
        said = f"{'/'.join(older)} is older and serves {model!r} too: their traffic cannot be told apart, so only that one is sized"
        seen = await self._scope.seen(*key)
        sizes = {name: int(pool["spec"].get("replicas", 1)) for name, pool in seen.pools.items()}
        decision = Decision(at_s=0.0, desired=sizes, reason=Reason.OVERRIDDEN, message=said, valid=False)
        await self._scope.tell(seen.service, Told(decision, sizes, {}))

    async def _end(self, ended: list[Scaled]) -> None:
        tasks = [self._tasks.pop(one) for one in ended]
        for task in tasks:
            task.cancel()
        for task, one in zip(tasks, ended, strict=True):
            await asyncio.wait((task,))
            log.info("sizing ends", extra={"facts": {"service": "/".join(one.key), "model": one.model}})
            if not task.cancelled() and task.exception() is not None:
                log.error("a scaling loop failed", exc_info=task.exception(), extra={"facts": {"service": "/".join(one.key)}})
