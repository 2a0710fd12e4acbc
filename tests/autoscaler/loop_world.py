"""A world for loop tests: a fleet in memory, a brain that does as told, and a real Redis for windows, lease and memory."""

import os
import signal
import threading
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

import msgspec
import numpy as np
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.figures import Figures
from penstock_autoscaler.loop import LoopTimes, ScalingLoop
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Start, Target
from penstock_autoscaler.ports import Brain, Fleet, ScaleFailed
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.endpoint import Role
from penstock_core.profile import PROFILES
from penstock_core.profile_fit import PoolFit
from penstock_core.slo import Slo
from penstock_core.traffic import Ended, Window
from penstock_kvindex.scaling import MOST_MEMORY_BYTES, ScalingStore
from penstock_kvindex.windows import Published, Windows


class FleetInMemory:
    """An actuator whose replicas are ready at once. `broken`: why nothing works now."""

    def __init__(self, **desired: int) -> None:
        self.desired = desired
        self.shown: list[Decision] = []
        self.carried_out: list[Decision] = []
        self.broken = ""
        self.least = 0
        self.start: Start | None = None

    async def look(self, now_s: float) -> Fleet:
        self._fail()
        pools = tuple(
            Pool(
                name=name,
                role=Role.BOTH,
                desired=count,
                min_replicas=self.least,
                max_replicas=8,
                profile=PROFILES["polynomial-reference"],
                start_s=1.0,
            )
            for name, count in self.desired.items()
        )
        replicas = tuple(
            Replica(id=f"{name}-{n}", pool=name, role=Role.BOTH, phase=Phase.READY, asked_s=now_s - 9, ready_s=now_s - 8, start=self.start)
            for name, count in self.desired.items()
            for n in range(count)
        )
        return Fleet(target=Target(slo=Slo()), pools=pools, replicas=replicas)

    async def carry_out(self, decision: Decision) -> None:
        self._fail()
        self.carried_out.append(decision)
        self.desired = dict(decision.desired)

    async def show(self, decision: Decision) -> None:
        self._fail()
        self.shown.append(decision)

    def _fail(self) -> None:
        if self.broken:
            raise ScaleFailed(self.broken)


class Obedient:
    """A brain: wants `wanted`, and remembers how many arrivals it has been shown.

    State for tests: `broken`: it fails; `thinking` set: it computes until that is cleared; `bulky`: its memory is too large to be kept."""

    def __init__(self, wanted: Mapping[str, int] | None = None) -> None:
        self.wanted, self.settings = wanted, ScalerSettings()
        self.seen: list[Observation] = []
        self.arrivals = 0
        self.broken = self.bulky = False
        self.thinking = threading.Event()

    def step(self, seen: Observation) -> Decision:
        self.seen.append(seen)
        if self.broken:
            raise ArithmeticError("told to fail")
        while self.thinking.is_set():
            pass
        here = {pool.name: pool.desired for pool in seen.pools}
        if seen.traffic is None:
            return Decision(at_s=seen.now_s, desired=here, reason=Reason.NO_DATA, message="no data", valid=False)
        self.arrivals += sum(one.arrivals for one in (*seen.earlier, seen.traffic))
        desired = {**here, **(self.wanted or {})}
        reason = Reason.STEADY if desired == here else Reason.UP
        return Decision(at_s=seen.now_s, desired=desired, reason=reason, message=f"{self.arrivals} arrivals so far")

    def saved(self) -> bytes:
        return bytes(MOST_MEMORY_BYTES) if self.bulky else msgspec.msgpack.encode(self.arrivals)

    def restore(self, saved: bytes) -> None:
        self.arrivals = msgspec.msgpack.decode(saved, type=int)


class World:
    """One model on a Redis; an async context manager. Every `loop` is an autoscaler of its own."""

    def __init__(self, url: str, model: str, **desired: int) -> None:
        self.model = model
        self.windows = Windows(url, model, timeout_s=30.0)
        self.store = ScalingStore(url, model, timeout_s=30.0)
        self.fleet = FleetInMemory(**(desired or {"both": 1}))
        self.figures = Figures()
        self._until: dict[str, float] = {}
        self._brains: list[Brain] = []

    async def __aenter__(self) -> "World":
        return self

    async def __aexit__(self, *error: object) -> None:
        for brain in self._brains:
            if isinstance(brain, Obedient):
                brain.thinking.clear()  # its thread would go on after a test that failed
        await self.windows.aclose()
        await self.store.aclose()

    @contextmanager
    def away(self, redis_pid: int | None) -> Iterator[None]:
        """Redis answers nothing meanwhile, and nobody waits for it for long; before and after, a slow machine may take its time."""
        assert redis_pid is not None
        patience_s = self.windows._timeout_s
        os.kill(redis_pid, signal.SIGSTOP)
        self.windows._timeout_s = self.store._timeout_s = 0.3
        try:
            yield
        finally:
            self.windows._timeout_s = self.store._timeout_s = patience_s
            os.kill(redis_pid, signal.SIGCONT)

    def loop(self, brain: Brain, **settings: object) -> ScalingLoop:
        self._brains.append(brain)
        times = LoopTimes(**{"period_s": 0.05, "lease_s": 60.0, "quiet_s": 0.001, **settings})  # type: ignore[arg-type]
        return ScalingLoop(
            self.model, signals=self.windows, actuator=self.fleet, brain=brain, store=self.store, figures=self.figures, times=times
        )

    async def publish(
        self, arrivals: int, router: str = "a", fits: tuple[PoolFit, ...] = (), ended: tuple[int, int] = (0, 0), endings: int = 0
    ) -> None:
        """The router's next window: from the end of its last one to now. `ended`: of `endings`, how many were in time and how many not."""
        now_s = await self.windows.clock()
        since_s = self._until.get(router, now_s - 1.0)
        self._until[router] = now_s
        window = made(since_s, now_s, arrivals, ended=ended, endings=endings, fits=fits)
        await self.windows.publish(Published(router, window))

    async def tell(self, since_s: float, until_s: float, rate: float, *, in_time: bool = True, window_s: float = 5.0) -> None:
        """A router's windows of that time, with so many requests a second, each of which ends in the window that it came in."""
        for begin_s in np.arange(since_s, until_s, window_s):
            many = round(rate * window_s)
            ended = (many, 0) if in_time else (0, many)
            await self.windows.publish(Published("a", made(begin_s, begin_s + window_s, many, ended=ended, endings=many)))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.figures.registry.get_sample_value(name, {"model": self.model, **labels})


def made(
    since_s: float, until_s: float, arrivals: int, *, ended: tuple[int, int] = (0, 0), endings: int = 0, fits: tuple[PoolFit, ...] = ()
) -> Window:
    """Arrivals evenly spread. `ended`: of `endings`, how many were in time and how many not."""
    many = sum(ended)
    went = Ended(
        arrival_s=np.linspace(since_s, until_s, many, endpoint=False),
        prompt_tokens=np.full(many, 100),
        hit_tokens=np.zeros(many, np.int64),
        output_tokens=np.full(many, 10),
        ttft_s=np.repeat([0.001, 1e6], ended),
        tpot_s=np.full(many, 0.001),
        ok=np.full(many, True),
    )
    return Window(
        since_s=since_s,
        until_s=until_s,
        arrival_s=np.linspace(since_s, until_s, arrivals, endpoint=False),
        prompt_tokens=np.full(arrivals, 100),
        ended=went,
        arrivals=arrivals,
        endings=endings,
        fits=fits,
    )
