"""A controller inside a replay: what it sees of the fleet every so often, and what it may change.

Whoever studies scaling gives a Setup a `make_controller`; the autoscaler's own loop fits behind it. The cluster tells what arrived and
ended, Membership makes the changes true: a worker asked for is paid at once and ready `start_s` later, one that leaves or changes its
role first ends what it has. No policy, no forecast, no decision here.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from penstock_autoscaler.observation import Phase
from penstock_core.errors import Outcome
from penstock_core.profile_fit import PoolFit
from penstock_core.traffic import FAILED, SHED, Ended, Window

from penstock_simulator import engine_model as engines
from penstock_simulator import fleet as fl
from penstock_simulator.changes import Change, Controller, Drain, Start, View, WorkerView
from penstock_simulator.clock import Clock
from penstock_simulator.membership import Membership
from penstock_simulator.workload import BLOCK_TOKENS, Workload


class Control:
    """State: requests that arrived and ended since the last tick. Everything else belongs to the cluster and is only read."""

    def __init__(
        self,
        controller: Controller,
        workload: Workload,
        fleet: fl.Fleet,
        members: Membership,
        clock: Clock,
        arrival_s: NDArray[np.float64],
        outcomes: Sequence[Outcome | None],
        fits: Callable[[], tuple[PoolFit, ...]],
    ) -> None:
        """`fits`: what the routers have learned of engines."""
        self._controller, self._workload, self._fleet, self._members, self._clock = controller, workload, fleet, members, clock
        self._arrival_s, self._outcomes, self._fits = arrival_s, outcomes, fits
        self.arrived: list[int] = []
        self.ended: list[int] = []
        self._since_s = 0.0
        self._loads = np.zeros((len(members.specs), 4), np.int64)
        if not controller.period_s > 0.0:
            raise ValueError(f"period_s of the controller is {controller.period_s!r}; allowed: more than 0")
        clock.at(controller.period_s, self._tick)

    def _tick(self, now: float) -> None:
        view = self._view(now)
        self.arrived, self.ended, self._since_s = [], [], now
        for change in self._controller.tick(view):
            self._make(change, now)
        self._clock.at(now + self._controller.period_s, self._tick)

    def _make(self, change: Change, now: float) -> None:
        if isinstance(change, Start):
            w = self._members.start(change.role, change.start_s, now)
            fl.reset_worker(self._fleet, w, self._members.specs[w].profile)
        elif isinstance(change, Drain):
            self._members.drain(self._members.known(change.worker), now)
        else:
            self._members.switch(self._members.known(change.worker), change.role, now)

    def _view(self, now: float) -> View:
        engines.measure(self._fleet, self._loads)
        arrived = np.array(self.arrived, np.int64)
        outcomes = [self._outcomes[request] for request in self.ended]
        traffic = Window(
            since_s=self._since_s,
            until_s=now,
            arrival_s=self._arrival_s[arrived],
            prompt_tokens=self._workload.prompt_tokens[arrived],
            ended=self._ended(np.array(self.ended, np.int64)),
            arrivals=len(arrived),
            endings=len(outcomes),
            shed=sum(one in SHED for one in outcomes),
            failed=sum(one in FAILED for one in outcomes),
            fits=self._fits(),
        )
        return View(traffic=traffic, workers=tuple(self._worker(w) for w in self._members.there()))

    def _worker(self, w: int) -> WorkerView:
        members, (running, waiting, tokens, used) = self._members, self._loads[w].tolist()
        spec = members.specs[w]
        phase = Phase.STARTING if w not in members.live else Phase.DRAINING if w in members.draining else Phase.READY
        return WorkerView(
            id=spec.id,
            role=spec.role,
            phase=phase,
            ready_s=spec.ready_s,
            running=running,
            waiting=waiting,
            prefill_tokens=tokens,
            kv_used_tokens=used * BLOCK_TOKENS,
            kv_tokens=spec.profile.kv_tokens,
        )

    def _ended(self, requests: NDArray[np.int64]) -> Ended:
        many, (first, last) = self._workload.requests, self._fleet.times[requests].T
        gaps = self._workload.output_tokens[requests] - 1
        ok = np.array([self._outcomes[request] is Outcome.OK for request in requests.tolist()], bool)
        hits = self._fleet.legs[requests, fl.HIT]
        if len(self._fleet.legs) > many:
            elsewhere = ~np.isnan(self._fleet.times[many + requests, fl.FIRST_S])
            hits = np.where(elsewhere, self._fleet.legs[many + requests, fl.HIT], hits)
        with np.errstate(divide="ignore", invalid="ignore"):
            tpot = np.where(ok & (gaps > 0), (last - first) / gaps, np.nan)
        return Ended(
            arrival_s=self._arrival_s[requests],
            prompt_tokens=self._workload.prompt_tokens[requests],
            hit_tokens=hits,
            output_tokens=self._workload.output_tokens[requests],
            ttft_s=first - self._arrival_s[requests],
            tpot_s=tpot,
            ok=ok,
        )
