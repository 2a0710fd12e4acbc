"""The local fleet as the autoscaler sees and changes it. Implements the autoscaler's Actuator for `penstock up`.

It keeps to the pools and bounds that the command line names; pools without bounds are shown to the autoscaler with the size they have, and
stay so. What a decision says is shown by whoever listens to the loop.
"""

import time
from collections.abc import Mapping

from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Phase, Pool, Replica, Start, Target
from penstock_autoscaler.ports import Fleet as Seen
from penstock_autoscaler.ports import ScaleFailed
from penstock_autoscaler.starts import start_of
from penstock_core.profile import EngineProfile
from penstock_worker.config import WorkerConfig
from penstock_worker.fleet import Fleet, FleetWorker
from penstock_worker.fleet_plan import Phase as WorkerPhase

from penstock_cli.scaled_pools import Bounds

_MOST_SPEED = 100.0
_PHASES = {
    WorkerPhase.STARTING: Phase.STARTING,
    WorkerPhase.DEAD: Phase.STARTING,  # it is started anew, and paid for
    WorkerPhase.READY: Phase.READY,
    WorkerPhase.SWITCHING: Phase.DRAINING,
    WorkerPhase.DRAINING: Phase.DRAINING,
    WorkerPhase.DRAINED: Phase.DRAINING,
}


class FleetActuator:
    """State: none of its own; everything is the fleet's."""

    def __init__(self, fleet: Fleet, pools: Mapping[str, WorkerConfig], bounds: Mapping[str, Bounds], target: Target) -> None:
        self._fleet = fleet
        self._pools = dict(pools)
        self._bounds = dict(bounds)
        self._target = target

    async def look(self, now_s: float) -> Seen:
        later_s = now_s - time.monotonic()
        return Seen(
            target=self._target,
            pools=tuple(self._pool(name, config) for name, config in self._pools.items()),
            replicas=tuple(self._replica(worker, later_s) for worker in self._fleet.status()),
        )

    async def carry_out(self, decision: Decision) -> None:
        for one in decision.switches:
            try:
                self._fleet.switch(one.replica, one.pool)
            except ValueError as error:
                raise ScaleFailed(str(error)) from None
        for pool, replicas in decision.desired.items():
            bounds = self._bounds.get(pool)
            if bounds is None:
                continue
            if not bounds.least <= replicas <= bounds.most:
                raise ScaleFailed(f"desired of {pool} is {replicas}; allowed: {bounds.least}..{bounds.most}")
            self._fleet.scale(pool, replicas)
        for worker in decision.late:
            self._fleet.restart(worker)

    async def show(self, decision: Decision) -> None:
        """The loop's listener shows it."""

    def _pool(self, name: str, config: WorkerConfig) -> Pool:
        desired = self._fleet.desired[name]
        bounds = self._bounds.get(name, Bounds(desired, desired))
        profile = effective_profile(config)
        return Pool(
            name=name,
            role=config.role,
            desired=desired,
            min_replicas=bounds.least,
            max_replicas=bounds.most,
            profile=profile,
            start_s=profile.start_s,
            can_switch=config.engine == "sim",
        )

    def _replica(self, worker: FleetWorker, later_s: float) -> Replica:
        load = worker.state.load if worker.state is not None else None
        pool = worker.pool
        if worker.phase is WorkerPhase.SWITCHING and worker.state is not None and worker.state.pool in self._pools:
            pool = worker.state.pool  # it still serves there
        return Replica(
            id=worker.id,
            pool=pool,
            role=self._pools[pool].role,
            phase=_PHASES[worker.phase],
            asked_s=worker.asked_s + later_s,
            ready_s=worker.ready_s + later_s if worker.ready_s is not None else None,
            start=_start(worker),
            running=load.running if load is not None else 0,
            waiting=load.waiting if load is not None else 0,
            prefill_tokens=load.prefill_tokens if load is not None else 0,
            kv_used_tokens=load.kv_used_tokens if load is not None else 0,
            kv_tokens=load.kv_total_tokens if load is not None else 0,
        )


def _start(worker: FleetWorker) -> Start | None:
    """Nothing is scheduled or pulled on one machine: the worker's own phases, and what it took to start and to see it."""
    own = worker.state.start_up if worker.state is not None else None
    if worker.ready_s is None or own is None:
        return None
    return start_of(f"{worker.id} {own.began_s:.3f}", worker.ready_s - worker.asked_s, own=own)


def effective_profile(config: WorkerConfig) -> EngineProfile:
    """How fast a worker of these settings computes: its profile, for the sim engine at its speed (up to 100 times)."""
    profile = config.timing()
    if config.engine != "sim" or config.speed == 1.0:
        return profile
    return profile.at_speed(min(_MOST_SPEED, config.speed))
