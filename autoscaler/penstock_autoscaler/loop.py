"""The autoscaler of one model as a task: every period look, listen, decide, carry out, and say why.

`cli` makes one a model and gives it its world (`ports`). Decisions are the brain's; here is the order of things, what happens when one
of them fails (nothing is changed), and what another process needs to go on. Losing the lease stops scaling and nothing else.
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any

import msgspec
from penstock_core.errors import IndexUnavailable, PenstockError
from penstock_core.traffic import Window
from penstock_process.settings import check_ranges

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.figures import Figures
from penstock_autoscaler.knowledge import Knowledge, decode_saved
from penstock_autoscaler.lease import Lease
from penstock_autoscaler.observation import Observation, Phase
from penstock_autoscaler.ports import Actuator, Brain, ScaleFailed, Signals, Store
from penstock_autoscaler.told import PoolThen, Told, decode_told, encode_told, follows

log = logging.getLogger(__name__)


LOOP_RANGE = (0.001, 86_400.0, "seconds")
"""Allowed for each of them."""


class LoopTimes(msgspec.Struct, frozen=True, kw_only=True):
    """All waits of a loop, in seconds. Raises ConfigError for one out of 0.001..86400."""

    period_s: float = 15.0
    """Between decisions."""
    asleep_s: float = 1.0
    """Between decisions while every pool is at 0: what a first request waits for."""
    lease_s: float = 10.0
    """How long after the death of one autoscaler another acts on its models."""
    step_s: float = 30.0
    """Longest wait for the brain; one that takes longer is waited for, and nothing is changed meanwhile."""
    act_s: float = 30.0
    """Longest wait for one call of the actuator, beside its own time-outs."""
    quiet_s: float = 20.0
    """How long after the last traffic was told of it is no news that none is: windows come more seldom than decisions, or late."""

    def __post_init__(self) -> None:
        check_ranges(self, dict.fromkeys(self.__struct_fields__, LOOP_RANGE))


class ScalingLoop:
    """State: what is known of the model, the last decision told, a thought under way, the clock's first and last word. All of it changes in
    `tick` only."""

    def __init__(
        self,
        model: str,
        *,
        signals: Signals,
        actuator: Actuator,
        brain: Brain,
        store: Store,
        figures: Figures,
        times: LoopTimes | None = None,
        on_decision: Callable[[Told, bool], None] = lambda told, again: None,
        wakeable: Callable[[], Awaitable[None]] | None = None,
    ) -> None:
        """`on_decision` hears of every decision, and whether it only repeats the one before. `wakeable` tells routers that requests are
        worth holding: called every period in which a pool may be at 0, by the holder of the lease."""
        self.model = model
        self.times = times or LoopTimes()
        self.lease = Lease(store, model, lease_s=self.times.lease_s, changed=self._on_lease)
        self._signals = signals
        self._actuator = actuator
        self._brain = brain
        self._store = store
        self._figures = figures
        self._on_decision = on_decision
        self._wakeable = wakeable
        self._known = Knowledge()
        self._last: Told | None = None
        self._clock: tuple[float, float] | None = None  # the Windows' clock and ours (loop time), at one moment
        self._begun_s = 0.0  # the first word of the Windows' clock
        self._restored = False
        self._thinking: asyncio.Task[Decision] | None = None

    async def run(self) -> None:
        """Until cancelled."""
        renewing = asyncio.create_task(self.lease.run(), name=f"lease {self.model}")
        try:
            while True:
                begin_s = asyncio.get_running_loop().time()
                try:
                    await self.tick()
                except Exception:  # the task's top: the next period may work
                    log.exception("a tick of the autoscaler failed", extra={"facts": {"model": self.model}})
                await asyncio.sleep(max(0.0, begin_s + self._period_s - asyncio.get_running_loop().time()))
        finally:
            renewing.cancel()
            await asyncio.wait((renewing,))
            await self.lease.release()

    @property
    def _period_s(self) -> float:
        """Before the first decision its holder of the lease does not know that the pools are not at 0."""
        asleep = self.lease.held if self._last is None else not any(self._last.decision.desired.values())
        return min(self.times.asleep_s, self.times.period_s) if asleep else self.times.period_s

    async def tick(self) -> Told | None:
        """One decision, told and carried out; None where another autoscaler decides, nothing can be seen, or no news is due yet."""
        if not self.lease.held:
            await self.lease.renew()
        if self.lease.others:
            self._restored = False  # whoever holds it now goes on with the memory
            return None
        if self._thinking is not None and await self._thought() is None:
            return None  # begun in an earlier tick: its word comes too late, but until it has ended it changes the memory
        if not await self._remember():
            return None
        heard = await self._listen()
        seen = await self._look(*heard) if heard is not None else None
        if seen is None:
            return None
        begin_s = time.monotonic()
        decision = await self._decide(seen)
        if decision is None:
            return None
        seconds = time.monotonic() - begin_s
        pools = _pools_then(seen)
        told = Told(decision=decision, pools=pools, first_s=decision.at_s, seconds=seconds, target=seen.target)
        if self.lease.held:
            told = msgspec.structs.replace(told, trouble=await self._act(decision, seen))
            await self._say_wakeable(seen)
        self._figures.decided(self.model, decision, pools, seconds)
        await self._tell(told)
        return self._last

    async def _remember(self) -> bool:
        """Take over what the last holder kept, once a lease; False where the store cannot be asked and nothing is known yet."""
        if self._restored:
            return True
        loop_s = asyncio.get_running_loop().time()
        try:
            now_s, kept, told = await self._signals.clock(), await self._store.memory(), decode_told(await self._store.told(1))
        except IndexUnavailable as error:
            return self._clock is not None or self._fail("signals", error)
        if self._clock is None:
            self._clock, self._begun_s = (now_s, loop_s), now_s
        self._last = told[0] if told else None
        if kept is not None:
            self._take_over(kept, now_s)
        self._restored = self.lease.held
        return True

    def _take_over(self, kept: bytes, now_s: float) -> None:
        """Go on with what was kept, unless that is behind what this one has decided on itself and could not keep."""
        try:
            saved = decode_saved(kept)
            if saved.since_s >= self._known.since_s:
                self._brain.restore(saved.brain)
                self._known = Knowledge(msgspec.structs.replace(saved, since_s=min(now_s, saved.since_s)))
        except (msgspec.DecodeError, ValueError) as error:
            log.warning("what the last autoscaler remembered cannot be read: %s", error, extra={"facts": {"model": self.model}})

    async def _listen(self) -> tuple[float, list[Window]] | None:
        """(now, the traffic not yet decided on, oldest first). While the store is away there is none, and now is reckoned.

        None: nothing new has been told, and none is overdue."""
        assert self._clock is not None  # noqa: S101 -- _remember has set it
        loop_s = asyncio.get_running_loop().time()
        try:
            now_s, traffic = await self._signals.since(self._known.since_s, self.times.period_s)
        except IndexUnavailable as error:
            self._fail("signals", error)
            return self._clock[0] + loop_s - self._clock[1], []
        self._clock = (now_s, loop_s)
        if not traffic and now_s - max(self._known.since_s, self._begun_s) < self.times.quiet_s:
            return None
        return now_s, traffic

    async def _look(self, now_s: float, traffic: list[Window]) -> Observation | None:
        try:
            async with asyncio.timeout(self.times.act_s):
                fleet = await self._actuator.look(now_s)
        except (ScaleFailed, TimeoutError) as error:
            self._fail("look", error)
            return None
        return self._known.observed(now_s, fleet, traffic)

    async def _decide(self, seen: Observation) -> Decision | None:
        """The brain's word, from a thread of its own: a what-if takes up to seconds, and the lease must be renewed meanwhile.

        What it is given it learns, whatever becomes of its word; so it is not given again."""
        self._known.decided(seen)
        if seen.traffic is not None:
            for interval in (*seen.earlier, seen.traffic):
                self._figures.heard(self.model, interval, seen.target.slo)
        self._thinking = asyncio.create_task(asyncio.to_thread(self._brain.step, seen))
        return await self._thought()

    async def _thought(self) -> Decision | None:
        """The end of the thought under way; None where that cannot be waited for. Raises what went wrong in it."""
        assert self._thinking is not None  # noqa: S101 -- asked of a thought under way
        done, _ = await asyncio.wait((self._thinking,), timeout=self.times.step_s)
        if not done:
            self._fail("decide", TimeoutError(f"no decision within {self.times.step_s:g} s"))
            return None
        thought, self._thinking = self._thinking, None
        return thought.result()

    async def _act(self, decision: Decision, seen: Observation) -> str:
        """Carry it out and show it; why that could not be done, or nothing."""
        here = {pool.name: pool.desired for pool in seen.pools}
        trouble = ""
        if decision.valid and (decision.desired != here or decision.switches or decision.late):
            trouble = await self._call("carry_out", self._actuator.carry_out, decision)
        return trouble or await self._call("show", self._actuator.show, decision)

    async def _call(self, step: str, call: Callable[[Decision], Coroutine[Any, Any, None]], decision: Decision) -> str:
        try:
            async with asyncio.timeout(self.times.act_s):
                await call(decision)
        except (ScaleFailed, TimeoutError) as error:
            self._fail(step, error)
            return str(error) or f"took longer than {self.times.act_s:g} s"
        return ""

    async def _say_wakeable(self, seen: Observation) -> None:
        if self._wakeable is None or all(pool.min_replicas for pool in seen.pools):
            return
        try:
            await self._wakeable()
        except IndexUnavailable as error:
            self._fail("signals", error)

    async def _tell(self, told: Told) -> None:
        """Log, listener, store."""
        self._last, again = follows(told, self._last)
        decision = told.decision
        level = logging.DEBUG if again else logging.INFO
        facts = {"model": self.model, "reason": decision.reason.value, **decision.desired, "seconds": round(told.seconds, 3)}
        log.log(level, "%s", decision.message, extra={"facts": facts})
        self._on_decision(self._last, again)
        if not self.lease.held:
            return
        memory = self._known.saved(await asyncio.to_thread(self._brain.saved), self._brain.settings, decision.at_s)
        try:
            if not await self._store.keep(self.lease.who, memory, encode_told(self._last), again=again):
                self.lease.lost()
        except PenstockError as error:  # the store is away, or the memory does not fit
            self._fail("keep", error)

    def _fail(self, step: str, error: Exception) -> bool:
        self._figures.failed(self.model, step)
        log.warning("autoscaler: %s failed: %s", step, error or type(error).__name__, extra={"facts": {"model": self.model}})
        return False

    def _on_lease(self, held: bool) -> None:
        self._figures.leads(self.model, held)
        self._restored = self._restored and held


def _pools_then(seen: Observation) -> tuple[PoolThen, ...]:
    phases = [(one.pool, one.phase) for one in seen.replicas]
    return tuple(
        PoolThen(
            name=pool.name,
            role=pool.role.value,
            desired=pool.desired,
            ready=phases.count((pool.name, Phase.READY)),
            starting=phases.count((pool.name, Phase.STARTING)),
            min_replicas=pool.min_replicas,
            max_replicas=pool.max_replicas,
            start_s=pool.start_s,
            accelerators=pool.accelerators,
            start=pool.start,
            fit=msgspec.structs.replace(pool.fit, row=()) if pool.fit is not None else None,
        )
        for pool in seen.pools
    )
