"""The autoscaler's loop in virtual time: views become Observations, Decisions become starts, drains and switches of simulated workers.

Give a Setup `make_controller=lambda: Autoscaled(...)`: `penstock simulate --autoscale` and the benchmarks do. It decides nothing but which
replica leaves: the one with the least to lose. A pool here is all workers of one role.
"""

from collections.abc import Callable, Sequence

import msgspec
from penstock_autoscaler.decision import Decision
from penstock_autoscaler.fits import Fits
from penstock_autoscaler.observation import Observation, Phase, Pool, Replica, Target
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.split import least_to_lose
from penstock_core.endpoint import Role
from penstock_core.profile_fit import PoolFit
from penstock_core.slo import Attainment
from penstock_core.traffic import Window

from penstock_simulator.changes import Change, Drain, Start, Switch, View, WorkerView


class Tick(msgspec.Struct, frozen=True):
    """One decision, and the fleet it was made for."""

    decision: Decision
    replicas: dict[str, int]
    """By pool and phase, e.g. `both ready`."""
    arrivals: int
    attainment: Attainment
    """Of the requests that ended since the last one."""
    fits: dict[str, PoolFit] = {}
    """Pools that were sized by what routers measured."""


class Autoscaled:
    """State: pools with what was last asked for, what routers said of engines, when each worker was, who is on the way to another role,
    and what was decided so far."""

    def __init__(
        self,
        brain: Scaler,
        target: Target,
        pools: Sequence[Pool],
        period_s: float,
        start_s: Callable[[int], float] | None = None,
        seen: Callable[[Observation], Observation] = lambda one: one,
    ) -> None:
        """`start_s`: how long the n-th started replica really takes; None: what its pool says. `seen` may spoil what the brain sees."""
        self.period_s = period_s
        self.ticks: list[Tick] = []
        self._brain, self._target, self._start_s, self._seen = brain, target, start_s, seen
        self._fits = Fits()
        self._pools = {pool.role: pool for pool in pools}
        self._asked_s: dict[str, float] = {}
        self._switching: dict[str, Role] = {}
        self._started = 0

    def tick(self, view: View) -> Sequence[Change]:
        """As Controller says."""
        replicas = tuple(self._replica(one, view.now_s) for one in view.workers)
        seen = self._seen(
            Observation(now_s=view.now_s, target=self._target, pools=tuple(self._pools.values()), replicas=replicas, traffic=view.traffic)
        )
        if seen.traffic is not None:
            self._fits.hear(seen.traffic)
        seen = msgspec.structs.replace(seen, pools=self._fits.corrected(seen.pools, seen.now_s))
        decision = self._brain.step(seen)
        fits = {pool.name: pool.fit for pool in seen.pools if pool.fit is not None}
        self.ticks.append(Tick(decision, _count(replicas), view.traffic.arrivals, _attainment(view.traffic, self._target), fits))
        changes: list[Change] = [Drain(late) for late in decision.late]
        changes += [Switch(one.replica, one.role) for one in decision.switches]
        gone = {*decision.late, *(one.replica for one in decision.switches)}
        emptying = {one.id for one in replicas if one.phase is Phase.DRAINING}
        self._switching = {name: role for name, role in self._switching.items() if name in emptying}
        self._switching.update({one.replica: one.role for one in decision.switches})
        for role, pool in self._pools.items():
            arriving = sum(one is role for one in self._switching.values())
            staying = [one for one in replicas if one.pool == pool.name and one.phase is not Phase.DRAINING and one.id not in gone]
            changes += self._resize(pool, staying, decision.desired[pool.name] - arriving)
            self._pools[role] = msgspec.structs.replace(pool, desired=decision.desired[pool.name])
        return changes

    def _resize(self, pool: Pool, staying: list[Replica], wanted: int) -> list[Change]:
        if wanted <= len(staying):
            return [Drain(one.id) for one in sorted(staying, key=least_to_lose)[: len(staying) - wanted]]
        starts: list[Change] = []
        for _ in range(wanted - len(staying)):
            starts.append(Start(pool.role, pool.start_s if self._start_s is None else self._start_s(self._started)))
            self._started += 1
        return starts

    def _replica(self, one: WorkerView, now_s: float) -> Replica:
        asked_s = self._asked_s.setdefault(one.id, now_s - self.period_s if now_s > self.period_s else 0.0)
        return Replica(
            id=one.id,
            pool=self._pools[one.role].name,
            role=one.role,
            phase=one.phase,
            asked_s=asked_s,
            ready_s=None if one.phase is Phase.STARTING else one.ready_s,
            running=one.running,
            waiting=one.waiting,
            prefill_tokens=one.prefill_tokens,
            kv_used_tokens=one.kv_used_tokens,
            kv_tokens=one.kv_tokens,
        )


def _count(replicas: Sequence[Replica]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for one in replicas:
        name = f"{one.pool} {one.phase.value}"
        counts[name] = counts.get(name, 0) + 1
    return counts


def _attainment(traffic: Window, target: Target) -> Attainment:
    ended, slo = traffic.ended, target.slo
    ttft_met = ended.ok & (ended.ttft_s <= slo.ttft_s)
    itl_met = ended.ok & ~(ended.tpot_s > slo.itl_s)
    return Attainment(len(ended.ok), int(ttft_met.sum()), int(itl_met.sum()), int((ttft_met & itl_met).sum()))
