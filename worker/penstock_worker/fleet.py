"""Keeps the desired number of workers in each pool on one machine: starts what is missing, restarts what ended, drains before removing.

`penstock up` runs one, with a process or a Ray host under it. Decisions are `fleet_plan.plan`'s; here they are carried out, once a
tick. It talks to workers over their own HTTP and knows nothing of engines, routers or Redis.
"""

import asyncio
import logging
import math
import time
from collections.abc import Mapping

import msgspec
from penstock_core.facts import TOKEN_HEADER
from penstock_dataplane.client import Client
from penstock_dataplane.errors import UpstreamError
from penstock_dataplane.pool import Origin

from penstock_worker.config import WorkerConfig
from penstock_worker.fleet_plan import Action, Do, FleetLimits, Observed, Phase, plan
from penstock_worker.state import WorkerState, decode_worker_state
from penstock_worker.worker_host import StartedWorker, StartFailed, WorkerHost

log = logging.getLogger(__name__)

TICK_S = 0.2
PROBE_S = 1.0
"""Between looks at a ready worker; a draining one is looked at each tick."""
_PROBE_TIMEOUT_S = 2.0
_STOP_S = 5.0
_STATE_BYTES = 64 * 1024
_WHY_CHARS = 600


class FleetWorker(msgspec.Struct, frozen=True, kw_only=True):
    """One row of `Fleet.status`."""

    id: str
    pool: str
    phase: Phase
    url: str | None
    pid: int | None
    restarts: int
    state: WorkerState | None
    """As last answered; None before the first answer."""
    asked_s: float
    """Since when it starts, or was started (time.monotonic)."""
    ready_s: float | None
    """Since when it is ready; None before, and while it starts anew."""


class _Member:
    """A worker the fleet knows of. It changes only in `Fleet.tick`, which runs one at a time."""

    def __init__(self, name: str, pool: str, now_s: float) -> None:
        self.id = name
        self.pool = pool
        self.phase = Phase.STARTING
        self.since_s = self.asked_s = now_s
        self.ready_since_s: float | None = None
        self.failures = 0
        self.given_up = False
        self.misplaced = False
        self.restarts = 0
        self.silent_since_s: float | None = None
        self.probed_s = 0.0
        self.started: StartedWorker | None = None
        self.state: WorkerState | None = None

    def enter(self, phase: Phase, now_s: float) -> None:
        if phase is not self.phase:
            self.phase, self.since_s, self.silent_since_s = phase, now_s, None

    def observed(self) -> Observed:
        return Observed(
            id=self.id,
            pool=self.pool,
            phase=self.phase,
            since_s=self.since_s,
            failures=self.failures,
            restarts=self.restarts,
            silent_since_s=self.silent_since_s,
            given_up=self.given_up,
            misplaced=self.misplaced,
        )


