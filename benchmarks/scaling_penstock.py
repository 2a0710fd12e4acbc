"""Penstock's own autoscaler as the `scaling` benchmarks run it: the production brain, asking the simulator's what-if.

`scaling_watch` finds `make` by the name `penstock`.
"""

from collections.abc import Sequence

import msgspec
from penstock_autoscaler.observation import Observation, Pool, Target
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.endpoint import Role
from penstock_simulator.autoscaled import Autoscaled
from penstock_simulator.what_if import Replayed

from benchmarks.scaling_runs import Run
from benchmarks.scaling_scenes import SCENES

REPLAY_BUDGET_S = 30.0
"""So that figures are the same on a busy machine. On an idle one decisions seldom take the second that production gives them."""


class Penstock(Autoscaled):
    """Says its decisions."""

    @property
    def said(self) -> Sequence[str]:
        return [f"{one.decision.at_s:.0f} s, {one.decision.reason}: {one.decision.message}" for one in self.ticks]


def make(run: Run, settings: ScalerSettings | None = None) -> Penstock:
    """The Controller for a run: pools of the roles it begins with, as wide as the scene's sizes."""
    scene = SCENES[run.scene]
    settings = settings or ScalerSettings(replay_budget_s=REPLAY_BUDGET_S)
    profile = scene.profile if run.declared_speed == 1.0 else scene.profile.at_speed(run.declared_speed)
    sizes = {Role.BOTH: run.size.both, Role.PREFILL: run.size.prefill, Role.DECODE: run.size.decode}
    pools = [
        Pool(
            name=role.value,
            role=role,
            desired=size,
            min_replicas=1,
            max_replicas=scene.sizes[-1],
            profile=profile,
            start_s=run.start_s,
            can_switch=role is not Role.BOTH,
        )
        for role, size in sizes.items()
        if size
    ]
    lost_s = run.faults.lost_s

    def seen(one: Observation) -> Observation:
        lost = lost_s is not None and lost_s[0] <= one.now_s < lost_s[1]
        return msgspec.structs.replace(one, traffic=None) if lost else one

    target = Target(slo=scene.slo, attainment_ratio=run.goal_ratio)
    return Penstock(Scaler(settings, Replayed(turn_order=scene.turn_order)), target, pools, settings.period_s, seen=seen)
