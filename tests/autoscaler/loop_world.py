"""A world for loop tests: a fleet in memory, a brain that does as told, and a real Redis for windows, lease and memory."""

import time
from collections.abc import Mapping

import msgspec
import numpy as np
from penstock_autoscaler.decision import Decision, Reason
from penstock_autoscaler.figures import Figures
from penstock_autoscaler.loop import LoopTimes, ScalingLoop
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Start, Target
from penstock_autoscaler.ports import Fleet, ScaleFailed
from penstock_core.endpoint import Role
from penstock_core.profile import PROFILES
from penstock_core.profile_fit import PoolFit
from penstock_core.slo import Slo
from penstock_core.traffic import Ended, Window
from penstock_kvindex.scaling import ScalingStore
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
    """A brain: wants `wanted`, remembers how many arrivals it has been shown, and takes `cpu_s` of CPU a decision."""

    def __init__(self, wanted: Mapping[str, int] | None = None, cpu_s: float = 0.0) -> None:
        self.wanted = wanted
        self.cpu_s = cpu_s
        self.seen: list[Observation] = []
        self.arrivals = 0
        self.broken = False

    def step(self, seen: Observation) -> Decision:
        self.seen.append(seen)
        if self.broken:
            raise ArithmeticError("told to fail")
        until_s = time.thread_time() + self.cpu_s
        while time.thread_time() < until_s:
            pass
        here = {pool.name: pool.desired for pool in seen.pools}
        if seen.traffic is None:
            return Decision(at_s=seen.now_s, desired=here, reason=Reason.NO_DATA, message="no data", valid=False)
        self.arrivals += seen.traffic.arrivals
        desired = {**here, **(self.wanted or {})}
        reason = Reason.STEADY if desired == here else Reason.UP
        return Decision(at_s=seen.now_s, desired=desired, reason=reason, message=f"{self.arrivals} arrivals so far")

    def saved(self) -> bytes:
        return msgspec.msgpack.encode(self.arrivals)

    def restore(self, saved: bytes) -> None:
        self.arrivals = msgspec.msgpack.decode(saved, type=int)


class World:
    """One model on a Redis; an async context manager. Every `loop` is an autoscaler of its own."""

    def __init__(self, url: str, model: str, *, timeout_s: float = 30.0, **desired: int) -> None:
        self.model = model
        self.windows = Windows(url, model, timeout_s=timeout_s)
        self.store = ScalingStore(url, model, timeout_s=timeout_s)
        self.fleet = FleetInMemory(**(desired or {"both": 1}))
        self.figures = Figures()
        self._until: dict[str, float] = {}

    async def __aenter__(self) -> "World":
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.windows.aclose()
        await self.store.aclose()

    def loop(self, brain: Obedient, **settings: object) -> ScalingLoop:
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
        many = sum(ended)
        went = Ended(
            arrival_s=np.full(many, since_s),
            prompt_tokens=np.full(many, 100),
            hit_tokens=np.zeros(many, np.int64),
            output_tokens=np.full(many, 10),
            ttft_s=np.repeat([0.001, 1e6], ended),
            tpot_s=np.full(many, 0.001),
            ok=np.full(many, True),
        )
        window = Window(
            since_s=since_s,
            until_s=now_s,
            arrival_s=np.linspace(since_s, now_s, arrivals, endpoint=False),
            prompt_tokens=np.full(arrivals, 100),
            ended=went,
            arrivals=arrivals,
            endings=endings,
            fits=fits,
        )
        await self.windows.publish(Published(router, window))

    def metric(self, name: str, **labels: str) -> float | None:
        return self.figures.registry.get_sample_value(name, {"model": self.model, **labels})
