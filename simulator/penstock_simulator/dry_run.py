"""The autoscaler over a recorded or made-up workload, from the first request to the last: what it would have done, and what that is worth.

`penstock plan --trace` and `penstock simulate --autoscale` show it. It puts together the production brain, the simulator's what-if and a
simulated fleet; the loop in virtual time is `autoscaled`.
"""

from collections.abc import Mapping, Sequence

import msgspec
import numpy as np
from penstock_autoscaler.decision import Decision
from penstock_autoscaler.observation import Pool, Target
from penstock_autoscaler.scaler import Scaler
from penstock_autoscaler.settings import ScalerSettings
from penstock_core.endpoint import Role
from penstock_core.profile import EngineProfile

from penstock_simulator.autoscaled import Autoscaled, Tick
from penstock_simulator.cluster import Progress, replay
from penstock_simulator.report import Summary, request_tpot_s, request_ttft_s, summarise
from penstock_simulator.setup import Replay, Setup, same_workers
from penstock_simulator.what_if import Replayed
from penstock_simulator.workload import Workload

_MINUTE_S = 60.0
AMPLE_REPLAYS_S = 30.0
"""CPU seconds: more than any decision's replays took."""


class Asked(msgspec.Struct, frozen=True, kw_only=True):
    """What the fleet is, and what may be done with it."""

    profile: EngineProfile
    target: Target
    first: Mapping[Role, int]
    """Replicas to begin with, by role; only these roles are scaled."""
    least: int = 1
    most: int = 16
    """Replicas of one role."""
    start_s: float
    accelerators: int = 1
    """Of one replica."""
    seed: int = 0
    settings: ScalerSettings = ScalerSettings(replay_budget_s=AMPLE_REPLAYS_S)
    """With as many replays as a decision asks for: how busy the machine is does not change what is found."""

    def __post_init__(self) -> None:
        outside = {role.value: size for role, size in self.first.items() if not self.least <= size <= self.most}
        if outside:
            raise ValueError(f"replicas to begin with are {outside}; allowed: {self.least}..{self.most}, --min to --max")
        if not 0.0 <= self.start_s < 86_400.0:
            raise ValueError(f"start_s is {self.start_s!r}; allowed: 0 to 86400 seconds")


class DryRun(msgspec.Struct, frozen=True, kw_only=True):
    """What happened."""

    summary: Summary
    ticks: tuple[Tick, ...]
    accelerator_hours: float
    """Starting and draining replicas included."""
    minutes: tuple["Minute", ...]


class Minute(msgspec.Struct, frozen=True, kw_only=True):
    """Of the requests that arrived in it."""

    at_s: float
    arrivals: int
    good: int


def autoscaled(asked: Asked, policy: str = "target-misses", turn_order: bool = True) -> Autoscaled:
    """The loop for one replay, with the production brain; `policy` and `turn_order` are those of the replay's router."""
    pools = [
        Pool(
            name=role.value,
            role=role,
            desired=size,
            min_replicas=asked.least,
            max_replicas=asked.most,
            profile=asked.profile,
            start_s=asked.start_s,
            accelerators=asked.accelerators,
            can_switch=role is not Role.BOTH,
        )
        for role, size in asked.first.items()
        if size
    ]
    brain = Scaler(asked.settings, Replayed(policy, turn_order=turn_order))
    return Autoscaled(brain, asked.target, pools, asked.settings.period_s)


def spare_workers(asked: Asked) -> int:
    """Places for the replays' Setup: replicas that drain still take one while others are started in their stead."""
    return 2 * asked.most * sum(1 for size in asked.first.values() if size)


def dry_run(workload: Workload, asked: Asked, progress: Progress | None = None) -> DryRun:
    """Replays the workload with the autoscaler at work. Raises ValueError for what cannot be simulated."""
    loop = autoscaled(asked)
    sizes = {role: asked.first.get(role, 0) for role in Role}
    setup = Setup(
        workers=same_workers(sizes[Role.BOTH], prefill=sizes[Role.PREFILL], decode=sizes[Role.DECODE], profile=asked.profile),
        slo=asked.target.slo,
        seed=asked.seed,
        make_controller=lambda: loop,
        spare_workers=spare_workers(asked),
    )
    done = replay(workload, setup, progress)
    summary = summarise(done)
    hours = asked.accelerators * summary.worker_s / 3_600.0
    return DryRun(summary=summary, ticks=tuple(loop.ticks), accelerator_hours=hours, minutes=_minutes(done))


def changes(ticks: Sequence[Tick]) -> list[Decision]:
    """The first decision, and each one that asks for other sizes than the one before."""
    found: list[Decision] = []
    for tick in ticks:
        if not found or tick.decision.desired != found[-1].desired:
            found.append(tick.decision)
    return found


def _minutes(done: Replay) -> tuple[Minute, ...]:
    slo, ttft, tpot = done.setup.slo, request_ttft_s(done), request_tpot_s(done)
    served = np.array([one == "ok" for one in done.outcomes], bool)
    good = served & (ttft <= slo.ttft_s) & (np.isnan(tpot) | (tpot <= slo.itl_s))
    minutes = (done.arrival_s // _MINUTE_S).astype(np.int64)
    arrivals, goods = np.bincount(minutes), np.bincount(minutes, weights=good)
    return tuple(
        Minute(at_s=k * _MINUTE_S, arrivals=int(many), good=int(met)) for k, (many, met) in enumerate(zip(arrivals, goods, strict=True))
    )