class Fleet:
    """See the module. `desired` changes by `scale`; everything else in `tick`."""

    def __init__(self, host: WorkerHost, pools: Mapping[str, WorkerConfig], *, fleet_token: str, limits: FleetLimits | None = None) -> None:
        """`pools`: the settings of each pool's workers; `id`, `pool` and `restarts` are filled in for each."""
        self.limits = limits or FleetLimits()
        self._host = host
        self._pools = dict(pools)
        self._desired = dict.fromkeys(pools, 0)
        self._members: dict[str, _Member] = {}
        self._token = fleet_token
        self._client = Client()
        self._turn = asyncio.Lock()
        self._changed = asyncio.Event()
        self._runner: asyncio.Task[None] | None = None

    async def open(self) -> None:
        """Open the host and begin to reconcile. Raises StartFailed."""
        await self._host.open()
        self._runner = asyncio.get_running_loop().create_task(self._run(), name="fleet")

    def scale(self, pool: str, replicas: int) -> None:
        """Desire so many workers in a pool. Raises ValueError for an unknown pool or a negative count."""
        if pool not in self._pools:
            raise ValueError(f"pool is {pool!r}; allowed: {', '.join(sorted(self._pools))}")
        if replicas < 0:
            raise ValueError(f"replicas of {pool} is {replicas}; allowed: 0 or more")
        self._desired[pool] = replicas
        self._changed.set()

    def switch(self, worker: str, pool: str) -> None:
        """Move a worker into another pool: it serves in that pool's role as soon as what it has is done. Its desired counts stay.

        Raises ValueError for an unknown worker or pool, and for one that is not ready."""
        member = self._members.get(worker)
        if pool not in self._pools:
            raise ValueError(f"pool is {pool!r}; allowed: {', '.join(sorted(self._pools))}")
        if member is None or member.phase is not Phase.READY:
            raise ValueError(f"worker is {worker!r}, {'unknown' if member is None else member.phase.value}; allowed: one that is ready")
        member.pool, member.misplaced = pool, True
        self._changed.set()

    def restart(self, worker: str) -> None:
        """End a worker that is still starting, and start it anew; any other is left as it is."""
        member = self._members.get(worker)
        if member is not None and member.phase is Phase.STARTING:
            member.given_up = True
            self._changed.set()

    @property
    def desired(self) -> dict[str, int]:
        return dict(self._desired)

    def status(self) -> list[FleetWorker]:
        """Every worker known, as of the last tick."""
        return [
            FleetWorker(
                id=member.id,
                pool=member.pool,
                phase=member.phase,
                url=member.started.url if member.started is not None else None,
                pid=member.started.pid if member.started is not None else None,
                restarts=member.restarts,
                state=member.state,
                asked_s=member.asked_s,
                ready_s=member.ready_since_s,
            )
            for member in self._members.values()
        ]

    @property
    def settled(self) -> bool:
        """Whether exactly the desired workers are there and ready."""
        ready = sum(member.phase is Phase.READY for member in self._members.values())
        return ready == len(self._members) == sum(self._desired.values())

    async def wait_settled(self, timeout_s: float) -> None:
        """Return once `settled`. Raises TimeoutError."""
        async with asyncio.timeout(timeout_s):
            while not self.settled:  # noqa: ASYNC110 -- a tick is what changes it, and it passes every TICK_S
                await asyncio.sleep(TICK_S / 4)

    async def aclose(self, *, drain: bool = True, within_s: float = math.inf) -> None:
        """Drain everything (up to the limit and `within_s`, unless told not to), then end workers and host."""
        if self._runner is not None:
            self._desired = dict.fromkeys(self._pools, 0)
            if drain:
                try:
                    async with asyncio.timeout(min(self.limits.drain_s, within_s) + _STOP_S):
                        while self._members:
                            self._changed.set()
                            await asyncio.sleep(TICK_S / 4)
                except TimeoutError:
                    log.warning("the fleet did not drain in time", extra={"facts": {"left": sorted(self._members)}})
            self._runner.cancel()
            await asyncio.wait((self._runner,))
        await self._host.aclose()
        await self._client.aclose()

    async def tick(self, now_s: float) -> list[Action]:
        """Look at all workers, plan, and carry it out; gives what was done."""
        async with self._turn:
            await asyncio.gather(*(self._look(member, now_s) for member in self._members.values()))
            actions = plan(self._desired, [member.observed() for member in self._members.values()], self.limits, now_s)
            for action in actions:
                log.info("%s %s: %s", action.do.value, action.id, action.reason)
            await asyncio.gather(*(self._act(action, now_s) for action in actions))
            return actions

    async def _run(self) -> None:
        while True:
            try:
                await self.tick(time.monotonic())
            except Exception:  # the task's top: the fleet goes on
                log.exception("a tick of the fleet failed")
            self._changed.clear()
            try:
                async with asyncio.timeout(TICK_S):
                    await self._changed.wait()
            except TimeoutError:
                pass  # the next tick is due

    async def _look(self, member: _Member, now_s: float) -> None:
        started = member.started
        if started is None or member.phase is Phase.DEAD:
            return
        if started.ended:
            if member.phase not in (Phase.DRAINING, Phase.DRAINED):
                member.failures += 1
                facts = {"facts": {"id": member.id, "failures": member.failures, "why": started.why()[-_WHY_CHARS:]}}
                log.warning("a worker ended", extra=facts)
            member.enter(Phase.DEAD, now_s)
        elif member.phase is Phase.STARTING and started.url is not None:
            if await self._probe(member, now_s):
                member.enter(Phase.READY, now_s)
                member.ready_since_s = now_s
                log.info("%s is ready after %.1f s%s", member.id, now_s - member.asked_s, _phases(member.state))
        elif member.phase is Phase.SWITCHING:
            await self._probe(member, now_s)
            state = member.state
            if state is not None and not state.draining and (state.role, state.pool) == (self._pools[member.pool].role, member.pool):
                member.misplaced = False
                member.enter(Phase.READY, now_s)
        elif member.phase is Phase.DRAINING or (member.phase is Phase.READY and now_s - member.probed_s >= PROBE_S):
            await self._probe(member, now_s)
            if member.state is not None and member.state.drained:
                member.enter(Phase.DRAINED, now_s)
        if member.phase is Phase.READY and member.ready_since_s is not None and now_s - member.ready_since_s >= self.limits.stable_s:
            member.failures = 0

    async def _probe(self, member: _Member, now_s: float) -> bool:
        """Ask for the worker's state; a failure only starts the clock of its silence."""
        member.probed_s = now_s
        try:
            member.state = decode_worker_state(await self._call(member, "GET", "/penstock/state"))
        except (UpstreamError, msgspec.DecodeError) as error:
            log.debug("worker %s does not answer: %s", member.id, error)
            member.silent_since_s = now_s if member.silent_since_s is None else member.silent_since_s
            return False
        member.silent_since_s = None
        return True

    async def _call(self, member: _Member, method: str, path: str, body: bytes = b"") -> bytes:
        assert member.started is not None and member.started.url is not None  # noqa: S101 -- a worker that is called has a URL
        deadline_s = asyncio.get_running_loop().time() + _PROBE_TIMEOUT_S
        headers = [(TOKEN_HEADER, self._token.encode())] if self._token else []
        response = await self._client.request(Origin.parse(member.started.url), method, path, headers, body, deadline_s=deadline_s)
        return await response.read(_STATE_BYTES)

    async def _act(self, action: Action, now_s: float) -> None:
        if action.do is Do.START:
            await self._start(action, now_s)
            return
        member = self._members[action.id]
        if action.do is Do.SWITCH:
            await self._switch(member, now_s)
        elif action.do is Do.DRAIN:
            await self._drain(member, now_s)
        elif action.do is Do.STOP:
            if member.started is not None:
                await member.started.stop(_STOP_S)
            member.failures += member.phase in (Phase.STARTING, Phase.READY)
            member.enter(Phase.DEAD, now_s)
        else:
            del self._members[action.id]

    async def _switch(self, member: _Member, now_s: float) -> None:
        """Tell it; one that cannot change its role is drained, and started anew in its new pool."""
        body = msgspec.json.encode({"role": self._pools[member.pool].role, "pool": member.pool})
        try:
            answer = await self._call(member, "POST", "/penstock/role", body)
            decode_worker_state(answer)
        except (UpstreamError, msgspec.DecodeError) as error:
            log.warning("worker %s cannot be told to change its role, it is started anew: %s", member.id, error)
            await self._drain(member, now_s)
            return
        member.enter(Phase.SWITCHING, now_s)

    async def _drain(self, member: _Member, now_s: float) -> None:
        try:
            await self._call(member, "POST", "/penstock/drain")
        except UpstreamError as error:
            log.warning("worker %s cannot be told to drain: %s", member.id, error)
        member.enter(Phase.DRAINING, now_s)

    async def _start(self, action: Action, now_s: float) -> None:
        member = self._members.get(action.id)
        if member is None:
            member = self._members[action.id] = _Member(action.id, action.pool, now_s)
        else:
            member.restarts += 1
            if member.started is not None:
                await member.started.stop(0.0)  # its process is gone; what the host keeps of it goes too
        member.started, member.state, member.ready_since_s = None, None, None
        member.phase, member.since_s, member.silent_since_s = Phase.STARTING, now_s, None
        member.asked_s, member.given_up, member.misplaced = now_s, False, False
        config = msgspec.structs.replace(self._pools[action.pool], id=action.id, pool=action.pool, restarts=member.restarts)
        try:
            member.started = await self._host.start(config)
        except StartFailed as error:
            log.warning("worker %s cannot be started: %s", member.id, error)
            member.failures += 1
            member.enter(Phase.DEAD, now_s)


def _phases(state: WorkerState | None) -> str:
    """Where a start's time went, by the worker's own word."""
    if state is None or state.start_up is None:
        return ""
    return f" (process {state.start_up.process_s:.1f} s, engine {state.start_up.engine_s:.1f} s)"
