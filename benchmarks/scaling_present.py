"""What a scaler could reach that knows the present exactly and of the future nothing: the ceiling beside the bars of `scaling`.

At the moment the rate changes it asks for the size that the clairvoyant's table gives for that part of the scene, and for a standing
reserve: so many replicas more, or at least so many. Starts and drains are paid as everybody's. A scaler has to learn of the change first.
"""

from collections.abc import Callable, Sequence

import numpy as np
from penstock_autoscaler.observation import Phase
from penstock_core.endpoint import Role
from penstock_simulator.changes import Change, Drain, Start, View

from benchmarks.scaling_clairvoyant import Search, parts_of
from benchmarks.scaling_runs import PRESENT, Run, whole
from benchmarks.scaling_scenes import SCENES, arrivals_by, step_changes

RESERVES = (0, 1, 2)
LEASTS = (5, 7)
NAMES = {
    **{f"the present, {many} more": f"{PRESENT}more_{many}" for many in RESERVES},
    **{f"the present, at least {many}": f"{PRESENT}least_{many}" for many in LEASTS},
}
"""Scalers by how they are called beside a bar."""


class Present:
    """State: none; the plan is (moment of change, size) in order."""

    period_s = 1.0

    def __init__(self, plan: Sequence[tuple[float, int]], start_s: float) -> None:
        self._plan, self._start_s = plan, start_s

    def tick(self, view: View) -> Sequence[Change]:
        wanted = [size for at_s, size in self._plan if at_s <= view.now_s][-1]
        there = [one for one in view.workers if one.phase is not Phase.DRAINING]
        if wanted > len(there):
            return [Start(Role.BOTH, self._start_s)] * (wanted - len(there))
        leaving = sorted(there, key=lambda one: (one.phase is Phase.READY, one.running + one.waiting))
        return [Drain(one.id) for one in leaving[: len(there) - wanted]]


def plan(run: Run, reserve: int = 0, least: int = 1) -> list[tuple[float, int]]:
    """(moment of change, size for what comes from then on)."""
    scene = SCENES[run.scene]
    parts = parts_of(Search(run.scene, run.seed, run.start_s, run.goal_ratio, run.line))
    changes = step_changes() if run.scene == "step" else tuple(parts.cuts.tolist())
    arrivals = np.bincount(arrivals_by(whole(run.scene, run.seed), parts.cuts.tolist()), minlength=len(parts.cuts))
    stage = np.searchsorted(changes, parts.cuts + parts.lengths_s / 2.0, side="right") - 1
    made = []
    for number, at_s in enumerate(changes):
        here = stage == number
        met = parts.misses[here].sum(axis=0) <= (1.0 - run.goal_ratio) * arrivals[here].sum()
        size = parts.sizes[int(met.argmax())] if met.any() else parts.sizes[-1]
        made.append((at_s, min(scene.sizes[-1], max(least, size + reserve))))
    return made


def _factory(reserve: int, least: int) -> Callable[[Run], Present]:
    return lambda run: Present(plan(run, reserve, least), run.start_s)


more_0, more_1, more_2 = (_factory(many, 1) for many in RESERVES)
least_5, least_7 = (_factory(0, many) for many in LEASTS)
