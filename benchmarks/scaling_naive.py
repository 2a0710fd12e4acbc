"""The scaler that everybody has: an HPA on requests per replica, with its usual stabilisation. What the `scaling` benchmarks compare with.

It aims at a fixed number of requests in flight a replica (known from the fixed sizes that meet the targets), reads it every 15 s, goes up
at once and comes down to the largest size wanted in the last five minutes. It knows nothing of start-up times, targets or forecasts.
"""

import math
from collections import deque
from collections.abc import Sequence

from penstock_autoscaler.observation import Phase
from penstock_core.endpoint import Role
from penstock_simulator.changes import Change, Drain, Start, View

from benchmarks.scaling_runs import Run
from benchmarks.scaling_scenes import SCENES

IN_FLIGHT = {"polynomial-reference": 8.0, "qwen3-32b-h100x2": 30.0}
"""Requests a replica, by profile."""
STABLE_S = 300.0


class Naive:
    """State: the sizes wanted lately."""

    period_s = 15.0

    def __init__(self, start_s: float, most: int, in_flight: float) -> None:
        self._start_s, self._most, self._in_flight = start_s, most, in_flight
        self._wanted: deque[int] = deque(maxlen=int(STABLE_S / self.period_s))

    def tick(self, view: View) -> Sequence[Change]:
        there = [one for one in view.workers if one.phase is not Phase.DRAINING]
        load = sum(one.running + one.waiting for one in view.workers)
        self._wanted.append(min(self._most, max(1, math.ceil(load / self._in_flight))))
        if self._wanted[-1] > len(there):
            return [Start(Role.BOTH, self._start_s)] * (self._wanted[-1] - len(there))
        surplus = len(there) - max(self._wanted)
        leaving = sorted(there, key=lambda one: (one.phase is Phase.READY, one.running + one.waiting))
        return [Drain(one.id) for one in leaving[: max(0, surplus)]]


def make(run: Run) -> Naive:
    scene = SCENES[run.scene]
    return Naive(run.start_s, scene.sizes[-1], IN_FLIGHT[scene.profile.name])
