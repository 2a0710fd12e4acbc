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
from penstock_autoscaler.fits import Fits, HeardFit
from penstock_autoscaler.lease import Lease
from penstock_autoscaler.observation import Observation, Phase, Start
from penstock_autoscaler.ports import Actuator, Brain, Fleet, ScaleFailed, Signals, Store
from penstock_autoscaler.starts import Starts
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
    history_s: float = 240.0
    """How much earlier traffic an autoscaler without a memory looks at first."""

    def __post_init__(self) -> None:
        check_ranges(self, dict.fromkeys(self.__struct_fields__, LOOP_RANGE))


class Saved(msgspec.Struct):
    """What goes into the store: how far the traffic has been read, the brain's own memory, what is known of engines and their starts."""

    since_s: float
    brain: bytes
    fits: list[HeardFit] = []
    starts: dict[str, list[Start]] = {}


def decode_saved(kept: bytes) -> Saved:
    """What a loop kept. Raises msgspec.DecodeError for anything else."""
    return msgspec.msgpack.decode(kept, type=Saved)


class _Thought(msgspec.Struct):
    """A decision under way: for which moment, from which traffic."""

    task: asyncio.Task[Decision]
    seen: Observation


class ScalingLoop:
    """State: how far the traffic has been read, what it said of engines, the last decision told, the clock's last word. All of it changes
    in `tick` only."""

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
        self._since_s: float | None = None
        self._fits = Fits()
        self._starts = Starts()
        self._last: Told | None = None
        self._clock: tuple[float, float] | None = None  # the Windows' clock and ours (loop time), at one moment
        self._restored = False
        self._thinking: _Thought | None = None

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
        asleep = self._last is not None and not any(self._last.decision.desired.values())
        return min(self.times.asleep_s, self.times.period_s) if asleep else self.times.period_s

    async def tick(self) -> Told | None:
        """One decision, told and carried out; None where another autoscaler decides, nothing can be seen, or no news is due yet."""
        if not self.lease.held:
            await self.lease.renew()
        if self.lease.others:
            self._restored = False  # whoever holds it now goes on with the memory
            return None
        if not await self._remember():
            return None
        now_s, traffic, away = await self._listen()
        if traffic is None and not away and now_s is not None and now_s - (self._since_s or 0.0) < self.times.quiet_s:
            return None
        fleet = await self._look(now_s) if now_s is not None else None
        if now_s is None or fleet is None:
            return None
        begin_s = time.monotonic()
        decision = await self._decide(now_s, fleet, traffic)
        if decision is None:
            return None
        seconds = time.monotonic() - begin_s
        pools = _pools_then(fleet)
        told = Told(decision=decision, pools=pools, first_s=decision.at_s, seconds=seconds)
        if self.lease.held:
            told = msgspec.structs.replace(told, trouble=await self._act(decision, fleet))
            await self._say_wakeable(fleet)
        self._figures.decided(self.model, decision, pools, seconds)
        await self._tell(told)
        return self._last

    async def _remember(self) -> bool:
        """Take over what the last holder kept, once a lease; False where the store cannot be asked and nothing is known yet."""
        if self._restored:
            return True
        try:
            now_s, kept, told = await self._signals.clock(), await self._store.memory(), decode_told(await self._store.told(1))
        except IndexUnavailable as error:
            return self._since_s is not None or self._fail("signals", error)
        if self._since_s is None:
            self._since_s = now_s - self.times.history_s
        self._last = told[0] if told else None
        if kept is not None:
            try:
                saved = decode_saved(kept)
                self._brain.restore(saved.brain)
                self._since_s = min(now_s, saved.since_s)
                self._fits, self._starts = Fits(saved.fits), Starts(saved.starts)
            except (msgspec.DecodeError, ValueError) as error:
                log.warning("what the last autoscaler remembered cannot be read: %s", error, extra={"facts": {"model": self.model}})
        self._restored = self.lease.held
        return True

    async def _listen(self) -> tuple[float | None, Window | None, bool]:
        """(now, the traffic not yet decided on, whether the store is away: now is reckoned then; None before its first word)."""
        assert self._since_s is not None  # noqa: S101 -- _remember has set it
        loop_s = asyncio.get_running_loop().time()
        try:
            now_s, traffic = await self._signals.since(self._since_s)
        except IndexUnavailable as error:
            self._fail("signals", error)
            return (None if self._clock is None else self._clock[0] + loop_s - self._clock[1]), None, True
        self._clock = (now_s, loop_s)
        if traffic is not None:
            self._fits.hear(traffic)
        return now_s, traffic, False

    async def _look(self, now_s: float) -> Fleet | None:
        try:
            async with asyncio.timeout(self.times.act_s):
                fleet = await self._actuator.look(now_s)
        except (ScaleFailed, TimeoutError) as error:
            self._fail("look", error)
            return None
        self._starts.see(fleet.replicas)
        return msgspec.structs.replace(fleet, pools=self._starts.measured(self._fits.corrected(fleet.pools, now_s)))

    async def _decide(self, now_s: float, fleet: Fleet, traffic: Window | None) -> Decision | None:
        """The brain's word, from a thread of its own: a what-if takes up to seconds, and the lease must be renewed meanwhile."""
        seen = Observation(
            now_s=now_s,
            target=fleet.target,
            pools=fleet.pools,
            replicas=fleet.replicas,
            traffic=traffic,
            paused=fleet.paused,
            overridden=fleet.overridden,
        )
        if self._thinking is None:
            task = asyncio.create_task(asyncio.to_thread(self._brain.step, seen))
            self._thinking = _Thought(task, seen)
        thought = self._thinking
        done, _ = await asyncio.wait((thought.task,), timeout=self.times.step_s)
        if not done:
            self._fail("decide", TimeoutError(f"no decision within {self.times.step_s:g} s"))
            return None
        self._thinking = None
        decision = thought.task.result()
        if thought.seen.traffic is not None:
            self._since_s = thought.seen.traffic.until_s
            self._figures.heard(self.model, thought.seen.traffic, thought.seen.target.slo)
        return decision if thought.seen.now_s == now_s else None  # asked in an earlier tick, and too late by now

    async def _act(self, decision: Decision, fleet: Fleet) -> str:
        """Carry it out and show it; why that could not be done, or nothing."""
        here = {pool.name: pool.desired for pool in fleet.pools}
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

    async def _say_wakeable(self, fleet: Fleet) -> None:
        if self._wakeable is None or all(pool.min_replicas for pool in fleet.pools):
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
        assert self._since_s is not None  # noqa: S101 -- _remember has set it
        brain = await asyncio.to_thread(self._brain.saved)
        memory = msgspec.msgpack.encode(Saved(self._since_s, brain, self._fits.kept(decision.at_s), self._starts.kept()))
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


def _pools_then(fleet: Fleet) -> tuple[PoolThen, ...]:
    phases = [(one.pool, one.phase) for one in fleet.replicas]
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
            start=pool.start,
            fit=msgspec.structs.replace(pool.fit, row=()) if pool.fit is not None else None,
        )
        for pool in fleet.pools
    )
